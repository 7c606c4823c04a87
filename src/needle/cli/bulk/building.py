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
from needle.cli.bulk.job import Job, ShardFiles, ShardJob, Work, once, result_of
from needle.cli.bulk.partitioning import part_name
from needle.protocol.upkeep_commands import LoadedFile
from needle.shard.bulk.rows_file import RowsWriter, checksum_of, read_rows, vectors_between
from needle.shard.bulk.staged import read_name, rows_name
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
    made = once(work.shard(shard), ShardFiles, lambda into: _build(job, mine, _parts(work, job, shard), into), _sound)
    return made if made.rows else None


def _sound(directory: Path, made: ShardFiles) -> bool:
    """Whether all files are there, and still have the checksums of their names."""
    paths = [directory / name for name in made.names]
    return all(one.exists() and checksum_of(str(one)) == read_name(one.name).checksum for one in paths)


def _parts(work: Work, job: Job, shard: int) -> dict[Path, int]:
    """What each piece gave the shard: where, and how many documents. Raises CorruptSegment for what is not as it was
    made."""
    found: dict[Path, int] = {}
    for number in range(len(job.pieces)):
        said = result_of(work.piece(number), dict[str, int])
        if said is None:
            raise _changed(work.piece(number))
        if rows := said.get(str(shard)):
            found[work.piece(number) / part_name(shard)] = rows
    return found


def _changed(path: Path) -> CorruptSegment:
    text = f"{path} is not what the source was divided into: something changed or deleted it since"
    return CorruptSegment(f"{text}. Run the command again, which makes it again", path=str(path))


def _build(job: Job, mine: ShardJob, parts: dict[Path, int], into: Path) -> ShardFiles:
    with open(into / ROWS, "wb") as file:
        writer = RowsWriter(file)
        for part, count in parts.items():
            # A document that is changed here would be a wrong one in the cluster, and equal on all replicas.
            if not part.exists() or not checksum_of(str(part)):
                raise _changed(part)
            for rows in read_rows(str(part)):
                writer.add(rows)
                count -= len(rows.ids)
            if count:
                raise _changed(part)
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
