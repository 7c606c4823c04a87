"""The files of one shard, of what all pieces gave it: a worker's second step.

Index files are those that a node would build of these vectors, by the same code with one thread, so that the same
documents give the same bytes. Memory: the vectors of one index file and its graph.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from needle.base.dtypes import DType
from needle.base.errors import CorruptSegment
from needle.base.model import CollectionSpec
from needle.cli.bulk.job import Job, ShardFiles, ShardJob, Work, once
from needle.cli.bulk.partitioning import part_name
from needle.protocol.upkeep_commands import LoadedFile
from needle.shard.bulk.rows_file import RowsWriter, read_rows, vectors_between
from needle.shard.bulk.staged import rows_name
from needle.shard.segments.builder import build_segment
from needle.shard.segments.made_elsewhere import CHECKED

ROWS: Final = "all.rows"


def may_build(spec: CollectionSpec) -> bool:
    """Whether nodes take index files of such a collection that were built elsewhere."""
    return spec.dtype is DType.FLOAT32 and spec.index.kind in CHECKED


def build(job: Job, shard: int, root: str) -> ShardFiles | None:
    """The files of a shard; None if it gets no document. No id may be there twice (partitioning.check_distinct)."""
    work = Work(root)
    mine = next(one for one in job.shards if one.shard == shard)
    parts = [work.piece(number) / part_name(shard) for number in range(len(job.pieces))]
    made = once(work.shard(shard), ShardFiles, lambda into: _build(job, mine, [p for p in parts if p.exists()], into))
    return made if made.rows else None


def _build(job: Job, mine: ShardJob, parts: list[Path], into: Path) -> ShardFiles:
    with open(into / ROWS, "wb") as file:
        writer = RowsWriter(file)
        for part in parts:
            for rows in read_rows(str(part)):
                writer.add(rows)
        said = writer.end()
    name = rows_name(mine.collection_id, said.checksum)
    (into / ROWS).rename(into / name)
    indexes, names = [], [name]
    for first in range(0, said.rows, mine.rows_max) if job.indexes else ():
        last = min(first + mine.rows_max, said.rows) - 1
        if last + 1 - first < job.scanned_max:
            break
        blocks = vectors_between(str(into / name), first, last, job.spec.dimensions)
        segment, path = build_segment(str(into), mine.collection_id, first, last, blocks, job.spec)
        if segment.rows != last + 1 - first:
            raise CorruptSegment(f"an index file of {segment.rows} rows was built of {last + 1 - first}", path=path)
        indexes.append(LoadedFile(first, last, segment.rows, segment.size, segment.checksum))
        names.append(Path(path).name)
    return ShardFiles(mine.shard, said.rows, said.size, said.checksum, indexes, names)
