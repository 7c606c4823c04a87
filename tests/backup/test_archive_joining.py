"""Small files of an archive become larger ones, whoever is killed meanwhile, or reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backup.archived import World, restored
from backup.killing import Counted, Killed
from needle.backup import archive_joining
from needle.backup.archive_format import LOG, Span, directory
from needle.backup.archive_joining import JOINED_BYTES, JOINED_FILES, SMALL_BYTES, held_by_others, run_to_join
from needle.backup.archive_reading import chain, chunks_of, entries
from needle.backup.archiving import Archiver
from needle.backup.keeping import verify
from needle.backup.store import DirectoryStore, Store

FEW = 4


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_joining, "JOINED_FILES", FEW)


def names(store: Store) -> list[str]:
    return [name for name in store.names(directory(7, 0)) if name.endswith(LOG)]


async def joined(archiver: Archiver) -> None:
    """Have what is due be joined, and wait for it."""
    await archiver.look(flush=True)
    task = archiver._joining._task
    if task is not None:
        await task


async def small_files(world: World, store: Store, count: int) -> None:
    """As an archiver of a release before wrote them."""
    archiver = world.archiver(store)
    archiver._joining.go_on = lambda *_: None  # type: ignore[method-assign]
    for _ in range(count):
        world.fill(3)
        await archiver.look(flush=True)
    await archiver.close()


@pytest.mark.usefixtures("few")
async def test_they_are_joined_and_every_index_comes_back(tmp_path: Path) -> None:
    world, store = World(tmp_path / "world"), DirectoryStore(tmp_path / "target")
    archiver = world.archiver(store)
    for _ in range(3 * FEW):
        world.fill(3)
        await joined(archiver)
    await joined(archiver)
    assert len(names(store)) < FEW
    last = len(world.shard.log)
    assert [one.index for one, _ in entries(store, 7, 0, 0)] == list(range(1, last + 1))
    assert {one.index for one, digest in entries(store, 7, 0, 0) if digest} >= {last}, "digests are kept"
    assert verify(store).problems == []
    for index in (1, 5, last - 1, last):
        assert restored(store, tmp_path / f"at-{index}", index=index) == world.shard.contents[index]
    await archiver.close()


@pytest.mark.usefixtures("few")
async def test_stopped_while_files_are_joined_it_reads_once_more_and_ends(tmp_path: Path) -> None:
    """Asked to go on after it was broken off, joining raised the CancelledError of its task."""
    world, store = World(tmp_path / "world"), DirectoryStore(tmp_path / "target")
    await small_files(world, store, FEW)
    archiver = world.archiver(store)
    await archiver.look(flush=True)
    task = archiver._joining._task
    assert task is not None and not task.done()
    await archiver.close()
    assert task.cancelled()
    world.fill(3)
    await archiver.read(flush=True)
    await archiver.close()
    last = len(world.shard.log)
    assert [one.index for one, _ in entries(store, 7, 0, 0)] == list(range(1, last + 1))


@pytest.mark.usefixtures("few")
async def test_killed_at_each_step_nothing_is_lost_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    ended = 0
    for step in range(1, 40):
        for after in (False, True):
            root = tmp_path / f"{step}-{after}"
            root.mkdir()
            world, store = World(root / "world"), DirectoryStore(root / "target", durable=False)
            await small_files(world, store, 2 * FEW)
            whole = [one for one, _ in entries(store, 7, 0, 0)]
            killed = world.archiver(Counted(store, step, after))
            try:
                for _ in range(2):
                    await joined(killed)
            except Killed:
                ended += 1
            killed._joining._task = None  # it is dead
            await killed.close()
            assert [one for one, _ in entries(store, 7, 0, 0)] == whole
            assert verify(store).problems == []
            world.fill(2)
            archiver = world.archiver(store)
            for _ in range(2):
                await joined(archiver)
            await archiver.close()
            files = [(span, 1) for span in chunks_of(store, 7, 0)]
            assert held_by_others(files) == [] and len(files) <= FEW
            assert [one.index for one, _ in entries(store, 7, 0, 0)] == list(range(1, len(world.shard.log) + 1))
        if not ended:
            break
        ended = 0
    else:
        raise AssertionError("joining never came to its end")
    assert step > 2 * FEW, "it was killed at every step"


@pytest.mark.usefixtures("few")
async def test_a_damaged_file_is_left_alone_and_told(tmp_path: Path) -> None:
    world, store = World(tmp_path / "world"), DirectoryStore(tmp_path / "target")
    await small_files(world, store, 3 * FEW)
    spans = chunks_of(store, 7, 0)
    bad = spans[2].name
    store.put(bad, (store.get(bad) or b"")[:-1] + b"?")
    archiver = world.archiver(store)
    for _ in range(3):
        await joined(archiver)
    assert bad in names(store) and len(names(store)) <= 2 * FEW
    problems = verify(store).problems
    assert len(problems) == 1 and bad in problems[0]
    await archiver.close()


@pytest.mark.usefixtures("few")
async def test_what_a_damaged_file_holds_too_is_not_deleted(tmp_path: Path) -> None:
    """The joined file of one who was killed before its parts were deleted."""
    world, store = World(tmp_path / "world"), DirectoryStore(tmp_path / "target")
    await small_files(world, store, FEW)
    parts = {span.name: store.get(span.name) or b"" for span in chunks_of(store, 7, 0)}
    archiver = world.archiver(store)
    for _ in range(2):
        await joined(archiver)
    await archiver.close()
    (whole,) = names(store)
    store.put(whole, (store.get(whole) or b"")[:-1] + b"?")
    for name, data in parts.items():
        store.put(name, data)
    again = world.archiver(store)
    await joined(again)
    assert set(parts) <= set(names(store))
    await again.close()


@pytest.mark.usefixtures("few")
async def test_who_reads_meanwhile_reads_all(tmp_path: Path) -> None:
    world, store = World(tmp_path / "world"), DirectoryStore(tmp_path / "target")
    await small_files(world, store, 2 * FEW)
    last = len(world.shard.log)
    tape = entries(store, 7, 0, 0)
    found = [next(tape)[0].index]
    archiver = world.archiver(store)
    for _ in range(2):
        await joined(archiver)
    assert len(names(store)) <= 2
    found += [one.index for one, _ in tape]
    assert found == list(range(1, last + 1))
    await archiver.close()


@pytest.mark.usefixtures("few")
async def test_two_archivers_join_at_one_target(tmp_path: Path) -> None:
    world, store = World(tmp_path / "world"), DirectoryStore(tmp_path / "target")
    both = [world.archiver(store), world.archiver(store)]
    for round_ in range(4 * FEW):
        world.fill(1 + round_ % 3)
        await both[round_ % 2].look(flush=True)
        for one in both:
            await one.look(flush=round_ % 3 == 0)
        assert [one.index for one, _ in entries(store, 7, 0, 0)][-1:] == [len(world.shard.log)]
    for one in both:
        await joined(one)
        await one.close()
    assert [one.index for one, _ in entries(store, 7, 0, 0)] == list(range(1, len(world.shard.log) + 1))
    assert verify(store).problems == []


spans = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 8), st.sampled_from([10, SMALL_BYTES - 1, SMALL_BYTES])))


@settings(max_examples=300, deadline=None)
@given(spans)
def test_what_is_joined_leads_on_as_before(found: list[tuple[int, int, int]]) -> None:
    files = sorted((Span(first, first + more, f"{first}-{first + more}"), size) for first, more, size in found)
    files = [file for at, file in enumerate(files) if file[0] not in {one[0] for one in files[:at]}]

    def reached(some: list[Span]) -> list[int]:
        at: list[int] = []
        for after in range(31):
            place = after
            for span in chain(some, after):
                place = span.last
            at.append(place)
        return at

    before = reached([span for span, _ in files])
    held = {span for span, _ in held_by_others(files)}
    rest = [span for span, _ in files if span not in held]
    assert reached(rest) == before
    run = run_to_join(files)
    assert all(size < SMALL_BYTES for _, size in run)
    if run:
        made = Span(run[0][0].first, max(span.last for span, _ in run), "joined")
        assert reached(sorted([made, *(span for span, _ in files if span not in {one for one, _ in run})])) == before


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda n: (Span(n, n, f"{n}"), 100), JOINED_FILES),
        (lambda n: (Span(n, n, f"{n}"), SMALL_BYTES - 1), JOINED_BYTES // (SMALL_BYTES - 1) + 1),
        (lambda n: (Span(n, n, f"{n}"), SMALL_BYTES), 0),
        (lambda n: (Span(2 * n, 2 * n, f"{n}"), 100), 0),
    ],
)
def test_how_many_become_one(make: Callable[[int], tuple[Span, int]], count: int) -> None:
    files = [make(n) for n in range(1, 200)]
    assert len(run_to_join(files)) == count
    assert run_to_join(files[: max(count, 1) - 1]) == []
