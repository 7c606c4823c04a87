"""Memory that each kind of index takes: bytes of a vector in its file, in what searches read of it, and in a process.

`python -m bench.kinds_memory [--rows N] [--dimensions D] [KIND ...]` prints a table; `--write docs/index-selection.md`
puts it there. `--keep DIR` keeps what was built and measured: a run that is ended goes on kind by kind.

Built with little effort, as there are to be very many vectors: each has room for as many links whatever the effort was
(2 m below, m above), so the bytes are those of any; what such a graph finds, and how fast, is left out.
Graphs over codes are made of the links of the one over full vectors, as when a collection gets another index.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from bench import kinds_shown
from bench.kinds import DIMENSIONS, alone, resident
from bench.vectors import drawn
from needle.base.model import GRAPHS, CollectionSpec, IndexKind, IndexParams
from needle.shard.plan import PublishedSegment
from needle.shard.segments.builder import build_segment
from needle.shard.segments.format import searched_bytes
from needle.shard.segments.sealed import SealedSegment, segment_file

ROWS: Final = 1_000_000
QUERIES, K = 2_000, 10
FEWER: Final = {IndexKind.FLAT: 5, IndexKind.IVF_FLAT: 200, IndexKind.IVF_PQ: 200}
"""Searches of kinds of which each reads much of the file."""
M, EF_CONSTRUCTION, EF_SEARCH = 16, 20, 50
"""Links as by default and in the preset balanced."""
KINDS: Final = (IndexKind.HNSW, *(kind for kind in IndexKind if kind is not IndexKind.HNSW))
"""Others are made of the first."""


class Taken(NamedTuple):
    """Bytes of a vector. file: of its file. read: of it, what searches read all over. anon, mapped: what a process has
    more after QUERIES searches, or FEWER, than before it opened the file: of its own, and of files that it maps."""

    kind: str
    file: float
    read: float
    anon: float
    mapped: float

    @property
    def memory(self) -> float:
        """All of it that a process has."""
        return self.anon + self.mapped


def spec_of(kind: IndexKind, dimensions: int) -> CollectionSpec:
    """Of a collection with such an index."""
    index = IndexParams(kind=kind, m=M, ef_construction=EF_CONSTRUCTION, ef_search=EF_SEARCH)
    return CollectionSpec(name="c", dimensions=dimensions, index=index)


def measure(kind: IndexKind, dimensions: int, directory: Path) -> Taken:
    """Build a file and search it; what of this was done before is taken as it is. directory: has the vectors."""
    where = directory / kind
    where.mkdir(exist_ok=True)
    done = where / "memory.json"
    if done.exists():
        return msgspec.json.decode(done.read_bytes(), type=Taken)
    if not (where / "built.json").exists():
        alone(_build, kind, dimensions, directory)
    taken = alone(_searched, kind, dimensions, directory)
    done.write_bytes(msgspec.json.encode(taken))
    if kind is not IndexKind.HNSW:
        (where / segment_file(_built(where))).unlink()
    return taken


def _build(kind: IndexKind, dimensions: int, directory: Path) -> None:
    rows, where, graph = np.load(directory / "vectors.npy", mmap_mode="r"), directory / kind, directory / IndexKind.HNSW
    of_links = kind in GRAPHS and kind is not IndexKind.HNSW and (graph / "built.json").exists()
    base = _opened(IndexKind.HNSW, dimensions, directory) if of_links else None
    blocks: Iterable[Any] = [] if of_links else [(np.arange(len(rows)), rows)]
    segment, _ = build_segment(str(where), 1, 0, len(rows) - 1, blocks, spec_of(kind, dimensions), base=base)
    (where / "built.json").write_bytes(msgspec.json.encode(segment))


def _built(where: Path) -> PublishedSegment:
    return msgspec.json.decode((where / "built.json").read_bytes(), type=PublishedSegment)


def _opened(kind: IndexKind, dimensions: int, directory: Path) -> SealedSegment:
    segment = _built(directory / kind)
    return SealedSegment(str(directory / kind / segment_file(segment)), segment, spec_of(kind, dimensions))


def _searched(kind: IndexKind, dimensions: int, directory: Path) -> Taken:
    queries, before = np.load(directory / "queries.npy")[: FEWER.get(kind)], resident()
    opened = _opened(kind, dimensions, directory)
    if opened.kind is not kind:
        raise ValueError(f"of these vectors a file of {kind} is one of {opened.kind}")
    for query in queries:
        opened.search(query[None], K, EF_SEARCH, None)
    after, rows = resident(), opened.rows
    anon, mapped = ((after[name] - before[name]) / rows for name in ("RssAnon", "RssFile"))
    return Taken(kind.value, opened.size / rows, searched_bytes(opened.path) / rows, anon, mapped)


def measured(kinds: list[IndexKind], rows: int, dimensions: int, keep: Path) -> list[Taken]:
    """Of each kind. keep: where what is built and measured stays; of other kinds than `hnsw` the figures alone."""
    directory = keep / f"memory-{rows}x{dimensions}"
    if not (directory / "queries.npy").exists():
        directory.mkdir(parents=True, exist_ok=True)
        alone(_draw, directory, rows, dimensions)
    found = []
    for kind in (kind for kind in KINDS if kind in kinds):
        found.append(measure(kind, dimensions, directory))
        print(found[-1], file=sys.stderr, flush=True)
    return found


def _draw(directory: Path, rows: int, dimensions: int) -> None:
    """The vectors, and the queries, which are written last."""
    vectors, queries = drawn(rows, dimensions, QUERIES)
    np.save(directory / "vectors.npy", vectors)
    np.save(directory / "queries.npy", queries)


def shown(found: list[Taken]) -> str:
    """A table in Markdown."""
    graph = next((one for one in found if one.kind == IndexKind.HNSW), None)
    columns = ["kind", "of the file", "that searches read", "own memory", "mapped"]
    shares = ["read, of `hnsw`", "in memory, of `hnsw`"]
    lines = []
    for one in found:
        sizes = [f"{size:,.0f}" for size in (one.file, one.read, one.anon, one.mapped)]
        share = [] if graph is None else [one.read / graph.read, one.memory / graph.memory]
        lines.append([f"`{one.kind}`", *sizes, *(f"{part:.2f}" for part in share)])
    return kinds_shown.table(columns if graph is None else [*columns, *shares], lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.kinds_memory", description=__doc__)
    parser.add_argument("kinds", nargs="*", type=IndexKind, metavar="KIND", help="all when none is named")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--dimensions", type=int, default=DIMENSIONS)
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into it, between its marks")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="of what is built and measured; go on from it")
    said: Any = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-kinds-memory-") as name:
        found = measured(said.kinds or list(KINDS), said.rows, said.dimensions, said.keep or Path(name))
    text = shown(found)
    print(text)
    if said.write is not None:
        begin = f"<!-- measured by python -m bench.kinds_memory, {said.rows} x {said.dimensions} -->\n"
        kinds_shown.place_text(said.write, text, begin)


if __name__ == "__main__":
    main()
