"""Handlers of documents: a decoded request in, an answer out."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Final

import msgspec

from needle.base.errors import DocumentNotFound, InvalidArgument, NeedleError, invalid
from needle.base.filters.builder import field_path
from needle.base.model import ReadMode
from needle.base.runtime import beside
from needle.client import answers, named_values, values
from needle.client.columns import Columns, as_columns
from needle.client.cursor import Place
from needle.client.document_calls import Facet
from needle.client.scanning import Reading, end_scan, read_batch
from needle.client.where import TOLD_BYTES_MAX
from needle.protocol.calls import DocumentBatch
from needle.protocol.commands import Change, ChangeWhere
from needle.server.http import bodies
from needle.server.http.call import BESIDE_BYTES, MANY_ROWS, Call, hold, one_of, rows_of, vector_of, vectors_of
from needle.server.http.texts import of_text, of_texts
from needle.server.service.served import LARGE_ROWS

PAGE = bodies.PAGE_MAX
COUNTED_BYTES: Final = 256
"""A value and its count are about so much until they are sent, beside the value's text."""
ESCAPED: Final = 6
"""So many bytes a character of text has at most, as JSON."""
END_SECONDS = 2.0
_lines = msgspec.json.Encoder()


# --- writes ----------------------------------------------------------------------------------------------------------
async def put_document(call: Call) -> bodies.Written:
    body: bodies.PutDocument = call.body
    if body.vector is None and body.text is None:
        raise InvalidArgument("give a vector, or a text of which it is made", field="vector")
    vector, seconds = await of_text(call, body.vector, body.text)
    data, metadata, matches, named = await call.beside(
        lambda: (
            vector_of(vector, body.vector_type).tobytes(),
            values.metadata_bytes(body.metadata),
            values.filter_bytes(body.if_matches, "if_matches"),
            named_values.of_one(body.vectors),
        )
    )
    result = await call.router.insert(
        values.check_name(call.collection),
        values.check_id(call.path["id"]),
        data,
        metadata,
        body.if_version,
        seconds,
        matches,
        values.expiry(body.expires_at),
        named,
    )
    return bodies.Written.of(result)


async def insert_documents(call: Call) -> bodies.InsertedDocuments:
    body: bodies.InsertDocuments = call.body
    ids, metadatas = body.ids, body.metadatas
    vectors, seconds = await of_texts(call, body.vectors, body.texts)

    def columns() -> Columns:
        rows = vectors if body.vectors is None else vectors_of(vectors, len(ids), body.vector_type)
        return as_columns(None, ids, rows, metadatas, body.expires_at, body.named_vectors)

    batch = await call.blocking(columns) if len(ids) > MANY_ROWS else await call.beside(columns)
    parts = await call.router.insert_batch(
        call.collection, batch.ids, batch.rows(), batch.metadata, seconds, batch.expires, named=batch.named
    )
    fates = [
        bodies.Fate(
            ids=[batch.ids[at] for at in part.rows],
            code=part.outcome.code,
            detail=part.outcome.message,
            retryable=part.outcome.retryable,
        )
        for part in parts
        if isinstance(part.outcome, NeedleError)
    ]
    failures = [part.outcome for part in parts if isinstance(part.outcome, NeedleError)]
    if failures and len(failures) == len(parts) and len({error.code for error in failures}) == 1:
        raise failures[0]  # nothing was written, and all for one reason
    written = len(batch.ids) - sum(len(fate.ids) for fate in fates)
    return bodies.InsertedDocuments(written=written, failed=fates)


async def patch_document(call: Call) -> bodies.Written:
    return await _patch_ids(call, call.body, call.path["id"])


async def patch_documents(call: Call) -> bodies.Written:
    body: bodies.PatchDocuments = call.body
    one_of(body.ids, body.filter)
    if body.ids is not None:
        _only_with_filter(body)
        return await _patch_ids(call, body, body.ids)
    if body.if_version is not None or body.if_matches is not None:
        raise invalid("if_version", body.if_version, "left out with a filter: what matches is changed")
    return await _where(call, await call.beside(lambda: _change(body)))


async def _where(call: Call, change: Change | None) -> bodies.Written:
    """change: None to delete."""
    body: bodies.PatchDocuments | bodies.DeleteDocuments = call.body
    where, wanted = values.check_name(call.collection), await call.filter()
    if body.dry_run:
        count = await call.router.count(where, wanted, ReadMode.STRONG, body.timeout)
        return bodies.Written(version=0, index=0, existed=count > 0, count=count)
    command = ChangeWhere(where, wanted, change, return_ids=body.return_ids)
    done = await call.router.change_where(command, body.timeout, told_bytes_max=TOLD_BYTES_MAX)
    return bodies.Written.of(done, body.return_ids)


def _change(body: bodies.Change) -> Change:
    return values.change(body.set, body.unset, body.append, body.remove, body.expires_at)


async def _patch_ids(call: Call, body: bodies.PatchDocument, ids: str | list[str]) -> bodies.Written:
    names, where = values.different_ids(ids), values.check_name(call.collection)
    change, matches = await call.beside(lambda: (_change(body), values.filter_bytes(body.if_matches, "if_matches")))
    return bodies.Written.of(await call.router.patch(where, names, change, body.if_version, matches, body.timeout))


def _only_with_filter(body: bodies.PatchDocuments | bodies.DeleteDocuments) -> None:
    for name in ("dry_run", "return_ids"):
        if getattr(body, name):
            raise invalid(name, True, "false with ids: it is for what a filter matches")


async def delete_document(call: Call) -> bodies.Written:
    result = await call.client.delete(call.path["id"], collection=call.collection, timeout=call.body.timeout)
    return bodies.Written.of(result)


async def delete_documents(call: Call) -> bodies.Written:
    body: bodies.DeleteDocuments = call.body
    one_of(body.ids, body.filter)
    if body.ids is not None:
        _only_with_filter(body)
        names, where = values.different_ids(body.ids), values.check_name(call.collection)
        matches = await call.beside(lambda: values.filter_bytes(body.if_matches, "if_matches"))
        return bodies.Written.of(await call.router.delete(where, names, body.timeout, matches))
    if body.if_matches is not None:
        raise invalid("if_matches", body.if_matches, "left out with a filter: what matches is deleted")
    return await _where(call, None)


# --- reads -----------------------------------------------------------------------------------------------------------
async def get_document(call: Call) -> bodies.Document:
    name = values.check_id(call.path["id"])
    found = await _get(call, [name])
    if not found:
        raise DocumentNotFound(f"there is no document {name[:80]!r}", id=name[:80])
    return found[0]


async def get_documents(call: Call) -> bodies.Documents:
    return bodies.Documents(documents=await _get(call, values.check_ids(call.body.ids)))


async def _get(call: Call, names: list[str]) -> list[bodies.Document]:
    body: bodies.GetDocument = call.body
    reading = call.reading()
    batch = await call.router.get(
        values.check_name(call.collection),
        names,
        body.with_vectors,
        reading.mode,
        body.timeout,
        max_staleness=reading.max_staleness,
        session=reading.session,
        fields=values.field_paths(body.fields),
        named=named_values.wanted(body.vectors),
    )
    return await _beside(call, batch, body.vector_format)


async def _beside(call: Call, batch: DocumentBatch, form: bodies.VectorFormat) -> list[bodies.Document]:
    if await hold(call, [batch], form) < BESIDE_BYTES:
        return _documents(call, batch, form)
    made: list[bodies.Document] = await call.blocking(_documents, call, batch, form)
    return made


def _documents(call: Call, batch: DocumentBatch, form: bodies.VectorFormat) -> list[bodies.Document]:
    rows = rows_of(batch.vectors, len(batch.ids), form)
    named: list[dict[str, list[float] | bytes]] = [{} for _ in batch.ids]
    for one in batch.named:
        for at, row in zip(one.rows, rows_of(one.vectors, len(one.rows), form), strict=True):
            named[at][one.vector] = row or b""
    return [
        bodies.Document(
            id=name,
            version=batch.versions[n],
            metadata=call.metadata(batch.metadata[n]),
            vector=rows[n],
            expires_at=answers.expires_at(batch, n),
            vectors=named[n],
        )
        for n, name in enumerate(batch.ids)
    ]


async def count(call: Call) -> bodies.Counted:
    body: bodies.Count = call.body
    where, wanted, reading = values.check_name(call.collection), await call.filter(), call.reading()
    found = await call.router.count(
        where,
        wanted,
        reading.mode,
        body.timeout,
        max_staleness=reading.max_staleness,
        session=reading.session,
    )
    return bodies.Counted(count=found)


async def facet(call: Call) -> Facet:
    body: bodies.CountValues = call.body
    where, wanted, reading = values.check_name(call.collection), await call.filter(), call.reading()
    path = ".".join(field_path(body.field, "field"))
    found = await call.router.facet(
        where,
        path,
        wanted,
        body.limit,
        reading.mode,
        body.timeout,
        max_staleness=reading.max_staleness,
        session=reading.session,
    )
    count = len(found.values)
    call.share.take(
        COUNTED_BYTES * count + ESCAPED * sum(len(value) for value in found.values if isinstance(value, str))
    )
    return await beside(call.blocking if count >= LARGE_ROWS else None, Facet.of, found)


async def scan(call: Call) -> bodies.Page:
    body: bodies.Scan = call.body
    return await _page(call, body, body.cursor, body.limit, values.check_slice(body.slice))


async def _place(call: Call, body: bodies.Scan | bodies.Export, slice_: tuple[int, int]) -> Place:
    where = values.check_name(call.collection)
    order_by, descending = values.order_by(body.order_by, body.descending)
    wanted = await call.beside(lambda: values.filter_bytes(body.filter))
    return Place(where, wanted, slice_, "", order_by=order_by, descending=descending)


async def _page(
    call: Call, body: bodies.Scan | bodies.Export, cursor: str | None, limit: int, slice_: tuple[int, int]
) -> bodies.Page:
    if body.max_staleness is not None:
        raise invalid("max_staleness", body.max_staleness, "left out: pages say nothing of it")
    place = await _place(call, body, slice_)
    begins = body.consistent and (cursor is None or isinstance(body, bodies.Scan))
    shown = values.field_paths(body.fields)
    reading = call.reading()
    named = named_values.wanted(body.vectors)
    how = Reading(limit, body.with_vectors, reading.mode, body.timeout, shown, begins, reading.session, named)
    found = await read_batch(call.router, place, cursor, how)
    return bodies.Page(documents=await _beside(call, found.documents, body.vector_format), cursor=found.cursor)


async def export(call: Call) -> AsyncIterator[bytes]:
    """The first page is read before the answer begins: errors up to then have a status."""
    page = await _page(call, call.body, None, PAGE, (0, 1))
    return _export(call, page)


async def _export(call: Call, page: bodies.Page) -> AsyncIterator[bytes]:
    count = 0
    try:
        while True:
            count += len(page.documents)
            yield await call.blocking(_lines.encode_lines, page.documents)
            if page.cursor is None:
                yield _lines.encode_lines([bodies.ExportEnd(end="complete", documents=count)])
                return
            page = await _page(call, call.body, page.cursor, PAGE, (0, 1))
    finally:
        if page.cursor is not None and call.body.consistent:  # nobody reads on
            with contextlib.suppress(NeedleError):
                await end_scan(call.router, await _place(call, call.body, (0, 1)), page.cursor, END_SECONDS)
