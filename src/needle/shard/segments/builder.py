"""Builds one segment file: makes an index of rows, in slices, and publishes the file by rename.

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

from needle.base.dtypes import DType, StoredRows
from needle.base.errors import CorruptSegment, StorageError
from needle.base.file_errors import shortage
from needle.base.model import GRAPHS, CollectionSpec, IndexKind
from needle.shard.disk import REAL_DISK, ReplicaDisk
from needle.shard.plan import PublishedSegment
from needle.shard.segments import page_cache
from needle.shard.segments.codes import coded, coding
from needle.shard.segments.format import Contents, checksum_of, copy_head, verify_file, write_tail
from needle.shard.segments.graph import BuildCancelled
from needle.shard.segments.graph_builder import GraphBuilder, full_graph, graph_over
from needle.shard.segments.lists import LISTED, listed
from needle.shard.segments.opened import wanting
from needle.shard.segments.scoring import Ints
from needle.shard.segments.sealed import SealedSegment, segment_file

TRIM_BYTES = 8 << 20
"""After building or fetching a file of this size, memory that the C library keeps is given back."""
TEMPORARY = ".tmp"

T = TypeVar("T")
Blocks = Iterable[tuple[Ints, StoredRows]]


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

    blocks: (ordinals (n,) int64, vectors as they are stored) of the live rows, ascending; with a base those after it.
    own_for: the manifest entry that this build stands in for (the published file is not to be had).
    Raises BuildCancelled, CorruptSegment (the base's file is damaged), DiskFull, TooManyFiles or another StorageError.
    """
    faiss.omp_set_num_threads(threads)
    builder, kept = _start(base, spec, first, cancelled)
    ordinals = [kept]
    for block_ordinals, vectors in blocks:
        ordinals.append(block_ordinals - first)
        builder.add(vectors)
    held = _contents(builder, spec, cancelled)
    offsets = np.concatenate(ordinals)
    draft = PublishedSegment(collection_id, first, last, len(offsets), 0, "")
    return write_segment(directory, draft, held, offsets, spec, own_for, disk)


def _start(
    base: SealedSegment | None, spec: CollectionSpec, first: int, cancelled: Callable[[], bool]
) -> tuple[GraphBuilder, Ints]:
    """A builder that is empty or holds the base's rows: (builder, offsets from `first` of what it holds)."""
    if base is None:
        return GraphBuilder(spec, cancelled), np.empty(0, np.int64)
    verify_file(base.path)
    offsets = base.all_ordinals() - first
    if base.bands or base.kind not in GRAPHS or spec.index.kind not in GRAPHS:  # all rows are to be seen together
        builder = GraphBuilder(spec, cancelled)
        for _, vectors in base.blocks(None):
            builder.add(vectors)
        return builder, offsets
    try:
        index: Any = faiss.read_index(base.path)
    except RuntimeError as error:
        if (missing := wanting(base.path)) is not None:
            raise missing from error
        raise CorruptSegment(f"faiss cannot read {base.path}: {error}", path=base.path) from error
    if base.kind is not IndexKind.HNSW or spec.form.bits:
        index = graph_over(spec, index.hnsw, base.stored_nodes() if spec.form.bits else base.node_blocks())
    builder = GraphBuilder(spec, cancelled, (index, base.rows, base.node_of, base.beam))
    if builder.keeps_stored:
        for rows in base.stored_nodes():
            builder.keep(rows)
    return builder, offsets


def _contents(builder: GraphBuilder, spec: CollectionSpec, cancelled: Callable[[], bool]) -> Contents:
    """Of the file. Raises BuildCancelled."""
    kind = spec.index.kind
    if kind is IndexKind.FLAT:
        rows = builder.rows()
        return Contents(kind, None, rows.node_of, (), rows.longest, builder.stored(rows.vectors), keeps=builder)
    if kind in LISTED:
        rows = builder.rows()
        made = listed(kind, spec.metric, rows.vectors, cancelled)
        if made is None:  # each is scored
            return Contents(IndexKind.FLAT, None, rows.node_of, (), rows.longest, rows.vectors, keeps=builder)
        place = np.empty(len(made.order), np.int64)
        place[made.order] = np.arange(len(place))
        return Contents(
            made.kind,
            made.index,
            place if rows.node_of is None else place[rows.node_of],
            made.bands,
            rows.longest,
            rows.vectors,
            made.stretch,
            made.order,
            made.lists,
            keeps=builder,
        )
    index, nodes, node_of, bands, longest, beam = graph = builder.finish()
    of, codes = coding(spec), None
    if of is not None and index.ntotal:
        codes = coded(of, spec.metric, index, nodes, bands, cancelled)
    if codes is None and spec.form.unit and spec.dtype is not DType.FLOAT32:
        # What is stored does not follow from what is scored: it has to lie beside the graph over full vectors.
        vectors = builder.stored(nodes)
        return Contents(IndexKind.HNSW_SQ8, index, node_of, bands, longest, vectors, keeps=(builder, graph), beam=beam)
    if codes is None and spec.form.bits:  # there are none
        index = full_graph(spec)
    if of is None or codes is None:  # full vectors are always right
        return Contents(IndexKind.HNSW, index, node_of, bands, longest, beam=beam)
    vectors, keeps = builder.stored(nodes), (builder, graph, codes)
    return Contents(of.kind, codes.index, node_of, bands, longest, vectors, codes.stretch, keeps=keeps, beam=beam)


def write_segment(
    directory: str,
    draft: PublishedSegment,
    held: Contents,
    offsets: Ints,
    spec: CollectionSpec,
    own_for: PublishedSegment | None,
    disk: ReplicaDisk,
) -> tuple[PublishedSegment, str]:
    """Write what was made. draft: without size and checksum. offsets: (rows,) ordinals less draft.first, ascending.
    Raises DiskFull, TooManyFiles or another StorageError."""
    try:
        return _write(directory, draft, held, offsets, spec, own_for, disk)
    except (OSError, RuntimeError) as error:
        missing = shortage(error, directory) if isinstance(error, OSError) else None
        text = f"segment [{draft.first}, {draft.last}] cannot be written to {directory}: {error}"
        raise missing or StorageError(text) from error


def _write(
    directory: str,
    draft: PublishedSegment,
    held: Contents,
    offsets: Ints,
    spec: CollectionSpec,
    own_for: PublishedSegment | None,
    disk: ReplicaDisk,
) -> tuple[PublishedSegment, str]:
    kind = "own" if own_for else "new"
    temporary = os.path.join(directory, f"{draft.collection_id}-{draft.first}-{draft.last}.{kind}{TEMPORARY}")
    if held.index is not None:
        faiss.write_index(held.index, temporary)
    with open(temporary, "wb+" if held.index is None else "r+b") as file:
        if held.head is not None:
            copy_head(*held.head, file)
        faiss_bytes = file.seek(0, os.SEEK_END)
        write_tail(file, draft, offsets, spec, held, faiss_bytes)
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
