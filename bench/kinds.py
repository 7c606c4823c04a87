"""Each kind of index over the same vectors: recall, CPU of a search, bytes, memory of a process, time of the build.

`python -m bench kinds`, or `python -m bench.kinds [--rows N] [--dimensions D] [--preset NAME] [KIND ...]`, which prints
the table of docs/index-selection.md. Files are built and searched as a node does it, each in a process of its own, by
one thread. Rates are of CPU time, so other work on the machine changes them little.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np

from bench.report import Report
from bench.vectors import Dataset, Floats, dataset
from needle.base.model import PRESETS, CollectionSpec, IndexKind
from needle.shard.plan import PublishedSegment
from needle.shard.segments.builder import build_segment
from needle.shard.segments.scoring import top_k
from needle.shard.segments.sealed import SealedSegment

ROWS, DIMENSIONS, QUERIES, K = 100_000, 384, 500, 10
QUICK_ROWS = 10_000
SHARES = (1.0, 0.5, 0.1, 0.01, 0.001)
"""Of the rows that a search may find."""

T = TypeVar("T")


class Measured(NamedTuple):
    """Of one kind. index_bytes: of a vector, in what searches read but the full vectors; file_bytes: in the file. anon,
    mapped: bytes of a vector that a process has more after QUERIES searches without a filter than before it opened the
    file: of its own, and of files that it maps. recalls, microseconds: by share of SHARES."""

    kind: str
    build_seconds: float
    index_bytes: float
    file_bytes: float
    anon: float
    mapped: float
    recalls: list[float]
    microseconds: list[float]


def measure(kind: IndexKind, preset: str, data: Dataset, directory: Path) -> Measured:
    """Build a file and search it."""
    spec = CollectionSpec(
        name="c", dimensions=data.vectors.shape[1], index=msgspec.structs.replace(PRESETS[preset], kind=kind)
    )
    where = directory / kind
    where.mkdir()
    seconds, segment = _alone(_built, str(where), spec, str(directory / "vectors.npy"))
    found = _alone(_searched, str(where), spec, segment, data.queries, str(directory / "vectors.npy"))
    return Measured(kind.value, seconds, *found)


def _alone(work: Callable[..., T], *args: Any) -> T:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


def _built(directory: str, spec: CollectionSpec, vectors: str) -> tuple[float, PublishedSegment]:
    rows = np.load(vectors)
    start = time.process_time()
    segment, _ = build_segment(directory, 1, 0, len(rows) - 1, [(np.arange(len(rows)), rows)], spec)
    return time.process_time() - start, segment


def _searched(
    directory: str, spec: CollectionSpec, segment: PublishedSegment, queries: Floats, vectors: str
) -> tuple[float, float, float, float, list[float], list[float]]:
    (path,) = Path(directory).iterdir()
    before = _resident()
    opened = SealedSegment(str(path), segment, spec)
    answers, microseconds, masks = [], [], [_mask(share, opened.rows) for share in SHARES]
    after = before
    for mask in masks:
        start = time.process_time()
        found = [opened.search(query[None], K, spec.index.ef_search, mask, measured=True) for query in queries]
        microseconds.append(1e6 * (time.process_time() - start) / len(queries))
        answers.append([top_k(one, 1, K)[0][0] for one in found])
        after = _resident() if mask is None else after
    rows = np.load(vectors, mmap_mode="r")
    recalls = [_recall(rows, queries, mask, found) for mask, found in zip(masks, answers, strict=True)]
    count = len(rows)
    full = 4 * spec.dimensions * count
    size = path.stat().st_size
    apart = opened.kind is not IndexKind.HNSW
    memory = [(after[name] - before[name]) / count for name in ("RssAnon", "RssFile")]
    return (size - full) / count if apart else size / count, size / count, *memory, recalls, microseconds


def _mask(share: float, rows: int) -> Any:
    return None if share == 1 else np.random.default_rng(11).random(rows) < share


def _recall(rows: Any, queries: Floats, mask: Any, found: list[Any]) -> float:
    live = np.arange(len(rows)) if mask is None else np.flatnonzero(mask)
    scores = queries @ np.asarray(rows[live]).T
    nearest = live[np.argpartition(-scores, K - 1, axis=1)[:, :K]]
    return float(np.mean([np.isin(want, got).mean() for want, got in zip(nearest, found, strict=True)]))


def _resident() -> dict[str, int]:
    """Bytes of this process in memory, by what they are."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss")}


def measured(kinds: list[IndexKind], preset: str, rows: int, dimensions: int) -> list[Measured]:
    """Of each kind."""
    data = dataset(rows, dimensions, QUERIES)
    with tempfile.TemporaryDirectory(prefix="bench-kinds-") as name:
        np.save(Path(name) / "vectors.npy", data.vectors)
        found = []
        for kind in kinds:
            found.append(measure(kind, preset, data, Path(name)))
            print(_line(found[-1]), file=sys.stderr, flush=True)
        return found


def _line(one: Measured) -> str:
    recalls = " | ".join(f"{recall:.3f} | {us:,.0f}" for recall, us in zip(one.recalls, one.microseconds, strict=True))
    sizes = f"{one.index_bytes:,.0f} | {one.file_bytes:,.0f} | {one.anon:,.0f} | {one.mapped:,.0f}"
    return f"| `{one.kind}` | {recalls} | {sizes} | {one.build_seconds:,.0f} |"


def run(report: Report, *, quick: bool) -> None:
    """Every kind beside today's graph over full vectors."""
    found = measured(list(IndexKind), "balanced", QUICK_ROWS if quick else ROWS, DIMENSIONS)
    graph = next(one for one in found if one.kind == IndexKind.HNSW)
    for one in found:
        text = f"recall {one.recalls[0]:.3f}, {one.microseconds[0]:,.0f} us, built in {one.build_seconds:.0f} s"
        report.row(f"index {one.kind}", f"{text}, {one.index_bytes:,.0f} bytes a vector")
        report.ratio(one.index_bytes / graph.index_bytes, "", ok=None)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.kinds", description=__doc__)
    parser.add_argument("kinds", nargs="*", type=IndexKind, metavar="KIND", help="all when none is named")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--dimensions", type=int, default=DIMENSIONS)
    parser.add_argument("--preset", choices=PRESETS, default="balanced")
    said = parser.parse_args()
    found = measured(said.kinds or list(IndexKind), said.preset, said.rows, said.dimensions)
    shares = " | ".join(f"recall, {share:.3g} allowed | us" for share in SHARES)
    print(f"| kind | {shares} | bytes of the index | of the file | own memory | mapped | build, s |")
    print("|---" * (2 * len(SHARES) + 6) + "|")
    for one in found:
        print(_line(one))


if __name__ == "__main__":
    main()
