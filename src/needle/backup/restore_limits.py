"""Whether a cluster takes what a backup holds: the `limits` of its nodes, compared before anything is written.

Invariant: what is written is cut so that every node that answered takes it; what cannot be is refused by the name of
the setting. A node that does not answer is not known, and may refuse later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from needle.backup.format import CollectionBackup, Contents, Longest, Manifest, Piece, PieceRef, by_row
from needle.backup.index_restoring import part_of
from needle.backup.restore_conflicts import CLAIM_CHARS
from needle.backup.restore_marks import Note
from needle.backup.restored_ids import check_ids, each_id_once, strategy_of
from needle.backup.state_copying import BLOCK_BYTES
from needle.base.config import Limits
from needle.base.decoding import routed_metadata
from needle.base.errors import ClusterTooOld, Forbidden, InvalidArgument
from needle.base.ids import NodeId
from needle.base.model import CollectionSpec
from needle.client import Client
from needle.client.examining import settings_of
from needle.protocol.catalog_commands import CreateCollection
from needle.routing.strategy import routing_key
from needle.routing.topology import Topology

ASK_SECONDS: Final = 6.0
"""A node that pings one that hangs answers after four."""
ROW_BYTES: Final = 64
"""What a document has in a message beside its id, metadata and vectors, at most."""
FRAME_ROOM: Final = 4096
"""What a message has beside its documents, at most."""
WHOLE_BYTES: Final = 16 << 20
"""A page of documents has no more, whatever is asked for."""
NOTE_BYTES, NOTE_SHARD_BYTES = 256, 32
"""Of the note that says how far a restore is, at most, and more for each shard."""
_OF_DOCUMENTS: Final = ("id_bytes_max", "metadata_bytes_max", "batch_bytes_max", "frame_bytes_max")
_USUAL: Final = Limits()


class Taking:
    """What the nodes of a cluster take. settings: of each, those that it told."""

    def __init__(self, settings: Mapping[NodeId, Mapping[str, object]]) -> None:
        self._least: dict[str, tuple[int, NodeId]] = {}
        for node, told in settings.items():
            for path, value in told.items():
                if path.startswith("limits.") and isinstance(value, int):
                    name = path.removeprefix("limits.")
                    self._least[name] = min(self._least.get(name, (value, node)), (value, node))

    def least(self, name: str) -> int | None:
        """Of all nodes; None if none told."""
        found = self._least.get(name)
        return None if found is None else found[0]

    @property
    def unusual(self) -> bool:
        """Whether one of these is smaller than by default."""
        return any((found := self.least(name)) is not None and found < getattr(_USUAL, name) for name in _OF_DOCUMENTS)

    @property
    def takes_index_files(self) -> bool:
        """Whether a part of one fits into a message."""
        most = self.least("frame_bytes_max")
        return most is None or most >= BLOCK_BYTES + FRAME_ROOM

    def check(self, name: str, needed: int, what: str, after: str) -> None:
        """Raises InvalidArgument if a node takes less. what: needs it; after: what to do when it is put right."""
        value, node = self._least.get(name, (needed, ""))
        if value < needed:
            raise InvalidArgument(
                f"limits.{name} = {value} of node {node} is too small for {what}: set it to {needed} or more on all "
                f"nodes, restart them one after the other (`needle rolling-restart`), {after}",
                field=f"limits.{name}",
            )

    def check_documents(self, spec: CollectionSpec, longest: Longest, after: str) -> None:
        """The same for the largest documents of a collection."""
        name = f"collection {spec.name}"
        self.check("id_bytes_max", longest.id, f"{name}, which has an id of so many bytes", after)
        self.check("metadata_bytes_max", longest.metadata, f"{name}, which has a document with more metadata", after)
        size = longest.document - 4 * spec.form.numbers + spec.form.row_bytes
        self.check("batch_bytes_max", size, f"{name}, which has a larger document", after)
        size += longest.id + ROW_BYTES + FRAME_ROOM
        self.check("frame_bytes_max", size, f"{name}, which has a larger document", after)

    def batches(self, piece: Piece) -> list[Piece]:
        """A piece in parts that nodes take, and that have each id once: of several documents with one id in a batch the
        last one counts, and under a shard key each of them does."""
        return [part for one in each_id_once(piece) for part in self._batches(one)]

    def _batches(self, piece: Piece) -> list[Piece]:
        count = len(piece.ids)
        rows, size = self.least("batch_documents_max") or count, self._bytes()
        letters, besides = sum(map(len, piece.ids)), sum(map(len, piece.metadata))
        whole = len(piece.vectors) + sum(len(one.vectors) for one in piece.named) + besides + 4 * letters
        if count <= rows and (size is None or whole + ROW_BYTES * count <= size):
            return [piece]  # as nearly all are
        return list(self._cut(piece, rows, size))

    def _cut(self, piece: Piece, rows: int, size: int | None) -> Iterator[Piece]:
        width, named = len(piece.vectors) // max(1, len(piece.ids)), by_row(piece.named)
        chosen, filled = list[int](), 0
        for at, name in enumerate(piece.ids):
            besides = sum(map(len, named[at].values())) if at in named else 0
            weight = width + besides + len(piece.metadata[at]) + 4 * len(name) + ROW_BYTES
            if chosen and (len(chosen) >= rows or (size is not None and filled + weight > size)):
                yield part_of(piece, chosen)
                chosen, filled = [], 0
            chosen.append(at)
            filled += weight
        if chosen:
            yield part_of(piece, chosen)

    def _bytes(self) -> int | None:
        """Of the documents of one write."""
        batch, frame = self.least("batch_bytes_max"), self.least("frame_bytes_max")
        bounds = [*([] if batch is None else [batch]), *([] if frame is None else [frame - FRAME_ROOM])]
        return min(bounds, default=None)

    def page_rows(self, longest: Longest | None) -> int | None:
        """Documents that one answer has room for; None: as many as it likes."""
        frame = self.least("frame_bytes_max")
        if frame is None or longest is None or frame >= WHOLE_BYTES:
            return None
        return max(1, (frame - FRAME_ROOM) // (longest.document + longest.id + ROW_BYTES))


async def taking_of(client: Client, timeout: float) -> Taking:
    """Ask all nodes."""
    try:
        return Taking(await settings_of(client, min(timeout, ASK_SECONDS)))
    except Forbidden:  # they are for admins of all; whoever may restore less hears of a limit when it is met
        return Taking({})


def check_shape(
    taking: Taking, manifest: Manifest, now: Topology, note: Note, home: Mapping[str, Any], mark: str, after: str
) -> None:
    """What a look at the manifest tells. mark: the collection that says that a restore is under way; note: what it has,
    and home: beside it. Raises InvalidArgument; ClusterTooOld, before all documents are there and only their
    declarations are refused."""
    needs, name = max(((_needs(one), one.spec.name) for one in manifest.collections), default=(0, ""))
    if now.cluster_version < needs:
        raise ClusterTooOld(
            f"collection {name} of the backup needs version {needs} of commands and formats, and the cluster is at "
            f"{now.cluster_version}: `needle node list` says which nodes are of an older release. Upgrade them {after}",
            needs=needs,
            version=now.cluster_version,
        )
    there = {one.spec.name for one in now.collections}
    made = {mark, *(one.spec.name for one in manifest.collections)} - there
    if made:
        what = (
            f"this restore: {len(there)} collections are there, and it makes {len(made)}, one for itself while it runs"
        )
        taking.check("collections_max", len(there) + len(made), what, after)
    ids = [mark + CLAIM_CHARS * "-", *(one.spec.name for one in manifest.collections)]
    names = [*(name for one in manifest.collections for name in one.named_indexes)]
    size = len(msgspec.json.encode(note)) + NOTE_BYTES + NOTE_SHARD_BYTES * len(now.serving) * (1 + len(names))
    size += sum(len(name) + NOTE_SHARD_BYTES for name in names) + len(msgspec.json.encode(home))
    taking.check("id_bytes_max", max(len(one.encode()) for one in ids), "what a restore notes of itself", after)
    taking.check("metadata_bytes_max", size, "what a restore notes of itself", after)
    for one in manifest.collections:
        for dimensions in (one.spec.dimensions, *(spec.dimensions for spec in one.vectors.values())):
            taking.check("dimensions_max", dimensions, f"collection {one.spec.name}", after)
        if one.longest is not None:
            taking.check_documents(one.spec, one.longest, after)


def _needs(one: CollectionBackup) -> int:
    """The version at which a cluster takes such a collection, as the command says that makes it. Indexes of fields are
    declared later, which any cluster takes that takes a backup."""
    vectors, sparse = sorted(one.vectors.items()), list(one.sparse)
    return CreateCollection(one.spec, if_absent=True, nonce=0, vectors=vectors, sparse=sparse).needs()


def given_up(mark: str) -> str:
    """How to end a restore of which a part is done. mark: the collection that says so."""
    mark = f"{mark} (while it is there, no backup is made of this cluster)"
    return f"To give it up, drop collection {mark}, and the collections that were restored"


def go_on(mark: str) -> str:
    """What to do when it is put right, and what if nobody does, where a part of the restore is done."""
    return f"and run the same command again: it goes on. {given_up(mark)}"


def refused_late(now: Topology, name: str, piece: Piece, error: InvalidArgument, mark: str) -> InvalidArgument:
    """What there is to say of documents that are refused when they are written: by a node that was not asked, or is
    started with other settings since; or by the shard key, if a router of the same name is another one here."""
    try:
        check_homes(now, name, [piece], given_up(mark))
    except InvalidArgument as homeless:
        return homeless
    return InvalidArgument(
        f"collection {name}: a node refuses documents of the backup: {error.message}. If a limit of its settings is "
        f"too small, raise it, {go_on(mark)}",
        collection=name,
    )


def check_homes(now: Topology, name: str, pieces: Iterable[Piece], after: str) -> None:
    """Raises InvalidArgument for a document of a collection that the cluster's shard key places nowhere. after: what to
    do then."""
    if now.settings is None or now.settings.strategy.kind != "custom":
        return
    strategy = now.settings.strategy
    for piece in pieces:
        for id, metadata in zip(piece.ids, piece.metadata, strict=True):
            try:
                routing_key(strategy, 1, id, routed_metadata(metadata))
            except InvalidArgument as error:
                raise InvalidArgument(
                    f"this cluster places documents by {strategy.text()}, and collection {name} of the backup has a "
                    f"document that has no place in it: {error.message}. Restore into a cluster that places them "
                    f"otherwise (`needle cluster create --strategy`). {after}",
                    collection=name,
                ) from None


def check_all_homes(now: Topology, manifest: Manifest, read: Callable[[PieceRef], Piece]) -> None:
    """The same for all of a backup, before anything is made, and that no document takes another one's place. A cluster
    that placed documents by another key may have some without, and one with a key several of one id: for either all
    pieces are read once more."""
    if not placed_before(now, manifest):
        for one in manifest.collections:
            check_homes(now, one.spec.name, map(read, one.pieces), "Nothing was changed")
    check_ids(now, manifest, read)


def placed_before(now: Topology, manifest: Manifest) -> bool:
    """Whether the cluster that the backup is of placed its documents as this one does: then all have a place here."""
    return now.settings is not None and now.settings.strategy == strategy_of(manifest)


def measured(pieces: Iterable[Piece]) -> Longest:
    """The largest of these documents."""
    contents = Contents()
    for piece in pieces:
        contents.add(piece)
    return contents.longest


def with_longest(collection: CollectionBackup, pieces: Iterable[Piece]) -> CollectionBackup:
    """Of a backup of an earlier release, which does not say it."""
    return msgspec.structs.replace(collection, longest=measured(pieces))
