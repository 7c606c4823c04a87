"""Recall of every kind and preset on vectors like embeddings, without clusters, which a narrow beam searches badly: the
data of docs/index-selection.md, of which the widths of its presets alone find less than 0.95."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from bench.recall import SITUATIONS, Asked, Held, new, recalls
from needle.base.explain import Way
from needle.base.model import GRAPHS, PRESETS, IndexKind
from needle.shard.segments.sealed import SealedSegment
from needle.shard.segments.trace import Trace

ROWS, DIMENSIONS, QUERIES, LEAST = 5000, 384, 100, 0.95
GRAPH_ROWS = {"updated ten times": 2400, "each twice": 5000, "of any length, dot": 3000, "of three lengths, dot": 6600}
LIST_ROWS = {"updated ten times": 4500, "each twice": 9000, "of any length, dot": 4500, "of three lengths, dot": 13_500}
"""So many that what is searched is the index: of fewer each is scored."""


FEW_ROWS, HIGH_ROWS = 1500, 9000
"""A graph's search by the preset high_recall is so wide that of 6,000 vectors each is scored: of FEW_ROWS it is tried
that graphs are made so, of HIGH_ROWS they are searched."""


def check(directory: Path, situation: str, asked: Asked) -> None:
    found_well(SITUATIONS[situation](directory, asked), asked)


def found_well(held: Held, asked: Asked) -> None:
    """Plain; with filters that have nothing to do with what is near, and with those that allow what is far, or near.
    And never less than k where k match."""
    assert sum(one.sealed.rows for one in held.vectors.view().served) >= len(held.live) - asked.seal_rows
    found = recalls(held)
    assert len(found) == 7 and min(found.values()) >= LEAST, found


def stay(kind: IndexKind, preset: str) -> Asked:
    rows = FEW_ROWS if kind in GRAPHS and preset == "high_recall" else ROWS
    return Asked(kind, preset, rows, DIMENSIONS, QUERIES, rows // 5)


@pytest.fixture(scope="module")
def lists(module_path: Path) -> Callable[[IndexKind], Held]:
    """Files without a graph are the same for each preset: made once."""

    @cache
    def made(kind: IndexKind) -> Held:
        (module_path / kind).mkdir()
        return SITUATIONS["vectors stay"](module_path / kind, stay(kind, "balanced"))

    return made


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", [kind for kind in IndexKind if kind not in GRAPHS])
def test_each_preset_over_lists(lists: Callable[[IndexKind], Held], kind: IndexKind, preset: str) -> None:
    held, asked = lists(kind), stay(kind, preset)
    known = held.vectors
    vectors = new(Path(known.directory), kind, known.spec.metric, known.config, preset, DIMENSIONS)
    vectors.append(0, held.data)
    for one in known.attached():
        vectors.attach(SealedSegment(one.path, one.segment, vectors.spec))
        assert vectors.publish(one.segment)
    found_well(held._replace(vectors=vectors), asked)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", GRAPHS)
def test_each_preset_of_a_graph(tmp_path: Path, kind: IndexKind, preset: str) -> None:
    check(tmp_path, "vectors stay", stay(kind, preset))


@pytest.mark.campaign
@pytest.mark.parametrize("kind", GRAPHS)
def test_high_recall_where_graphs_are_searched(tmp_path: Path, kind: IndexKind) -> None:
    asked = stay(kind, "high_recall")._replace(rows=HIGH_ROWS)
    held, trace = SITUATIONS["vectors stay"](tmp_path, asked), Trace(1, lambda: 0.0)
    held.vectors.view().nearest(held.queries[:1], 10, trace=trace)
    assert {part.way for part in trace.segments(0) if part.rows > 6000} == {Way.GRAPH}
    found_well(held, asked)


def asked(kind: IndexKind, situation: str) -> Asked:
    rows = GRAPH_ROWS[situation] if kind in GRAPHS else LIST_ROWS[situation]
    return Asked(kind, "balanced", rows, DIMENSIONS, QUERIES, rows // 4)


@pytest.mark.parametrize("kind", IndexKind)
@pytest.mark.parametrize("situation", sorted(set(GRAPH_ROWS) - {"updated ten times"}))
def test_where_it_is_easily_lost(tmp_path: Path, kind: IndexKind, situation: str) -> None:
    check(tmp_path, situation, asked(kind, situation))


@pytest.mark.campaign
@pytest.mark.parametrize("kind", IndexKind)
def test_after_every_document_was_updated_ten_times(tmp_path: Path, kind: IndexKind) -> None:
    """Of fewer dimensions test_recall.py tries it."""
    check(tmp_path, "updated ten times", asked(kind, "updated ten times"))
