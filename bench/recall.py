"""Recall of every kind of index where it is easily lost: of vectors that stay, after every document was updated ten
times, with a copy of each, of uneven lengths under an inner product; plain and with filters.

`python -m bench.recall [--rows N] [--dimensions D] [--preset NAME] [KIND ...]` prints a table; `--write
docs/index-selection.md` puts it there. Files are planned, built, extended and joined as the leader of a shard does it,
over the vectors of bench.vectors. `--keep DIR` keeps what was measured: a run that is ended goes on kind by kind.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from bench import kinds_shown
from bench.vectors import Floats, drawn
from needle.base.config import SegmentConfig
from needle.base.model import PRESETS, CollectionSpec, IndexKind, IndexParams, Metric
from needle.shard.plan import plan
from needle.shard.segments.builder import build_segment
from needle.shard.segments.collection_vectors import CollectionVectors
from needle.shard.segments.sealed import SealedSegment

Ints = npt.NDArray[np.int64]

ROWS, DIMENSIONS, QUERIES, K = 20_000, 384, 200, 10
SHARES: Final = (0.5, 0.1, 0.01, 0.001)
"""Of the documents that a filter allows."""
ROUNDS, PARTS = 10, 3
"""Of updates: how often each document, and in how many parts, between which files are built."""
_ONE_BY_ONE: Final = 25
"""So many queries have filters of their own: of what is near to them, or far."""
_COLLECTION: Final = 7


class Held(NamedTuple):
    """vectors: what is searched. data: (n, d) all that were ever there, by ordinal; live: the ordinals of those that
    are there."""

    vectors: CollectionVectors
    data: Floats
    live: Ints
    queries: Floats


class Asked(NamedTuple):
    """seal_rows: as the setting of segments."""

    kind: IndexKind
    preset: str
    rows: int
    dimensions: int
    queries: int
    seal_rows: int


def stays(directory: Path, asked: Asked) -> Held:
    """Vectors that come once."""
    data, queries = _drawn(asked.rows, asked.dimensions, asked.queries)
    return _held(directory, asked, Metric.COSINE, data, queries)


def updated(directory: Path, asked: Asked) -> Held:
    """After ROUNDS in which every document gets another vector."""
    data, queries = _drawn(asked.rows * (ROUNDS + 1), asked.dimensions, asked.queries)
    held = _held(directory, asked, Metric.COSINE, data[: asked.rows], queries)
    vectors, at, rng = held.vectors, np.arange(asked.rows), np.random.default_rng(1)
    for _ in range(ROUNDS):
        for part in np.array_split(rng.permutation(asked.rows), PARTS):
            first = vectors.next_ordinal
            vectors.append(first, data[first : first + len(part)])
            vectors.tombstone(np.sort(at[part]).tolist())
            at[part] = np.arange(first, first + len(part))
            index_all(vectors)
    return held._replace(data=data, live=np.sort(at))


def copies(directory: Path, asked: Asked) -> Held:
    """Each vector is there twice."""
    half, queries = _drawn(asked.rows // 2, asked.dimensions, asked.queries)
    data = np.concatenate((half, half[np.random.default_rng(3).permutation(len(half))]))
    return _held(directory, asked, Metric.COSINE, data, queries)


def uneven(directory: Path, asked: Asked) -> Held:
    """Of two thirds the length is within a factor of 2.7 to either side: of so few vectors each is scored."""
    return _spread(directory, asked, np.exp(np.random.default_rng(4).standard_normal((asked.rows, 1))))


def bands(directory: Path, asked: Asked) -> Held:
    """Lengths of about 1, 1.5 and 4, so that each is a band of the index."""
    rng = np.random.default_rng(4)
    return _spread(
        directory, asked, rng.choice([1.0, 1.5, 4.0], (asked.rows, 1)) * rng.uniform(1, 1.04, (asked.rows, 1))
    )


def _spread(directory: Path, asked: Asked, lengths: npt.NDArray[np.float64]) -> Held:
    data, queries = _drawn(asked.rows, asked.dimensions, asked.queries)
    return _held(directory, asked, Metric.DOT, data * lengths.astype(np.float32), queries)


SITUATIONS: Final[dict[str, Callable[[Path, Asked], Held]]] = {
    "vectors stay": stays,
    "updated ten times": updated,
    "each twice": copies,
    "of any length, dot": uneven,
    "of three lengths, dot": bands,
}


@cache
def _drawn(rows: int, dimensions: int, queries: int) -> tuple[Floats, Floats]:
    return drawn(rows, dimensions, queries)


def _held(directory: Path, asked: Asked, metric: Metric, data: Floats, queries: Floats) -> Held:
    config = SegmentConfig(seal_rows=asked.seal_rows)
    vectors = new(directory, asked.kind, metric, config, asked.preset, asked.dimensions)
    vectors.append(0, data)
    index_all(vectors)
    return Held(vectors, data, np.arange(len(data)), queries)


def new(
    directory: Path, kind: IndexKind, metric: Metric, config: SegmentConfig, preset: str, dimensions: int
) -> CollectionVectors:
    """Without vectors."""
    low = PRESETS[preset]
    index = IndexParams(kind=kind, m=low.m, ef_construction=low.ef_construction, ef_search=low.ef_search)
    spec = CollectionSpec(name="c", dimensions=dimensions, metric=metric, index=index)
    return CollectionVectors(_COLLECTION, spec, str(directory), config)


def index_all(vectors: CollectionVectors) -> int:
    """Build whatever the leader of a shard would, until nothing is left to do: how many files that were."""
    for built in count():
        loads, end, waiting, view = vectors.loads()
        task = plan(loads, end, waiting, vectors.config, dimensions=vectors.spec.dimensions, quiet=True, idle=True)
        if task is None:
            return built
        base = next((s.sealed for s in view.served if task.base and s.sealed.segment == task.base), None)
        blocks = view.live_blocks(base.segment.last + 1 if base else task.first, task.last)
        segment, path = build_segment(
            vectors.directory, _COLLECTION, task.first, task.last, blocks, vectors.spec, base=base
        )
        vectors.attach(SealedSegment(path, segment, vectors.spec))
        if not vectors.publish(segment):
            raise AssertionError(f"{segment} is not the next one")
    raise AssertionError


def recall(vectors: CollectionVectors, data: Floats, live: Ints, queries: Floats, allow: BitMap | None = None) -> float:
    """Of searches that say nothing of their own. data: by ordinal. Raises AssertionError unless of as many as can be
    there each is there, once. Of vectors as near as each other any will do."""
    return _found(vectors, live, queries, _distances(vectors.spec.metric, queries, data[live]), allow)


def _found(
    vectors: CollectionVectors, live: Ints, queries: Floats, exact: npt.NDArray[np.float64], allow: BitMap | None = None
) -> float:
    """exact: (nq, n) the distances of those that are there."""
    ordinals, distances = vectors.search(queries, K, allow=allow)
    allowed = np.ones(len(live), np.bool_) if allow is None else np.isin(live, np.array(allow, np.int64))
    counted, exact = live[allowed], exact[:, allowed]
    wanted, found = min(K, len(counted)), 0
    if not wanted:
        raise ValueError("nothing is allowed")
    farthest = np.partition(exact, wanted - 1, axis=1)[:, wanted - 1]
    for got, told, last in zip(ordinals, distances, farthest, strict=True):
        if not np.isin(got[:wanted], counted).all() or len(set(got[:wanted].tolist())) != wanted:
            raise AssertionError(f"{got} are not {wanted} different ones that count")
        found += int((told[:wanted] <= last + 1e-5 * max(1, abs(last))).sum())
    return found / (wanted * len(queries))


def _distances(metric: Metric, queries: Floats, rows: Floats) -> npt.NDArray[np.float64]:
    asked, there = queries.astype(np.float64), rows.astype(np.float64)
    products = asked @ there.T
    if metric is Metric.L2:
        squares = (asked**2).sum(axis=1)[:, None] + (there**2).sum(axis=1) - 2 * products
        return np.asarray(np.sqrt(np.maximum(squares, 0)))
    return np.asarray(-products if metric is Metric.DOT else 1 - products)


def recalls(held: Held) -> dict[str, float]:
    """Plain; with filters that have nothing to do with what is near, with those that allow what is near to a query, a
    tenth, and with those that allow what is far, a half."""
    vectors, data, live, queries = held
    rng = np.random.default_rng(11)
    exact = _distances(vectors.spec.metric, queries, data[live])
    found = {"plain": _found(vectors, live, queries, exact)}
    for share in SHARES:
        if len(allow := live[rng.random(len(live)) < share]):
            found[f"{100 * share:g} % allowed"] = _found(vectors, live, queries, exact, BitMap(allow))
    near, far = list[float](), list[float]()
    for at in range(min(_ONE_BY_ONE, len(queries))):
        one, order = slice(at, at + 1), live[np.argsort(exact[at])]
        near.append(_found(vectors, live, queries[one], exact[one], BitMap(order[: len(order) // 10])))
        far.append(_found(vectors, live, queries[one], exact[one], BitMap(order[len(order) // 2 :])))
    return found | {"the nearest tenth": float(np.mean(near)), "the far half": float(np.mean(far))}


def measured(asked: Asked, situation: str, keep: Path) -> dict[str, float]:
    """As `recalls`. keep: a directory for what was measured."""
    done = keep / f"{'-'.join(map(str, asked))}-{situation.replace(' ', '-')}.json"
    if done.exists():
        return msgspec.json.decode(done.read_bytes(), type=dict[str, float])
    with tempfile.TemporaryDirectory(prefix="bench-recall-") as name:
        found = recalls(SITUATIONS[situation](Path(name), asked))
    done.write_bytes(msgspec.json.encode(found))
    return found


def table(asked: list[Asked], keep: Path, situations: list[str]) -> str:
    """In Markdown."""
    lines, columns = list[list[str]](), list[str]()
    for situation in situations:
        for one in asked:
            found = measured(one, situation, keep)
            columns = ["vectors", "kind", *found]
            lines.append([situation, f"`{one.kind}`", *(f"{value:.3f}" for value in found.values())])
            print(lines[-1], file=sys.stderr, flush=True)
    return kinds_shown.table(columns, lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.recall", description=__doc__)
    parser.add_argument("kinds", nargs="*", type=IndexKind, metavar="KIND", help="all when none is named")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--dimensions", type=int, default=DIMENSIONS)
    parser.add_argument("--preset", choices=PRESETS, default="balanced")
    parser.add_argument("--seal-rows", type=int, help="a fifth of the rows unless said")
    parser.add_argument("--situation", action="append", choices=SITUATIONS, help="all unless some are named, each so")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into it, between its marks")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="of what is measured; go on from it")
    said: Any = parser.parse_args()
    rest = said.preset, said.rows, said.dimensions, QUERIES, said.seal_rows or max(1, said.rows // 5)
    with tempfile.TemporaryDirectory(prefix="bench-recall-") as name:
        keep: Path = said.keep or Path(name)
        keep.mkdir(parents=True, exist_ok=True)
        kinds = said.kinds or list(IndexKind)
        text = table([Asked(kind, *rest) for kind in kinds], keep, said.situation or list(SITUATIONS))
    print(text)
    if said.write is not None:
        begin = f"<!-- measured by python -m bench.recall, {said.preset}, {said.rows} x {said.dimensions} -->\n"
        kinds_shown.place_text(said.write, text, begin)


if __name__ == "__main__":
    main()
