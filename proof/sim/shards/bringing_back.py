"""What backups and archives are worth in the end: all that is at the target is read by the code that restores and
verifies, and compared with the logs.

Checked: every file is whole, and every digest that was recorded is found again; the archived entries are those of the
logs; each backup, and the archive at instants and at an index of each shard, has what the logs say, of the place that
it says, and the archive of an instant all writes that were acknowledged before, and none that was asked for later. An
instant may be refused; the last one may not, nor what every shard had at the end.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np

from needle.backup import verify
from needle.backup.archive_reading import archived_shards, bases_of, chosen, entries, read_base, read_head
from needle.backup.format import CollectionBackup, Manifest
from needle.backup.instant import Making
from needle.backup.keeping import read_manifest, read_piece
from needle.backup.restore_expiry import AHEAD_SECONDS_MAX, SOON_SECONDS
from needle.backup.store import Store
from needle.base.errors import InvalidArgument, StorageError
from needle.base.ids import shard_group
from needle.routing.topology import Topology
from proof.checkers.copies import NAME, Copied, Copy, Logs, check_copy, is_same
from proof.checkers.history import History, Operation
from proof.checkers.replay import ModelDocument
from proof.checkers.violation import Violation
from proof.sim.machine import WALL_EPOCH, stream
from proof.sim.observer import CONF
from proof.sim.shards.backing import RESTORED, Made
from proof.sim.shards.truth import Truth
from proof.sim.stage import Stage
from proof.sim.workload import COLLECTION

INSTANTS: Final = 4
CLOCK_SECONDS: Final = 0.001
"""Instants are microseconds."""


class Judge:
    """Of one run's target. steady: no node's wall clock ever jumped."""

    def __init__(self, stage: Stage, truth: Truth, history: History, store: Store) -> None:
        self._stage, self._truth, self._history, self._store = stage, truth, history, store
        self._steady = not any(fault.kind == "wall-jump" for fault in stage.spec.schedule())
        self._number = 0
        self._judged_at = 0.0
        self._scratch = Path(stage.scratch) / "copies"
        self.refused = self.judged = 0

    def judge(self, made: Mapping[str, Made], since: int) -> None:
        """All of it. since: the first instant that may be had. Raises Violation."""
        os.makedirs(self._scratch, exist_ok=True)
        self._whole()
        founding = chosen(self._store, None)
        self._entries(founding)
        for backup, one in sorted(made.items()):
            self._backup(read_manifest(self._store, backup), one)
        head = read_head(self._store, founding)
        serving = [info.shard for info in self._truth.now.serving]
        until = min([head.at, *(head.shards[shard][1] for shard in serving)])
        rng = stream(self._stage.spec.seed, "instants")
        for at in [rng.randint(min(since, until), until) for _ in range(INSTANTS)]:
            self._instant(at)
        if not self._instant(until) and self._steady:
            raise Violation(NAME, f"the last instant of the archive, {self._seconds(until):.3f} s, is refused")
        self._index({shard: head.shards[shard][0] for shard in serving})
        self._stage.trace.tell(f"{self.judged} copies are as the logs say, {self.refused} instants refused")
        self._judged_at = self._stage.loop.time()

    def _clocks(self) -> Clocks:
        """By which the restore that ended just now gave instants. Where clocks differ, leaders of several shards may
        refuse documents one after the other, and each time they get more."""
        ahead = max(0.0, *(one.clock.wall_offset for one in self._stage.fleet.machines.values()))
        now = self._stage.loop.time()
        quick = self._steady and now - self._judged_at < SOON_SECONDS[0]
        seconds = SOON_SECONDS[0] if quick else SOON_SECONDS[-1]
        told = now + min(ahead, AHEAD_SECONDS_MAX) + seconds
        return Clocks(_micros(now + ahead), _micros(told))

    def restored(self, made: Mapping[str, Made]) -> None:
        """What commands restored of the newest backup is what that has, but for what expired. Raises Violation."""
        if not made:
            return
        clocks = self._clocks()
        manifest = read_manifest(self._store, max(made))
        (copy,) = (one for one in manifest.collections if one.spec.name == COLLECTION)
        wanted = {one.id: one for one in _copied(self._store, copy)}
        models = self._truth.models(RESTORED).values()
        found = {name: one for model in models for name, one in model.at(model.last_index).items()}
        for name in sorted(wanted.keys() | found.keys()):
            one, there = wanted.get(name), found.get(name)
            if not is_same(one, there) and not (one is not None and one.expires and expires_late(one, there, clocks)):
                raise Violation(NAME, f"{name} of backup {manifest.id} is restored otherwise: {one} and {there}", name)
        self._stage.trace.tell(f"{len(found)} documents are restored into the cluster as backup {manifest.id} has them")

    def _whole(self) -> None:
        found = verify(self._store, scratch=str(self._scratch))
        if found.problems:
            raise Violation(NAME, f"the target is not whole: {'; '.join(found.problems[:5])}")

    def _entries(self, founding: int) -> None:
        """What is archived of the logs is what was committed."""
        for shard in archived_shards(self._store, founding):
            log = self._stage.observer.committed.log(shard_group(shard))
            for place, name in bases_of(self._store, founding, shard):
                read_base(self._store, name)
                for one, _ in entries(self._store, founding, shard, place):
                    true = log.get(one.index)
                    data = None if true is None else b"" if true.data.startswith(CONF) else true.data
                    if true is None or (true.term, data) != (one.term, one.data):
                        raise Violation(
                            NAME, f"entry {one.index} of shard {shard} is archived otherwise than committed"
                        )

    # --- copies -------------------------------------------------------------------------------------------------------
    def _backup(self, manifest: Manifest, made: Made) -> None:
        first, last = made.topologies
        topologies = self._truth.topologies[first:last]
        label = f"backup {manifest.id}"
        for collection in manifest.collections:
            cuts = dict(collection.cuts)
            for shard, index in cuts.items():
                if index < made.before.get(shard, 0):
                    raise Violation(
                        NAME, f"{label}: shard {shard} is read at {index}, and {made.before[shard]} was before it began"
                    )
            self._collection(label, self._store, collection, topologies, torn=False)
        there = {one.spec.name for one in manifest.collections}
        for info in topologies[0].collections:
            if all(any(one.id == info.id for one in now.collections) for now in topologies) and (
                info.spec.name not in there
            ):
                raise Violation(NAME, f"{label} lacks collection {info.spec.name}")
        self.judged += 1

    def _instant(self, at: int) -> bool:
        """Whether it can be had."""
        return self._taken(f"the archive at {self._seconds(at):.6f} s", at, {})

    def _index(self, indexes: dict[int, int]) -> None:
        if not self._taken(f"the archive at {indexes}", None, indexes):
            raise Violation(NAME, f"what all shards had in the end, at {indexes}, is refused")

    def _taken(self, label: str, at: int | None, indexes: dict[int, int]) -> bool:
        self._number += 1
        directory = self._scratch / str(self._number)
        directory.mkdir()
        making = Making(self._store, directory)
        try:
            manifest = read_manifest(making.local, making.run(at, indexes, None))
        except (StorageError, InvalidArgument) as error:
            self._stage.trace.note(f"{label} is refused: {error.message}")
            self.refused += 1
            return False
        for collection in manifest.collections:
            self._collection(label, making.local, collection, self._truth.topologies, torn=True)
            if at is not None and self._steady and collection.spec.name == COLLECTION:
                self._by_the_clock(label, self._seconds(at), dict(collection.cuts))
        if COLLECTION not in [one.spec.name for one in manifest.collections]:
            raise Violation(NAME, f"{label} lacks collection {COLLECTION}")
        shutil.rmtree(directory)
        self.judged += 1
        return True

    def _collection(
        self, label: str, store: Store, one: CollectionBackup, topologies: Iterable[Topology], *, torn: bool
    ) -> None:
        """It is one of those that had its name."""
        name, truth = one.spec.name, self._truth
        names = {info.stored_name for now in topologies for info in now.collections if info.spec.name == name}
        copy = Copy(label=f"{label}, {name}", cuts=dict(one.cuts), documents=list(_copied(store, one)), torn=torn)
        wrong: Violation | None = None
        for stored in sorted(names):
            try:
                logs = Logs(truth.models_of(stored), truth.key, truth.logs.owned, truth.logs.last_owned)
                check_copy(logs, copy)
            except Violation as violation:
                wrong = wrong or violation
            else:
                return
        raise wrong or Violation(NAME, f"{label}: nobody made a collection {name}")

    # --- clocks -------------------------------------------------------------------------------------------------------
    def _by_the_clock(self, label: str, at: float, cuts: Mapping[int, int]) -> None:
        """What was acknowledged before the instant is there, and what was asked for later is not."""
        for op in self._written():
            wrote = [
                shard
                for shard, model in self._truth.models().items()
                if any(index == op.index for index, _ in model.history(op.key))
            ]
            if len(wrote) != 1 or wrote[0] not in cuts:  # where a key moved, two logs may have it at one index
                continue
            shard = wrote[0]
            if op.returned_time < at - CLOCK_SECONDS and op.index > cuts[shard]:
                raise Violation(NAME, f"{label} lacks #{op.id} of {op.key}, acknowledged at {op.returned_time:.6f} s")
            if op.time > at + CLOCK_SECONDS and op.index <= cuts[shard]:
                raise Violation(NAME, f"{label} has #{op.id} of {op.key}, asked for at {op.time:.6f} s")

    def _written(self) -> Iterator[Operation]:
        kinds = ("put", "insert", "cas")  # others may find nothing to change: then no log has it, or another write
        return (op for op in self._history.operations if op.index and op.outcome == "ok" and op.kind in kinds)

    @staticmethod
    def _seconds(at: int) -> float:
        """As the run counts."""
        return at / 1e6 - WALL_EPOCH


class Clocks(NamedTuple):
    """Microseconds since 1970. now: by the clock that is ahead of all others. late: the last instant that a restore
    may give to a document whose own has passed."""

    now: int
    late: int


def expires_late(one: Copied, there: ModelDocument | None, clocks: Clocks) -> bool:
    """Whether a document of a backup that expires some day was restored as it may be: it has expired since, or lives
    for some seconds more, because its instant had passed."""
    if there is None:
        return one.expires <= clocks.now
    moved = one.expires < there.expires <= clocks.late
    return moved and is_same(one._replace(expires=there.expires), there)


def _micros(seconds: float) -> int:
    """Of an instant as the run counts."""
    return int((WALL_EPOCH + seconds) * 1e6)


def _copied(store: Store, one: CollectionBackup) -> Iterator[Copied]:
    for ref in one.pieces:
        piece = read_piece(store, ref)
        vectors = np.frombuffer(piece.vectors, "<f4").reshape(len(piece.ids), -1)
        instants = piece.expires or [0] * len(piece.ids)
        for name, vector, metadata, expires in zip(piece.ids, vectors, piece.metadata, instants, strict=True):
            yield Copied(name, vector, msgspec.json.decode(metadata) if metadata else None, expires)
