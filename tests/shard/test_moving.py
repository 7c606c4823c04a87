"""Moves of key ranges at the level of two logs: what is refused, what is visible, which versions are given."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from needle.base.errors import (
    AlreadyExists,
    DiskFailed,
    DiskFull,
    InvalidArgument,
    NeedleError,
    StaleEpoch,
    VersionMismatch,
)
from needle.base.model import Claim, SearchRequest, WriteResult
from needle.protocol.commands import (
    Change,
    ChangeWhere,
    Command,
    CreateCollection,
    Delete,
    Insert,
    Patch,
    Session,
    decode,
    encode,
)
from needle.protocol.move_commands import (
    Confirm,
    Discard,
    Forget,
    Freeze,
    GiveUp,
    Import,
    Mark,
    Own,
    PrepareMove,
    Release,
    Thaw,
)
from needle.routing.ranges import KeySet, difference, fingerprint, union
from needle.routing.shard_map import KeyRange
from needle.routing.strategy import CONSISTENT_HASH, RANGE, ShardStrategy, routing_key
from needle.shard import copying
from needle.shard.apply.holdings import decode_holdings, encode_holdings
from needle.shard.documents.purging import Held
from needle.shard.documents.store import DocumentStore
from needle.shard.documents.writer import DocumentWriter, Doomed
from needle.shard.state_machine import Replica
from proof.sim.power import cut_power
from shard.replica_util import Log, floats, open_replica, put, spec

MOVED: list[KeyRange] = [(b"m", None)]
KEPT: list[KeyRange] = [(b"", b"m")]
ALL: list[KeyRange] = [(b"", None)]


class Shard:
    """A replica with its log."""

    def __init__(self, directory: Path, name: str, feed_rows_bytes: int = 0) -> None:
        self.directory = directory / name
        self.replica = open_replica(self.directory, feed_rows_bytes=feed_rows_bytes)
        self.log = Log()

    def told(self, *commands: Command) -> Any:
        """The last one's result."""
        return self.replica.apply(self.log.add(*commands))[-1]

    def done(self, *commands: Command) -> WriteResult:
        result = self.told(*commands)
        assert isinstance(result, WriteResult), result
        return result

    def there(self, claim: list[KeyRange] | None = None) -> dict[str, int]:
        """Visible documents and their versions: as found by search, get and count alike."""
        wanted = None if claim is None else Claim(fingerprint(claim), 0)
        hits = self.replica.search(SearchRequest(collection="c", vector=floats([0, 0, 0]), k=1000, claim=wanted))
        found = dict(zip(hits.ids, hits.versions, strict=True))
        got = self.replica.get("c", [f"{letter}{n}" for letter in "abmnxyz" for n in range(30)], True, wanted)
        assert {one.id: one.version for one in got} == found
        assert self.replica.count("c") == len(found) == self.replica.count()
        filtered = SearchRequest(collection="c", vector=floats([0, 0, 0]), k=1000, filter=b'{"t": {"$exists": false}}')
        assert set(self.replica.search(filtered).ids) == set(found)
        self.replica.verify()
        return found

    def copy(self, to: Shard, move: int, cursor: int, step: int, rows_max: int = 1000) -> int:
        """One import of what is above the cursor; the new cursor."""
        rows, reached, _ = copying.page(self.replica.view, "c", MOVED, cursor, rows_max)
        to.done(imported(move, step, reached, rows))
        return reached


def imported(move: int, step: int, cursor: int, rows: list[Any], deleted: list[str] | None = None) -> Import:
    return Import(
        move,
        step,
        "c",
        cursor,
        [row.id for row in rows],
        [row.version for row in rows],
        b"".join(row.vector for row in rows),
        [row.metadata for row in rows],
        deleted or [],
        whole=True,
    )


def prepare(move: int, incoming: bool, owned: list[KeyRange], strategy: ShardStrategy = RANGE) -> PrepareMove:
    return PrepareMove(move, move, incoming, MOVED, owned, strategy, 2)


@pytest.fixture
def shards(tmp_path: Path) -> tuple[Shard, Shard]:
    """See `shards_of`."""
    return shards_of(tmp_path)


def shards_of(tmp_path: Path, feed_rows_bytes: int = 0) -> tuple[Shard, Shard]:
    """A source that owns everything and has written, and a target that owns nothing and is younger."""
    source, target = Shard(tmp_path, "source", feed_rows_bytes), Shard(tmp_path, "target", feed_rows_bytes)
    for shard in (source, target):
        shard.done(CreateCollection(spec()))
    for n in range(10):
        source.done(put([f"a{n}", f"m{n}"], [[n, 0, 0], [0, n, 1]]))
    return source, target


def handed_over(source: Shard, target: Shard, move: int = 9) -> None:
    source.done(prepare(move, False, ALL))
    target.done(prepare(move, True, []))
    floor = source.done(Freeze(move)).version
    source.copy(target, move, -1, 0)
    source.done(Release(move))
    target.done(Own(move, 1, floor))


def test_a_range_moves_and_every_document_is_visible_in_one_place(shards: tuple[Shard, Shard]) -> None:
    source, target = shards
    before = source.there()
    source.done(prepare(9, False, ALL))
    target.done(prepare(9, True, []))
    cursor = source.copy(target, 9, -1, 0, 7)
    assert source.there(ALL) == before
    assert target.there([]) == {}
    source.done(put(["m3", "z1"], [[9, 9, 9], [1, 1, 1]]))
    source.done(Delete("c", ["m0", "m9"]))
    changed = source.there(ALL)
    floor = source.done(Freeze(9)).version
    assert source.there(ALL) == changed
    source.copy(target, 9, cursor, 1)
    deleted, _ = copying.deleted(source.replica.view, "c", MOVED, 1000, None)
    assert sorted(deleted) == ["m0", "m9"]
    target.done(imported(9, 2, 1000, [], deleted))
    source.done(Release(9))
    assert source.there(KEPT) == {name: version for name, version in changed.items() if name < "m"}
    assert target.there([]) == {}
    target.done(Own(9, 3, floor))
    assert target.there(MOVED) == {name: version for name, version in changed.items() if name >= "m"}
    while source.done(Forget(9, 4)).count:
        source.there(KEPT)
    assert source.replica.fence is not None
    assert not source.replica.fence.copies
    assert sum(one.documents for one in (view.record for view in source.replica.view.collections.values())) == 10


def test_while_a_range_is_copied_what_is_dead_is_not_even_named(
    shards: tuple[Shard, Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A move may take hours, in which it becomes much; nothing is applied while it is named."""
    source, _ = shards
    source.done(prepare(9, False, ALL))
    source.done(Delete("c", ["m0", "m9"]))
    named, name = [], DocumentWriter.doomed

    def doomed(writer: DocumentWriter, at_least: int, rows_max: int, held: Callable[[], Held]) -> Doomed:
        found = name(writer, at_least, rows_max, held)
        named.append(len(found.rows))
        return found

    monkeypatch.setattr(DocumentWriter, "doomed", doomed)
    while source.replica.tidy(all_of_it=True):
        pass
    assert named and not any(named)
    source.done(GiveUp(9))
    assert source.replica.tidy(all_of_it=True)
    assert named[-1] == 2


def test_writes_are_refused_where_the_log_says_so(shards: tuple[Shard, Shard]) -> None:
    source, target = shards
    session = source.log.session(source.replica)
    source.done(prepare(9, False, ALL))
    target.done(prepare(9, True, []))
    source.done(put(["m1"], [[1, 1, 1]]))
    before = source.there()
    source.done(Freeze(9))
    row, late = [[5, 5, 5]], Session(session, 1, 1)
    refusals: list[Command] = [
        put(["m1"], row),
        put(["zz"], row, expected=0),
        put(["a1", "m1"], [[1, 1, 1], [2, 2, 2]]),
        Delete("c", ["m1"]),
        Delete("c", ["a1", "m1"]),
        put(["m1"], row, session=late),
    ]
    for command in refusals:
        error = source.told(command)
        assert isinstance(error, StaleEpoch)
        assert error.retryable
        assert error.details["owned"] is False
        assert isinstance(target.told(put(["m1"], row)), StaleEpoch)
    assert source.there() == before
    source.done(put(["a1"], row))
    # what was refused under a number stays refused: a copy of the write that is late must not be executed
    floor = source.done(Freeze(9)).version
    source.copy(target, 9, -1, 0)
    source.done(Release(9))
    assert isinstance(source.told(put(["m1"], row)), StaleEpoch)
    target.done(Own(9, 1, floor))
    target.done(put(["m1"], row))
    back = [prepare(10, False, []), Freeze(10), Release(10)]
    source.done(Forget(9, 1000))
    source.done(Forget(9, 1000))
    target.done(*back)
    source.done(prepare(10, True, ALL), Own(10, 0, 1000))
    again = source.told(put(["m1"], row, session=late))
    assert isinstance(again, StaleEpoch)
    assert again.details["final"] is True
    assert source.done(put(["m1"], row, session=Session(session, 2, 1))).version > 1000


def test_versions_grow_across_the_move(shards: tuple[Shard, Shard]) -> None:
    source, target = shards
    source.done(put(["m1"], [[1, 1, 1]]))
    last = source.done(put(["m2"], [[1, 1, 1]])).version
    source.done(Delete("c", ["m2"]))
    handed_over(source, target)
    held = target.there(MOVED)["m1"]
    again = target.done(put(["m2"], [[1, 1, 1]]))
    assert again.version > last
    assert again.index < last  # the target's log is younger: an index is not a version any more
    assert isinstance(target.told(put(["m1"], [[1, 1, 1]], expected=0)), AlreadyExists)
    assert isinstance(target.told(put(["m1"], [[1, 1, 1]], expected=held + 1)), VersionMismatch)
    assert target.done(put(["m1"], [[1, 1, 1]], expected=held)).version > again.version


def test_what_died_while_it_was_copied_is_not_purged(shards: tuple[Shard, Shard]) -> None:
    source, _ = shards
    source.done(prepare(9, False, ALL), Delete("c", ["m1", "a1"]), put(["m2"], [[1, 1, 1]]))
    source.replica.checkpoint()
    deleted, known = copying.deleted(source.replica.view, "c", MOVED, 1000, None)
    assert deleted == ["m1"]
    source.done(Delete("c", ["m2", "m3"]))
    assert copying.deleted(source.replica.view, "c", MOVED, 1000, known)[0] == ["m3", "m2"]
    source.done(Freeze(9))
    source.replica.checkpoint()
    assert sorted(copying.deleted(source.replica.view, "c", MOVED, 1000, None)[0]) == ["m1", "m2", "m3"]
    source.done(Release(9))
    source.replica.checkpoint()
    assert copying.deleted(source.replica.view, "c", MOVED, 1000, None)[0] == []


def test_a_later_look_reads_what_died_since_and_not_all_that_is_dead(
    shards: tuple[Shard, Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes wait for the last look, and nothing is purged while a move goes on."""
    source, _ = shards
    source.done(prepare(9, False, ALL))
    for n in range(300):
        source.done(put(["m1", "m2"], [[1, 1, n + 1], [2, 2, n + 1]]))
    first, known = copying.deleted(source.replica.view, "c", MOVED, 590, None)
    assert first == []
    asked, by_ordinal, graves = list[int](), DocumentStore.by_ordinal, DocumentStore.graves

    def counting(store: DocumentStore, collection: int, ordinals: Sequence[int], **what: Any) -> Any:
        asked.extend(ordinals)
        return by_ordinal(store, collection, ordinals, **what)

    def buried(store: DocumentStore, collection: int, upto: int) -> list[int]:
        found = graves(store, collection, upto)
        asked.extend(found)
        return found

    monkeypatch.setattr(DocumentStore, "by_ordinal", counting)
    monkeypatch.setattr(DocumentStore, "graves", buried)
    source.done(Delete("c", ["m3", "m2", "a1"]), put(["m4"], [[4, 4, 4]]))
    gone, known = copying.deleted(source.replica.view, "c", MOVED, 10**6, known)
    assert sorted(gone) == ["m2", "m3"] and len(asked) < 40
    asked.clear()
    assert copying.deleted(source.replica.view, "c", MOVED, 10**6, known)[0] == [] and not asked


def test_what_is_replaced_behind_the_pages_and_then_deleted_is_deleted_there_too(shards: tuple[Shard, Shard]) -> None:
    source, target = shards
    source.done(prepare(9, False, ALL))
    target.done(prepare(9, True, []))
    cursor = source.copy(target, 9, -1, 0)
    source.done(put(["m3", "m4"], [[9, 9, 9], [8, 8, 8]]))
    deleted, known = copying.deleted(source.replica.view, "c", MOVED, cursor, None)
    assert deleted == []
    source.done(Delete("c", ["m3", "m4"]))
    floor = source.done(Freeze(9)).version
    rows, reached, _ = copying.page(source.replica.view, "c", MOVED, cursor, 1000)
    assert (rows, reached) == ([], cursor)
    deleted, _ = copying.deleted(source.replica.view, "c", MOVED, cursor, known)
    assert sorted(deleted) == ["m3", "m4"]
    target.done(imported(9, 1, cursor, [], deleted))
    source.done(Release(9))
    target.done(Own(9, 2, floor))
    assert sorted(target.there(MOVED)) == sorted(f"m{n}" for n in range(10) if n not in (3, 4))


def test_what_a_document_of_another_range_replaces_is_deleted_there_too(tmp_path: Path) -> None:
    strategy = ShardStrategy.custom("t")
    source = Shard(tmp_path, "source")
    keys = {t: routing_key(strategy, 2, "", {"t": t}) for t in range(8)}
    middle = sorted(keys.values())[4]
    goes, goes_too = (t for t, key in keys.items() if key in sorted(keys.values())[4:6])
    stays = next(t for t, key in keys.items() if key < middle)
    ranges: list[KeyRange] = [(middle, None)]
    rows = [{"t": goes}, {"t": goes}, {"t": goes}]
    source.done(CreateCollection(spec()), put(["x", "y", "z"], [[1, 1, 1], [2, 2, 2], [3, 3, 3]], rows))
    source.done(PrepareMove(3, 3, False, ranges, ALL, strategy, 2))
    source.done(put(["x", "y"], [[1, 1, 1], [2, 2, 2]], [{"t": stays}, {"t": goes_too}]))
    deleted, known = copying.deleted(source.replica.view, "c", ranges, 2, None)
    assert deleted == ["x"]
    assert copying.deleted(source.replica.view, "c", ranges, 4, known)[0] == []


def test_a_replica_without_room_applies_a_move_later_not_otherwise(shards: tuple[Shard, Shard]) -> None:
    source, _ = shards
    source.done(prepare(9, False, ALL), Freeze(9))
    writer = source.replica._store.writer._connection
    source.replica.save()
    writer.execute(f"PRAGMA max_page_count={writer.execute('PRAGMA page_count').fetchone()[0]}")
    source.done(put([f"a{n}" for n in range(500)], [[1, 2, 3]] * 500))
    entries, before = source.log.add(Release(9)), source.replica.applied_index()
    for _ in range(2):
        with pytest.raises(DiskFull):
            source.replica.apply(entries)
        assert source.replica.applied_index() == before
    writer.execute("PRAGMA max_page_count=1000000")
    assert isinstance(source.replica.apply(entries)[0], WriteResult)
    assert source.replica.get("c", ["m1"], False) == []
    source.replica.verify()


def test_a_fault_of_the_disk_is_no_answer_of_the_log(
    shards: tuple[Shard, Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other replicas do what this one cannot: it must not go on as if all had refused. What may pass by itself is
    tried again."""
    source, _ = shards
    source.done(prepare(9, False, ALL), Freeze(9))

    errors: list[NeedleError] = [DiskFull("no space left"), DiskFailed("broken")]

    def fails(*_: Any, **__: Any) -> Any:
        raise errors.pop(0)

    monkeypatch.setattr(source.replica._store, "live_between", fails)
    entries, before = source.log.add(Release(9)), source.replica.applied_index()
    with pytest.raises(DiskFull):
        source.replica.apply(entries)
    with pytest.raises(DiskFailed):
        source.replica.apply(entries)
    with pytest.raises(DiskFailed):
        source.told(put(["a1"], [[1, 2, 3]]))
    assert source.replica.applied_index() == before


def test_a_page_of_another_driver_is_refused(shards: tuple[Shard, Shard]) -> None:
    source, target = shards
    source.done(prepare(9, False, ALL))
    target.done(prepare(9, True, []))
    old, reached, _ = copying.page(source.replica.view, "c", MOVED, -1, 5)
    source.done(Delete("c", [row.id for row in old]))
    target.done(imported(9, 0, reached, []))
    error = target.told(imported(9, 0, reached, old))
    assert isinstance(error, VersionMismatch)
    assert error.details["actual"] == 1
    assert isinstance(target.told(Own(9, 0, 100)), VersionMismatch)
    target.done(Own(9, 1, 100))
    assert target.there(MOVED) == {}


def test_repeated_and_late_commands_change_nothing(shards: tuple[Shard, Shard]) -> None:
    source, target = shards
    rows, _, _ = copying.page(source.replica.view, "c", MOVED, -1, 5)
    assert rows == []  # nothing is copied of a shard that takes part in no move
    handed_over(source, target)
    for shard, commands in (
        (source, [prepare(9, False, ALL), Freeze(9), Release(9)]),
        (target, [prepare(9, True, []), imported(9, 1, 99, []), imported(9, 0, 99, [], ["m1"]), Own(9, 1, 5000)]),
    ):
        before = (shard.replica.digest(), shard.there())
        for command in commands:
            shard.told(command)
        assert (shard.replica.digest(), shard.there()) == before
    for command in (Freeze(8), Release(8), Own(8, 0, 1), Forget(8, 1), imported(8, 0, 1, [])):
        assert isinstance(source.told(command), InvalidArgument)
    assert isinstance(source.told(Own(9, 0, 1)), NeedleError)
    assert isinstance(target.told(Forget(9, 1)), InvalidArgument)
    source.done(Forget(9, 1000))
    source.done(Forget(9, 1000))
    newer = PrepareMove(20, 20, False, [(b"a", b"b")], [], RANGE, 2)
    source.done(newer)
    assert source.replica.fence is not None
    assert [one.move for one in source.replica.fence.holdings.transfers] == [20]
    assert isinstance(source.told(Freeze(9)), InvalidArgument)  # forgotten, and not taken for a new one
    source.done(prepare(9, False, ALL))
    assert isinstance(source.told(Freeze(9)), InvalidArgument)


def test_a_frozen_range_thaws_and_what_is_late_of_that_attempt_is_refused(shards: tuple[Shard, Shard]) -> None:
    source, target = shards
    source.done(prepare(9, False, ALL), Freeze(9))
    target.done(prepare(9, True, []))
    cursor = source.copy(target, 9, -1, 0)
    target.done(Confirm(9, 1, 0))
    assert isinstance(source.told(put(["m1"], [[1, 1, 1]])), StaleEpoch)
    source.done(Thaw(9, 0))
    later = source.done(put(["m1"], [[1, 1, 1]])).version
    for late in (Freeze(9), Release(9), Freeze(9, 0), Release(9, 0)):
        error = source.told(late)
        assert isinstance(error, VersionMismatch), late
    assert source.done(Thaw(9, 0)).existed
    source.done(put(["m2"], [[1, 1, 1]]))
    assert isinstance(source.told(Release(9, 1)), InvalidArgument)
    floor = source.done(Freeze(9, 1)).version
    assert floor > later
    assert source.done(Thaw(9, 0)).existed
    assert isinstance(source.told(put(["m1"], [[1, 1, 1]])), StaleEpoch)
    assert isinstance(source.told(Release(9, 0)), VersionMismatch)
    before = source.there(ALL)
    source.copy(target, 9, cursor, 1)
    for refused in (Own(9, 2, floor, 1), Own(9, 2, floor), Own(9, 2, floor, 2)):
        assert isinstance(target.told(refused), VersionMismatch)
    target.done(Confirm(9, 2, 1))
    assert isinstance(target.told(Confirm(9, 2, 0)), VersionMismatch)
    assert isinstance(target.told(Own(9, 2, floor, 0)), VersionMismatch)
    source.done(Release(9, 1))
    target.done(Own(9, 2, floor, 1))
    assert target.there(MOVED) == {name: version for name, version in before.items() if name >= "m"}


def test_what_was_released_is_neither_thawed_nor_given_up(shards: tuple[Shard, Shard]) -> None:
    source, target = shards
    handed_over(source, target)
    held = source.replica.digest()
    for late in (Thaw(9, 0), GiveUp(9)):
        assert source.done(late).existed
    assert source.replica.digest() == held
    assert isinstance(target.told(Discard(9, 100)), InvalidArgument)
    assert source.there(KEPT)
    assert target.there(MOVED)
    while source.done(Forget(9, 100)).count:
        pass
    assert source.done(GiveUp(9)).existed


@pytest.mark.parametrize("frozen", [False, True])
def test_a_move_that_is_given_up_leaves_the_source_as_it_was_and_the_target_empty(
    shards: tuple[Shard, Shard], frozen: bool
) -> None:
    source, target = shards
    source.done(prepare(9, False, ALL), *([Freeze(9)] if frozen else []), Mark(9, "c", 5))
    target.done(prepare(9, True, []))
    source.copy(target, 9, -1, 0)
    before = source.there(ALL)
    source.done(GiveUp(9))
    assert source.there(ALL) == before
    source.done(put(["m1"], [[1, 1, 1]]))
    for late in (Freeze(9), Release(9), Freeze(9, 5), Release(9, 5)):
        assert isinstance(source.told(late), VersionMismatch)
    assert not source.replica.view.fence.copies  # type: ignore[union-attr]
    assert target.done(Discard(9, 3)).count == 3
    assert target.there([]) == {}
    for late in (imported(9, 1, 99, []), Confirm(9, 1, 0), Own(9, 1, 100, 0), Own(9, 1, 100)):
        assert isinstance(target.told(late), VersionMismatch)
    while target.done(Discard(9, 3)).count:
        assert target.there([]) == {}
    assert target.done(Discard(9, 3)).count == 0
    assert sum(view.record.documents for view in target.replica.view.collections.values()) == 0
    after = source.there(ALL)
    source.done(prepare(12, False, ALL), Freeze(12))
    target.done(prepare(12, True, []))
    source.copy(target, 12, -1, 0)
    source.done(Release(12))
    target.done(Confirm(12, 1, 0), Own(12, 1, 1000, 0))
    assert target.there(MOVED) == {name: version for name, version in after.items() if name >= "m"}


def test_while_a_range_is_copied_a_short_disk_takes_nothing_from_feeds(shards: tuple[Shard, Shard]) -> None:
    """No row goes then, so that who read changes was sent back to all documents, again and again, for nothing."""
    source, _ = shards
    source.done(prepare(9, False, ALL), put(["a1"], [[1, 1, 1]]), put(["a1"], [[2, 2, 2]]))
    begins = source.replica.effects.start
    while source.replica.tidy(all_of_it=True, short=True):
        pass
    assert source.replica.effects.start == begins
    source.done(GiveUp(9))
    while source.replica.tidy(all_of_it=True, short=True):
        pass
    assert source.replica.effects.start > begins


def test_entries_and_holdings_of_earlier_releases_mean_what_they_meant(shards: tuple[Shard, Shard]) -> None:
    def written(*fields: Any) -> Any:
        data = encode(prepare(9, False, ALL))
        return decode(data[:1] + msgspec.msgpack.encode(fields))

    assert written("move-freeze", 9) == Freeze(9, 0)
    assert written("move-release", 9) == Release(9, 0)
    assert written("move-own", 9, 1, 70) == Own(9, 1, 70, -1)
    source, target = shards
    handed_over(source, target)
    for shard in shards:
        stored = shard.replica._store.named("holdings")
        assert stored is not None
        _, count, owned, base, oldest, [transfer] = msgspec.msgpack.decode(stored)
        assert len(transfer) == 8  # as they wrote it: it is part of the digest
        held = decode_holdings(stored)
        assert encode_holdings(held) == stored
        assert held.transfers[0].attempt == 0
        assert (count, base, oldest) == (held.shard_count, held.base, held.oldest)
        assert len(owned) == len(held.owned)


def test_impossible_moves_are_refused(shards: tuple[Shard, Shard]) -> None:
    source, target = shards
    assert isinstance(target.told(prepare(9, False, KEPT)), InvalidArgument)
    assert isinstance(source.told(prepare(9, True, ALL)), InvalidArgument)
    assert source.replica.fence is None
    source.done(prepare(9, False, ALL))
    assert isinstance(source.told(Release(9)), InvalidArgument)
    assert isinstance(source.told(Forget(9, 1)), InvalidArgument)


def test_a_reader_with_another_map_is_refused(shards: tuple[Shard, Shard]) -> None:
    source, target = shards
    handed_over(source, target)
    for shard, ranges in ((source, ALL), (target, []), (target, ALL)):
        claim = Claim(fingerprint(ranges), 0)
        with pytest.raises(StaleEpoch):
            shard.replica.search(SearchRequest(collection="c", vector=floats([0, 0, 0]), k=1, claim=claim))
        with pytest.raises(StaleEpoch):
            shard.replica.get("c", ["m1"], False, claim)
        with pytest.raises(StaleEpoch):
            shard.replica.counts(claim)
    late = Claim(fingerprint(MOVED), 10_000)
    with pytest.raises(StaleEpoch):
        target.replica.get("c", ["m1"], False, late)


@pytest.mark.parametrize("seed", range(12))
def test_batching_restarts_power_loss_and_snapshots_change_nothing(tmp_path: Path, seed: int) -> None:
    """Any order of commands, on a replica that applies them one by one and one that does not."""
    rng = random.Random(seed)
    log, script = Log(), _script(rng)
    entries = log.add(*script)
    one = open_replica(tmp_path / "one")
    results = []
    for entry in entries:
        results.append(one.apply([entry])[0])
        if one.fence is not None:
            stored = [name for _, name, _ in one._store.live(one.view.collections["c"].record.id, metadata=False)]
            assert sorted(_visible(one)) == sorted(name for name in stored if one.fence.shows(name, b""))
    other, at, told = open_replica(tmp_path / "other"), 0, []
    while at < len(entries):
        size = rng.randint(1, 9)
        told += other.apply(entries[at : at + size])
        at += size
        if rng.random() < 0.2:
            other.checkpoint()
        if rng.random() < 0.3:
            if rng.random() < 0.5:
                cut_power(str(tmp_path / "other"), other.close, lambda size: rng.randint(0, size))
            else:
                other.close()
            other = open_replica(tmp_path / "other")
            at = other.applied_index()
            del told[at:]
        elif rng.random() < 0.2:
            image = Path(tempfile.mkdtemp(dir=tmp_path))
            other.export_snapshot(str(image))
            fresh = open_replica(tempfile.mkdtemp(dir=tmp_path))
            fresh.install_snapshot(str(image))
            assert fresh.digest() == other.digest()
            assert fresh.view.collections["c"].hidden == other.view.collections["c"].hidden
            fresh.close()
    assert [repr(result) for result in told] == [repr(result) for result in results]
    assert other.digest() == one.digest()
    assert _visible(other) == _visible(one)
    other.verify()


def _visible(replica: Replica) -> dict[str, int]:
    hits = replica.search(SearchRequest(collection="c", vector=floats([0, 0, 0]), k=1000, exact=True))
    return dict(zip(hits.ids, hits.versions, strict=True))


def _script(rng: random.Random) -> list[Command]:
    """Writes, and moves out of this shard and into it, in every phase."""
    script: list[Command] = [CreateCollection(spec())]
    names = [f"{letter}{n}" for letter in "abmn" for n in range(4)]
    owned, strategy = ALL, rng.choice([RANGE, CONSISTENT_HASH])

    def writes() -> None:
        for _ in range(rng.randint(0, 6)):
            chosen = rng.sample(names, rng.randint(1, 3))
            if rng.random() < 0.3:
                script.append(Delete("c", chosen))
            else:
                script.append(put(chosen, [[rng.random()] * 3 for _ in chosen]))

    for move in range(1, 7):
        ranges = rng.choice([MOVED, [(b"\x20", b"\x90"), (b"\xa0", None)]])
        incoming = move > 1 and rng.random() < 0.5 and difference(owned, ranges) == owned
        writes()
        script.append(PrepareMove(move, move, incoming, ranges, ALL, strategy, 2))
        writes()
        if incoming:
            for step in range(rng.randint(1, 3)):
                keys = KeySet(ranges)
                inside = [name for name in rng.sample(names, 8) if routing_key(strategy, 2, name) in keys]
                rows, count = [[rng.random()] * 3 for _ in inside], len(inside)
                versions, empty = [step + 1] * count, [b""] * count
                script.append(Import(move, step, "c", step, inside, versions, floats(*rows), empty, []))
                writes()
            if rng.random() < 0.4:
                for _ in range(6):
                    script.append(Discard(move, rng.randint(1, 10)))
                    writes()
                script.extend([Discard(move, 100), Discard(move, 100)])
                continue
            script.extend([Confirm(move, step + 1, 0), Own(move, step + 1, 100 * move, 0)])
            owned = union(owned, ranges)
        else:
            for upto in rng.sample(range(30), rng.randint(0, 2)):
                script.append(Mark(move, "c", upto))
                writes()
            attempt = 0
            while rng.random() < 0.4:
                script.append(Freeze(move, attempt))
                writes()
                script.append(Thaw(move, attempt))
                writes()
                attempt += 1
            script.append(Freeze(move, attempt))
            writes()
            if rng.random() < 0.3:
                script.append(GiveUp(move))
                continue
            script.extend([Mark(move, "c", 10)] if rng.random() < 0.3 else [])
            script.append(Release(move, attempt))
            owned = difference(owned, ranges)
            writes()
            for _ in range(6):
                script.append(Forget(move, rng.randint(1, 10)))
                writes()
            script.extend([Forget(move, 100), Forget(move, 100)])
    return script


def test_under_a_custom_strategy_the_stored_document_decides_and_deletes_name_the_map(tmp_path: Path) -> None:
    strategy = ShardStrategy.custom("t")
    source = Shard(tmp_path, "source")
    source.done(CreateCollection(spec()))
    keys = {t: routing_key(strategy, 2, "", {"t": t}) for t in range(8)}
    middle = sorted(keys.values())[4]
    gone = next(t for t, key in keys.items() if key >= middle)
    stays = next(t for t, key in keys.items() if key < middle)
    source.done(put(["x", "y"], [[1, 1, 1], [2, 2, 2]], [{"t": gone}, {"t": stays}]))
    ranges: list[KeyRange] = [(middle, None)]
    source.done(PrepareMove(3, 3, False, ranges, ALL, strategy, 2))
    mine = fingerprint(ALL)
    assert source.done(Delete("c", ["nothing"], owned=mine)).count == 0
    source.done(Freeze(3))
    assert isinstance(source.told(Delete("c", ["x"], owned=mine)), StaleEpoch)
    assert isinstance(source.told(put(["x"], [[1, 1, 1]], [{"t": stays}])), StaleEpoch)  # would replace a frozen one
    assert isinstance(source.told(put(["z"], [[1, 1, 1]], [{"t": gone}])), StaleEpoch)
    source.done(put(["y"], [[1, 1, 1]], [{"t": stays}]))
    source.done(Release(3))
    # by the old map "not here" may be said while the other shard said so before it got the document
    assert isinstance(source.told(Delete("c", ["x"], owned=mine)), StaleEpoch)
    assert isinstance(source.told(Delete("c", ["nothing"], owned=mine)), StaleEpoch)
    now = fingerprint(difference(ALL, ranges))
    source.done(Forget(3, 100))
    assert source.done(Delete("c", ["x"], owned=now)).count == 0
    assert source.done(Delete("c", ["y"], owned=now)).count == 1


def test_a_delete_within_ranges_leaves_other_keys_and_is_refused_unless_all_of_them_are_owned(tmp_path: Path) -> None:
    strategy = ShardStrategy.custom("t")
    target = Shard(tmp_path, "target")
    target.done(CreateCollection(spec()))
    keys = {t: routing_key(strategy, 2, "", {"t": t}) for t in range(8)}
    cuts = sorted(keys.values())
    low: KeyRange = (b"", cuts[2])
    middle: KeyRange = (cuts[2], cuts[5])
    high: KeyRange = (cuts[5], None)
    lowest, between = (next(t for t, key in keys.items() if key == cuts[at]) for at in (0, 3))

    def held() -> list[str]:
        return [one.id for one in target.replica.get("c", ["x", "y"], False)]

    row = Insert("c", ["x"], np.ones(3, "<f4").tobytes(), [msgspec.json.encode({"t": between})])
    for within in ([low], [middle]):  # it never took part in a move
        assert isinstance(target.told(Delete("c", ["x"], within=within)), InvalidArgument)
    target.done(PrepareMove(3, 3, True, [middle], [low], strategy, 2))
    target.done(Import(3, 0, "c", 5, ["x"], [7], row.vectors, row.metadata, []))
    assert isinstance(target.told(Delete("c", ["x"], within=[middle])), StaleEpoch)
    assert target.done(Delete("c", ["x"], within=[low])).count == 0  # x is not here yet: it stays for Own
    target.done(Own(3, 1, 100))
    assert held() == ["x"]
    assert isinstance(target.told(Delete("c", ["x"], within=[middle, high])), StaleEpoch)
    assert target.done(Delete("c", ["x"], within=[low])).count == 0
    assert target.done(Delete("c", ["x", "y"], within=[middle])).count == 1
    target.done(put(["y"], [[1, 1, 1]], [{"t": lowest}]), Delete("c", ["y"], within=[middle]))
    assert held() == ["y"]
    target.done(PrepareMove(4, 4, False, [middle], [low], strategy, 2), Freeze(4))
    assert isinstance(target.told(Delete("c", ["y"], within=[middle])), StaleEpoch)
    assert target.done(Delete("c", ["y"], within=[low])).count == 1


CUSTOM = ShardStrategy.custom("t")
THIRDS = sorted((routing_key(CUSTOM, 2, "", {"t": t}), t) for t in range(9))
SPANS: list[KeyRange] = [(b"", THIRDS[3][0]), (THIRDS[3][0], THIRDS[6][0]), (THIRDS[6][0], None)]
FIRST, SECOND, THIRD = ({"t": THIRDS[at][1]} for at in (0, 3, 6))
"""A document of each of the ranges."""


def carried(move: int, step: int, ids: list[str], metadata: Any, deleted: list[str] | None = None) -> Import:
    rows = put(ids, [[1, 1, 1]] * len(ids), [metadata] * len(ids))
    return Import(move, step, "c", step, ids, [7] * len(ids), rows.vectors, rows.metadata, deleted or [], whole=True)


def tenants(shard: Shard, ids: list[str]) -> dict[str, Any]:
    """What is visible: id -> metadata."""
    return {one.id: msgspec.json.decode(one.metadata) for one in shard.replica.get("c", ids, False)}


def test_an_import_never_takes_the_place_of_the_same_id_under_another_shard_key(tmp_path: Path) -> None:
    target = Shard(tmp_path, "target")
    target.done(CreateCollection(spec()), put(["x", "y"], [[1, 1, 1], [2, 2, 2]], [FIRST, FIRST]))
    target.done(PrepareMove(3, 3, True, [SPANS[1]], [SPANS[0]], CUSTOM, 2))
    before = target.replica.digest(), tenants(target, ["x", "y"])
    error = target.told(carried(3, 0, ["x", "y", "z"], SECOND))
    assert isinstance(error, AlreadyExists)
    assert error.details["ids"] == "'x', 'y'"
    assert error.details["count"] == 2
    assert (target.replica.digest(), tenants(target, ["x", "y"])) == before
    target.done(carried(3, 0, [], SECOND, ["x"]))  # deleted at the source: not this one
    assert tenants(target, ["x", "y"]) == before[1]
    target.done(Delete("c", ["x", "y"]))
    target.done(carried(3, 1, ["x", "y", "z"], SECOND))
    # From now on it is the shard's own writes that may not take the place of what was imported.
    assert isinstance(target.told(put(["x"], [[1, 1, 1]], [FIRST])), StaleEpoch)
    assert isinstance(target.told(Delete("c", ["x"])), StaleEpoch)
    target.done(carried(3, 2, ["x"], SECOND, ["z"]))
    target.done(Own(3, 3, 100))
    assert tenants(target, ["x", "y", "z"]) == {"x": SECOND, "y": SECOND}
    target.replica.verify()


def test_an_import_never_takes_the_place_of_what_another_move_brings(tmp_path: Path) -> None:
    target = Shard(tmp_path, "target")
    target.done(CreateCollection(spec()))
    for move, span in ((3, SPANS[1]), (4, SPANS[2])):
        target.done(PrepareMove(move, 3, True, [span], [SPANS[0]], CUSTOM, 3))
    target.done(carried(3, 0, ["x", "y"], SECOND))
    assert isinstance(target.told(carried(4, 0, ["x"], THIRD)), AlreadyExists)
    target.done(carried(4, 0, ["z"], THIRD, ["y"]))
    target.done(Own(3, 1, 100))
    assert isinstance(target.told(carried(4, 1, ["x"], THIRD)), AlreadyExists)
    target.done(Delete("c", ["x"]), carried(4, 1, ["x"], THIRD), Own(4, 2, 100))
    assert tenants(target, ["x", "y", "z"]) == {"x": THIRD, "y": SECOND, "z": THIRD}
    target.replica.verify()


def test_an_import_takes_the_place_of_what_was_given_away(tmp_path: Path) -> None:
    shard = Shard(tmp_path, "shard")
    shard.done(CreateCollection(spec()), put(["x", "y"], [[1, 1, 1], [2, 2, 2]], [SECOND, SECOND]))
    shard.done(PrepareMove(3, 3, False, [SPANS[1]], SPANS[:2], CUSTOM, 3), Freeze(3), Release(3))
    shard.done(PrepareMove(4, 3, True, [SPANS[2]], SPANS[:2], CUSTOM, 3))
    shard.done(carried(4, 0, ["x"], THIRD), Own(4, 1, 100))
    assert shard.done(Forget(3, 100)).count == 1
    assert tenants(shard, ["x", "y"]) == {"x": THIRD}
    shard.replica.verify()


def test_an_import_of_an_earlier_release_is_applied_as_it_was(tmp_path: Path) -> None:
    target = Shard(tmp_path, "target")
    target.done(CreateCollection(spec()), put(["x"], [[1, 1, 1]], [FIRST]))
    target.done(PrepareMove(3, 3, True, [SPANS[1]], [SPANS[0]], CUSTOM, 2))
    old = msgspec.structs.replace(carried(3, 0, ["x", "y"], SECOND), whole=False)
    entry = target.log.add(old)[0]
    body = msgspec.msgpack.decode(entry.data[1:])
    assert body.pop() is False  # `expires`, which is behind it and empty, is not written
    replayed = msgspec.structs.replace(entry, data=entry.data[:1] + msgspec.msgpack.encode(body))
    assert target.replica.apply([replayed])[0] == WriteResult(version=entry.index, index=entry.index, count=1)
    assert tenants(target, ["x", "y"]) == {"x": FIRST}


def test_what_is_patched_while_it_is_copied_is_copied_again(shards: tuple[Shard, Shard]) -> None:
    source, target = shards
    source.done(prepare(9, False, ALL))
    target.done(prepare(9, True, []))
    cursor = source.copy(target, 9, -1, 0)
    source.done(Patch("c", ["m1", "a1"], Change(set=[("t", b"1")])))
    cursor = source.copy(target, 9, cursor, 1)
    assert copying.deleted(source.replica.view, "c", MOVED, cursor, None)[0] == []
    source.done(Mark(9, "c", cursor))
    floor = source.done(Freeze(9)).version
    refused = source.told(Patch("c", ["m1"], Change(set=[("t", b"2")])))
    where = source.told(ChangeWhere("c", b"{}", None))
    assert isinstance(refused, StaleEpoch) and isinstance(where, StaleEpoch)
    source.done(Release(9))
    target.done(Own(9, 2, floor))
    (moved,) = target.replica.get("c", ["m1"], True)
    assert (moved.metadata, moved.vector) == (b'{"t":1}', floats([0, 1, 1]))
    assert not source.replica.get("c", ["m1"], False) and source.replica.get("c", ["a1"], False)
    within = source.told(ChangeWhere("c", b"{}", Change(set=[("u", b"1")]), within=MOVED))
    assert isinstance(within, StaleEpoch)
    assert target.done(ChangeWhere("c", b"{}", Change(set=[("u", b"1")]), within=MOVED)).count == 10
    for shard in shards:
        shard.replica.verify()
