"""Builds one segment file: inserts rows into an HNSW graph, in slices, and publishes the file by rename.

Durability order: write to a temporary name, append ordinals, footer and checksum, fsync, rename, fsync the directory.
A crash at any point leaves no file under the final name, or a whole one. With one OpenMP thread the same input gives
the same bytes. Runs in a build thread; between two slices it asks whether it is still wanted.

It does not know the manifest's rules (segment_plan) nor who leads (segment_keeper).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import faiss
import msgspec
import numpy as np

from needle.base.errors import CorruptSegment, StorageError
from needle.base.model import CollectionSpec
from needle.shard import page_cache
from needle.shard.disk import REAL_DISK, ReplicaDisk
from needle.shard.scoring import Floats, Ints, square_norms
from needle.shard.sealed_segment import SealedSegment, checksum_of, faiss_metric, segment_file, verify_file, write_tail
from needle.shard.segment_plan import PublishedSegment

SLICE_ROWS = 1024
TRIM_BYTES = 8 << 20
"""After building or fetching a file of this size, memory that the C library keeps is given back."""
TEMPORARY = ".tmp"

T = TypeVar("T")
Blocks = Iterable[tuple[Ints, Floats]]


class BuildCancelled(Exception):
    """The build is no longer wanted; nothing was left behind."""


def build_segment(
    directory: str,
    collection_id: int,
    first: int,
    last: int,
    blocks: Blocks,
    spec: CollectionSpec,
    *,
    base: SealedSegment | None = None,
    threads: int = 1,
    cancelled: Callable[[], bool] = lambda: False,
    own_for: PublishedSegment | None = None,
    disk: ReplicaDisk = REAL_DISK,
) -> tuple[PublishedSegment, str]:
    """Build [first, last] and return (what to publish, path of the file).

    blocks: (ordinals (n,) int64, vectors (n, d) float32) of the live rows, ascending; with a base only those after it.
    own_for: the manifest entry that this build stands in for (the published file is not to be had).
    Raises BuildCancelled, CorruptSegment (the base's file is damaged), StorageError (disk full, ...).
    """
    faiss.omp_set_num_threads(threads)
    index, kept, norm_max = _start(base, spec, first)
    ordinals = [kept]
    for block_ordinals, vectors in blocks:
        ordinals.append(block_ordinals - first)
        for at in range(0, len(vectors), SLICE_ROWS):
            if cancelled():
                raise BuildCancelled
            part = np.ascontiguousarray(vectors[at : at + SLICE_ROWS], dtype=np.float32)
            norm_max = max(norm_max, float(np.sqrt(square_norms(part).max())) * 1.001)
            index.add(part)
    offsets = np.concatenate(ordinals)
    draft = PublishedSegment(collection_id, first, last, len(offsets), 0, "")
    try:
        return _write(directory, draft, index, offsets, spec, norm_max, own_for, disk)
    except (OSError, RuntimeError) as error:
        raise StorageError(f"segment [{first}, {last}] cannot be written to {directory}: {error}") from error


def _start(base: SealedSegment | None, spec: CollectionSpec, first: int) -> tuple[Any, Ints, float]:
    """An empty graph, or the base's graph read into memory: (index, offsets from `first`, longest vector)."""
    if base is None:
        index: Any = faiss.IndexHNSWFlat(spec.dimensions, spec.index.m, faiss_metric(spec.metric))
        index.hnsw.efConstruction = spec.index.ef_construction
        return index, np.empty(0, np.int64), 0.0
    verify_file(base.path)
    try:
        index = faiss.read_index(base.path)
    except RuntimeError as error:
        raise CorruptSegment(f"faiss cannot read {base.path}: {error}", path=base.path) from error
    return index, base.all_ordinals() - first, base.norm_max


def _write(
    directory: str,
    draft: PublishedSegment,
    index: Any,
    offsets: Ints,
    spec: CollectionSpec,
    norm_max: float,
    own_for: PublishedSegment | None,
    disk: ReplicaDisk,
) -> tuple[PublishedSegment, str]:
    kind = "own" if own_for else "new"
    temporary = os.path.join(directory, f"{draft.collection_id}-{draft.first}-{draft.last}.{kind}{TEMPORARY}")
    faiss.write_index(index, temporary)
    with open(temporary, "r+b") as file:
        faiss_bytes = file.seek(0, os.SEEK_END)
        write_tail(file, draft, offsets, spec, norm_max, faiss_bytes)
        checksum = checksum_of(file, file.tell())
        file.seek(0, os.SEEK_END)
        file.write(bytes.fromhex(checksum))
        size = file.tell()
        file.flush()
        disk.sync(temporary)
        page_cache.drop(file.fileno())
    segment = msgspec.structs.replace(draft, size=size, checksum=checksum)
    name = segment_file(own_for, own=True) if own_for else segment_file(segment)
    path = os.path.join(directory, name)
    disk.rename(temporary, path)
    disk.sync(directory)
    return segment, path


def give_back(size: int) -> None:
    """Return freed memory to the system after work on `size` bytes (glibc; elsewhere nothing happens). What a load and
    a build leave behind in many pieces, glibc keeps for the next one: 15 to 90 MB for 100,000 x 384."""
    if size < TRIM_BYTES:
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def unless_cancelled(build: Callable[..., T], *args: object) -> T | None:
    """What `build` returns, or None. BuildCancelled stays in the thread: on its way through a pool it would keep the
    frames of the build, and so graph and vectors, in a reference cycle."""
    try:
        return build(*args)
    except BuildCancelled:
        return None
