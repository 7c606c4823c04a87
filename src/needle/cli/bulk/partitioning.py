"""One piece of the source, divided among the shards by the cluster's own routing: a worker's first step.

Documents are checked by the code that leaders check writes by, and vectors become what the log would have. What a shard
gets of a piece is in the order of the piece, so that the same source gives the same files. Memory: a block for each
shard.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from needle.base.decoding import routed_metadata
from needle.base.errors import InvalidArgument, NeedleError
from needle.base.sparse import check_metadata
from needle.cli.bulk.job import Job, Work, once
from needle.cli.bulk.pieces import Piece, batches_of
from needle.cli.inputs import as_vector, refuse
from needle.client.arrow_tables import Form
from needle.client.values import check_id, metadata_bytes
from needle.protocol.commands import Insert
from needle.routing.loading import ROUTERS_VARIABLE, load_routers, named_routers
from needle.routing.strategy import routing_key
from needle.shard.apply.validation import check_command
from needle.shard.bulk.rows_file import Rows, RowsWriter, checksum_of, doubled, id_hashes, read_rows

ID_HASH_BYTES: Final = 8
BLOCK_ROWS: Final = 2048
BLOCK_BYTES: Final = 4 << 20
METADATA_BYTES_MAX: Final = 16 << 20
"""Of one document, whatever the cluster allows: with its id and its vector it has to fit into a block
(rows_file.BLOCK_BYTES_MAX)."""


def part_name(shard: int) -> str:
    """Of the file in a piece's directory that has what one shard gets."""
    return f"{shard:04d}.rows"


def ids_name(shard: int) -> str:
    """Of the file beside it, with a hash of each id."""
    return f"{shard:04d}.ids"


def partition(job: Job, number: int, piece: Piece, root: str) -> dict[str, int]:
    """How many documents of a piece, which has that number, each shard gets. job: the pieces that it names are not
    looked at, so that who hands out thousands need not send all with each. Raises InvalidArgument that names file and
    row."""
    return once(Work(root).piece(number), dict[str, int], lambda into: _partition(job, piece, into), _sound)


def _sound(directory: Path, parts: dict[str, int]) -> bool:
    """Whether what was made of a piece is still as it was: a disk may have changed it since."""
    for shard, rows in parts.items():
        part, ids = directory / part_name(int(shard)), directory / ids_name(int(shard))
        if not (part.exists() and ids.exists() and ids.stat().st_size == ID_HASH_BYTES * rows):
            return False
        if not checksum_of(str(part)):
            return False
    return True


def check_distinct(pieces: int, shard: int, root: str) -> None:
    """Raises InvalidArgument if two documents of a shard have one id, in so many pieces, which have to be divided."""
    paths = [path for at in range(pieces) if (path := Work(root).piece(at) / ids_name(shard)).exists()]
    hashes = [np.fromfile(path, np.uint64) for path in paths]
    if doubled(hashes):
        parts = [path.with_name(part_name(shard)) for path in paths]
        names = " and ".join(repr(one) for one in _of_one_hash(hashes, parts))
        raise _refused(refuse(f"shard {shard}", f"two documents of the source have one id, {names}: each id once"))


def _of_one_hash(hashes: list[npt.NDArray[np.uint64]], parts: list[Path]) -> list[str]:
    """The id that stands twice in these parts, by the hashes of their ids; or two of one hash."""
    found = np.sort(np.concatenate(hashes))
    twice = found[1:][found[1:] == found[:-1]][0]
    holding = [part for one, part in zip(hashes, parts, strict=True) if twice in one]
    rows = (one for part in holding for one in read_rows(str(part)))
    return sorted({one.ids[at] for one in rows for at in np.flatnonzero(id_hashes(one) == twice)})


def _refused(error: InvalidArgument) -> InvalidArgument:
    """Of a document of the source: only another source can be loaded, so nothing that was made of this one is needed
    (`needs_another`)."""
    return InvalidArgument(error.message, **{**error.details, "document": True})


def needs_another(error: NeedleError) -> bool:
    """Whether a document of the source is why a load is refused."""
    return error.details.get("document") is True


def _partition(job: Job, piece: Piece, into: Path) -> dict[str, int]:
    load_routers(named_routers(os.environ), ROUTERS_VARIABLE)
    with ExitStack() as opened:
        parts = Parts(job, into, opened)
        row = 0
        for form, batch in batches_of(piece):
            try:
                parts.add(_checked(job, form, batch, piece.where, row))
            except InvalidArgument as error:
                raise _refused(error) from None
            row += batch.num_rows
        return parts.end()


class Parts:
    """What each shard gets of one piece: a file for each in a directory."""

    def __init__(self, job: Job, into: Path, opened: ExitStack) -> None:
        """opened: closes the files."""
        self._job, self._into, self._opened = job, into, opened
        self._parts: dict[int, _Part] = {}

    def add(self, insert: Insert) -> None:
        """Documents as a leader has checked them."""
        for at, shard in enumerate(_shards(self._job, insert)):
            part = self._parts.get(shard)
            if part is None:
                file = open(self._into / part_name(shard), "wb")  # noqa: SIM115  # it is closed with the others
                self._opened.callback(file.close)
                part = self._parts[shard] = _Part(RowsWriter(file), self._job.spec.vector_bytes)
            part.add(insert, at)

    def end(self) -> dict[str, int]:
        """How many documents each shard gets."""
        for shard, part in self._parts.items():
            part.end()
            np.concatenate(part.hashes).tofile(self._into / ids_name(shard))
        return {str(shard): part.rows for shard, part in self._parts.items()}


def _checked(job: Job, form: Form, batch: Any, where: str, first: int) -> Insert:
    """The documents of a record batch as one write would have them. Raises InvalidArgument."""
    ids, vectors, metadata = [], [], []
    for at, row in enumerate(form.rows(batch), first):
        if row.expires_at is not None:
            raise refuse(f"{where} row {at}", "says when it expires, which a bulk load does not take")
        try:
            check_id(row.id)
            metadata.append(b"" if row.metadata is None else metadata_bytes(row.metadata))
            check_metadata("metadata", metadata[-1], job.sparse)
        except InvalidArgument as error:
            raise refuse(f"{where} row {at}", error.message) from None
        vector = as_vector(row.vector, f"{where} row {at}")
        if len(vector) not in job.spec.form.lengths:
            raise refuse(f"{where} row {at}", f"{len(vector)} numbers; the collection takes {job.spec.dimensions}")
        ids.append(row.id)
        vectors.append(vector)
    if len(set(ids)) < len(ids):
        twice = next(one for one, count in Counter(ids).items() if count > 1)
        raise refuse(where, f"two documents have one id, {twice!r}: each id once")
    block = np.concatenate(vectors).astype("<f4", copy=False).tobytes()
    try:
        return as_leaders_have(job, Insert(job.stored, ids, block, metadata))
    except InvalidArgument as error:
        raise refuse(f"{where} rows {first} to {first + len(ids) - 1}", error.message) from None


def as_leaders_have(job: Job, insert: Insert) -> Insert:
    """The same, with its vectors as they are stored. Raises InvalidArgument."""
    bounds = msgspec.structs.replace(job.limits, batch_documents_max=10**9, batch_bytes_max=10**9)
    checked = check_command(insert, lambda _: job.spec, bounds)
    assert isinstance(checked, Insert)
    return checked


def _shards(job: Job, insert: Insert) -> list[int]:
    shard_map = job.map
    strategy, count, custom = shard_map.strategy, shard_map.shard_count, shard_map.strategy.kind == "custom"
    said = [routed_metadata(one) for one in insert.metadata] if custom else [None] * len(insert.ids)
    keys = (routing_key(strategy, count, name, one) for name, one in zip(insert.ids, said, strict=True))
    return [shard_map.owner(key) for key in keys]


class _Part:
    """What one shard gets of a piece. rows: how many, at the end; hashes: of their ids."""

    def __init__(self, writer: RowsWriter, width: int) -> None:
        self._writer, self._width = writer, width
        self.rows, self.hashes = 0, list[npt.NDArray[np.uint64]]()
        self._rows_max = max(1, min(BLOCK_ROWS, BLOCK_BYTES // width))
        self._ids: list[str] = []
        self._metadata: list[bytes] = []
        self._vectors: list[bytes] = []
        self._size = 0

    def add(self, insert: Insert, at: int) -> None:
        size = len(insert.metadata[at]) + len(insert.ids[at].encode())
        if self._ids and self._size + size > BLOCK_BYTES:
            self._write()
        self._ids.append(insert.ids[at])
        self._metadata.append(insert.metadata[at])
        self._vectors.append(insert.vectors[at * self._width : (at + 1) * self._width])
        self._size += size
        if len(self._ids) >= self._rows_max:
            self._write()

    def _write(self) -> None:
        rows = Rows(self._ids, self._metadata, b"".join(self._vectors))
        self._writer.add(rows)
        self.hashes.append(id_hashes(rows))
        self._ids, self._metadata, self._vectors, self._size = [], [], [], 0

    def end(self) -> None:
        if self._ids:
            self._write()
        self.rows = self._writer.end().rows
