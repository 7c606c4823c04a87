"""An index file of other ordinals, made to serve the vectors that are here: what a restore brings (docs/adr/0093).

Its index stays byte for byte; which rows its nodes stand for is written again. Rows find their nodes by the hashes of
their vectors, and are compared with them. Invariant: every live vector of the range is a node's, byte for byte, or
InvalidArgument is raised: a search is answered by the file as it would be by the documents.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from needle.base.errors import CorruptSegment, InvalidArgument
from needle.base.model import CollectionSpec, IndexKind
from needle.base.vector_hashes import row_hashes
from needle.shard.disk import ReplicaDisk
from needle.shard.plan import PublishedSegment
from needle.shard.segments.builder import write_segment
from needle.shard.segments.distinct import same_rows
from needle.shard.segments.format import Contents, Footer, Layout, read_layout, verify_file
from needle.shard.segments.graph import BuildCancelled
from needle.shard.segments.made_elsewhere import CHECKED, check_bands, check_graph
from needle.shard.segments.scoring import Floats, Ints
from needle.shard.segments.sealed import SealedSegment

UNUSED_SHARE: Final = 2
"""A file of which less than this part would be used is built again: searches would walk over nodes of nobody."""
Blocks = Iterable[tuple[Ints, Floats]]


class Fitted(NamedTuple):
    """Which node each row is, of so many. first, last: the range of ordinals. offsets: (rows,) these less `first`."""

    path: str
    nodes: int
    first: int
    last: int
    offsets: Ints
    node_of: Ints
    footer: Footer
    layout: Layout


def fit(
    path: str, first: int, last: int, blocks: Blocks, spec: CollectionSpec, cancelled: Callable[[], bool]
) -> Fitted:
    """Find the node of each live row of [first, last]. blocks: (ordinals, vectors) of these, ascending. Raises
    CorruptSegment, InvalidArgument if the file does not have them all or is of another collection, BuildCancelled."""
    footer = verify_file(path)
    try:
        layout = read_layout(path, footer, spec.dtype)
        if layout.apart.kind not in CHECKED or layout.lists is not None:
            raise InvalidArgument(f"index files of {layout.apart.kind} are built again, not taken", field="file")
        sealed = SealedSegment(path, footer.segment, spec)
    except CorruptSegment as error:
        raise InvalidArgument(f"this index file cannot serve the collection: {error.message}", field="file") from error
    _check_tables(path, sealed, layout)
    check_graph(path, spec, footer.faiss_bytes, layout)
    nodes = sealed.nodes
    hashes, lengths = np.empty(nodes, np.uint64), np.empty(nodes, np.float64)
    at = 0
    for vectors in sealed.node_blocks():
        hashes[at : at + len(vectors)] = row_hashes(vectors)
        lengths[at : at + len(vectors)] = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
        at += len(vectors)
        _ask(cancelled)
    _check_lengths(path, lengths, footer, layout)
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    offsets, node_of = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for ordinals, vectors in blocks:
        _ask(cancelled)
        place = np.minimum(np.searchsorted(ordered, row_hashes(vectors)), nodes - 1)
        if not nodes or not same_rows(sealed.node_vectors(order[place]), vectors).all():
            raise InvalidArgument("this index file lacks vectors that are here", field="file")
        offsets.append(ordinals - first)
        node_of.append(order[place])
    found = Fitted(path, nodes, first, last, np.concatenate(offsets), np.concatenate(node_of), footer, layout)
    used = len(np.unique(found.node_of))
    if used * UNUSED_SHARE < nodes:
        raise InvalidArgument(f"of this index file {used} of {nodes} vectors are here: too few", field="file")
    return found


def _check_lengths(path: str, lengths: npt.NDArray[np.float64], footer: Footer, layout: Layout) -> None:
    """Whether nothing is longer than the file says: a search stops early by that. Raises CorruptSegment."""
    most = [(footer.longest, lengths), *((b.longest, lengths[b.first : b.first + b.nodes]) for b in layout.bands)]
    if any(not said >= found.max(initial=0.0) for said, found in most):
        raise CorruptSegment(f"segment file {os.path.basename(path)} has longer vectors than it says", path=path)


def _ask(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise BuildCancelled


def _check_tables(path: str, sealed: SealedSegment, layout: Layout) -> None:
    """Whether all of its tables lead to nodes: the file was not built in this cluster, and its checksum is its own.
    Raises CorruptSegment."""
    nodes = sealed.nodes
    check_bands(path, layout.bands, nodes)
    if layout.node_of is not None and not np.all(layout.node_of < nodes):
        raise CorruptSegment(f"segment file {os.path.basename(path)} has tables that lead nowhere", path=path)


def write_fitted(
    directory: str, collection_id: int, spec: CollectionSpec, fitted: Fitted, disk: ReplicaDisk
) -> tuple[PublishedSegment, str]:
    """The file of its own that serves these rows: (what to publish, path)."""
    footer, layout = fitted.footer, fitted.layout
    apart, rows = layout.apart, len(fitted.offsets)
    vectors = None
    if apart.kind is not IndexKind.HNSW:
        vectors = np.memmap(fitted.path, "<f4", "r", apart.at, (apart.nodes, spec.dimensions))
    plain = layout.node_of is None and rows == fitted.nodes and np.array_equal(fitted.node_of, np.arange(rows))
    held = Contents(
        kind=apart.kind,
        index=None,
        node_of=None if plain else fitted.node_of,
        bands=layout.bands,
        longest=footer.longest,
        vectors=vectors,
        stretch=apart.stretch,
        lists=layout.lists,
        head=(fitted.path, footer.faiss_bytes),
        beam=layout.beam,
    )
    draft = PublishedSegment(collection_id, fitted.first, fitted.last, rows, 0, "")
    return write_segment(directory, draft, held, fitted.offsets, spec, None, disk)
