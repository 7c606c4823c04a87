"""What the world notes when an entry commits and when a client is answered: the log's documents, leases, durability.

The replay checkers compare reads with `models`; here they are fed, from the first replica that applies each entry.
Invariant: observing changes nothing. It must not know clients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from needle.base.dtypes import DType, numbers_of
from needle.base.filters.builder import Filter
from needle.base.ids import CATALOG_GROUP, GroupId
from needle.base.model import WriteResult
from needle.protocol.commands import (
    Change,
    ChangeWhere,
    CreateCollection,
    Delete,
    Expire,
    Insert,
    LoadRows,
    Patch,
    UpdateVectors,
    decode_logged,
    inner,
)
from needle.protocol.move_commands import MoveCommand
from needle.raft import lease
from needle.raft.messages import ConfState
from needle.routing.ranges import KeySet
from needle.shard.bulk.rows_file import Rows
from proof.checkers.committed import CommittedEntry
from proof.checkers.indexes import IndexFiles
from proof.checkers.leases import Leases
from proof.checkers.replay import LogModel, ModelDocument
from proof.checkers.violation import Violation
from proof.sim.observer import CONF
from proof.sim.stage import Stage


class Watch:
    """models: by group and by the collection's name inside it. metrics, dtypes: of collections, by that name.
    on_catalog: told of each committed command of the catalog; on_document: of each document that is written, and its
    version; on_move: of each step of a move of key ranges that took effect; on_members: of each configuration of a
    group; on_expired: of each document that expired. key_of: a document's routing key. frozen: whether a move has
    frozen it. expire_copies: what an Expire takes of the copies that a move has brought to a group; how many."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._fleet = stage.fleet
        self._leases = Leases()
        self.models: dict[tuple[GroupId, str], LogModel] = {}
        self.metrics: dict[str, str] = {}
        self.dtypes: dict[str, DType] = {}
        self.on_catalog: Callable[[int, bytes], None] = lambda index, data: None
        self.on_document: Callable[[GroupId, str, str, int], None] = lambda group, collection, key, version: None
        self.on_move: Callable[[GroupId, int, MoveCommand], None] = lambda group, index, command: None
        self.on_members: Callable[[GroupId, int, ConfState], None] = lambda group, index, conf: None
        self.on_expired: Callable[[str, str], None] = lambda collection, key: None
        self.key_of: Callable[[str], bytes] = lambda name: b""
        self.frozen: Callable[[str], bool] = lambda name: False
        self.expire_copies: Callable[[GroupId, str, int], int] = lambda group, collection, before: 0
        self.indexes = IndexFiles()
        self.prepared: dict[str, tuple[str, list[Rows]]] = {}
        """Files of bulk loads, by their checksums: of which collection, by its name in shards, and what they have."""
        stage.observer.committed.on_new = self._committed

    def model(self, group: GroupId, collection: str) -> LogModel:
        """What a group's log did to one collection."""
        return self.models.setdefault((group, collection), LogModel())

    def last(self, group: GroupId) -> int:
        """The highest index that any replica of a group has applied."""
        return self._stage.observer.committed.last(group)

    def acknowledged(self, group: GroupId, index: int) -> None:
        """A client was told that the write at `index` is done."""
        name = self._fleet.leader(group)
        replica = self._fleet.nodes[name].groups()[group] if name else None
        if replica is None:
            return
        # While joint, the entry may have been committed under the old configuration alone, or the new one since.
        conf = replica.raft.conf
        sets = [list(voters) for voters in (conf.voters, conf.voters_outgoing) if voters]
        self._stage.guard(lambda: self._stage.observer.write_acknowledged(group, index, sets))

    def _leading(self, group: GroupId) -> list[tuple[str, int, float]]:
        """(node, term, seconds of lease) of every leader that would answer a leased read now."""
        found = []
        for name, node in self._fleet.nodes.items():
            replica = node.groups().get(group)
            if replica is None or replica.raft.role.name != "LEADER":
                continue
            state = replica.raft._s
            if not state.lease_suspended and state.has_committed_in_term():
                left = lease.end(state) - self._fleet.machines[name].clock.monotonic()
                found.append((name, state.term, left))
        return found

    def _patched(self, group: GroupId, index: int, command: Patch, version: int) -> None:
        """As the workload patches: it sets fields of the metadata, or appends to them."""
        within, model = KeySet(command.within), self.model(group, command.collection)
        for key in command.ids:
            document = model.now(key)
            if document is None or (command.within and self.key_of(key) not in within):
                continue
            self._amended(group, index, command.collection, key, command.change, version)

    def _amended(self, group: GroupId, index: int, collection: str, key: str, change: Change, version: int) -> None:
        model = self.model(group, collection)
        document = model.now(key)
        if document is None:
            return
        value = dict(document.metadata or {})
        value.update((path, msgspec.json.decode(data)) for path, data in change.set)
        for path, data in change.append:
            value[path] = [*(value.get(path) or []), *msgspec.json.decode(data)]
        expires = max(change.expires, 0) if change.expires else document.expires
        model.write(index, key, ModelDocument(version, document.vector, value, expires))
        self.on_document(group, collection, key, version)

    def _updated(self, group: GroupId, index: int, command: UpdateVectors, version: int) -> None:
        within, model = KeySet(command.within), self.model(group, command.collection)
        vectors = numbers_of(command.vectors, command.dtype).reshape(len(command.ids), -1)
        for key, vector in zip(command.ids, vectors, strict=True):
            document = model.now(key)
            if document is None or (command.within and self.key_of(key) not in within):
                continue
            expires = max(command.expires, 0) if command.expires else document.expires
            kept = document.vector if command.name else vector  # one with a name is another one
            model.write(index, key, ModelDocument(version, kept, document.metadata, expires))
            self.on_document(group, command.collection, key, version)

    def _changed_where(self, group: GroupId, index: int, command: ChangeWhere, version: int) -> None:
        within, model = KeySet(command.within), self.model(group, command.collection)
        wanted = Filter.from_json(command.filter)
        for key, document in model.at(index).items():
            if not wanted.matches(document.metadata, key) or (command.within and self.key_of(key) not in within):
                continue
            if command.change is None:
                model.write(index, key, None)
            else:
                self._amended(group, index, command.collection, key, command.change, version)

    def _expired(self, group: GroupId, index: int, command: Expire, count: int) -> None:
        """What has passed by the instants that the log gave, but for what is frozen. More may be deleted only of what a
        move has left behind."""
        model, before = self.model(group, command.collection), command.before
        passed = [key for key, one in model.at(index).items() if 0 < one.expires <= before]
        due = [key for key in passed if not self.frozen(key)]
        copies = self.expire_copies(group, command.collection, before)
        if len(due) + copies > count:
            raise Violation(
                "expiry", f"group {group} deleted {count} of {sorted(due)} and {copies} copies, due by {command.before}"
            )
        for key in due:
            model.write(index, key, None)
            self.on_expired(command.collection, key)

    def _loaded(self, group: GroupId, index: int, command: LoadRows, result: WriteResult) -> None:
        collection, blocks = self.prepared[command.checksum]
        model, count = self.model(group, collection), sum(len(rows.ids) for rows in blocks)
        if result.count != count:
            raise Violation("bulk loads", f"group {group} loaded {result.count} of {count} documents at {index}")
        for rows in blocks:
            vectors = numbers_of(rows.vectors, DType.FLOAT32).reshape(len(rows.ids), -1)
            for key, vector, metadata in zip(rows.ids, vectors, rows.metadata, strict=True):
                value = msgspec.json.decode(metadata) if metadata else None
                model.write(index, key, ModelDocument(result.version, vector, value))
                self.on_document(group, collection, key, result.version)

    def _committed(self, group: GroupId, index: int, entry: CommittedEntry, result: Any) -> None:
        if self._leases.is_new_term(group, entry.term):
            self._leases.check(group, entry.term, self._leading(group))
        if entry.data.startswith(CONF):
            self.on_members(group, index, msgspec.msgpack.decode(entry.data[len(CONF) :], type=ConfState))
        if not entry.data or entry.data.startswith(CONF):
            return
        if group == CATALOG_GROUP:
            self.on_catalog(index, entry.data)
            return
        command = inner(decode_logged(entry.data))
        if isinstance(command, CreateCollection):
            self.metrics[command.spec.name] = str(command.spec.metric)
            self.dtypes[command.spec.name] = command.spec.dtype
        if not isinstance(result, WriteResult) or result.index != index:
            return  # refused, or a repeated write that is answered again
        self.indexes.committed(group, command)
        if isinstance(command, Insert):
            model = self.model(group, command.collection)
            vectors = numbers_of(command.vectors, command.dtype).reshape(len(command.ids), -1)
            instants = command.expires or [0] * len(command.ids)
            for key, vector, metadata, at in zip(command.ids, vectors, command.metadata, instants, strict=True):
                value = msgspec.json.decode(metadata) if metadata else None
                model.write(index, key, ModelDocument(result.version, vector, value, max(at, 0)))
                self.on_document(group, command.collection, key, result.version)
        elif isinstance(command, Delete):
            within = KeySet(command.within)
            for key in command.ids:
                if command.within and self.key_of(key) not in within:
                    continue
                self.model(group, command.collection).write(index, key, None)
        elif isinstance(command, Patch):
            self._patched(group, index, command, result.version)
        elif isinstance(command, UpdateVectors):
            self._updated(group, index, command, result.version)
        elif isinstance(command, ChangeWhere):
            self._changed_where(group, index, command, result.version)
        elif isinstance(command, Expire):
            self._expired(group, index, command, result.count)
        elif isinstance(command, LoadRows) and not result.existed:
            self._loaded(group, index, command, result)
        elif isinstance(command, MoveCommand):
            self.on_move(group, index, command)
