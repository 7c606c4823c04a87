"""`python -m bench [writes] [failover] [search] [shards] [collections] [filters] [busy] [moves] [replace] [http]
[tls] [documents] [backup] [archive] [kinds] [request] [growth] [curves] [neighbours] [hybrid] [sparse] [metrics]
[cores]`: or all.
`python -m bench beside --other DIR`: this checkout beside another one.

--quick, --json; --documents N: how many the benchmarks of filters, replace, documents, backup, request and cores
have; 200,000, 200,000 and 20,000 each of the others unless said otherwise."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys

from bench import archive as bench_archive
from bench import backup as bench_backup
from bench import (
    beside,
    busy,
    collections,
    cores,
    curves,
    failover,
    filters,
    growth,
    http,
    hybrid,
    kinds,
    metrics,
    moves,
    neighbours,
    replace,
    request,
    search,
    shards,
    sparse,
    tls,
    writes,
)
from bench import documents as bench_documents
from bench.report import Report

PARTS = (
    "writes", "failover", "search", "shards", "collections", "filters", "busy", "moves", "replace", "http", "tls",
    "documents", "backup", "archive", "kinds", "request", "growth", "curves", "neighbours", "hybrid", "sparse",
    "metrics", "cores",
)  # fmt: skip


async def measure(parts: list[str], report: Report, *, quick: bool, documents: int | None) -> None:
    """Runs the named parts one after the other into `report`."""
    with_etcd = shutil.which("etcd") is not None
    if "writes" in parts:
        await writes.run(report, quick=quick, with_etcd=with_etcd)
    if "failover" in parts:
        await failover.run(report, quick=quick, with_etcd=with_etcd)
    if "search" in parts:
        await search.run(report, quick=quick)
    if "shards" in parts:
        await shards.run(report, quick=quick)
    if "collections" in parts:
        await collections.run(report, quick=quick)
    if "filters" in parts:
        await asyncio.to_thread(filters.run, report, quick=quick, documents=documents)
    if "busy" in parts:
        await busy.run(report, quick=quick)
    if "moves" in parts:
        await moves.run(report, quick=quick)
    if "replace" in parts:
        await replace.run(report, quick=quick, documents=documents)
    if "http" in parts:
        await http.run(report, quick=quick)
    if "tls" in parts:
        await tls.run(report, quick=quick)
    if "documents" in parts:
        await bench_documents.run(report, quick=quick, documents=documents)
    if "backup" in parts:
        await bench_backup.run(report, quick=quick, documents=documents)
    if "archive" in parts:
        await bench_archive.run(report, quick=quick, documents=documents)
    if "kinds" in parts:
        await asyncio.to_thread(kinds.run, report, quick=quick)
    if "request" in parts:
        await request.run(report, quick=quick, documents=documents)
    if "growth" in parts:
        await growth.run(report, quick=quick)
    if "curves" in parts:
        await curves.run(report, quick=quick)
    if "neighbours" in parts:
        await neighbours.run(report, quick=quick)
    if "hybrid" in parts:
        await hybrid.run(report, quick=quick)
    if "sparse" in parts:
        await asyncio.to_thread(sparse.run, report, quick=quick, documents=documents)
    if "metrics" in parts:
        await metrics.run(report, quick=quick)
    if "cores" in parts:
        await cores.run(report, quick=quick, documents=documents)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", choices=[*PARTS, "beside", []], help="what to measure; all when none is named"
    )
    parser.add_argument("--quick", action="store_true", help="smaller data and shorter runs")
    parser.add_argument("--documents", type=int, help="documents of the benchmarks of filters, replace and documents")
    parser.add_argument("--other", help="for `beside`: a checkout of another release, with a .venv of its own")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    report = Report()
    other = beside.check(options.other) if "beside" in options.parts else None
    try:
        if other is not None:
            asyncio.run(beside.run(report, quick=options.quick, other=other))
            return
        asyncio.run(measure(options.parts or list(PARTS), report, quick=options.quick, documents=options.documents))
    finally:
        report.print(as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
