"""The data directory of a node that is stopped, opened as the node would open it: the log, the catalog, the replicas.

Invariant: what opening it changes is what a start would change. Blocking.
"""

from __future__ import annotations

import os
import secrets

from needle.base.config import Limits, SegmentConfig
from needle.base.errors import FileAwaited, Internal, StorageError
from needle.base.ids import CATALOG_GROUP, GroupId, NodeId, group_name, shard_group
from needle.catalog.machine import FILE_NAME, CatalogMachine
from needle.multiraft import offline
from needle.multiraft.failpoints import no_failpoint
from needle.multiraft.files import Files
from needle.multiraft.log.group_log import GroupLog
from needle.multiraft.log.log_store import LogStore
from needle.multiraft.log.wal_store import WalStore
from needle.multiraft.ports import Applied, StateMachine
from needle.multiraft.repair import Opened, Opener
from needle.protocol.upkeep_commands import LoadRows
from needle.raft.messages import Entry, EntryKind
from needle.routing.topology import Topology
from needle.server import files as data_dir
from needle.server.adapters import CatalogAdapter, ReplicaMachine
from needle.server.cluster_files import catalog_directory, load_topology
from needle.server.recovery.plan import Found, Survey
from needle.shard.apply.bulk import lacks_files
from needle.shard.apply.execute import decode_entry, takes_long
from needle.shard.disk import ReplicaDisk
from needle.shard.state_machine import Replica

READ_BYTES = 4 << 20


class StoppedNode:
    """See the module. Use `close`, or `with`."""

    def __init__(self, directory: str, node: NodeId) -> None:
        """Raises StorageError, CorruptLog."""
        self.directory = directory
        self.node = node
        self._machines: dict[GroupId, StateMachine] = {}
        self.store = WalStore(data_dir.log_directory(directory), salt=lambda: secrets.randbits(64))
        try:
            self.cluster_id = offline.owner(self.store).cluster_id
            self._logs = LogStore(
                self.store, node_id=node, cluster_id=self.cluster_id, draw=lambda: secrets.randbits(62)
            )
        except BaseException:
            self.store.close()
            raise

    def __enter__(self) -> StoppedNode:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        for machine in self._machines.values():
            machine.close()
        self._machines = {}
        self.store.close()

    def topology(self) -> Topology:
        """The newest that the directory knows: the catalog's replica may be behind what its node was told."""
        known = load_topology(self.directory)
        if os.path.exists(os.path.join(catalog_directory(self.directory), FILE_NAME)):
            held = self.catalog().topology
            return known if known.version > held.version else held
        return known

    def catalog(self) -> CatalogMachine:
        """The replica of the catalog; an empty one if there is none."""
        machine = self._machines.get(CATALOG_GROUP)
        if machine is None:
            machine = self._machines[CATALOG_GROUP] = CatalogAdapter(CatalogMachine(catalog_directory(self.directory)))
        if not isinstance(machine, CatalogAdapter):
            raise Internal("the catalog's machine is none")
        return machine.machine

    def machine(self, group: GroupId) -> StateMachine:
        """The state machine of a group."""
        if group == CATALOG_GROUP:
            self.catalog()
        elif group not in self._machines:
            where = data_dir.shard_directory(self.directory, group - 1)
            replica = Replica(where, limits=Limits(), segments=SegmentConfig(), disk=ReplicaDisk())
            self._machines[group] = ReplicaMachine(replica)
        return self._machines[group]

    # --- looking -----------------------------------------------------------------------------------------------------
    def survey(self) -> Survey:
        """What is there. Raises CorruptLog, StorageError."""
        topology, found, emptied = self.topology(), list[Found](), dict[int, str]()
        if CATALOG_GROUP in self._logs.groups():
            one = self._look(CATALOG_GROUP)
            if isinstance(one, Found):
                found.append(one)
        for info in topology.serving:
            group = shard_group(info.shard)
            one = self._look(group) if group in self._logs.groups() else "no replica is here"
            if isinstance(one, Found):
                found.append(one)
            else:
                emptied[info.shard] = one
        return Survey(
            node=self.node, cluster_id=self.cluster_id, topology=topology, found=tuple(found), emptied=emptied
        )

    def _look(self, group: GroupId) -> Found | str:
        """A replica; or why it cannot be gone on from."""
        machine, log = self.machine(group), self._logs.group(group)
        opened = self._opened(group)
        if machine.damage is not None:
            return f"its data is damaged: {machine.damage.message}"
        if not machine.applied_index() and not log.last_index():
            return "it has not received anything yet"
        whys = [log.lost.reason] if log.lost is not None else []
        if log.repair is not None:
            what = "it was not fetched again yet" if log.repair.returned else "its log lost entries"
            whys.append(f"{what}: {log.repair.reason}")
        whys += _loads_without_files(machine, log)
        state = opened.hard_state
        return Found(
            group=group,
            commit=state.commit,
            last=log.last_index(),
            term=state.term,
            voters=tuple(sorted({*opened.conf.voters, *opened.conf.voters_outgoing})),
            why="; ".join(whys),
        )

    def _opened(self, group: GroupId) -> Opened:
        """Log and state agree again after this, whatever happened before."""
        opener = Opener(self._logs, group, self.machine(group), self.node, Files(), no_failpoint)
        return opener.open(())

    # --- applying ----------------------------------------------------------------------------------------------------
    def apply_all(self, group: GroupId) -> None:
        """Have the state machine hold all that the log has, also what is not known to be on a majority: it may have
        been acknowledged. Durably. Raises StorageError, DiskFull."""
        machine, log = self.machine(group), self._logs.group(group)
        self._opened(group)
        if machine.damage is not None:
            raise StorageError(f"the data of {group_name(group)} is damaged: {machine.damage.message}")
        low, end = machine.applied_index() + 1, log.last_index() + 1
        while low < end:
            entries = log.entries(low, end, READ_BYTES)
            batch = [Applied(e.index, e.term, _command(e), None) for e in entries]
            try:
                done = machine.apply(batch)
            except FileAwaited:  # who has the file is gone for good: it is as if that load had never been
                done = machine.apply([Applied(low, batch[0].term, b"", None)])
            low += len(done)
        machine.checkpoint()


def _command(entry: Entry) -> bytes:
    return entry.data if entry.kind == EntryKind.NORMAL else b""


def _loads_without_files(machine: StateMachine, log: GroupLog) -> list[str]:
    """Bulk loads that are not applied yet and whose files are not here as they were, in words."""
    if not isinstance(machine, ReplicaMachine):
        return []
    found, low, end = list[int](), max(machine.applied_index() + 1, log.first_index()), log.last_index() + 1
    while low < end:
        entries = log.entries(low, end, READ_BYTES)
        for entry in entries:
            command = decode_entry(_command(entry)) if takes_long([entry]) else None
            if isinstance(command, LoadRows) and lacks_files(machine.replica.staged, command):
                found.append(entry.index)
        low += len(entries)
    why = "its files are not here, or are damaged"
    return [f"the documents of the bulk load of entry {index} are lost: {why}" for index in found]
