"""A shard as it was at a place of its log: a state out of the archive, and then its entries, applied by the code that
replicas apply them by.

Invariant: wherever the archive recorded a digest that the shard's leader had, the state has it, or RestoreDiffers is
raised. Blocking. Memory: that of a replica without its vectors, and a file of entries. Needs the whole package, not
only the client's.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from needle.backup.archive_format import Base
from needle.backup.archive_reading import base_before, check_reach, entries, later_base, read_head
from needle.backup.format import PieceRef
from needle.backup.store import Store
from needle.base.config import Limits
from needle.base.errors import CorruptBackup, CorruptSnapshot, FileAwaited, InvalidArgument, RestoreDiffers, invalid
from needle.base.instants import rfc3339
from needle.base.model import CollectionSpec
from needle.protocol.archive_calls import LoggedEntry
from needle.protocol.commands import DropCollection, decode_logged
from needle.protocol.move_commands import Forget
from needle.protocol.named import Named
from needle.protocol.stamps import stamp
from needle.routing.topology import dropped_as, vector_called

if TYPE_CHECKING:
    from needle.shard.apply.holdings import Holdings
    from needle.shard.documents.records import StoredDocument
    from needle.shard.state_machine import Replica

BATCH_ENTRIES: Final = 256
BATCH_BYTES: Final = 4 << 20
ORDER_MICROS: Final = 1_000_000
"""Requests that are in one leader's hands at a time may change places by so much between its clock and its log."""
_HEAD_BYTES: Final = 40
_TOLD: Final = (b"\xa4drop", b"\xabmove-forget")
"""How the names of commands stand in an entry that say what is not there any more."""


class Applied(msgspec.Struct, frozen=True, gc=False):
    """As a replica takes an entry."""

    index: int
    term: int
    data: bytes
    conf: bytes | None = None


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a shard's log is to be read up to: an instant of its leaders' clocks (microseconds since 1970), or an
    index."""

    at: int | None = None
    index: int | None = None


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """A shard at an index. since: a clock at which it was there (microseconds since 1970). until: at which the next
    entry came; None if nothing behind it is archived. collections: by their names in the shard, and what they are
    called in its file. vectors: the named ones, by their names in the shard. dropped: ids of collections. forgotten:
    moves of which it has deleted what it gave."""

    shard: int
    index: int
    since: int = 0
    until: int | None = None
    directory: str
    holdings: Holdings | None
    collections: dict[str, tuple[int, CollectionSpec]]
    vectors: dict[str, CollectionSpec] = {}
    dropped: set[int]
    forgotten: set[int]


class Replay:
    """One shard's. Use as a context manager, or `close` it: it holds files. directory: where they are. entries: how
    many were applied, up to index `last`. digests: how many were compared; proven: the index of the last one, or 0."""

    def __init__(self, store: Store, founding: int, shard: int, directory: Path) -> None:
        """directory: of the replica; empty, or as an earlier replay left it."""
        self._store, self._founding, self._shard, self.directory = store, founding, shard, directory
        self._image = directory / "image"
        self._replica = _opened(directory / "replica")
        self._tape: Iterator[tuple[LoggedEntry, str | None]] | None = None
        self._next: tuple[LoggedEntry, str | None] | None = None
        self._batch: list[Applied] = []
        self._bytes = 0
        self.dropped: set[int] = set()
        self.forgotten: set[int] = set()
        self.entries = self.digests = self.proven = 0
        self.at_load = False
        self._since = 0
        self.last = self._replica.applied_index()

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give files back."""
        self._replica.close()

    @property
    def replica(self) -> Replica:
        """As it is now."""
        return self._replica

    def named(self, stored: str, vectors: Collection[str], rows: Sequence[StoredDocument]) -> list[Named]:
        """The named vectors of documents of a collection, as callers know them. vectors: which, by their names in the
        shard; some may not be here."""
        here = [name for name in vectors if name in self._replica.view.collections]
        from needle.shard.named_reads import named_of  # as below

        found = named_of(self._replica.view, stored, here, rows)
        return [msgspec.structs.replace(one, vector=vector_called(one.vector)) for one in found]

    def to(self, place: Place) -> Replayed:
        """Go there from the newest state before it. Raises InvalidArgument for a place that the archive does not
        reach, CorruptBackup, RestoreDiffers."""
        base = base_before(self._store, self._founding, self._shard, self._fetch, at=place.at, index=place.index)
        self._install(base)
        self._go(_ends(place))
        reached, after = self._replica.applied_index(), self._next
        if after is None:
            self._check_reach(place, reached)
        elif place.at is not None:
            self._check_order(place.at, after[0])
        self._replica.checkpoint()
        view = self._replica.view
        return Replayed(
            shard=self._shard,
            index=reached,
            since=self._since,
            until=None if after is None else stamp(after[0].data),
            directory=str(self.directory),
            holdings=None if view.fence is None else view.fence.holdings,
            collections={held.record.spec.name: (held.record.id, held.record.spec) for held in view.named()},
            vectors={name: held.record.spec for name, held in view.collections.items() if held.record.spec.of},
            dropped=self.dropped,
            forgotten=self.forgotten,
        )

    def begin(self, base: Base) -> None:
        """Go to a state, of whatever digest. Raises CorruptBackup."""
        self._fetch(base)
        self._install(base)

    def follow(self, index: int | None) -> None:
        """Go on to an index, or as far as entries lead. Raises as `to` does."""
        self._go(lambda one, _: index is not None and one.index > index)

    def prove(self) -> int:
        """Go on to the next place with a recorded digest, and compare; its index, 0 if none comes, or a bulk load
        before it. What was read before was right if this is."""
        found = 0

        def over(one: LoggedEntry, digest: str | None) -> bool:
            nonlocal found
            if found:
                return True
            found = one.index if digest is not None else 0
            return False

        try:
            self._go(over)
        except CorruptBackup:
            if not self.at_load:
                raise
            return 0
        return found

    def _check_reach(self, place: Place, reached: int) -> None:
        """The entries have come to an end: was that all there was?"""
        head = read_head(self._store, self._founding).shards.get(self._shard, (0, 0))
        if place.index is not None and reached < place.index:
            raise invalid(
                "index", place.index, f"at most {reached}: so far shard {self._shard} is archived without a gap"
            )
        if place.at is not None:
            check_reach(self._store, self._founding, head, self._shard, reached, place.at)

    def _check_order(self, at: int, cut: LoggedEntry) -> None:
        """Is an entry behind `cut`, which is later than the instant, before it by its leader's clock? Then a clock was
        put back, or two differ, and nobody can say what there was. What is behind a later state is later."""
        last = later_base(self._store, self._founding, self._shard, at, cut.index)
        try:
            for one, _ in self._tape or ():
                if last is not None and one.index > last:
                    return
                said = stamp(one.data)
                if 0 < said <= at and (one.term != cut.term or at - said > ORDER_MICROS):
                    raise InvalidArgument(
                        f"at = {rfc3339(at)} is not allowed: by the clocks of the leaders of shard {self._shard} entry "
                        f"{one.index} of its log is before it, and entry {cut.index} was after it already: a clock was "
                        f"put back, or two clocks differed. Ask for an instant before {rfc3339(said)}, a later one, or "
                        "a place by --index",
                        field="at",
                    )
        except CorruptBackup:  # it is behind the instant: what leads there is whole
            return

    # --- entries -----------------------------------------------------------------------------------------------------
    def _go(self, ends: Callable[[LoggedEntry, str | None], bool]) -> None:
        """Apply entries up to the first one of which `ends` is true; that one stays."""
        if self._tape is None:
            self._tape = entries(self._store, self._founding, self._shard, self._replica.applied_index())
            self._next = next(self._tape, None)
        while self._next is not None and not ends(*self._next):
            one, digest = self._next
            self._note(one)
            self._since = max(self._since, stamp(one.data))
            self._batch.append(Applied(one.index, one.term, one.data))
            self._bytes += len(one.data)
            if digest is not None or len(self._batch) >= BATCH_ENTRIES or self._bytes >= BATCH_BYTES:
                self._apply()
            if digest is not None:
                self._compare(one.index, digest)
            try:
                self._next = next(self._tape, None)
            except CorruptBackup:
                self._apply()  # what was read whole leads up to the damage
                raise
        self._apply()

    def _apply(self) -> None:
        """For want of room a replica may take the first ones only, and raises when it takes none."""
        while self._batch:
            try:
                done = len(self._replica.apply(self._batch))
            except FileAwaited as error:
                self.at_load = True
                raise CorruptBackup(
                    f"shard {self._shard}, behind index {self.last}: documents came by a bulk load, whose file no "
                    "archive holds. Instants before it can be had, and those from the state on that was copied after it"
                ) from error
            self.entries, self.last = self.entries + done, self._batch[done - 1].index
            self._batch = self._batch[done:]
        self._bytes = 0

    def _compare(self, index: int, digest: str) -> None:
        here = self._replica.digest()
        if here != digest:
            raise RestoreDiffers(
                f"shard {self._shard} has digest {here} at index {index}, and its leader had {digest}: what is "
                "archived before, or this release, is not to be trusted"
            )
        self.digests, self.proven = self.digests + 1, index

    def _note(self, one: LoggedEntry) -> None:
        if any(told in one.data[:_HEAD_BYTES] for told in _TOLD):
            command = decode_logged(one.data)
            if isinstance(command, DropCollection):
                self.dropped.add(dropped_as(command.name) or 0)
            elif isinstance(command, Forget):
                self.forgotten.add(command.move)

    # --- the state that it begins with -------------------------------------------------------------------------------
    def _fetch(self, base: Base) -> None:
        shutil.rmtree(self._image, ignore_errors=True)
        self._image.mkdir()
        for file in base.files:
            path = self._image / file.name
            if path.parent != self._image:
                raise CorruptBackup(f"a state of shard {self._shard} names a file {file.name!r}")
            with path.open("wb") as out:
                for ref in file.pieces:
                    out.write(read_block(self._store, ref))

    def _install(self, base: Base) -> None:
        self._since = base.since
        if not base.files:
            return
        try:
            self._replica.install_snapshot(str(self._image))
            shutil.rmtree(self._image, ignore_errors=True)
            self.last = self._replica.applied_index()
        except CorruptSnapshot as error:
            raise CorruptBackup(
                f"the state of shard {self._shard} at index {base.index} is damaged: {error.message}"
            ) from error


def read_block(store: Store, ref: PieceRef) -> bytes:
    """A piece of a state's file. Raises CorruptBackup."""
    data = store.get(ref.name)
    if data is None:
        raise CorruptBackup(f"{ref.name} is missing", file=ref.name)
    if len(data) != ref.size or hashlib.sha256(data).hexdigest() != ref.sha256:
        raise CorruptBackup(f"{ref.name} is damaged: its checksum differs", file=ref.name)
    return data


def _ends(place: Place) -> Callable[[LoggedEntry, str | None], bool]:
    """Whether an entry is behind the place: it was proposed after the instant, or some entry before it was."""
    newest = 0

    def ends(one: LoggedEntry, _: str | None) -> bool:
        nonlocal newest
        if place.index is not None:
            return one.index > place.index
        newest = max(newest, stamp(one.data))
        return newest > (place.at or 0)

    return ends


def _opened(directory: Path) -> Replica:
    try:
        from needle.shard.disk import ReplicaDisk  # a client alone has neither SQLite's module nor faiss
        from needle.shard.state_machine import Replica
    except ImportError:
        raise InvalidArgument(
            "to apply what is archived (`needle restore --at`, `needle backup verify` without --checksums-only) needs "
            "the whole package: pip install 'needle-vdb[server]'",
            field="at",
        ) from None
    return Replica(str(directory), limits=Limits(), segments=None, disk=ReplicaDisk())
