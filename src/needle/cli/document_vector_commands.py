"""`needle update-vectors` and `delete-vector`: vectors of documents that are there, without touching anything else."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, NamedTuple, NoReturn

import typer

import needle
from needle.base.dtypes import VectorForm
from needle.base.errors import InvalidArgument, NeedleError
from needle.base.model import WriteResult
from needle.cli.common import DEFAULT_CLUSTER, Cluster, Collection, Json, Timeout, notes, print_json, run
from needle.cli.document_commands import by_bytes, embedding
from needle.cli.inputs import Embed, Record, check_record, read_records, span

BATCH = 500
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the vector.")]
Ids = Annotated[list[str], typer.Argument(metavar="ID", help="Ids of documents.")]


class _Updated(NamedTuple):
    """Of a file: how many documents were there and got a vector, and how many were not."""

    updated: int
    absent: int


def update_vectors(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Ids and vectors: a .jsonl, .npy, .parquet or .arrow file.",
        ),
    ],
    vector_name: Annotated[
        str | None, typer.Option("--vector-name", help="They are this named vector of the documents.")
    ] = None,
    id_prefix: Annotated[
        str, typer.Option("--id-prefix", help="Prefix for ids made from the row numbers of a .npy file.")
    ] = "",
    collection: Collection = "default",
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 30.0,
    json: Json = False,
) -> None:
    """Give documents that are there the vectors of a file; all else of them stays.

    As for `needle insert`: "id" and "vector" of each line, or row. Other keys and columns do not matter, and documents
    that are not there stay so. After an error the same command may be run again.
    """

    async def work(client: needle.Client) -> _Updated:
        updated = absent = 0
        embed = _no_texts if vector_name is not None else await embedding(client, file, collection)
        try:
            for records in by_bytes(read_records(file, embed, id_prefix, BATCH)):
                last = {record.id: record for record in records}
                done = await _update(client, list(last.values()), vector_name, collection, timeout)
                updated, absent = updated + done.count, absent + len(last) - done.count
        except NeedleError as error:  # also of a line that cannot be read
            raise type(error)(f"{error.message} (updated before: {updated})", **error.details) from error
        return _Updated(updated, absent)

    found = run(cluster, work)
    if json:
        print_json(found._asdict())
        return
    notes.print(f"{found.updated} vectors updated{f', {found.absent} documents are not there' if found.absent else ''}")


def _no_texts() -> Embed:
    raise InvalidArgument("a text makes the vector without a name only: give these as vectors", field="text")


async def _update(
    client: needle.Client, records: list[Record], name: str | None, collection: str, timeout: float
) -> WriteResult:
    """Raises InvalidArgument that names the line which is wrong, or their lines."""
    ids, vectors = [record.id for record in records], [record.vector for record in records]
    try:
        return await client.update_vectors(ids, vectors, name=name, collection=collection, timeout=timeout)
    except InvalidArgument as error:
        await _name_the_refused(client, collection, name, records, error)


async def _name_the_refused(
    client: needle.Client, collection: str, name: str | None, records: list[Record], error: InvalidArgument
) -> NoReturn:
    """As of an insert, for the vectors alone: what else the file says does not matter."""
    known = None
    with suppress(NeedleError):  # who refuses knows better than who does not answer
        known = await client.describe_collection(collection)
    form = None
    if known is not None and name is None:
        form = VectorForm(known.dimensions, known.dtype)
    elif known is not None and name in known.vectors:
        form = known.vectors[name].stored_as(name).form
    for record in records:
        check_record(record._replace(metadata=None), form)
    raise type(error)(f"{span(records)}: {error.message}", **error.details) from error


def delete_vector(
    name: Name,
    ids: Ids,
    collection: Collection = "default",
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 30.0,
    json: Json = False,
) -> None:
    """Take a named vector from documents; all else of them stays."""

    async def work(client: needle.Client) -> WriteResult:
        return await client.delete_vector(ids, name, collection=collection, timeout=timeout)

    done = run(cluster, work)
    if json:
        print_json({"deleted": done.count})
        return
    notes.print(f"{name} taken from {done.count} document{'' if done.count == 1 else 's'}", markup=False)
