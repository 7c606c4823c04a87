"""What entries did, as change feeds are told it: derived from applying, bounded, never with a gap."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pyroaring import BitMap

from needle.base.config import Limits
from needle.protocol.commands import (
    Change,
    ChangeWhere,
    Command,
    CreateCollection,
    Delete,
    Expire,
    Patch,
    UpdateVectors,
)
from needle.protocol.move_commands import Forget, Freeze, Own, Release
from needle.shard import copying, moved_rows
from needle.shard.effects import ABSENT, DELETED, LEFT, OWNED, RELEASED, WRITTEN, Effect, EffectLog, Page, Position
from needle.shard.feeding import BYTES_MAX, Fed, Wanted, read_changes
from shard.replica_util import Log, floats, open_replica, put, spec
from shard.test_moving import ALL, MOVED, handed_over, imported, prepare, shards_of

START = Position(1)
ROOM = 32 << 20


def _page(shard: Any, position: Position, limit: int = 100, bound: bytes = b"", past: int = 0) -> Fed | None:
    wanted = Wanted("c", position, limit, True, bound, past)
    found: Fed | None = shard.replica.look(read_changes, shard.replica.effects, wanted, Limits())
    return found


def _told(shard: Any) -> list[tuple[str, str]]:
    page = _page(shard, START)
    assert page is not None
    return [(one.kind, one.document.id) for one in page.told]


class Shard:
    """A replica with its log."""

    def __init__(self, directory: Path, feed_rows_bytes: int = 0) -> None:
        self.replica = open_replica(directory, feed_rows_bytes=feed_rows_bytes)
        self.log = Log()
        self.done(CreateCollection(spec()))

    def done(self, *commands: Command) -> None:
        self.replica.apply(self.log.add(*commands))

    def page(self, position: Position = START, limit: int = 100, bound: bytes = b"") -> Fed | None:
        return _page(self, position, limit, bound)

    def told(self, position: Position = START, bound: bytes = b"") -> list[tuple[str, str, int]]:
        page = self.page(position, bound=bound)
        assert page is not None
        return [(one.kind, one.document.id, one.document.version) for one in page.told]


def test_each_kind_of_write_is_told_as_what_it_did(tmp_path: Path) -> None:
    shard = Shard(tmp_path)
    shard.done(put(["a"], [[1, 2, 3]], [{"n": 1}]), put(["b"], [[4, 5, 6]], [{"n": 2}]))
    shard.done(Patch("c", ["a", "nobody"], Change(set=[("n", b"3")])), UpdateVectors("c", ["b"], floats([7, 8, 9])))
    shard.done(Delete("c", ["b", "nobody"]), Delete("c", ["b"]))
    shard.done(ChangeWhere("c", b'{"n":3}', None))
    page = shard.page()
    assert page is not None
    assert [(one.kind, one.document.id) for one in page.told] == [
        ("insert", "a"), ("insert", "b"), ("update", "a"), ("update", "b"), ("delete", "b"), ("delete", "a"),
    ]  # fmt: skip
    assert [one.document.vector for one in page.told] == [
        floats([1, 2, 3]), floats([4, 5, 6]), floats([1, 2, 3]), floats([7, 8, 9]), b"", b"",
    ]  # fmt: skip
    assert page.told[2].document.metadata == b'{"n":3}'
    assert [one.document.version for one in page.told] == [2, 3, 4, 5, 6, 8]


def test_pages_of_any_size_tell_the_same_once(tmp_path: Path) -> None:
    shard, rng = Shard(tmp_path), random.Random(3)
    for number in range(60):
        name = f"d{rng.randrange(12)}"
        shard.done(Delete("c", [name, f"d{rng.randrange(12)}"]) if number % 3 == 0 else put([name], [[1, 2, number]]))
    whole = shard.told()
    for limit in (1, 2, 7):
        position, found = START, []
        while (page := shard.page(position, limit)) is not None and page.told:
            found += [(one.kind, one.document.id, one.document.version) for one in page.told]
            position = page.told[-1].after
        assert found == whole


def test_who_sees_some_documents_hears_of_their_coming_and_going(tmp_path: Path) -> None:
    shard = Shard(tmp_path)
    shard.done(put(["a"], [[1, 2, 3]], [{"mine": True}]), put(["b"], [[1, 2, 3]], [{"mine": False}]))
    shard.done(put(["a"], [[1, 2, 3]], [{"mine": False}]), put(["b"], [[1, 2, 3]], [{"mine": True}]))
    shard.done(Delete("c", ["a"]), Delete("c", ["b"]))
    kinds = [(kind, name) for kind, name, _ in shard.told(bound=b'{"mine":true}')]
    assert kinds == [("insert", "a"), ("delete", "a"), ("insert", "b"), ("delete", "b")]


def test_rows_that_a_feed_may_read_are_not_purged_and_others_are(tmp_path: Path) -> None:
    shard = Shard(tmp_path)
    shard.replica._upkeep._purge_rows_min = 20
    for number in range(40):
        shard.done(put(["a"], [[1, 2, number]]))
    shard.replica.checkpoint()
    assert shard.page() is None  # the oldest are forgotten, and their rows are gone
    start = Position(shard.replica.effects.start)
    assert len(shard.told(start)) in range(10, 12)
    assert len(shard.replica._store.writer.doomed(0, 100).rows) == 10
    while shard.replica.tidy(all_of_it=True):
        pass
    assert shard.page(start) is None
    assert not shard.replica._store.writer.doomed(0, 100).rows


def test_an_idle_shard_keeps_what_readers_who_come_back_late_ask_for(tmp_path: Path) -> None:
    shard = Shard(tmp_path, feed_rows_bytes=100 * 256)
    for number in range(150):
        shard.done(put(["a"], [[1, 2, number]]))
    while shard.replica.tidy(all_of_it=True):
        pass
    assert len(shard.told(Position(shard.replica.effects.start))) in range(99, 102)
    assert len(shard.replica._store.writer.doomed(0, 1000).rows) == 100


def test_what_is_kept_of_an_effect_says_the_same_and_weighs_what_is_said() -> None:
    rng = random.Random(5)
    made = [
        Effect(
            entry, DELETED if entry % 5 == 0 else WRITTEN, 1 + entry % 3, entry * 7, entry,
            tuple(ABSENT if rng.random() < 0.5 else entry * 1000 + at for at in range(rng.randrange(1, 6))),
            tuple(entry * 1000 + 500 + at for at in range(rng.randrange(3))),
        )
        for entry in range(1, 400)
    ]  # fmt: skip
    effects = EffectLog()
    effects.add(made)
    found = effects.after(Position(1), 1000)
    assert found is not None
    assert found.effects == made
    assert not found.more
    named = [(one.collection_id, row) for one in made for row in (*one.olds, *one.vectors) if row != ABSENT]
    assert sorted((number, row) for number, rows in effects.held().items() for row in rows) == sorted(named)
    assert effects.hold(0) == 0
    assert effects.held() == {}
    start = made[-1].entry + 1
    tracemalloc.start()
    before, weighed = tracemalloc.get_traced_memory()[0], effects.size
    effects.add([Effect(start + n, WRITTEN, 1, start + n, 10_000_000 + n, (20_000_000 + n,)) for n in range(20_000)])
    took = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert took * 0.7 < effects.size - weighed < took * 1.5


def test_a_page_of_an_entry_of_many_documents_begins_and_ends_within_it() -> None:
    effects = EffectLog()
    of = [(4, 1), (4, 2), (4, 1), (4, 1), (4, 1), (5, 1)]
    made = [Effect(entry, WRITTEN, number, entry, at, (ABSENT,) * 30) for at, (entry, number) in enumerate(of)]
    effects.add(made)
    assert effects.after(Position(1), 10, 20, 1) == (made[:1], True, True, 0)
    assert effects.after(Position(4), 10, 40, 1) == (made[:3], True, True, 0)
    assert effects.after(Position(4, 29), 10, 20, 1) == (made[:1], True, True, 0)
    assert effects.after(Position(4, 30), 10, 20, 1) == (made[2:3], True, True, 30)
    assert effects.after(Position(4, 89), 10, 20, 1) == (made[3:4], True, True, 60)
    assert effects.after(Position(4, 90), 10, 20, 1) == (made[4:5], True, False, 90)
    assert effects.after(Position(4, 120), 10, 20, 1) == (made[5:], False, False, 120)
    assert effects.after(Position(4), 1, 20, 2) == (made[1:2], True, True, 0)
    assert effects.after(Position(4, 30), 9, 20, 2) == (made[5:], False, False, 30)
    assert effects.after(Position(4), 9, 20, 3) == (made[5:], False, False, 0)
    assert effects.after(Position(5), 10, 20, 1) == (made[5:], False, False, 0)


def test_pages_of_a_collection_begin_where_the_one_before_ended_whatever_an_entry_did() -> None:
    rng = random.Random(3)
    for _ in range(60):
        effects, made, firsts = EffectLog(), list[Effect](), [0, 0, 0]
        for entry in range(1, 8):
            kinds = [WRITTEN] if rng.random() < 0.5 else [WRITTEN, DELETED]
            numbers = [1] if rng.random() < 0.5 else [1, 2]
            for _ in range(rng.choice((1, 3, 30))):
                number, count, kind = rng.choice(numbers), rng.choice((2, 2, 3)), rng.choice(kinds)
                made.append(Effect(entry, kind, number, len(made), firsts[number], (ABSENT,) * count))
                firsts[number] += count if kind == WRITTEN else 0
        effects.add(made)
        mine = [one for one in made if one.collection_id == 1]
        for _ in range(20):
            entry = rng.randrange(1, 8)
            here = [one for one in mine if one.entry == entry]
            position = Position(entry, rng.randrange(1 + sum(len(one.olds) for one in here)))
            page = effects.after(position, rng.randrange(1, 9), rng.randrange(1, 60), 1)
            assert page is not None
            gone, skipped = 0, 0
            while gone < len(here) and skipped + len(here[gone].olds) <= position.offset:
                gone, skipped = gone + 1, skipped + len(here[gone].olds)
            wanted = [*here[gone:], *(one for one in mine if one.entry > entry)]
            found = [one for one in page.effects if one.collection_id == 1]
            assert (found, page.skipped) == (wanted[: len(found)], skipped)
            left = made[made.index(page.effects[-1]) + 1 :] if page.effects else []
            assert page.more == bool(left)
            assert page.within == (bool(left) and left[0].entry == page.effects[-1].entry)


def test_while_several_moves_come_none_is_trusted_after_a_copy_was_lost() -> None:
    effects = EffectLog()
    effects.add([Effect(1, WRITTEN, 1, 1, 0, (ABSENT,))])
    effects.doubt()
    effects.add([Effect(2, OWNED, version=1, first=7), Effect(3, WRITTEN, 1, 3, 1, (ABSENT,))])
    assert effects.start == 3
    effects.add([Effect(4, OWNED, first=8), Effect(5, WRITTEN, 1, 5, 2, (ABSENT,))])
    assert effects.start == 5
    effects.add([Effect(6, OWNED, first=9)])
    assert effects.start == 5


def test_a_page_looks_at_a_bounded_number_of_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("needle.shard.feeding.DOCUMENTS_MAX", 256)
    shard = Shard(tmp_path)
    names = [f"d{n}" for n in range(600)]
    shard.done(put(names, [[1, 2, 3]] * 600, [{"mine": n == 599} for n in range(600)]))
    position, pages = Position(1), 0
    while True:
        page = shard.page(position, bound=b'{"mine":true}')
        assert page is not None
        pages += 1
        if page.told:
            break
        assert page.more
        position = page.reached
    assert [one.document.id for one in page.told] == ["d599"]
    assert pages == 3  # of 280, for few are read first, and then a hundred at once


def test_a_page_reads_a_bounded_number_of_bytes_though_it_tells_nothing(tmp_path: Path) -> None:
    """Else who asks gives up before it is there, and again at the same place."""
    shard, large = Shard(tmp_path), 60_000
    for first in range(0, 300, 50):
        names = [f"d{n}" for n in range(first, first + 50)]
        put_them = put(names, [[1, 2, 3]] * 50, [{"mine": name == "d299", "text": "x" * large} for name in names])
        shard.done(put_them)
    position, pages, told = START, 0, list[str]()
    while not told:
        page = shard.page(position, bound=b'{"mine":true}')
        assert page is not None and (page.told or page.more)
        before = (position.entry - START.entry) * 50 + position.offset
        assert (page.reached.entry - START.entry) * 50 + page.reached.offset - before <= 2 * BYTES_MAX // large
        position, pages, told = page.reached, pages + 1, [one.document.id for one in page.told]
    assert told == ["d299"] and pages > 2


def test_a_replica_that_was_opened_again_says_that_it_does_not_know(tmp_path: Path) -> None:
    shard = Shard(tmp_path)
    shard.done(put(["a"], [[1, 2, 3]]))
    shard.replica.checkpoint()
    shard.replica.close()
    shard.replica = open_replica(tmp_path)
    assert shard.page() is None
    shard.done(put(["b"], [[1, 2, 3]]))
    assert [name for _, name, _ in shard.told(Position(3))] == ["b"]


def test_what_a_move_brings_and_takes_is_no_change_and_a_page_ends_before_it(tmp_path: Path) -> None:
    source, target = shards_of(tmp_path)
    handed_over(source, target)
    assert [one for one in _told(source) if one[1].startswith("m")] == [("insert", f"m{n}") for n in range(10)]
    target.done(put(["m3"], [[1, 1, 1]]))
    while source.done(Forget(9, 4)).count:
        pass
    assert len(_told(source)) == 20  # what it gave away, and forgot, it did not delete
    page = _page(target, START)
    assert page is not None
    assert (page.told, page.owned) == ([], 9)
    own = page.reached
    page = _page(target, own, past=9)
    assert page is not None
    assert [(one.kind, one.document.id) for one in page.told] == [("update", "m3")]
    released = source.replica.effects.released(9, START)
    assert released
    assert source.replica.effects.released(9, Position(released + 1)) == 0
    page = _page(source, Position(released))
    assert page is not None
    assert (page.told, page.more) == ([], True)  # it is answered at once: the target's feed waits for it
    assert page.reached.entry > released
    assert _page(source, page.reached) == Fed([], page.reached, 0)


def test_what_was_written_and_then_moved_away_is_told_to_who_comes_back_later(tmp_path: Path) -> None:
    """The rows of a range that left were purged at once, for no effect named them as dead: a reader who was away while
    a few of them were written, and moved, had to begin again."""
    source, target = shards_of(tmp_path, feed_rows_bytes=ROOM)
    source.done(Patch("c", ["m1"], Change(set=[("n", b"3")])))
    handed_over(source, target)
    told = _told(source)
    assert ("insert", "m1") in told and ("update", "m1") in told
    while source.done(Forget(9, 4)).count:
        pass
    source.done(put(["a0"], [[1, 1, 1]]))
    while source.replica.tidy(all_of_it=True):
        pass
    assert _told(source) == [*told, ("update", "a0")]
    assert len(source.replica._store.writer.doomed(0, 1000, dict).rows) > 10
    while source.replica.tidy(all_of_it=True, short=True):
        pass
    assert not source.replica._store.writer.doomed(0, 1000, dict).rows


def test_a_copy_that_expires_before_it_is_owned_makes_a_feed_begin_anew(tmp_path: Path) -> None:
    source, target = shards_of(tmp_path)
    source.done(put(["m99"], [[1, 1, 1]], expires=[100]))
    source.done(prepare(9, False, ALL))
    target.done(prepare(9, True, []))
    floor = source.done(Freeze(9)).version
    rows, reached, _ = copying.page(source.replica.view, "c", MOVED, -1, 1000)
    brought = msgspec.structs.replace(imported(9, 0, reached, rows), expires=[row.expires for row in rows])
    target.done(brought, Expire("c", 200, 10))
    page = _page(target, START)
    assert page is not None
    assert not page.told  # it is not the target's to tell
    source.done(Release(9))
    target.done(Own(9, 1, floor))
    assert _page(target, START) is None
    assert _page(target, Position(target.replica.effects.start)) is not None


def test_a_move_that_may_have_lost_a_document_cuts_what_was_before() -> None:
    effects = EffectLog()
    effects.add([Effect(5, WRITTEN, 1, 5, 0, (ABSENT,))])
    effects.doubt()
    effects.add([Effect(6, OWNED, first=3)])
    effects.add([Effect(7, WRITTEN, 1, 7, 1, (ABSENT,)), Effect(8, OWNED, first=4)])
    assert effects.after(Position(6), 10) is None
    found = effects.after(Position(7), 10)
    assert found is not None
    assert [one.entry for one in found.effects] == [7, 8]


def test_who_waits_hears_of_its_collection_and_of_moves_only() -> None:
    effects, heard = EffectLog(), list[int]()
    ends = [effects.listen(collection, lambda of=collection: heard.append(of)) for collection in (1, 2)]  # type: ignore[misc]
    effects.add([Effect(5, WRITTEN, 1, 5, 0, (ABSENT,))])
    assert heard == [1]
    effects.add([Effect(6, WRITTEN, 3, 6, 0, (ABSENT,))])
    assert heard == [1]
    effects.add([Effect(7, OWNED, first=3)])
    assert heard == [1, 1, 2]
    ends[0]()
    effects.add([Effect(8, WRITTEN, 1, 8, 1, (ABSENT,)), Effect(9, WRITTEN, 2, 9, 0, (ABSENT,))])
    assert heard == [1, 1, 2, 2]


def test_what_is_remembered_has_a_bound_and_entries_stay_whole() -> None:
    effects = EffectLog(memory_max=1000)
    for entry in range(1, 50):
        effects.add([Effect(entry, WRITTEN, 1, entry, entry, (ABSENT,)), Effect(entry, DELETED, 1, entry, 0, (entry,))])
    assert effects.start in range(46, 50)
    found = effects.after(Position(effects.start), 100)
    assert found is not None
    assert [one.entry for one in found.effects] == [entry for entry in range(effects.start, 50) for _ in range(2)]
    assert effects.hold(1) == 1
    assert len(effects.held()[1]) == 1


def test_rows_that_moved_away_stay_while_what_wrote_them_is_remembered_within_a_bound() -> None:
    effects = EffectLog()
    effects.add([Effect(entry, WRITTEN, 1, entry, 10 * entry, (ABSENT,) * 10) for entry in range(1, 5)])
    effects.add([Effect(5, WRITTEN, 1, 5, 50, (12, ABSENT), (7,))])  # the row 51 has the vector of another one
    effects.add(
        [Effect(6, LEFT, 1, olds=(3, 11, 35, 51), vectors=(3, 11, 35, 9)), Effect(6, LEFT, 2, olds=(1,), vectors=(1,))]
    )
    assert effects.held() == {1: BitMap([7, 12, 9, 11, 35, 51])}  # not the row 3, nor what another collection had
    assert effects.after(Position(6), 10) == Page([], False)  # nobody is told
    assert effects.hold(100) == 6
    assert effects.hold(5) == 5 and effects.held() == {1: BitMap([7, 12, 9, 35, 51])} and effects.start == 1
    assert effects.hold(0) == 0 and effects.held() == {} and effects.start == 6
    effects.add([Effect(7, LEFT, 1, olds=(51,), vectors=(9,))])
    assert effects.held() == {}
    small = EffectLog(memory_max=10 * 512)
    for entry in range(1, 200):
        small.add(
            [Effect(entry, WRITTEN, 1, entry, entry, (ABSENT,)), Effect(entry, LEFT, 1, olds=(entry,), vectors=(0,))]
        )
        assert small.hold(1000) <= 10
    assert small.held() == {1: BitMap([0, 195, 196, 197, 198, 199])}
    small.begin(200, doubtful=False)
    assert small.held() == {}


def test_nobody_is_woken_by_what_left_with_a_range() -> None:
    """Each reader of the collection looked for changes at each step that deletes what had moved away."""
    effects, told = EffectLog(), list[str]()
    effects.listen(1, lambda: told.append("1"))
    effects.add([Effect(1, WRITTEN, 1, 1, 10, (ABSENT,) * 10)])
    assert told == ["1"]
    effects.add([Effect(2, LEFT, 1, olds=(10, 11), vectors=(10, 11))])
    assert told == ["1"] and effects.hold(10) == 2
    effects.add([Effect(3, LEFT, 1, olds=(12,), vectors=(12,)), Effect(3, WRITTEN, 2, 3, 5, (ABSENT,))])
    assert told == ["1"]
    effects.add([Effect(4, RELEASED, 0, first=9)])
    assert told == ["1", "1"]


def test_what_moved_away_costs_what_it_is_however_many_collections_had_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each collection of a move all were counted: of 4,000 that had one document each it took eight seconds, in
    which the replica applied nothing."""
    counted, true = list[int](), moved_rows._Moved.count

    def count(moved: moved_rows._Moved) -> int:
        counted.append(1)
        return true(moved)

    monkeypatch.setattr(moved_rows._Moved, "count", count)

    def cost(collections: int) -> int:
        effects = EffectLog()
        effects.add([Effect(1, WRITTEN, one, 1, 5, (ABSENT,)) for one in range(collections)])
        counted.clear()
        effects.add([Effect(2, LEFT, one, olds=(5,), vectors=(5,)) for one in range(collections)])
        assert effects.hold(collections) == collections
        assert effects.hold(10) == 10 == len(effects.held())
        return len(counted)

    assert cost(400) < 5 * cost(100)


@pytest.mark.parametrize("seed", range(20))
def test_as_many_rows_are_said_to_be_held_as_there_are(seed: int) -> None:
    rng, effects, ends = random.Random(seed), EffectLog(memory_max=12 * 512), dict.fromkeys(range(1, 5), 0)
    for entry in range(1, 200):
        one = rng.randrange(1, 5)
        if rng.random() < 0.5:
            effects.add([Effect(entry, WRITTEN, one, entry, ends[one], (ABSENT,) * 5)])
            ends[one] += 5
        elif ends[one]:
            olds = tuple(sorted(rng.sample(range(ends[one]), min(ends[one], rng.randint(1, 6)))))
            vectors = tuple(old if rng.random() < 0.5 else 1_000_000 + 1000 * entry + old for old in olds)
            effects.add([Effect(entry, LEFT, one, olds=olds, vectors=vectors)])
        most = rng.choice([10_000, 10_000, 5])
        held = effects._moved
        assert effects.hold(most) == held.count == sum(moved.count() for moved in held._moved.values()) <= min(most, 12)
