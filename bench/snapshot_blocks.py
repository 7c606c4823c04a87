"""`python -m bench.snapshot_blocks [documents] [dimensions]`: what share of an image's documents.db a member lacks.

The member has applied what the sender had applied a step ago, in other groups: all of it by itself ("member"), or on
top of an image ("installed"). Two kinds of image: with the pages of the sender's file as they stand, and packed again,
row by row. Two ways to compare: parts of 64 KiB at the same place, and pages of 4 KiB anywhere. And what it takes: CPU
time of making the image, and of finding the pages.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np

from needle.base.config import Limits, SegmentConfig
from needle.base.model import CollectionSpec, Metric
from needle.multiraft.files import Files
from needle.multiraft.ports import Applied
from needle.multiraft.snapshots.snapshot_blocks import find_donors
from needle.protocol.commands import Command, CreateCollection, Insert, encode
from needle.shard.disk import REAL_DISK
from needle.shard.documents.sqlite_file import FILE_NAME, connect, copy_pages, copy_tables
from needle.shard.state_machine import Replica
from needle.system import ThreadPool

DOCUMENTS, DIMENSIONS, BATCH = 100_000, 128, 100
PAGE, PART = 4096, 64 << 10


class _Cluster:
    """Two replicas of one log: the sender applies entries one by one, the member later and in groups."""

    def __init__(self, root: Path, dimensions: int) -> None:
        self._root = root
        self._dimensions = dimensions
        self._rng, self._words = np.random.default_rng(0), random.Random(0)
        self._index = 0
        self._new: list[Applied] = []
        self.sender, self.member, self.installed = map(self._open, ("sender", "member", "installed"))
        spec = CollectionSpec(name="c", dimensions=dimensions, metric=Metric.L2)
        self._add(CreateCollection(spec, False))

    def _open(self, name: str) -> Replica:
        return Replica(str(self._root / name), limits=Limits(), segments=SegmentConfig(), disk=REAL_DISK)

    def _add(self, command: Command) -> None:
        self._index += 1
        self._new.append(Applied(self._index, 1, encode(command), None))

    def put(self, numbers: list[int]) -> None:
        for at in range(0, len(numbers), BATCH):
            ids = [f"doc-{number}" for number in numbers[at : at + BATCH]]
            vectors = self._rng.standard_normal((len(ids), self._dimensions)).astype("<f4").tobytes()
            self._add(Insert("c", ids, vectors, [self._metadata(id_) for id_ in ids], None))

    def _metadata(self, id_: str) -> bytes:
        words = self._words
        text = "lorem ipsum " * words.randrange(4, 12)
        return json.dumps(
            {"title": f"{id_} {words.random()}", "year": words.randrange(1990, 2026), "text": text}
        ).encode()

    def apply(self, replica: Replica, group: int) -> None:
        for at in range(0, len(self._new), group):
            replica.apply(self._new[at : at + group])
        replica.checkpoint()

    def taken(self) -> None:
        self._new = []

    def file(self, name: str) -> Path:
        directory = self._root / name
        return directory / (directory / "CURRENT").read_text().strip() / FILE_NAME


def _cpu(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def _lacks(mine: bytes, wanted: bytes) -> tuple[float, float]:
    """Shares of `wanted` that differ from what stands there in `mine`, and that are nowhere in it."""
    places = range(0, len(wanted), PART)
    differ = sum(mine[at : at + PART] != wanted[at : at + PART] for at in places) / len(places)
    pages = {mine[at : at + PAGE] for at in range(0, len(mine), PAGE)}
    nowhere = [wanted[at : at + PAGE] not in pages for at in range(0, len(wanted), PAGE)]
    return differ, sum(nowhere) / len(nowhere)


def _compare(cluster: _Cluster, root: Path, what: str) -> None:
    for kind, copy, member in (
        ("as it stands", copy_pages, "member"),
        ("as it stands", copy_pages, "installed"),
        ("packed again", copy_tables, "member"),
    ):
        image = root / "image.db"
        with closing(connect(str(cluster.file("sender")))) as source:
            spent = _cpu(partial(copy, source, str(image)))
        differ, nowhere = _lacks(cluster.file(member).read_bytes(), image.read_bytes())
        sys.stdout.write(
            f"{what:28} {kind:12} {member:9} {image.stat().st_size / 1e6:6.1f} MB {spent:5.2f} s; lacks: "
            f"{differ:6.1%} of the parts of 64 KiB, {nowhere:6.1%} of the pages\n"
        )


async def _find(path: Path, size: int) -> None:
    pool = ThreadPool("bench")
    before = time.process_time()
    await find_donors([str(path)], Files(), pool)
    spent = time.process_time() - before
    sys.stdout.write(f"hashing and sorting {size / 1e6:.1f} MB of pages: {spent:.2f} s of CPU time\n")
    pool.close()


def main() -> None:
    documents, dimensions = (*map(int, sys.argv[1:]), *(DOCUMENTS, DIMENSIONS)[len(sys.argv) - 1 :])
    pick, root = random.Random(1), Path(tempfile.mkdtemp())
    steps: list[tuple[str, list[int]]] = [
        ("loaded", list(range(documents))),
        ("2 % appended", list(range(documents, documents + documents // 50))),
        ("1 % replaced", pick.sample(range(documents), documents // 100)),
        ("15 % replaced, then purged", pick.sample(range(documents), documents * 15 // 100)),
        ("1 % replaced after the purge", pick.sample(range(documents), documents // 100)),
    ]
    try:
        cluster = _Cluster(root, dimensions)
        for at, (what, numbers) in enumerate(steps):
            cluster.put(numbers)
            cluster.apply(cluster.sender, 1)
            if at:
                _compare(cluster, root, what)
            cluster.apply(cluster.member, 3)
            if at:
                cluster.apply(cluster.installed, 2)
            else:
                (root / "image").mkdir()
                cluster.sender.export_snapshot(str(root / "image"))
                cluster.installed.install_snapshot(str(root / "image"))
            cluster.taken()
        path = cluster.file("member")
        asyncio.run(_find(path, path.stat().st_size))
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
