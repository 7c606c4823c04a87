"""Each kind of index over the same vectors, beside faiss: recall, CPU of a search, rates, bytes, memory, builds.

`python -m bench kinds`, or `python -m bench.kinds [--rows N] [--dimensions D] [--preset NAME] [KIND ...]`, which prints
tables; `--write docs/index-selection.md` puts them there, with a picture. Files are built and searched as a node does
it, each in a process of its own; faiss of the same kind takes turns with them. Microseconds are of processor time, so
other work on the machine changes them little; rates by the clock count on a machine that has nothing else to do.

`--keep DIR` keeps what was built and measured: a run that is ended goes on where it was, kind by kind. `--again`
searches again what was built there.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import numpy as np

from bench import kinds_shown
from bench.kinds_beside import Beside, Rate, Search, beside, build
from bench.report import Report
from bench.vectors import Floats, dataset
from needle.base.model import CODES, PRESETS, CollectionSpec, IndexKind
from needle.shard.plan import PublishedSegment
from needle.shard.segments.builder import build_segment
from needle.shard.segments.scoring import top_k
from needle.shard.segments.sealed import SealedSegment, segment_file

ROWS, DIMENSIONS, QUERIES, K = 100_000, 384, 500, 10
QUICK_ROWS = 10_000
SHARES = (1.0, 0.5, 0.1, 0.01, 0.001)
"""Of the rows that a search may find."""

FAISS: Final = "faiss.index"

T = TypeVar("T")


class Measured(NamedTuple):
    """Of one kind. index_bytes: of a vector, in what searches read but the full vectors; file_bytes: in the file. anon,
    mapped: bytes of a vector that a process has more after QUERIES searches without a filter than before it opened the
    file: of its own, and of files that it maps. recalls, microseconds: by share of SHARES. build_seconds: of Needle's
    file, and of the index of faiss."""

    kind: str
    build_seconds: tuple[float, float]
    index_bytes: float
    file_bytes: float
    anon: float
    mapped: float
    recalls: list[float]
    microseconds: list[float]
    faiss: Beside

    @property
    def rates(self) -> list[Rate]:
        """As in kinds_beside."""
        return self.faiss.ours

    @property
    def ratio(self) -> float:
        """Searches in the processor time that faiss takes for one, with most callers."""
        return self.faiss.rates[-1].microseconds / self.rates[-1].microseconds

    @property
    def joined(self) -> float:
        """The same where Needle's are joined, as a node does."""
        return self.faiss.rates[-1].microseconds / self.faiss.joined.microseconds


class Built(NamedTuple):
    """What was built of one kind, in a directory of its own. seconds: as Measured.build_seconds."""

    segment: PublishedSegment
    seconds: tuple[float, float]


def measure(kind: IndexKind, preset: str, directory: Path, spent: float, *, again: bool) -> Measured:
    """Build a file and search it; what of this was done before is taken as it is. directory: has the vectors."""
    data = _loaded(directory)
    spec = CollectionSpec(
        name="c", dimensions=data.queries.shape[1], index=msgspec.structs.replace(PRESETS[preset], kind=kind)
    )
    where = directory / kind
    done = where / "measured.json"
    if done.exists() and not again:
        return msgspec.json.decode(done.read_bytes(), type=Measured)
    built = _build(where, spec, str(directory / "vectors.npy"))
    path = str(where / segment_file(built.segment))
    found = alone(_searched, path, spec, built.segment, data.queries, data.vectors)
    ours = partial(_opened, path, spec, built.segment)
    by_faiss = alone(beside, kind, str(where / FAISS), ours, data.queries, data.nearest, found[4][0], spent)
    measured = Measured(kind.value, built.seconds, *found, by_faiss)
    done.write_bytes(msgspec.json.encode(measured))
    return measured


class _Loaded(NamedTuple):
    """As Dataset; vectors: the file that has them."""

    vectors: str
    queries: Floats
    nearest: Any


def _loaded(directory: Path) -> _Loaded:
    return _Loaded(
        str(directory / "vectors.npy"), np.load(directory / "queries.npy"), np.load(directory / "nearest.npy")
    )


def _build(where: Path, spec: CollectionSpec, vectors: str) -> Built:
    """Both indexes, if they are not there yet."""
    where.mkdir(exist_ok=True)
    done = where / "built.json"
    if done.exists():
        return msgspec.json.decode(done.read_bytes(), type=Built)
    seconds, segment = alone(_built, str(where), spec, vectors)
    built = Built(segment, (seconds, alone(build, spec.index.kind, spec.index, vectors, str(where / FAISS))))
    done.write_bytes(msgspec.json.encode(built))
    return built


def alone(work: Callable[..., T], *args: Any) -> T:
    """In a process of its own, which has nothing of what came before in its memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


def _built(directory: str, spec: CollectionSpec, vectors: str) -> tuple[float, PublishedSegment]:
    rows = np.load(vectors)
    start = time.process_time()
    segment, _ = build_segment(directory, 1, 0, len(rows) - 1, [(np.arange(len(rows)), rows)], spec)
    return time.process_time() - start, segment


def _opened(path: str, spec: CollectionSpec, segment: PublishedSegment) -> Search:
    """What Needle's side of the turns is."""
    opened, ef = SealedSegment(path, segment, spec), spec.index.ef_search
    return lambda asked: top_k(opened.search(asked, K, ef, None, measured=True), len(asked), K)


def _searched(
    path: str, spec: CollectionSpec, segment: PublishedSegment, queries: Floats, vectors: str
) -> tuple[float, float, float, float, list[float], list[float]]:
    before = resident()
    opened = SealedSegment(path, segment, spec)
    answers, microseconds, masks = [], [], [_mask(share, opened.rows) for share in SHARES]
    after = before
    for mask in masks:
        start = time.process_time()
        found = [opened.search(query[None], K, spec.index.ef_search, mask, measured=True) for query in queries]
        microseconds.append(1e6 * (time.process_time() - start) / len(queries))
        answers.append([top_k(one, 1, K)[0][0] for one in found])
        after = resident() if mask is None else after
    rows = np.load(vectors, mmap_mode="r")
    recalls = [_recall(rows, queries, mask, found) for mask, found in zip(masks, answers, strict=True)]
    count = len(rows)
    full = 4 * spec.dimensions * count
    size = segment.size
    apart = opened.kind is not IndexKind.HNSW
    memory = [(after[name] - before[name]) / count for name in ("RssAnon", "RssFile")]
    return (size - full) / count if apart else size / count, size / count, *memory, recalls, microseconds


def _mask(share: float, rows: int) -> Any:
    return None if share == 1 else np.random.default_rng(11).random(rows) < share


def _recall(rows: Any, queries: Floats, mask: Any, found: list[Any]) -> float:
    live = np.arange(len(rows)) if mask is None else np.flatnonzero(mask)
    scores = queries @ np.asarray(rows[live]).T
    count = min(K, len(live))
    nearest = live[np.argpartition(-scores, count - 1, axis=1)[:, :count]]
    return float(np.mean([np.isin(want, got).mean() for want, got in zip(nearest, found, strict=True)]))


def resident() -> dict[str, int]:
    """Bytes of this process in memory, by what they are."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss")}


def measured(
    kinds: list[IndexKind], preset: str, rows: int, dimensions: int, spent: float, keep: Path, *, again: bool = False
) -> list[Measured]:
    """Of each kind. spent: seconds of each rate. keep: where what is built and measured stays."""
    directory = keep / f"{rows}x{dimensions}-{preset}"
    if not (directory / "nearest.npy").exists():
        directory.mkdir(parents=True, exist_ok=True)
        alone(_draw, str(directory), rows, dimensions)
    found = []
    for kind in kinds:
        found.append(measure(kind, preset, directory, spent, again=again))
        print(_line(found[-1]), _beside(found[-1]), file=sys.stderr, flush=True)
    return found


def _draw(directory: str, rows: int, dimensions: int) -> None:
    """The vectors, the queries and the answers, which are written last."""
    data = dataset(rows, dimensions, QUERIES)
    for name in ("vectors", "queries", "nearest"):
        np.save(Path(directory) / f"{name}.npy", getattr(data, name))


def _line(one: Measured) -> list[str]:
    found = [
        cell
        for recall, us in zip(one.recalls, one.microseconds, strict=True)
        for cell in (f"{recall:.3f}", f"{us:,.0f}")
    ]
    sizes = [f"{size:,.0f}" for size in (one.index_bytes, one.file_bytes, one.anon, one.mapped)]
    return [f"`{one.kind}`", *found, *sizes, f"{one.build_seconds[0]:,.0f}"]


def _beside(one: Measured) -> list[str]:
    ours, theirs = kinds_shown.rated(one.rates), kinds_shown.rated(one.faiss.rates)
    recalls = f"{one.recalls[0]:.3f}", f"{one.faiss.recall:.3f}"
    effort, seconds = one.faiss.effort, f"{one.build_seconds[1]:,.0f}"
    return [
        f"`{one.kind}`",
        recalls[0],
        *ours,
        recalls[1],
        *theirs,
        effort,
        seconds,
        f"{one.ratio:.2f}",
        f"{one.joined:.2f}",
    ]


def shown(found: list[Measured]) -> str:
    """Two tables in Markdown."""
    shares = [cell for share in SHARES for cell in (f"recall, {share:.3g} allowed", "us")]
    sizes = ["bytes of the index", "of the file", "own memory", "mapped", "build, s"]
    ours = ["kind", "recall", *kinds_shown.RATED]
    theirs = ["faiss: recall", *kinds_shown.RATED, "effort", "build, s", "ratio", "joined"]
    first = kinds_shown.table(["kind", *shares, *sizes], [_line(one) for one in found])
    return first + "\n" + kinds_shown.table([*ours, *theirs], [_beside(one) for one in found])


def run(report: Report, *, quick: bool) -> None:
    """Every kind beside faiss of the same kind, and its bytes beside those of a graph over full vectors."""
    rows, spent = (QUICK_ROWS, 1.0) if quick else (ROWS, 5.0)
    with tempfile.TemporaryDirectory(prefix="bench-kinds-") as name:
        found = measured(list(IndexKind), "balanced", rows, DIMENSIONS, spent, Path(name))
    graph = next(one for one in found if one.kind == IndexKind.HNSW)
    for one in found:
        text = f"recall {one.recalls[0]:.3f}, {one.microseconds[0]:,.0f} us, built in {one.build_seconds[0]:.0f} s"
        by_faiss = f"recall {one.faiss.recall:.3f}, built in {one.build_seconds[1]:.0f} s"
        report.row(f"index {one.kind}, 16 callers, by processor time", text, f"faiss: {by_faiss}")
        report.ratio(one.joined, ">= 0.75 x", ok=one.joined >= 0.75)
        report.row(f"index {one.kind}, the same by a thread for each", text, f"faiss: {by_faiss}")
        report.ratio(one.ratio, "", ok=None)
        report.row(f"index {one.kind}, bytes a vector", f"{one.index_bytes:,.0f}", f"hnsw: {graph.index_bytes:,.0f}")
        report.ratio(one.index_bytes / graph.index_bytes, "", ok=None)


def _read_bytes(one: Measured) -> float:
    """Of a vector, what searches read all over: the full vectors, too, where there are no codes."""
    return one.index_bytes if IndexKind(one.kind) in CODES else one.file_bytes


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.kinds", description=__doc__)
    parser.add_argument("kinds", nargs="*", type=IndexKind, metavar="KIND", help="all when none is named")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--dimensions", type=int, default=DIMENSIONS)
    parser.add_argument("--preset", choices=PRESETS, default="balanced")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each rate")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables into it, and the picture beside it")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="of what is built and measured; go on from it")
    parser.add_argument("--again", action="store_true", help="search again what was measured in DIR")
    said = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-kinds-") as name:
        found = measured(
            said.kinds or list(IndexKind),
            said.preset,
            said.rows,
            said.dimensions,
            said.seconds,
            said.keep or Path(name),
            again=said.again,
        )
    text = shown(found)
    print(text)
    if said.write is not None:
        points = [(one.kind, _read_bytes(one), one.microseconds[0], one.recalls[0]) for one in found]
        begin, picture = kinds_shown.place(said.rows, said.dimensions)
        kinds_shown.write(said.write, text, kinds_shown.picture(points), begin, picture)


if __name__ == "__main__":
    main()
