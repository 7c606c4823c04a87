"""Opening a group: make log and state machine agree again after whatever happened, before Raft sees them.

Why a replica with a corrupt log may go on (and how). It may have acknowledged entries that are now lost, so that a
quorum counts it for entries it does not hold. Let t be the term in its intact HardState: all it ever acknowledged or
voted for was in terms <= t. It drops the log from the first bad entry on, moves to term t + 1 without a vote, and
until the repair is over neither votes, pre-votes nor campaigns (`Group.may_vote`).
 1. It takes entries only from leaders of terms > t, who start it at match 0: no stale match of it survives.
 2. Every vote quorum of such a leader excludes it, so it meets the quorum of each entry committed with its lost
    acknowledgement in another replica, which holds the entry. So the leader holds every such entry.
 3. Once its last entry's term is > t, its log is, up to there, that leader's log, hence holds every entry committed
    in terms <= t. It lacks nothing it ever acknowledged, and may vote again. Each new leader appends a no-op of its
    term, so this comes about without client writes.
If HardState itself is corrupt, t is unknown and the node refuses to start (log_store.py).

Invariant: what is on disk after each step is a state this module can be started on again.
It must not know the Raft core.
"""

from __future__ import annotations

import logging

import msgspec

from needle.base.errors import CorruptLog, CorruptSnapshot, NeedleError
from needle.base.events import LOG_DAMAGED, LOG_REPAIRED, tell
from needle.base.file_errors import SHORTAGES
from needle.base.ids import GroupId, NodeId, group_name
from needle.multiraft.codec import decode_conf, decode_manifest, encode_conf
from needle.multiraft.failpoints import Failpoint
from needle.multiraft.files import Files
from needle.multiraft.log.group_log import GroupLog, LogWrite
from needle.multiraft.log.log_records import RepairRecord, StartRecord
from needle.multiraft.log.log_store import LogStore
from needle.multiraft.ports import Applied, StateMachine
from needle.raft.messages import ConfState, HardState

_log = logging.getLogger("needle.multiraft")
BOOTSTRAP_AT = StartRecord(1, 1)
REMEDY = "remove this node from the cluster, delete its data directory and add it again under a new node id"


class Opened(msgspec.Struct, frozen=True):
    """What the Raft core is started with."""

    hard_state: HardState
    conf: ConfState
    applied: int


class Opener:
    """Opens one group of a node."""

    def __init__(
        self,
        store: LogStore,
        group: GroupId,
        machine: StateMachine,
        node_id: NodeId,
        files: Files,
        failpoint: Failpoint,
    ) -> None:
        self._store = store
        self._log: GroupLog = store.group(group)
        self._machine = machine
        self._node_id = node_id
        self._files = files
        self._failpoint = failpoint

    def open(self, voters: tuple[NodeId, ...]) -> Opened:
        """Continue the group, or bootstrap it with these voters (none: it waits for a leader's snapshot).

        Raises CorruptLog if what is lost cannot be had from peers safely; the message names a remedy.
        """
        opened, log = self._opened(voters), self._log
        if log.given_up:  # it is here again: what is lost from now on is lost
            self._write(LogWrite(log=log, bootstrap=log.bootstrap))
        return opened

    def _opened(self, voters: tuple[NodeId, ...]) -> Opened:
        log, machine = self._log, self._machine
        if log.hard_state is None:
            self._bootstrap(voters)
        if log.pending is not None:
            self._finish_install()
        try:
            if machine.damage is None:
                return self._open_whole()
        except NeedleError:
            if machine.damage is None:
                raise
        return self._damaged(machine.damage)

    def _open_whole(self) -> Opened:
        log, machine = self._log, self._machine
        founded = log.start == BOOTSTRAP_AT and log.bootstrap is not None and bool(log.bootstrap.voters)
        if machine.applied_index() == 0 and founded and log.bootstrap is not None:
            machine.apply([Applied(BOOTSTRAP_AT.index, BOOTSTRAP_AT.term, b"", encode_conf(log.bootstrap))])
            self._failpoint("bootstrap.after_apply")
        self._mend()
        hard_state = log.hard_state
        if hard_state is None:
            raise CorruptLog(f"{group_name(log.group)} has no HardState after it was opened", group=log.group)
        applied = machine.applied_index()
        commit = min(max(hard_state.commit, applied), log.last_index())
        return Opened(HardState(hard_state.term, hard_state.vote, commit), self._conf(), applied)

    def _damaged(self, damage: NeedleError | None) -> Opened:
        """The state is damaged (rebuild.py), the log is not, or it is mended as if there were no state."""
        log = self._log
        if log.damage is not None:
            self._lose(log.damage.first_bad, log.damage.last_seen, f"{log.damage.reason}, and {damage}")
        hard_state = log.hard_state
        if hard_state is None:
            raise CorruptLog(f"{group_name(log.group)} has no HardState after it was opened", group=log.group)
        commit = min(max(hard_state.commit, log.start.index), log.last_index())
        return Opened(HardState(hard_state.term, hard_state.vote, commit), self._conf(), log.start.index)

    def _conf(self) -> ConfState:
        stored = self._machine.conf()
        return decode_conf(stored) if stored else self._log.bootstrap or ConfState()

    def _write(self, write: LogWrite) -> None:
        self._store.write([write])
        self._store.note([write])

    # --- a new group ------------------------------------------------------------------------------------------------
    def _bootstrap(self, voters: tuple[NodeId, ...]) -> None:
        """The initial configuration counts as entry (1, 1), already compacted: so whoever joins later cannot start
        from the log alone, and gets the configuration with its first snapshot."""
        log, applied = self._log, self._machine.applied_index()
        if self._machine.damage is not None:
            raise CorruptLog(
                f"{group_name(log.group)}: the Raft log knows nothing of it, and {self._machine.damage.message}. "
                f"Remedy: {REMEDY}",
                group=log.group,
            )
        if applied > 0:
            raise CorruptLog(
                f"{group_name(log.group)}: the state machine has applied {applied} entries, but the Raft log knows "
                f"nothing of it: the log was lost, and with it this node's term and vote. Remedy: {REMEDY}",
                group=log.group,
                applied=applied,
            )
        if voters:
            conf = ConfState(voters=tuple(sorted(set(voters))))
            self._write(LogWrite(log=log, reset=BOOTSTRAP_AT, hard_state=HardState(1, "", 1), bootstrap=conf))
        else:
            self._write(LogWrite(log=log, hard_state=HardState(), bootstrap=ConfState()))
        self._failpoint("bootstrap.after_log")

    # --- a snapshot install that a crash interrupted ----------------------------------------------------------------
    def _finish_install(self) -> None:
        log, machine = self._log, self._machine
        pending, hard_state = log.pending, log.hard_state
        if pending is None or hard_state is None:
            return
        meta = pending.meta
        if machine.applied_index() < meta.index and self._intact(pending.directory, meta.descriptor):
            try:
                machine.install_snapshot(pending.directory)
            except (CorruptSnapshot, *SHORTAGES) as error:
                _log.warning("%s: a staged snapshot is refused by the state machine: %s", group_name(log.group), error)
        if machine.applied_index() >= meta.index:
            commit = max(hard_state.commit, meta.index)
            hard_state = HardState(max(hard_state.term, meta.term), hard_state.vote, commit)
            start = StartRecord(meta.index, meta.term)
            log.damage = None  # the whole log is replaced
            self._write(LogWrite(log=log, reset=start, hard_state=hard_state, pending=False))
        else:
            _log.warning("%s: an interrupted snapshot install is abandoned", group_name(log.group))
            self._write(LogWrite(log=log, pending=False))
        try:
            self._files.remove_tree(pending.directory)
        except SHORTAGES as error:
            _log.warning("%s: what was staged stays until the next snapshot: %s", group_name(log.group), error)

    def _intact(self, directory: str, descriptor: bytes) -> bool:
        try:
            for file in decode_manifest(descriptor).files:
                path = f"{directory}/{file.name}"
                if self._files.size(path) != file.size or self._files.checksum(path) != file.checksum:
                    return False
        except NeedleError as error:
            _log.warning("%s: a staged snapshot cannot be read: %s", group_name(self._log.group), error)
            return False
        return True

    # --- a log that lost entries, or a state machine that lost state ------------------------------------------------
    def _mend(self) -> None:
        log, machine = self._log, self._machine
        damage, applied = log.damage, machine.applied_index()
        if damage is not None and damage.last_bad <= applied and applied == machine.checkpoint():
            # The state machine durably holds all that the log lost.
            _log.warning(
                "%s: %s; the state machine has it, so the log goes on after it", group_name(log.group), damage.reason
            )
            log.shown(max(damage.last_seen, applied))
            log.damage = None
            self._write(LogWrite(log=log, compact=StartRecord(applied, machine.applied_term())))
        elif damage is not None:
            self._lose(damage.first_bad, damage.last_seen, damage.reason)
        elif applied > log.last_index():
            self._lose(log.last_index() + 1, applied, f"the log ends at {log.last_index()}, the state is at {applied}")
        elif log.given_up and applied == 0 < log.start.index:
            self._lose(1, log.last_index(), "this node had given it up, and has deleted its files", returned=True)
        elif applied < log.start.index:
            self._lose(
                applied + 1, log.last_index(), f"the log starts after {log.start.index}, the state is at {applied}"
            )

    def _lose(self, first_bad: int, lost_index: int, why: str, *, returned: bool = False) -> None:
        """Drop the log from first_bad on, and record that the replica must not vote. returned: as in RepairRecord; it
        may not vote either, but nobody has to be told of damage."""
        log, machine, hard_state = self._log, self._machine, self._log.hard_state
        name = group_name(log.group)
        error = CorruptLog(f"{name}: {why}", group=log.group, index=first_bad)
        conf = self._conf()
        if hard_state is None or {*conf.voters, *conf.voters_outgoing} == {self._node_id}:
            raise CorruptLog(f"{error.message}; no other replica has a copy. Remedy: restore a backup", **error.details)
        if returned:
            _log.info("%s: %s: this replica does not vote until it has fetched all of it again", name, why)
        else:
            tell(LOG_DAMAGED, group=name, why=why)
        applied, keep = machine.applied_index(), max(first_bad - 1, log.start.index)
        write = LogWrite(log=log)
        if log.start.index <= applied <= keep <= log.last_index():
            write.truncate_from = keep + 1
        else:
            keep = applied
            write.reset = StartRecord(applied, machine.applied_term())
        commit = max(applied, min(hard_state.commit, keep))
        write.hard_state = HardState(hard_state.term + 1, "", commit)
        write.repair = RepairRecord(hard_state.term, max(lost_index, log.last_index()), why, returned)
        self._failpoint("repair.before_commit")
        self._write(write)
        log.damage = None
        self._failpoint("repair.after_commit")


def repair_done(log: GroupLog) -> bool:
    """Whether a replica under repair may vote again: its last entry is of a later term than anything it lost."""
    return log.repair is not None and log.term(log.last_index()) > log.repair.lost_term


def tell_repaired(group: GroupId, repair: RepairRecord | None) -> None:
    """A repair is over."""
    if repair is not None and repair.returned:
        _log.info("%s: this replica has fetched all of it again, and votes", group_name(group))
    else:
        tell(LOG_REPAIRED, group=group_name(group))


def not_while_repairing(log: GroupLog) -> NeedleError:
    """The refusal to campaign."""
    reason = log.repair.reason if log.repair else ""
    return CorruptLog(
        f"{group_name(log.group)} is being repaired from its peers and cannot lead: {reason}", group=log.group
    )
