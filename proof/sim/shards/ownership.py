"""Who owns which keys by the shards' logs, replayed from their committed entries while ranges move.

Checks, independently of what shards remember: a key is written only in the log of the shard that has it and has not
frozen it; at a move's Own the target holds exactly what the source held at its Release, versions and all; a document's
versions grow, whichever shards give them. Of a move's attempts: each freezes once; it is released only after its target
has confirmed while it was frozen; what was released is never thawed or given up, and what was thawed or given up is not
released; the catalog says so only after the logs. What expires in a copy is not there when the target owns it. Feeds
the models, so that a move is a change of two shards' contents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
import numpy as np

from needle.backup.one_collection import MARK
from needle.backup.restore_marks import home_of
from needle.base.dtypes import DType, numbers_of
from needle.base.ids import GroupId, shard_group
from needle.protocol.move_commands import (
    Confirm,
    Discard,
    Freeze,
    GiveUp,
    Import,
    MoveCommand,
    Own,
    PrepareMove,
    Release,
    Thaw,
)
from needle.routing.ranges import KeySet
from needle.routing.shard_map import KeyRange, ShardMap
from needle.routing.strategy import routing_key
from needle.routing.topology import MoveState, Topology
from proof.checkers.replay import LogModel, ModelDocument
from proof.checkers.violation import Violation
from proof.sim.shards.profile import metadata_of

NAME = "ownership"
FROZEN = -1
Contents = dict[str, dict[str, ModelDocument]]
"""By collection and key."""


class Ownerships:
    """See the module. moved: how many moves have switched owners. on_expired: told of each document that is not there
    any more at a move's Own, because its copy expired."""

    def __init__(
        self,
        first: ShardMap,
        model: Callable[[GroupId, str], LogModel],
        collections: Callable[[], Iterable[str]],
        dtypes: Mapping[str, DType],
    ) -> None:
        """first: who owns what when the cluster is made. model: by group and collection. collections: those there are,
        by their names inside the shards; dtypes: of these."""
        self._dtypes = dtypes
        self._writable = first
        self._first = first
        self._model = model
        self._collections = collections
        self._owned: dict[int, list[tuple[int, list[KeyRange]]]] = {
            shard: [(0, first.ranges(shard))] for shard in range(first.shard_count)
        }
        self._ranges: dict[int, list[KeyRange]] = {}
        self._copied: dict[int, Contents] = {}
        self._released: dict[int, Contents] = {}
        self._frozen: dict[int, int] = {}
        """By move: the attempt that has frozen its ranges."""
        self._thawed: dict[int, int] = {}
        """By move: the last attempt that was thawed."""
        self._confirmed: dict[int, int] = {}
        """By move: the attempt that its target has confirmed while it was frozen."""
        self._decided: set[int] = set()
        self._given_up: set[int] = set()
        self._versions: dict[tuple[str, str], int] = {}
        self._targets: dict[int, int] = {}
        self._expired: dict[tuple[int, str, str], int] = {}
        """By move, collection and key: the version of a copy that expired before the target owned it."""
        self.on_expired: Callable[[str, str], None] = lambda collection, key: None
        self.moved = self.kept = 0

    def _key(self, name: str, collection: str = "") -> bytes:
        """collection: if it may be one of a restore's notes, which have a home of their own."""
        strategy = self._first.strategy
        metadata = home_of(strategy, []) if collection.startswith(MARK) else metadata_of(name)
        return routing_key(strategy, self._first.shard_count, name, metadata)

    # --- what the logs say --------------------------------------------------------------------------------------------
    def wrote(self, group: GroupId, collection: str, name: str, version: int) -> None:
        """A document was written. Raises Violation."""
        owner = self._writable.owner(self._key(name, collection))
        if shard_group(owner) != group:
            whose = "it is moving" if owner == FROZEN else f"group {shard_group(owner)} owns it"
            raise Violation(NAME, f"{name} of {collection} was written to group {group}; {whose}", name)
        last = self._versions.get((collection, name), 0)
        if version <= last:
            raise Violation("versions grow", f"{name} of {collection} got version {version} after {last}", name)
        self._versions[collection, name] = version

    def step(self, group: GroupId, index: int, command: MoveCommand) -> bool:
        """A step of a move took effect at `index` of a group's log; whether it changed who may read or write. Raises
        Violation."""
        move, shard = command.move, group - 1
        if isinstance(command, PrepareMove):
            self._ranges[move] = command.ranges
        elif isinstance(command, Freeze):
            return self._freeze(command)
        elif isinstance(command, Confirm):
            if self._frozen.get(move) == command.attempt:
                self._confirmed[move] = command.attempt
        elif isinstance(command, Thaw | GiveUp):
            self._back(shard, command)
        elif isinstance(command, Discard):
            if move not in self._given_up:
                raise Violation(
                    NAME, f"move {move}: shard {shard} discards its copy before the source keeps the ranges"
                )
            self._copied.pop(move, None)
            return False
        elif isinstance(command, Import):
            self._targets[move] = shard
            self._import(command)
        elif isinstance(command, Release):
            self._release(shard, index, move)
        elif isinstance(command, Own):
            self._own(shard, index, move)
        else:
            return False
        return not isinstance(command, PrepareMove | Import)

    def _import(self, command: Import) -> None:
        held = self._copied.setdefault(command.move, {}).setdefault(command.collection, {})
        for name in command.deleted:
            held.pop(name, None)
        numbers = numbers_of(command.vectors, self._dtypes[command.collection])
        vectors: Any = numbers.reshape(len(command.ids), -1) if command.ids else []
        instants = command.expires or [0] * len(command.ids)
        for name, version, vector, metadata, at in zip(
            command.ids, command.versions, vectors, command.metadata, instants, strict=True
        ):
            held[name] = ModelDocument(version, vector, msgspec.json.decode(metadata) if metadata else None, at)

    def frozen(self, name: str) -> bool:
        """Whether a document's key takes no writes."""
        return self._writable.owner(self._key(name)) == FROZEN

    def expire_copies(self, group: GroupId, collection: str, before: int) -> int:
        """An Expire took what is due of the copies that moves have brought to a group; how many those are."""
        count = 0
        for move, contents in self._copied.items():
            for name, one in contents.get(collection, {}).items() if self._targets.get(move) == group - 1 else ():
                place = (move, collection, name)
                if 0 < one.expires <= before and self._expired.get(place) != one.version:
                    self._expired[place] = one.version
                    count += 1
        return count

    def _freeze(self, command: Freeze) -> bool:
        move = command.move
        if move in self._frozen or move in self._decided:
            return False
        if move in self._given_up or command.attempt <= self._thawed.get(move, -1):
            raise Violation(NAME, f"move {move}: attempt {command.attempt} freezes after it was over")
        self._frozen[move] = command.attempt
        self._writable = self._writable.moved(self._ranges[move], FROZEN)
        return True

    def _back(self, shard: int, command: Thaw | GiveUp) -> None:
        move, what = command.move, type(command).__name__
        if move in self._decided:
            raise Violation(NAME, f"move {move}: {what} after its ranges were released")
        if isinstance(command, GiveUp):
            self._given_up.add(move)
            self.kept += 1
        elif move not in self._frozen:
            raise Violation(NAME, f"move {move}: {what} of ranges that are not frozen")
        else:
            self._thawed[move] = command.attempt
        if self._frozen.pop(move, None) is not None:
            self._writable = self._writable.moved(self._ranges[move], shard)

    def catalog(self, before: Topology, now: Topology, unseen: Callable[[GroupId], bool]) -> None:
        """The catalog was changed. unseen: whether some entry of a group was applied only by who died before that was
        seen, while others got a snapshot. Raises Violation if it says of a move what the logs do not."""
        for info in now.moves:
            if info.attempt and info.attempt > self._thawed.get(info.id, -1) + 1:
                raise Violation(NAME, f"move {info.id} is at attempt {info.attempt}, and the one before was not thawed")
            if info.state is MoveState.GIVEN_UP and info.id not in self._given_up:
                if unseen(shard_group(info.source)):
                    self._back(info.source, GiveUp(info.id))
                    continue
                raise Violation(NAME, f"move {info.id} is given up by the catalog, and its source does not know it")
        known = {info.id for info in now.moves}
        for info in before.moves:
            if info.id not in known and info.id not in self._decided | self._given_up:
                raise Violation(NAME, f"move {info.id} is forgotten, and neither decided nor given up")

    def _release(self, shard: int, index: int, move: int) -> None:
        attempt = self._frozen.pop(move, None)
        if move in self._given_up or attempt is None:
            raise Violation(NAME, f"move {move}: shard {shard} releases what it has not frozen, or keeps")
        if self._confirmed.get(move) != attempt:
            raise Violation(NAME, f"move {move}: shard {shard} releases before its target has confirmed")
        self._decided.add(move)
        keys, group = KeySet(self._ranges[move]), shard_group(shard)
        contents: Contents = {}
        for name in self._collections():
            model = self._model(group, name)
            contents[name] = {key: one for key, one in model.at(index).items() if self._key(key, name) in keys}
            for key in contents[name]:
                model.write(index, key, None)
            model.mark(index)
        self._released[move] = contents
        owned = ShardMap(0, self._writable.strategy, 0, (b"",), (FROZEN,))
        for span in self._owned[shard][-1][1]:
            owned = owned.with_owner(span, shard)
        self._owned[shard].append((index, owned.moved(self._ranges[move], FROZEN).ranges(shard)))

    def _own(self, shard: int, index: int, move: int) -> None:
        if move not in self._released:
            raise Violation(NAME, f"move {move}: shard {shard} owns its ranges before the source has released them")
        there = set(self._collections())
        for name, true in self._released.pop(move).items():
            if name in there:
                self._compare(move, name, true, self._copied.get(move, {}).get(name, {}))
            for key, document in true.items():
                if self._expired.get((move, name, key)) == document.version:
                    self.on_expired(name, key)
                else:
                    self._model(shard_group(shard), name).write(index, key, document)
        for name in there:
            self._model(shard_group(shard), name).mark(index)
        self._copied.pop(move, None)
        self._writable = self._writable.moved(self._ranges[move], shard)
        owned = ShardMap(0, self._writable.strategy, 0, (b"",), (FROZEN,))
        for span in [*self._owned[shard][-1][1], *self._ranges[move]]:
            owned = owned.with_owner(span, shard)
        self._owned[shard].append((index, owned.ranges(shard)))
        self.moved += 1

    def _compare(self, move: int, name: str, true: dict[str, ModelDocument], copied: dict[str, ModelDocument]) -> None:
        for key in sorted(true.keys() | copied.keys()):
            one, other = true.get(key), copied.get(key)
            if one is None or other is None or not _equal(one, other):
                versions = [document.version if document else None for document in (one, other)]
                raise Violation(
                    "a move copies all", f"move {move}: {key} of {name} has versions {versions} in source and copy", key
                )

    def founded(self, shard: int) -> None:
        """A shard that came later: it owns nothing."""
        self._owned.setdefault(shard, [(0, [])])

    def check_map(self, shard_map: ShardMap) -> None:
        """Once no range moves, the catalog's map says of every key what the logs say. Raises Violation."""
        for shard in self._owned:
            if self.owned_now(shard) != shard_map.ranges(shard):
                raise Violation(
                    "coverage",
                    f"shard {shard} owns {self.owned_now(shard)} by its log, {shard_map.ranges(shard)} by the map",
                )

    # --- what answers may say -----------------------------------------------------------------------------------------
    def owned_now(self, shard: int) -> list[KeyRange]:
        """What a shard owns after all that is committed in its log."""
        return self._owned[shard][-1][1]

    def owned(self, shard: int, index: int) -> list[KeyRange]:
        """What a shard owns after entry `index` of its log."""
        return next(ranges for at, ranges in reversed(self._owned[shard]) if at <= index)

    def last_owned(self, shard: int, name: str, index: int) -> int | None:
        """The last index up to `index` at which the shard owned a document; None if it never did."""
        key, end = self._key(name), index
        for at, ranges in reversed(self._owned.get(shard, [])):
            if at <= index:
                if key in KeySet(ranges):
                    return end
                end = at - 1
        return None

    def owned_until(self, shard: int, name: str, index: int, last: int) -> int | None:
        """The last entry up to `last` until which the shard owns a document that it owns at `index`; None if it does
        not."""
        key, until = self._key(name), None
        changes = self._owned[shard]
        for number, (at, ranges) in enumerate(changes):
            end = changes[number + 1][0] - 1 if number + 1 < len(changes) else last
            if end < index:
                continue
            if key not in KeySet(ranges):
                break
            until = min(end, last)
            if at > last:
                break
        return until


def _equal(one: Any, other: Any) -> bool:
    same = (one.version, one.metadata, one.expires) == (other.version, other.metadata, other.expires)
    return same and bool(np.array_equal(one.vector, other.vector))
