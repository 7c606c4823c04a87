"""Two replicas in memory, one "log", and a network that loses and damages chunks."""

# ruff: noqa: ASYNC110, ASYNC240 - conditions are states of the replicas; files are tiny
from __future__ import annotations

import asyncio
import gc
import os
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest

from harness.told import told
from needle.base.config import SegmentConfig
from needle.base.errors import (
    ConnectionLost,
    CorruptSegment,
    DiskFailed,
    InvalidArgument,
    NotLeader,
    OutcomeUnknown,
    Unavailable,
)
from needle.base.model import IndexParams, Metric
from needle.protocol.commands import Command, decode
from needle.shard import agenda
from needle.shard import plan as segment_plan
from needle.shard.apply.batch import Batch
from needle.shard.apply.indexing import execute_index
from needle.shard.apply.sessions import SessionTable
from needle.shard.documents.records import AppliedAt, CollectionRecord
from needle.shard.index_change import IndexState
from needle.shard.ordinal_set import OrdinalSet
from needle.shard.plan import PublishedSegment, plan
from needle.shard.segments import builds, downloads, index_changes
from needle.shard.segments import keeper as segment_keeper
from needle.shard.segments.collection_vectors import CollectionVectors
from needle.shard.segments.files import CHUNK_BYTES
from needle.shard.segments.graph import BuildCancelled
from needle.shard.segments.keeper import SegmentKeeper
from shard.vectors_util import clustered, live_of, spec_of

DATA = clustered(4000, 16, 1)
QUERIES = clustered(4, 16, 2)


class ThreadPool:
    async def run(self, fn, /, *args):
        # As the real pool: an exception that is raised here refers to itself, by this frame and its future.
        future = asyncio.get_running_loop().run_in_executor(None, fn, *args)
        return await future

    def close(self) -> None:
        pass


class LoopClock:
    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        return 0.0


class HandClock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 0.0


class Replica:
    def __init__(self, name: str, directory: Path, cluster: Cluster) -> None:
        directory.mkdir(exist_ok=True)
        self.name = name
        self.cluster = cluster
        self.dead: set[int] = set()
        self.vectors = CollectionVectors(7, spec_of(Metric.COSINE, 16), str(directory), cluster.config)
        self.vectors.load(0, OrdinalSet(), [], self.rows)
        self.start_keeper()

    def start_keeper(self, file_pool: ThreadPool | None = None, saving: Callable[[], bool] = lambda: False) -> None:
        self.keeper = SegmentKeeper(
            self,
            is_leader=lambda: self.cluster.leader == self.name,
            publish=self.cluster.propose,
            ask_building=self.cluster.ask_building,
            ask_staged=self.cluster.ask_staged,
            fetch_chunk=self.cluster.fetch,
            peers=lambda: [n for n in sorted(self.cluster.replicas) if n != self.name],
            build_pool=ThreadPool(),
            file_pool=file_pool or ThreadPool(),
            clock=self.cluster.clock,
            wish=lambda _: self.cluster.wish,
            saving=saving,
        )

    @property
    def segment_directory(self) -> str:
        return self.vectors.directory

    def collection_vectors(self) -> list[CollectionVectors]:
        return [self.vectors]

    def vectors_of(self, collection_id: int) -> CollectionVectors | None:
        return self.vectors if collection_id == 7 else None

    def was_dropped(self, collection_id: int) -> bool:
        return collection_id == 6

    def take_changed(self) -> set[int]:
        return {7}

    def rows(self, first: int, last: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        ordinals = np.array([o for o in range(first, last + 1) if o not in self.dead], np.int64)
        yield ordinals, DATA[ordinals]

    def restart(self) -> None:
        """As after a crash: memory is gone, files and documents are there."""
        old = self.vectors
        self.vectors = CollectionVectors(7, old.spec, old.directory, old.config)
        live = live_of(old.next_ordinal, self.dead)
        self.vectors.load(old.next_ordinal, live, old.manifest(), self.rows, old.indexing)
        self.start_keeper()

    def files(self) -> list[str]:
        return sorted(os.listdir(self.vectors.directory))


class Cluster:
    def __init__(self, directory: Path, ship_timeout: float = 600.0, seal_rows: int | None = 500) -> None:
        self.config = SegmentConfig(seal_rows=seal_rows, ship_timeout=ship_timeout)
        self.clock: LoopClock | HandClock = LoopClock()
        self.leader = "a"
        self.lose = 0.0
        self.damage = 0.0
        self.down = False
        self.gone = False
        """Nobody has the files that are asked for."""
        self.rng = Random(1)
        self.wish: IndexParams | None = None
        """The index that the catalog names."""
        self.proposal_error: Exception | None = None
        self.replicas: dict[str, Replica] = {}
        for name in ("a", "b"):
            self.replicas[name] = Replica(name, directory / name, self)
        self.a, self.b = self.replicas["a"], self.replicas["b"]
        self.applied_at = [self.a, self.b]
        """Where what is proposed takes effect at once."""

    def each(self, change: Callable[[Replica], object]) -> None:
        for replica in self.replicas.values():
            change(replica)
            replica.keeper.kick()

    async def propose(self, data: bytes) -> object:
        if self.proposal_error is not None:
            raise self.proposal_error
        command = decode(data)
        for replica in self.applied_at:
            apply_to(replica.vectors, command)
            replica.keeper.kick()
        return None

    async def ask_staged(self, peer: str, collection_id: int) -> list[str]:
        if self.down:
            raise ConnectionLost("lost")
        return self.replicas[peer].keeper.staged(collection_id)

    async def ask_building(self, peer: str, collection_id: int) -> tuple[int, int, int] | None:
        if self.down:
            raise ConnectionLost("lost")
        return self.replicas[peer].keeper.building(collection_id)

    async def fetch(self, peer: str, name: str, offset: int, length: int) -> bytes:
        if self.down or self.rng.random() < self.lose:
            raise ConnectionLost("lost")
        if self.gone:
            name = f"{name[:-36]}{'0' * 32}.seg"
        chunk = self.replicas[peer].keeper.serve_chunk(name, offset, length)
        if self.rng.random() < self.damage:
            return bytes([chunk[0] ^ 1]) + chunk[1:]
        return chunk

    def same_answers(self) -> bool:
        answers = [r.vectors.search(QUERIES, 10) for r in self.replicas.values()]
        return all(a[0].tobytes() == answers[0][0].tobytes() for a in answers) and all(
            a[1].tobytes() == answers[0][1].tobytes() for a in answers
        )


def apply_to(vectors: CollectionVectors, command: Command) -> None:
    """What applying an entry does to vectors. Raises InvalidArgument."""
    spec, state, manifest = vectors.spec, vectors.indexing, vectors.manifest()
    record = CollectionRecord(id=7, spec=spec, next_ordinal=vectors.next_ordinal)
    batch = Batch(AppliedAt(), OneCollection(record, manifest, state), SessionTable([], []), lambda *_: {})
    execute_index(batch, state.generation + 1, command)
    change = batch.changes[7]
    for segment in change.published:
        vectors.publish(segment)
    if change.indexing is not None:
        vectors.reindex(change.indexing, change.record.spec, manifest if change.manifest is None else change.manifest)


class OneCollection:
    """What a batch asks of the collections before it."""

    def __init__(self, record: CollectionRecord, manifest: list[PublishedSegment], state: IndexState) -> None:
        self.numbered = lambda _: record
        self.manifest = lambda _: manifest
        self.indexing = lambda _: state


async def until(condition: Callable[[], bool], seconds: float = 60.0, every: float = 0.001) -> None:
    """every: 0 for what passes; else not, for the loop would turn as fast as it can beside what is built."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(every)


class Running:
    """Runs keepers for the length of a `with` block."""

    def __init__(self, *replicas: Replica) -> None:
        self._replicas = replicas

    async def __aenter__(self) -> None:
        self._tasks = [asyncio.ensure_future(r.keeper.run()) for r in self._replicas]

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results), results


def count_passes(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """A list that grows with every decision of a keeper; 2,000 rows of DATA are as much as is sealed while writing."""
    passes: list[None] = []

    def counted(*args, **kwargs):
        passes.append(None)
        return plan(*args, **kwargs)

    monkeypatch.setattr(segment_keeper, "plan", counted)
    return passes


@pytest.fixture(autouse=True)
def short_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_keeper, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(index_changes, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(downloads, "CHUNK_BYTES", 10_000)
    monkeypatch.setattr(segment_plan, "SEAL_BYTES", 1)  # so SEAL_ROWS_MIN counts


def settled(cluster: Cluster) -> Callable[[], bool]:
    return lambda: all(
        r.vectors.manifest() and not r.vectors.missing() and len(r.vectors.view().growing) < 500
        for r in cluster.replicas.values()
    )


async def test_one_build_serves_both_replicas(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "needle")
    cluster = Cluster(tmp_path)
    async with Running(cluster.a, cluster.b):
        for first in range(0, 4000, 800):
            cluster.each(lambda r, first=first: r.vectors.append(first, DATA[first : first + 800]))
            await until(settled(cluster))
        assert cluster.same_answers()
        wanted = [os.path.basename(s.path) for s in cluster.a.vectors.attached()]
        await until(lambda: cluster.a.files() == cluster.b.files() == sorted(wanted))
    assert cluster.b.keeper.stats.built == 0 and cluster.b.keeper.stats.rebuilt == 0
    assert cluster.b.keeper.stats.shipped >= 1
    shipped = told(caplog, "index_shipped")
    assert len(shipped) == cluster.b.keeper.stats.shipped and {one["peer"] for one in shipped} == {"a"}
    built = [(one["first"], one["last"]) for one in told(caplog, "index_built")]
    assert built == [(one["first"], one["last"]) for one in told(caplog, "index_published")] and len(built) == 5
    assert cluster.a.keeper.stats.built == 5 and cluster.a.keeper.stats.deleted > 0
    assert cluster.a.keeper.stats.inserted_rows <= 4000 * 1.5


async def test_a_lossy_and_damaging_network_only_costs_time(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.lose, cluster.damage = 0.02, 0.01
    async with Running(cluster.a, cluster.b):
        cluster.each(lambda r: r.vectors.append(0, DATA))
        await until(settled(cluster))
    assert cluster.same_answers()
    assert cluster.a.files() == cluster.b.files()
    assert cluster.b.keeper.stats.rebuilt == 0


@pytest.mark.parametrize("why", ["nobody answers", "nobody has it"])
async def test_nobody_offers_the_file_so_it_is_built_here(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    cluster = Cluster(tmp_path, ship_timeout=0.05)
    cluster.down, cluster.gone = why == "nobody answers", why == "nobody has it"
    cluster.each(lambda r: r.vectors.append(0, DATA))
    cluster.each(lambda r: r.vectors.tombstone([1, 2, 3]))
    async with Running(cluster.a, cluster.b):
        await until(settled(cluster))
    assert cluster.b.keeper.stats.rebuilt == 1 and "nobody offers" in caplog.text
    assert cluster.b.keeper.stats.corrupt == 0 and "is damaged" not in caplog.text
    assert [name[-4:] for name in cluster.b.files()] == [".own"]
    expected = cluster.a.vectors.search(QUERIES, 10, exact=True)
    assert cluster.b.vectors.search(QUERIES, 10, exact=True)[1].tobytes() == expected[1].tobytes()
    cluster.b.dead = {1, 2, 3}
    cluster.b.restart()
    assert cluster.b.vectors.missing() == [], "an own build is found again at the next start"


async def test_while_the_timeout_runs_nothing_is_built_here(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, ship_timeout=600)
    cluster.down = True
    cluster.each(lambda r: r.vectors.append(0, DATA))
    async with Running(cluster.a, cluster.b):
        await until(lambda: bool(cluster.b.vectors.manifest()))
        cluster.down = False
        await until(settled(cluster))
    assert cluster.b.keeper.stats.rebuilt == 0 and cluster.b.keeper.stats.shipped == 1


@pytest.mark.parametrize("victim", ["a", "b"])
@pytest.mark.parametrize("damage", ["deleted", "changed"])
async def test_a_damaged_file_at_restart_is_fetched_again(tmp_path: Path, victim: str, damage: str) -> None:
    cluster = Cluster(tmp_path)
    async with Running(cluster.a, cluster.b):
        cluster.each(lambda r: r.vectors.append(0, DATA))
        await until(settled(cluster))
    replica = cluster.replicas[victim]
    path = Path(replica.vectors.attached()[0].path)
    content = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(content[:500] + b"\xff" + content[501:])
    replica.restart()
    assert len(replica.vectors.missing()) == 1
    async with Running(cluster.a, cluster.b):
        await until(settled(cluster))
    assert path.read_bytes() == content
    assert replica.keeper.stats.corrupt == (damage == "changed")
    assert cluster.same_answers()


async def test_scrub_finds_and_repairs_damage_while_running(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    async with Running(cluster.a, cluster.b):
        cluster.each(lambda r: r.vectors.append(0, DATA))
        await until(settled(cluster))
        assert await cluster.b.keeper.scrub() == 0
        path = Path(cluster.b.vectors.attached()[0].path)
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[:-1] + b"\x00")
        assert await cluster.b.keeper.scrub() == 1
        await until(settled(cluster))
        assert path.read_bytes() == content
        assert await cluster.b.keeper.scrub() == 0
    assert cluster.b.keeper.stats.corrupt == 1 and cluster.same_answers()


async def test_no_search_reads_a_damaged_file_between_its_end_and_the_return_of_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were it shorter than it was, that would end the process, and its size can no longer be seen by its name."""
    cluster, answers = Cluster(tmp_path), []
    vectors = cluster.b.vectors
    async with Running(cluster.a, cluster.b):
        cluster.each(lambda r: r.vectors.append(0, DATA))
        await until(settled(cluster))
        path, detach = Path(vectors.attached()[0].path), vectors.detach

        def detached(segment: PublishedSegment) -> bool:
            assert not path.exists()
            with pytest.raises(CorruptSegment, match="checksum"):
                vectors.search(QUERIES, 10)
            done = detach(segment)
            answers.append(vectors.search(QUERIES, 10))
            return done

        monkeypatch.setattr(vectors, "detach", detached)
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[:-1] + b"\x00")
        assert await cluster.b.keeper.scrub() == 1
        await until(settled(cluster))
    assert len(answers) == 1 and cluster.same_answers()


async def test_a_damaged_base_is_not_extended(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    async with Running(cluster.a, cluster.b):
        cluster.each(lambda r: r.vectors.append(0, DATA[:2000]))
        await until(settled(cluster))
        path = Path(cluster.a.vectors.attached()[0].path)
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[:-20_000] + bytes([content[-20_000] ^ 1]) + content[-19_999:])
        cluster.each(lambda r: r.vectors.append(2000, DATA[2000:]))
        await until(lambda: settled(cluster)() and cluster.a.vectors.manifest()[-1].last == 3999)
    assert cluster.a.keeper.stats.corrupt == 1
    expected = cluster.a.vectors.search(QUERIES, 10, exact=True)
    assert cluster.b.vectors.search(QUERIES, 10, exact=True)[0].tobytes() == expected[0].tobytes()


@pytest.mark.parametrize("error", [NotLeader("gone"), OutcomeUnknown("who knows")])
async def test_a_lost_proposal_is_built_and_proposed_again(tmp_path: Path, error: Exception) -> None:
    cluster = Cluster(tmp_path)
    cluster.proposal_error = error
    async with Running(cluster.a, cluster.b):
        cluster.each(lambda r: r.vectors.append(0, DATA[:600]))
        await until(lambda: cluster.a.keeper.stats.unpublished >= 2)
        assert cluster.a.vectors.attached() == []
        cluster.proposal_error = None
        await until(settled(cluster))
        await until(lambda: len(cluster.a.files()) == 1)


async def test_only_the_leader_builds_and_a_new_one_takes_over(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    async with Running(cluster.a, cluster.b):
        cluster.each(lambda r: r.vectors.append(0, DATA[:1000]))
        await until(settled(cluster))
        cluster.leader = "b"
        cluster.each(lambda r: r.vectors.append(1000, DATA[1000:]))
        await until(lambda: settled(cluster)() and cluster.a.vectors.manifest()[-1].last == 3999)
    assert cluster.b.keeper.stats.built == 1 and cluster.a.keeper.stats.built == 1
    assert cluster.same_answers()


class Gate:
    """Holds every build in its thread until it is opened, as a long one would be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[str] = []
        self.open = threading.Event()
        build = builds.build_segment

        def held(directory: str, *args, cancelled: Callable[[], bool], **kwargs):
            self.begun.append(os.path.basename(directory))
            while not self.open.wait(0.01):
                if cancelled():
                    raise BuildCancelled
            return build(directory, *args, cancelled=cancelled, **kwargs)

        monkeypatch.setattr(builds, "build_segment", held)


async def test_a_build_goes_on_when_leadership_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, gate = Cluster(tmp_path), Gate(monkeypatch)
    async with Running(cluster.a, cluster.b):
        cluster.each(lambda r: r.vectors.append(0, DATA[:1000]))
        await until(lambda: gate.begun == ["a"])
        cluster.leader = "b"
        cluster.each(lambda r: r.vectors.append(1000, DATA[1000:1100]))
        await until(lambda: cluster.b.keeper.stats.awaited >= 2)
        cluster.leader = "a"
        cluster.each(lambda r: r.vectors.append(1100, DATA[1100:1200]))
        cluster.leader = "b"
        cluster.each(lambda r: r.vectors.append(1200, DATA[1200:1300]))
        gate.open.set()
        await until(settled(cluster))
    assert gate.begun == ["a"] and cluster.a.keeper.stats.built == 1 and cluster.b.keeper.stats.built == 0
    assert cluster.same_answers()


async def test_a_file_that_is_published_elsewhere_is_kept_until_the_log_names_it_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its builder does not lead any more, so others may have applied what names the file before it has."""
    cluster, gate = Cluster(tmp_path), Gate(monkeypatch)
    elsewhere = PublishedSegment(7, 0, 999, 1000, 100, "0" * 32)  # nobody has its file: its place is looked at again
    cluster.each(lambda r: r.vectors.append(0, DATA[:2000]))
    cluster.each(lambda r: r.vectors.publish(elsewhere))
    cluster.applied_at = [cluster.b]
    async with Running(cluster.a):
        await until(lambda: gate.begun == ["a"])
        cluster.leader = "b"
        gate.open.set()
        await until(lambda: len(cluster.b.vectors.manifest()) == 2 and not cluster.a.keeper._builds.busy(7))
        cluster.a.keeper.kick()
        await cluster.a.keeper._files_pass()
    segment = cluster.b.vectors.manifest()[1]
    async with Running(cluster.b):
        await until(lambda: cluster.b.vectors.missing() == [elsewhere])
    cluster.a.vectors.publish(segment)
    assert cluster.a.vectors.missing() == [elsewhere]
    assert cluster.b.keeper.stats.shipped == 1


async def test_who_was_asked_for_a_file_in_vain_is_not_asked_again_with_every_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(tmp_path)
    async with Running(cluster.a):
        cluster.each(lambda r: r.vectors.append(0, DATA[:1000]))
        await until(lambda: bool(cluster.b.vectors.manifest()))
    cluster.clock = clock = HandClock()
    cluster.b.start_keeper()
    asked, fetch = [], cluster.b.keeper._downloads.get

    async def counted(*args):
        asked.append(args)
        return await fetch(*args)

    monkeypatch.setattr(cluster.b.keeper._downloads, "get", counted)
    cluster.gone = True
    for _ in range(20):
        cluster.b.keeper.kick()
        await cluster.b.keeper._files_pass()
    assert len(asked) == 1
    clock.now += segment_keeper.RETRY_SECONDS
    cluster.gone = False
    cluster.b.keeper.kick()
    await cluster.b.keeper._files_pass()
    assert len(asked) == 2 and not cluster.b.vectors.missing()


async def test_a_file_that_comes_when_another_has_taken_its_place_does_not_stay(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    fetch, late = cluster.b.keeper._downloads.get, asyncio.Event()

    async def slow(*args):
        sealed = await fetch(*args)
        await late.wait()
        return sealed

    cluster.b.keeper._downloads.get = slow  # type: ignore[method-assign]
    async with Running(cluster.a, cluster.b):
        cluster.each(lambda r: r.vectors.append(0, DATA[:800]))
        await until(lambda: len(cluster.b.files()) == 1)
        (first,) = cluster.b.vectors.manifest()
        cluster.each(lambda r: r.vectors.append(800, DATA[800:1600]))
        await until(lambda: first not in cluster.b.vectors.manifest())
        late.set()
        await until(lambda: settled(cluster)() and cluster.a.files() == cluster.b.files(), 10)


async def test_the_next_leader_builds_if_the_builder_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, gate = Cluster(tmp_path), Gate(monkeypatch)
    async with Running(cluster.a):
        cluster.each(lambda r: r.vectors.append(0, DATA[:1000]))
        await until(lambda: gate.begun == ["a"])
        async with Running(cluster.b):
            cluster.leader, cluster.down = "b", True
            cluster.b.keeper.kick()
            await until(lambda: gate.begun == ["a", "b"])
            cluster.down = False
            gate.open.set()
            await until(settled(cluster))
            await until(lambda: len(cluster.a.files()) == len(cluster.b.files()) == 1)
    assert cluster.same_answers(), "both were built, the log took one"


async def test_a_build_that_makes_no_progress_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, begun = Cluster(tmp_path), threading.Event()
    cluster.clock = clock = HandClock()
    for replica in (cluster.a, cluster.b):
        replica.start_keeper()
    stuck, build = threading.Event(), builds.build_segment

    def stopped(directory: str, *args, **kwargs):
        if os.path.basename(directory) == "a":
            begun.set()
            stuck.wait()
            raise BuildCancelled
        return build(directory, *args, **kwargs)

    monkeypatch.setattr(builds, "build_segment", stopped)
    async with Running(cluster.a, cluster.b):
        cluster.each(lambda r: r.vectors.append(0, DATA[:1000]))
        await until(begun.is_set)
        cluster.leader = "b"
        cluster.b.keeper.kick()
        await until(lambda: cluster.b.keeper.stats.awaited >= 1)
        clock.now += builds.STALLED_SECONDS + 1
        cluster.b.keeper.kick()
        await until(lambda: cluster.b.keeper.stats.built == 1)
        stuck.set()
        await until(lambda: cluster.a.keeper.building(7) is None)


async def test_a_build_ends_when_its_range_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, gate = Cluster(tmp_path), Gate(monkeypatch)
    async with Running(cluster.a, cluster.b):
        cluster.each(lambda r: r.vectors.append(0, DATA[:1000]))
        await until(lambda: gate.begun == ["a"])
        cluster.each(lambda r: r.vectors.append(1000, DATA[1000:1100]))
        other = PublishedSegment(7, 0, 1099, 1100, 1, "a" * 32)
        cluster.each(lambda r: r.vectors.publish(other))
        await until(lambda: cluster.a.keeper.stats.built == 0 and cluster.a.keeper.building(7) is None)


async def test_dead_rows_are_purged(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    async with Running(cluster.a, cluster.b):
        cluster.each(lambda r: r.vectors.append(0, DATA[:2000]))
        await until(settled(cluster))
        cluster.each(lambda r: r.vectors.tombstone(range(0, 2000, 2)))
        await until(lambda: settled(cluster)() and cluster.a.vectors.manifest()[0].rows == 1000)
        await until(lambda: cluster.b.files() == cluster.a.files() and len(cluster.a.files()) == 1)
    assert cluster.same_answers()


async def test_leftovers_of_a_crash_are_deleted(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    directory = Path(cluster.a.vectors.directory)
    stale = [f"7-0-99-{'a' * 32}.seg", "7-0-99.new.tmp", f"7-0-99-{'a' * 32}.seg.tmp", f"7-0-9-{'b' * 32}.own"]
    stale += [f"6-0-99-{'a' * 32}.seg", "8-0-99.new.tmp"]  # of a collection that was dropped; of a build that was cut
    other = ["documents.db", f"8-0-99-{'a' * 32}.seg"]  # the log will bring collection 8 when it is replayed
    for name in stale + other:
        (directory / name).write_bytes(b"x")
    async with Running(cluster.a):
        await until(lambda: cluster.a.files() == sorted(other))


async def test_a_snapshot_may_replace_the_directory_while_it_is_listed(tmp_path: Path) -> None:
    replica = Cluster(tmp_path).a
    old, new = replica.vectors, tmp_path / "of-the-snapshot"

    class Swapping(ThreadPool):
        async def run(self, fn, /, *args):
            if not new.exists():
                new.mkdir()
                (new / "7-0-99.new.tmp").write_bytes(b"x")
                replica.vectors = CollectionVectors(7, old.spec, str(new), old.config)
                replica.vectors.load(0, OrdinalSet(), [], replica.rows)
                shutil.rmtree(old.directory)
            return await super().run(fn, *args)

    replica.start_keeper(Swapping())
    async with Running(replica):
        await until(lambda: new.exists() and not replica.files())


async def test_a_directory_that_is_gone_ends_the_keeper(tmp_path: Path) -> None:
    replica = Cluster(tmp_path).a
    shutil.rmtree(replica.vectors.directory)
    with pytest.raises(DiskFailed, match="cannot read or write"):
        await replica.keeper.run()


def test_only_segment_files_are_served(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    (Path(cluster.a.vectors.directory) / "documents.db").write_bytes(b"secret")
    for name, offset, length in (
        ("documents.db", 0, 10),
        ("../a/documents.db", 0, 10),
        (f"7-0-9-{'a' * 32}.seg/../documents.db", 0, 10),
        (f"7-0-9-{'a' * 32}.seg", -1, 10),
        (f"7-0-9-{'a' * 32}.seg", 0, CHUNK_BYTES + 1),
        (f"7-0-9-{'a' * 32}.seg", 0, 0),
    ):
        with pytest.raises(InvalidArgument):
            cluster.a.keeper.serve_chunk(name, offset, length)
    with pytest.raises(Unavailable, match="not here"):
        cluster.a.keeper.serve_chunk(f"7-0-9-{'a' * 32}.seg", 0, 10)
    with pytest.raises(Unavailable, match="no such collection"):
        cluster.a.keeper.serve_chunk(f"9-0-9-{'a' * 32}.seg", 0, 10)


async def test_what_waits_is_sealed_once_no_write_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_keeper, "QUIET_SECONDS", 0.2)
    cluster = Cluster(tmp_path, seal_rows=None)
    started = asyncio.get_running_loop().time()
    async with Running(cluster.a, cluster.b):
        cluster.each(lambda r: r.vectors.append(0, DATA[:250]))
        await until(settled(cluster))
    assert asyncio.get_running_loop().time() - started >= 0.2
    assert cluster.a.vectors.manifest()[-1].last == 249


async def test_while_writes_come_more_is_gathered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour of one write each 0.9 s, by a clock that the test moves."""
    passes = count_passes(monkeypatch)
    cluster = Cluster(tmp_path, seal_rows=None)
    cluster.clock = clock = HandClock()
    cluster.a.start_keeper()
    async with Running(cluster.a):
        for first in range(4000):
            cluster.a.vectors.append(first, DATA[first : first + 1])
            before = len(passes)
            cluster.a.keeper.kick()
            await until(lambda before=before: len(passes) > before)
            clock.now += 0.9
        assert cluster.a.keeper.stats.built == 1, "2,000 rows are sealed at once, the rest waits for the end of writing"
        clock.now += 0.2
        cluster.a.keeper.kick()
        await until(lambda: cluster.a.keeper.stats.built == 2)
    assert cluster.a.vectors.manifest()[-1].last == 3999


async def test_with_too_little_to_seal_no_timer_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes, waits = count_passes(monkeypatch), []

    async def wait(_: asyncio.Event, timeout: float) -> None:
        waits.append(timeout)

    monkeypatch.setattr(agenda, "_wait", wait)
    cluster = Cluster(tmp_path, seal_rows=None)
    async with Running(cluster.a):
        cluster.a.vectors.append(0, DATA[:249])
        cluster.a.keeper.kick()
        before = len(passes)
        await until(lambda: len(passes) > before)
        assert waits == []
        cluster.a.vectors.append(249, DATA[249:250])
        cluster.a.keeper.kick()
        await until(lambda: len(waits) > 0)
    assert 0.9 < waits[0] <= 1.0


async def test_a_cancelled_build_leaves_nothing_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even until the collector of reference cycles runs, which may be an hour."""
    graphs: list[weakref.ref[np.ndarray]] = []

    def build(*_, **__):
        graph = np.zeros(10)
        graphs.append(weakref.ref(graph))
        raise BuildCancelled

    monkeypatch.setattr(builds, "build_segment", build)
    cluster = Cluster(tmp_path)
    gc.disable()
    try:
        async with Running(cluster.a):
            cluster.a.vectors.append(0, DATA)
            cluster.a.keeper.kick()
            await until(lambda: len(graphs) > 0)
            await until(lambda: graphs[0]() is None)
    finally:
        gc.enable()


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("tight", [False, True])
async def test_after_a_long_pause_segments_are_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tight: bool, told: bool
) -> None:
    """Not while memory is tight: a join needs the memory of both. They are once it is not, also if it was tight for
    such a short time that nobody tells of its end."""
    passes = count_passes(monkeypatch)
    cluster = Cluster(tmp_path, seal_rows=None)
    cluster.clock = clock = HandClock()
    short = [tight]
    cluster.a.start_keeper(saving=lambda: short[0])
    async with Running(cluster.a):
        for first, last in ((0, 3700), (3700, 4000)):
            cluster.a.vectors.append(first, DATA[first:last])
            before = len(passes)
            cluster.a.keeper.kick()
            await until(lambda before=before: len(passes) > before)
            clock.now += 1.1
            cluster.a.keeper.kick()
            await until(lambda last=last: [s.last + 1 for s in cluster.a.vectors.manifest()[-1:]] == [last])
        assert len(cluster.a.vectors.manifest()) == 2
        clock.now += 30
        if tight:
            for _ in range(2):  # what the first one builds, the second one comes behind
                before = len(passes)
                cluster.a.keeper.kick()
                await until(lambda before=before: len(passes) > before)
            assert len(cluster.a.vectors.manifest()) == 2
            short[0] = False
            if told:
                cluster.a.keeper.look_again([7])
            clock.now += 30
        if tight and not told:
            cluster.a.keeper._build_wanted.set()  # as if the 30 s were over by the timer, too
        else:
            cluster.a.keeper.kick()
        await until(lambda: len(cluster.a.vectors.manifest()) == 1)
    assert cluster.a.keeper.stats.inserted_rows == 4300, "only the rows of the smaller one are inserted again"
