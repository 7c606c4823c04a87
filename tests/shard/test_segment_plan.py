"""The plan: every ordinal covered once, bounded work, the same decision everywhere."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from needle.base.config import SegmentConfig
from needle.base.errors import Internal
from needle.shard.plan import (
    BUILD_ROWS_MAX,
    GROWTH,
    GROWTH_IDLE,
    QUIET_SHARE,
    SEAL_BYTES,
    BuildTask,
    PublishedSegment,
    SegmentLoad,
    check_manifest,
    covered,
    plan,
    with_published,
)

DIMENSIONS = 64
SEAL_ROWS = SEAL_BYTES // (4 * DIMENSIONS)


def segment(first: int, last: int, rows: int | None = None, checksum: str = "c") -> PublishedSegment:
    return PublishedSegment(1, first, last, last - first + 1 if rows is None else rows, 10, checksum)


def decide(loads: list[SegmentLoad], next_ordinal: int, waiting: int, config: SegmentConfig) -> BuildTask | None:
    return plan(loads, next_ordinal, waiting, config, dimensions=DIMENSIONS, quiet=False)


class Model:
    """A collection as the planner sees it: live flags by ordinal, the manifest, and what work was done."""

    def __init__(self, config: SegmentConfig) -> None:
        self.config = config
        self.live: list[bool] = []
        self.held: dict[PublishedSegment, set[int]] = {}
        self.manifest: list[PublishedSegment] = []
        self.inserts = 0
        self.written = 0
        self.builds = 0
        self.quiet = self.idle = False

    def step(self) -> bool:
        """Plan and build once. False when there is nothing to do."""
        loads = [SegmentLoad(s, sum(not self.live[o] for o in self.held[s]), True) for s in self.manifest]
        waiting = sum(self.live[covered(self.manifest) :])
        task = plan(
            loads, len(self.live), waiting, self.config, dimensions=DIMENSIONS, quiet=self.quiet, idle=self.idle
        )
        if task is None:
            return False
        self.build(task)
        return True

    def build(self, task: BuildTask) -> None:
        rows = {o for o in range(task.first, task.last + 1) if self.live[o]}
        inserts = len(rows)
        if task.base:
            old = self.held[task.base]
            inserts = len([o for o in rows if o > task.base.last])
            rows = {o for o in rows if o > task.base.last} | old
        assert len(rows) <= self.config.rows_max
        assert inserts <= task.inserts
        built = segment(task.first, task.last, len(rows), f"b{self.builds}")
        manifest = with_published(self.manifest, built, len(self.live))
        assert manifest is not None, "the planner proposed what every replica would ignore"
        self.manifest = manifest
        self.held = {**{s: h for s, h in self.held.items() if s in manifest}, built: rows}
        check_manifest(manifest)
        self.inserts += inserts
        self.written += len(rows)
        self.builds += 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.floats(0, 0.6)), min_size=1, max_size=40), st.integers(0, 2**16))
def test_every_ordinal_is_covered_once_and_building_ends(steps: list[tuple[int, float]], seed: int) -> None:
    model = Model(SegmentConfig(seal_rows=10, rows_max=200, dead_ratio_max=0.3))
    mixer = seed
    for count, dead_share in steps:
        model.live += [True] * count
        for ordinal in range(len(model.live)):
            mixer = (mixer * 1103515245 + 12345) % 2**31
            if mixer / 2**31 < dead_share * 0.3:
                model.live[ordinal] = False
        turns = 0
        while model.step():
            turns += 1
            assert turns <= 60, "the plan does not come to rest"
        assert sum(model.live[covered(model.manifest) :]) < model.config.seal_rows
        for s in model.manifest:
            live = [o for o in range(s.first, s.last + 1) if model.live[o]]
            assert set(live) <= model.held[s]
            assert s.rows - len(live) <= 0.3 * s.rows


@settings(max_examples=30, deadline=None)
@given(st.integers(10, 3000), st.integers(1, 200))
def test_inserts_and_bytes_are_bounded(total: int, arriving: int) -> None:
    """arriving: how many rows come during one build."""
    model = Model(SegmentConfig(seal_rows=10, rows_max=10_000))
    while len(model.live) < total:
        model.live += [True] * min(arriving, total - len(model.live))
        model.step()
    while model.step():
        pass
    assert model.inserts <= total * (1 + math.log(max(total / 10, 1), GROWTH))
    assert model.written <= (GROWTH + 1) * model.inserts
    assert len(model.manifest) <= 2 + math.log(max(total / 10, 1), GROWTH)


def test_a_bulk_load_inserts_each_row_about_once_and_ends_in_one_segment() -> None:
    """Rows arrive faster than they are indexed (measured: 15k/s against 2k/s)."""
    model = Model(SegmentConfig(seal_rows=100, rows_max=100_000))
    model.live += [True] * 100
    while len(model.live) < 10_000:
        before = model.inserts
        assert model.step()
        model.live += [True] * min(10_000 - len(model.live), 7 * (model.inserts - before))
    while model.step():
        pass
    assert len(model.manifest) == 1
    assert model.inserts == len(model.live)
    assert model.builds <= 5


@pytest.mark.parametrize(
    ("dimensions", "at", "when_quiet"), [(16, 65_536, 8192), (112, 9362, 1171), (384, 2730, 342), (4096, 2000, 250)]
)
def test_by_default_it_seals_by_what_a_scan_costs(dimensions: int, at: int, when_quiet: int) -> None:
    config = SegmentConfig()
    for waiting, quiet, builds in (
        (at - 1, False, False),
        (at, False, True),
        (when_quiet - 1, True, False),
        (when_quiet, True, True),
    ):
        task = plan([], waiting, waiting, config, dimensions=dimensions, quiet=quiet)
        assert (task == BuildTask(0, waiting - 1, None, waiting)) is builds, (waiting, quiet)


def test_an_explicit_seal_rows_means_the_same_at_all_times() -> None:
    for quiet in (False, True):
        assert plan([], 99, 99, SegmentConfig(seal_rows=100), dimensions=16, quiet=quiet) is None
        task = plan([], 100, 100, SegmentConfig(seal_rows=100), dimensions=16, quiet=quiet)
        assert task == BuildTask(0, 99, None, 100)


def test_small_segments_seal_in_time() -> None:
    task = plan([], 1500, 1500, SegmentConfig(rows_max=1000), dimensions=16, quiet=False)
    assert task == BuildTask(0, 999, None, 1000)


def test_what_piled_up_is_sealed_in_parts_that_grow_one_segment() -> None:
    """Nothing would be published for minutes otherwise, and a change of leaders would lose all of it."""
    config, total = SegmentConfig(rows_max=10_000_000), 3 * BUILD_ROWS_MAX + 5
    first = decide([], total, total, config)
    assert first == BuildTask(0, BUILD_ROWS_MAX - 1, None, BUILD_ROWS_MAX)
    held = segment(0, BUILD_ROWS_MAX - 1)
    second = decide([SegmentLoad(held, 0, True)], total, total - BUILD_ROWS_MAX, config)
    assert second == BuildTask(0, 2 * BUILD_ROWS_MAX - 1, held, BUILD_ROWS_MAX)


def test_writing_in_bursts_keeps_the_bounds() -> None:
    """Quiet after every few rows: inserts and bytes written stay bounded, by the smaller size that is sealed then."""
    model = Model(SegmentConfig(rows_max=10_000_000))
    smallest = -(-SEAL_ROWS // QUIET_SHARE)
    model.quiet = True
    while len(model.live) < 200_000:
        model.live += [True] * 3000
        while model.step():
            pass
    total = len(model.live)
    assert model.inserts <= total * (1 + math.log(total / smallest, GROWTH))
    assert model.written <= (GROWTH + 1) * model.inserts
    assert len(model.manifest) <= 2 + math.log(total / smallest, GROWTH)


def test_idle_segments_are_joined_within_bounds() -> None:
    config = SegmentConfig()

    def decide_idle(sizes: list[int], idle: bool, config: SegmentConfig = config) -> BuildTask | None:
        ends = [sum(sizes[: at + 1]) for at in range(len(sizes))]
        loads = [SegmentLoad(segment(end - size, end - 1), 0, True) for size, end in zip(sizes, ends, strict=True)]
        return plan(loads, ends[-1], 0, config, dimensions=384, quiet=True, idle=idle)

    sizes = [100_000, 9_000, 1_000]
    assert decide_idle(sizes, idle=False) is None
    assert decide_idle(sizes, idle=True) == BuildTask(0, 108_999, segment(0, 99_999), 9_000)
    assert decide_idle([109_000, 1_000], idle=True) is None, "too little comes on top of what would be written again"
    assert decide_idle(sizes, True, SegmentConfig(seal_rows=500)) is None, "an explicit setting means the same always"


def test_writing_in_bursts_with_long_pauses_keeps_the_bounds() -> None:
    model = Model(SegmentConfig(rows_max=10_000_000))
    model.quiet = model.idle = True
    while len(model.live) < 200_000:
        model.live += [True] * 3000
        while model.step():
            pass
        assert len(model.manifest) <= 2 + math.log(max(1, len(model.live) * QUIET_SHARE / SEAL_ROWS), GROWTH_IDLE)
    assert model.inserts <= 2 * len(model.live)
    assert model.written <= (GROWTH_IDLE + 1) * model.inserts


def test_dead_rows_are_purged_without_a_base() -> None:
    config = SegmentConfig(seal_rows=100)
    loads = [SegmentLoad(segment(0, 999), 301, True)]
    assert decide(loads, 1000, 0, config) == BuildTask(0, 999, None, 699)
    assert decide([SegmentLoad(segment(0, 999), 300, True)], 1000, 0, config) is None


def test_a_segment_without_its_file_is_left_alone() -> None:
    config = SegmentConfig(seal_rows=100)
    away = SegmentLoad(segment(0, 99), 90, False)
    assert decide([away], 100, 0, config) is None
    assert decide([away], 200, 100, config) == BuildTask(100, 199, None, 100)


def test_sizes_stay_under_the_bound() -> None:
    config = SegmentConfig(seal_rows=100, rows_max=1000)
    task = decide([SegmentLoad(segment(0, 949), 0, True)], 1100, 150, config)
    assert task == BuildTask(950, 1099, None, 150)
    assert decide([], 5000, 5000, config) == BuildTask(0, 999, None, 1000)


def test_publishing_that_does_not_fit_is_ignored() -> None:
    manifest = [segment(0, 99), segment(100, 199)]
    assert with_published(manifest, segment(200, 299), 300) == [*manifest, segment(200, 299)]
    assert with_published(manifest, segment(0, 199), 300) == [segment(0, 199)]
    assert with_published(manifest, segment(0, 299), 300) == [segment(0, 299)]
    assert with_published(manifest, segment(0, 99, rows=50), 300) == [segment(0, 99, rows=50), segment(100, 199)]
    assert with_published(manifest, segment(0, 99, checksum="d"), 300) is None  # second build of the same
    assert with_published(manifest, segment(50, 149), 300) is None  # cuts two segments
    assert with_published(manifest, segment(0, 149), 300) is None  # cuts one
    assert with_published(manifest, segment(210, 299), 300) is None  # leaves a gap
    assert with_published(manifest, segment(200, 300), 300) is None  # beyond what exists


def test_a_broken_manifest_is_refused() -> None:
    with pytest.raises(Internal):
        check_manifest([segment(0, 9), segment(11, 19)])
    with pytest.raises(Internal):
        check_manifest([segment(0, 9), segment(9, 19)])
