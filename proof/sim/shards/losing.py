"""What `needle recover` makes of a node whose cluster is gone: copies of directories, as a crash at some instant of the
run would leave them, each made a cluster of its own in the end, by the command's own code.

The recovery is broken off at some of its steps, and goes on. Checked, of each shard that it keeps: what is there is
what the shard's log says at the place up to which the directory had that log, but for documents that entries behind it
write, which nobody may have committed; and of all that was acknowledged before the crash, whatever the directory lacks
is behind the index that the new cluster tells of. What is refused is counted.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from needle.base.errors import InvalidArgument
from needle.base.ids import CATALOG_GROUP, GroupId, shard_group
from needle.multiraft.log.wal_store import WalStore
from needle.protocol.commands import ChangeWhere, DropCollection, Expire, LoadRows, decode_logged, inner
from needle.protocol.move_commands import MoveCommand
from needle.raft.messages import Entry, EntryKind
from needle.routing.ranges import KeySet
from needle.routing.topology import Topology
from needle.server.adapters import ReplicaMachine
from needle.server.cluster_files import load_topology
from needle.server.files import NODE_FILE, SHARDED, NodeFile, log_directory, replace_file
from needle.server.recovery.directory import READ_BYTES, StoppedNode
from needle.server.recovery.plan import Survey, plan_of
from needle.server.recovery.recover import STEPS, begin, carry_out, load_plan, survey
from needle.server.summed import json_with_sum
from proof.checkers.copies import Copied, Copy, Logs, check_copy
from proof.checkers.history import History
from proof.checkers.violation import Violation
from proof.sim.machine import WALL_EPOCH, stream
from proof.sim.shards.truth import Truth
from proof.sim.stage import Stage

NAME: Final = "losing"
RULE: Final = "what is recovered"
COPIES: Final = 2
BROKEN_OFF_SHARE: Final = 0.2
WIDE: Final = (ChangeWhere, DropCollection, Expire, LoadRows, MoveCommand)
"""Commands that do not say which documents they change."""


class Left(NamedTuple):
    """What is left of a node. at: when, in seconds of the run."""

    node: str
    directory: Path
    log: dict[bytes, bytes]
    at: float


class _BrokenOff(Exception):
    """The command is killed."""


class Losing:
    """See the module. broken: None; `judge` raises what it finds."""

    def __init__(self, stage: Stage, truth: Truth) -> None:
        self._stage, self._truth = stage, truth
        self._rng = stream(stage.spec.seed, NAME)
        stage.client_process(NAME)
        self._left: list[Left] = []
        self.stopping = False
        self.broken: Violation | None = None
        self.recovered = self.refused = 0

    async def run(self) -> None:
        """Copy directories, at instants that are drawn. Until `stopping`."""
        for at in sorted(self._rng.uniform(0, self._stage.spec.seconds) for _ in range(COPIES)):
            await asyncio.sleep(max(0.0, at - self._stage.loop.time()))
            if not self.stopping:
                self._copy()

    def _copy(self) -> None:
        """Of one of the nodes whose disks never lost anything; whether it runs, leads or lags is all the same."""
        fleet = self._stage.fleet
        bad = fleet.observer.rotten | fleet.spoilt | fleet.forgetful | fleet.retired
        good = [name for name in sorted(fleet.machines) if name not in bad and not fleet.machines[name].is_empty()]
        if not good:
            return
        name = self._rng.choice(good)
        machine = fleet.machines[name]
        where = Path(self._stage.scratch) / NAME / str(len(self._left))
        self._stage.loop.excused(shutil.copytree, os.path.realpath(machine.data_dir), where)
        self._left.append(Left(name, where, dict(machine.log_disk.live.values), self._stage.loop.time()))
        self._stage.trace.tell(f"{name} is copied, as if it were all that is left")

    # --- in the end ---------------------------------------------------------------------------------------------------
    def judge(self, history: History) -> None:
        """Recover each of them. Raises Violation."""
        for left in self._left:
            _lay_down(left)
            logs = _logs_of(left)
            found = survey(str(left.directory))
            made = self._recover(left, found)
            if made is not None:
                self._check(left, made, logs, history, {one.group for one in found.found if one.why})
        self._stage.trace.tell(f"{self.recovered} of {len(self._left)} directories recovered, {self.refused} refused")

    def _recover(self, left: Left, found: Survey) -> Topology | None:
        """None: it is refused."""
        directory = str(left.directory)
        try:
            found.check()
        except InvalidArgument as error:
            self._stage.trace.note(f"{left.node} is not recovered: {error.message}")
            self.refused += 1
            return None
        at = int((WALL_EPOCH + left.at) * 1e6)
        begin(directory, plan_of(found, "", at, [self._rng.getrandbits(61) for _ in range(4)]))

        def failpoint(step: str) -> None:
            if step in STEPS and self._rng.random() < BROKEN_OFF_SHARE:
                raise _BrokenOff(step)

        while (plan := load_plan(directory)) is not None:
            try:
                carry_out(directory, plan, failpoint)
            except _BrokenOff as error:
                self._stage.trace.note(f"the recovery of {left.node} is broken off at {error}")
        self.recovered += 1
        return load_topology(directory)

    def _check(
        self, left: Left, made: Topology, logs: Mapping[GroupId, list[Entry]], history: History, told_of: set[GroupId]
    ) -> None:
        """told_of: groups of which the survey tells that documents are lost."""
        note, label = made.recovered[-1], f"{left.node}, recovered as of {left.at:.3f} s"
        with StoppedNode(str(left.directory), left.node) as node:
            for shard, told in sorted(note.kept.items()):
                group = shard_group(shard)
                common, tail = self._parted(group, logs.get(group, []), told)
                self._check_lost(left, label, history, shard, told, common)
                machine = node.machine(group)
                if not isinstance(machine, ReplicaMachine):
                    raise Violation(RULE, f"{label}: shard {shard} has no replica")
                if group not in told_of:
                    self._check_documents(f"{label}, shard {shard}", shard, machine, common, tail)

    def _parted(self, group: GroupId, entries: list[Entry], told: int) -> tuple[int, list[Entry]]:
        """The last index up to which a log is what was committed, and what it has behind."""
        true = self._stage.observer.committed.log(group)
        for at, one in enumerate(entries):
            known = true.get(one.index)
            if known is None or known.term != one.term:
                return one.index - 1, entries[at:]
        return (entries[-1].index if entries else told), []

    def _check_lost(self, left: Left, label: str, history: History, shard: int, told: int, common: int) -> None:
        for op in history.operations:
            known = op.index and op.outcome == "ok" and op.returned_time < left.at and common < op.index <= told
            if known and op.kind not in ("get", "search") and self._truth.wrote(op.key, op.index) == shard_group(shard):
                raise Violation(
                    RULE,
                    f"{label}: #{op.id} of {op.key} was acknowledged at index {op.index} of shard {shard} and is "
                    f"missing; it tells of what is behind {told}",
                )

    def _check_documents(self, label: str, shard: int, machine: ReplicaMachine, common: int, tail: list[Entry]) -> None:
        truth, commands = self._truth, [inner(decode_logged(one.data)) for one in tail if _is_command(one)]
        if any(isinstance(command, WIDE) for command in commands):
            return
        loose = {name for command in commands for name in getattr(command, "ids", ())}
        owned = truth.logs.owned(shard, common)
        mine = KeySet(owned)
        for held in list(machine.replica.view.named()):
            spec = held.record.spec
            models = {shard: truth.models_of(spec.name)[shard]}
            logs = Logs(models, truth.key, lambda _, __: owned, lambda _, __, ___: None)
            copy = Copy(label=f"{label}, {spec.name}", cuts={shard: common}, documents=list(_documents(machine, held)))
            check_copy(logs, copy, lambda name: name not in loose and truth.key(name) in mine)


def _is_command(one: Entry) -> bool:
    return one.kind == EntryKind.NORMAL and bool(one.data)


def _lay_down(left: Left) -> None:
    """The log, and whose directory it is, as files: in the run they are in memory."""
    directory = str(left.directory)
    os.makedirs(log_directory(directory), exist_ok=True)
    store = WalStore(log_directory(directory), salt=lambda: 1)

    def fill(txn: Any) -> None:
        for key, value in left.log.items():
            txn.put(key, value)

    store.commit(fill, True)
    store.close()
    mine = NodeFile(node_id=left.node, cluster_id="sim", kind=SHARDED)
    replace_file(os.path.join(directory, NODE_FILE), json_with_sum(mine))


def _logs_of(left: Left) -> dict[GroupId, list[Entry]]:
    """What it has of each shard's log."""
    found: dict[GroupId, list[Entry]] = {}
    with StoppedNode(str(left.directory), left.node) as node:
        for group in node._logs.groups():
            if group != CATALOG_GROUP:
                log = node._logs.group(group)
                low, end = log.first_index(), log.last_index() + 1
                found[group] = []
                while low < end:
                    found[group] += log.entries(low, end, READ_BYTES)
                    low = found[group][-1].index + 1
    return found


def _documents(machine: ReplicaMachine, held: Any) -> Iterator[Copied]:
    """What is stored of a collection, and not hidden."""
    store, record = machine.replica.view.store, held.record
    rows = [seen.document for seen in store.scan(record.id, "") if seen.document is not None]
    vectors = store.by_ordinal(record.id, [row.ordinal for row in rows], metadata=False, vectors=True)
    for row in rows:
        vector = np.frombuffer(record.spec.form.given(vectors[row.ordinal].vector), "<f4")
        metadata = msgspec.json.decode(row.metadata) if row.metadata else None
        yield Copied(row.id, vector, metadata, row.expires)
