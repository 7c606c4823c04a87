"""Documents by the thousand: changes, deletions and reading out, beside what SQLite alone does with the same rows.

Three node processes and one client; SQLite has one file, one process, a commit (with its fsync) for each call. What is
left between the two is the log, its copies, and the wire. `--documents` sets the size. The scan's memory is printed:
what a process of its own and the nodes grew by at most while all documents were read, whatever their number.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench.cluster import NeedleCluster
from bench.report import Report
from needle.base.model import Document
from needle.cli.outputs import Export
from needle.client import Client

DOCUMENTS = 20_000
QUICK_DOCUMENTS = 4_000
DIMENSIONS = 64
BATCH = 1000
PATCHED = 10
"""Calls of 1000 ids each."""
LARGE = 500_000
"""From so many on only scans are measured, and their memory: the rest is the same by the document."""
TIMEOUT = 600.0
LOOK_SECONDS = 0.5


def _metadata(n: int) -> dict[str, Any]:
    return {"n": n, "half": n % 2, "lang": ("en", "de", "fr")[n % 3], "title": f"the title of document {n}"}


def _vectors(first: int, count: int) -> Any:
    return np.random.default_rng(first).standard_normal((count, DIMENSIONS), dtype=np.float32)


def _batches(documents: int) -> Iterator[range]:
    return (range(at, min(at + BATCH, documents)) for at in range(0, documents, BATCH))


def _id(n: int) -> str:
    return f"d{n:08}"


class _Sqlite:
    """The same rows in a file of SQLite: id, metadata as JSON text, vector."""

    def __init__(self, path: str) -> None:
        self.connection = sqlite3.connect(path)
        for setting in ("journal_mode=WAL", "synchronous=FULL"):
            self.connection.execute(f"PRAGMA {setting}")
        self.connection.execute("CREATE TABLE rows (id TEXT PRIMARY KEY, metadata TEXT, vector BLOB) WITHOUT ROWID")

    def fill(self, documents: int) -> None:
        for numbers in _batches(documents):
            rows = _vectors(numbers.start, len(numbers))
            made = [
                (_id(n), msgspec.json.encode(_metadata(n)).decode(), rows[n - numbers.start].tobytes()) for n in numbers
            ]
            with self.connection:
                self.connection.executemany("INSERT INTO rows VALUES (?, ?, ?)", made)

    def patch(self, numbers: range) -> None:
        with self.connection:
            change = "UPDATE rows SET metadata = json_set(metadata, '$.seen', 1) WHERE id = ?"
            self.connection.executemany(change, [(_id(n),) for n in numbers])

    def patch_all(self) -> None:
        with self.connection:
            self.connection.execute("UPDATE rows SET metadata = json_set(metadata, '$.all', 1)")

    def delete_half(self) -> None:
        with self.connection:
            self.connection.execute("DELETE FROM rows WHERE json_extract(metadata, '$.half') = 1")

    def scan(self, *, vectors: bool) -> Iterator[Document]:
        columns = "id, metadata, vector" if vectors else "id, metadata, NULL"
        for name, metadata, vector in self.connection.execute(f"SELECT {columns} FROM rows ORDER BY id"):
            told = None if vector is None else np.frombuffer(vector, "<f4")
            yield Document(id=name, vector=told, metadata=msgspec.json.decode(metadata), version=0)


class _Both:
    """Measures a thing of both, and reports documents a second."""

    def __init__(self, report: Report) -> None:
        self._report = report

    async def rate(
        self, name: str, count: int, needle: Callable[[], Awaitable[Any]], sqlite: Callable[[], Any] | None
    ) -> None:
        start = time.perf_counter()
        await needle()
        own = time.perf_counter() - start
        if sqlite is None:
            self._report.row(name, f"{count / own:,.0f}/s")
            return
        start = time.perf_counter()
        sqlite()
        other = time.perf_counter() - start
        self._report.row(name, f"{count / own:,.0f}/s", f"SQLite {count / other:,.0f}/s")
        self._report.ratio(other / own, "", ok=None)


async def run(report: Report, *, quick: bool, documents: int | None = None) -> None:
    """Fills a cluster and a file, then measures one thing after the other of both."""
    count = documents or (QUICK_DOCUMENTS if quick else DOCUMENTS)
    with tempfile.TemporaryDirectory(prefix="bench-documents-") as directory:
        sqlite = _Sqlite(str(Path(directory) / "rows.db"))
        with closing(sqlite.connection), NeedleCluster(dimensions=DIMENSIONS) as cluster:
            async with await cluster.client() as client:
                await _measure(report, client, sqlite, cluster, Path(directory), count)


async def _measure(
    report: Report, client: Client, sqlite: _Sqlite, cluster: NeedleCluster, directory: Path, count: int
) -> None:
    both = _Both(report)
    await both.rate(
        f"insert {count:,} x {DIMENSIONS}-d",
        count,
        lambda: _fill(client, count),
        lambda: sqlite.fill(count),
    )
    if count < LARGE:
        await _changes(both, client, sqlite, count)
    await both.rate("scan", count, lambda: _count(client), lambda: sum(1 for _ in sqlite.scan(vectors=False)))
    await both.rate("scan, consistent", count, lambda: _count(client, consistent=True), None)
    if count < LARGE:
        await _exports(both, client, sqlite, directory, count)
    seen, grown, nodes = await _memory(cluster)
    if seen != count:
        raise RuntimeError(f"a scan gave {seen} of {count} documents")
    data = count * (4 * DIMENSIONS + len(msgspec.json.encode(_metadata(count)))) / 1e6
    report.row(
        f"memory of a scan of {count:,} documents",
        f"client +{grown:.1f} MB, a node +{nodes:.1f} MB",
        f"data {data:.0f} MB",
    )
    if count < LARGE:
        await both.rate(
            "delete_where, half of them",
            count // 2,
            lambda: client.delete_where({"half": 1}, timeout=TIMEOUT),
            sqlite.delete_half,
        )


async def _changes(both: _Both, client: Client, sqlite: _Sqlite, count: int) -> None:
    patched = list(_batches(count))[:PATCHED]
    await both.rate(
        "patch, 1,000 ids a call",
        sum(map(len, patched)),
        lambda: _patch(client, patched),
        lambda: [sqlite.patch(numbers) for numbers in patched],
    )
    await both.rate(
        "patch_where, all of them",
        count,
        lambda: client.patch_where({}, set={"all": 1}, timeout=TIMEOUT),
        sqlite.patch_all,
    )


async def _exports(both: _Both, client: Client, sqlite: _Sqlite, directory: Path, count: int) -> None:
    await both.rate(
        "export, .jsonl",
        count,
        lambda: _export(client, directory / "a.jsonl"),
        lambda: _write(directory / "b.jsonl", sqlite.scan(vectors=True)),
    )
    await both.rate("to_arrow", count, lambda: client.scan(with_vectors=True, timeout=TIMEOUT).to_arrow(), None)


async def _fill(client: Client, count: int) -> None:
    for numbers in _batches(count):
        await client.insert_batch(
            ids=[_id(n) for n in numbers],
            vectors=_vectors(numbers.start, len(numbers)),
            metadatas=[_metadata(n) for n in numbers],
            timeout=TIMEOUT,
        )


async def _patch(client: Client, parts: list[range]) -> None:
    for numbers in parts:
        await client.patch([_id(n) for n in numbers], set={"seen": 1}, timeout=TIMEOUT)


async def _count(client: Client, *, consistent: bool = False) -> int:
    count = 0
    async for _ in client.scan(consistent=consistent, timeout=TIMEOUT):
        count += 1
    return count


async def _export(client: Client, path: Path) -> None:
    with Export(path, replace=True) as made:
        async for document in client.scan(with_vectors=True, timeout=TIMEOUT):
            made.add(document)
        made.finish()


def _write(path: Path, documents: Iterator[Document]) -> None:
    with Export(path, replace=True) as made:
        for document in documents:
            made.add(document)
        made.finish()


async def _memory(cluster: NeedleCluster) -> tuple[int, float, float]:
    """Documents that a process of its own scans, and the MB by which it, and that node which grew most, grew at most
    meanwhile."""
    before, most = cluster.memory_mb(), 0.0
    scan = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.scan_memory", *cluster.addresses(), stdout=asyncio.subprocess.PIPE
    )
    said = asyncio.ensure_future(scan.communicate())
    while not said.done():
        await asyncio.wait([said], timeout=LOOK_SECONDS)
        most = max(most, *(now - then for now, then in zip(cluster.memory_mb(), before, strict=True)))
    documents, grown = said.result()[0].split()
    return int(documents), float(grown), most
