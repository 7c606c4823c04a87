"""The methods that change or delete documents without sending them again, and those that read them page by page.

A part of `DocumentMethods` (documents.py), which says what holds for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from needle.base.errors import InvalidArgument, invalid, shown
from needle.base.filters.builder import Filter
from needle.base.model import Document, ReadMode, WriteResult
from needle.base.plain import refused
from needle.client import answers, named_values, values
from needle.client.cursor import Place
from needle.client.feeds import DEFAULT_COLLECTION, TIMEOUT, FeedMethods, FilterLike
from needle.client.scanning import Batch, Reading, Scan, end_scan, read_batch
from needle.client.texts import vector_of, vectors_of
from needle.client.values import Seconds
from needle.client.where import OnProgress
from needle.protocol.commands import Change, ChangeWhere

PAGE = 1000


class ScanPage(msgspec.Struct, frozen=True, kw_only=True):
    """Documents in the order of their ids. cursor: where the next page begins, None behind the last one."""

    documents: list[Document]
    cursor: str | None


class ChangeMethods(FeedMethods):
    """What changes or deletes documents without sending them again, and what reads them out."""

    async def patch(
        self,
        ids: str | Iterable[str],
        *,
        set: Mapping[str, Any] | None = None,
        unset: str | Iterable[str] = (),
        append: Mapping[str, Any] | None = None,
        remove: Mapping[str, Any] | None = None,
        expires_at: Any = None,
        if_version: int | None = None,
        if_matches: FilterLike = None,
        collection: str = DEFAULT_COLLECTION,
        timeout: Seconds = TIMEOUT,
    ) -> WriteResult:
        """Change fields of the metadata of one document or several, all or nothing in each shard; vectors stay.

        set: {"field": value, "object.field": value}. unset: fields to take away. append, remove: {"field": [values]},
        of arrays. expires_at: as in `insert`; None leaves it as it is, or counts the collection's ttl again. Writers
        that change different fields never undo each other. Ids that are absent are left out; count: how many were
        there. if_version: only if all are there with this version, VersionMismatch otherwise. if_matches: only if
        all that are there match the filter as they are stored, ConditionFailed otherwise. At most 1000 ids;
        with if_version one, where a custom strategy says which shard has it."""
        check_ids_are_meant(ids)
        names, name = values.different_ids(ids), values.check_name(collection)
        change = values.change(set, unset, append, remove, expires_at)
        return await self._patch(names, change, if_version, if_matches, name, timeout)

    async def update_vector(
        self,
        id: str,
        vector: Any = None,
        *,
        text: str | None = None,
        name: str | None = None,
        expires_at: Any = None,
        if_version: int | None = None,
        if_matches: FilterLike = None,
        collection: str = DEFAULT_COLLECTION,
        timeout: Seconds = TIMEOUT,
    ) -> WriteResult:
        """Give a document this vector in place of its own; the metadata stays. text: instead, what it is made of, as in
        `insert`. name: of the named vector that this is, which the document may have or not (docs/named-vectors.md);
        the others stay. count: 0 if it is absent. if_version, if_matches, expires_at: see `patch`."""
        document, vector_name = values.check_id(id), _vector_name(name, text)
        vector, timeout = await vector_of(self.embedder, self._documents, vector, text, collection, timeout)
        data = values.vector_bytes(vector)
        return await self._update_vectors(
            [document], data, if_version, if_matches, collection, timeout, expires_at, vector_name
        )

    async def update_vectors(
        self,
        ids: Iterable[str],
        vectors: Any = None,
        *,
        texts: Iterable[str] | None = None,
        name: str | None = None,
        expires_at: Any = None,
        if_version: int | None = None,
        if_matches: FilterLike = None,
        collection: str = DEFAULT_COLLECTION,
        timeout: Seconds = TIMEOUT,
    ) -> WriteResult:
        """`update_vector` of up to 1000 documents, all or nothing in each shard. vectors: 2-d, one row for each id.
        texts: instead, one for each id."""
        names, vector_name = values.check_ids(ids), _vector_name(name, texts)
        vectors, timeout = await vectors_of(self.embedder, self._documents, vectors, texts, collection, timeout)
        rows = values.as_array(vectors, "vectors", 2)
        if len(rows) != len(names):
            raise invalid("vectors", f"{len(rows)} rows", f"one row for each of the {len(names)} ids")
        if len(set(names)) < len(names):
            raise invalid("ids", f"{len(names)} ids", "each id once")
        return await self._update_vectors(
            names, rows.tobytes(), if_version, if_matches, collection, timeout, expires_at, vector_name
        )

    async def delete_vector(
        self,
        ids: str | Iterable[str],
        name: str,
        *,
        expires_at: Any = None,
        if_version: int | None = None,
        if_matches: FilterLike = None,
        collection: str = DEFAULT_COLLECTION,
        timeout: Seconds = TIMEOUT,
    ) -> WriteResult:
        """Take the named vector from one document or several, up to 1000, all or nothing in each shard: they are not
        found by it any more, and all else of them stays. count: how many had it; the others are not changed.
        if_version, if_matches, expires_at: see `patch`. Raises InvalidArgument where the collection has no such
        vector."""
        check_ids_are_meant(ids)
        names, vector_name = values.different_ids(ids), values.check_name(name, "name")
        given = names, b"", if_version, if_matches, collection, timeout, expires_at, vector_name
        return await self._update_vectors(*given, gone=True)

    async def _update_vectors(
        self,
        names: list[str],
        vectors: bytes,
        if_version: int | None,
        if_matches: FilterLike,
        collection: str,
        timeout: Seconds,
        expires_at: Any,
        vector_name: str,
        *,
        gone: bool = False,
    ) -> WriteResult:
        expires = values.expiry(expires_at)
        name, matches = values.check_name(collection), values.filter_bytes(if_matches, "if_matches")
        expected = None if if_version is None else values.check_count(if_version, "if_version")
        seconds = values.check_timeout(timeout)
        call = name, names, vectors, expected, matches, seconds, expires, vector_name, gone
        return await (await self._documents()).update_vectors(*call)

    async def replace_metadata(
        self,
        ids: str | Iterable[str],
        metadata: Any,
        *,
        expires_at: Any = None,
        if_version: int | None = None,
        if_matches: FilterLike = None,
        collection: str = DEFAULT_COLLECTION,
        timeout: Seconds = TIMEOUT,
    ) -> WriteResult:
        """Give one document or several this metadata in place of theirs; vectors stay. See `patch`."""
        check_ids_are_meant(ids)
        names, name = values.different_ids(ids), values.check_name(collection)
        change = Change(whole=values.metadata_bytes(metadata), expires=values.expiry(expires_at))
        return await self._patch(names, change, if_version, if_matches, name, timeout)

    async def _patch(
        self,
        names: list[str],
        change: Change,
        if_version: int | None,
        if_matches: FilterLike,
        collection: str,
        timeout: Seconds,
    ) -> WriteResult:
        expected = None if if_version is None else values.check_count(if_version, "if_version")
        matches, seconds = values.filter_bytes(if_matches, "if_matches"), values.check_timeout(timeout)
        return await (await self._documents()).patch(collection, names, change, expected, matches, seconds)

    async def patch_where(
        self,
        filter: Filter | Mapping[str, Any],
        *,
        set: Mapping[str, Any] | None = None,
        unset: str | Iterable[str] = (),
        append: Mapping[str, Any] | None = None,
        remove: Mapping[str, Any] | None = None,
        expires_at: Any = None,
        return_ids: bool = False,
        dry_run: bool = False,
        on_progress: OnProgress | None = None,
        collection: str = DEFAULT_COLLECTION,
        timeout: Seconds = TIMEOUT,
    ) -> WriteResult:
        """`patch` of all documents that match a filter; {} matches all.

        In each shard it touches what matched at one place of the log, in parts of bounded size: what others change
        between two parts, it leaves as they made it. count: how many were changed; ids: which, with return_ids.
        dry_run: only count. on_progress: told after each part how many documents are changed so far, on the client's
        event loop; what it raises ends the change. When it breaks off, details["documents_changed"] of the error says
        how many are known to be changed; it may be called again, which appends once more to those.
        """
        change = values.change(set, unset, append, remove, expires_at)
        return await self._change_where(filter, change, return_ids, dry_run, on_progress, collection, timeout)

    async def delete_where(
        self,
        filter: Filter | Mapping[str, Any],
        *,
        return_ids: bool = False,
        dry_run: bool = False,
        on_progress: OnProgress | None = None,
        collection: str = DEFAULT_COLLECTION,
        timeout: Seconds = TIMEOUT,
    ) -> WriteResult:
        """Delete all documents that match a filter; {} matches all. See `patch_where`."""
        return await self._change_where(filter, None, return_ids, dry_run, on_progress, collection, timeout)

    async def _change_where(
        self,
        filter: Filter | Mapping[str, Any],
        change: Change | None,
        return_ids: bool,
        dry_run: bool,
        on_progress: OnProgress | None,
        collection: str,
        timeout: Seconds,
    ) -> WriteResult:
        if not isinstance(filter, Filter | Mapping):
            raise InvalidArgument(
                f"filter = {shown(filter)} is not allowed: a Filter or its dict form; documents are named by "
                "their ids in `patch` and `delete`",
                field="filter",
            )
        wanted, name, seconds = (
            values.filter_bytes(filter),
            values.check_name(collection),
            values.check_timeout(timeout),
        )
        ids = values.check_flag(return_ids, "return_ids")
        if on_progress is not None and not callable(on_progress):
            raise refused("on_progress", on_progress, "a function that takes a number")
        documents = await self._documents()
        if values.check_flag(dry_run, "dry_run"):
            count = await documents.count(name, wanted, ReadMode.STRONG, seconds)
            return WriteResult(version=0, index=0, existed=count > 0, count=count)
        return await documents.change_where(ChangeWhere(name, wanted, change, return_ids=ids), seconds, on_progress)

    # --- pages -------------------------------------------------------------------------------------------------------
    async def scan_page(
        self,
        filter: FilterLike = None,
        *,
        cursor: str | None = None,
        limit: int = PAGE,
        with_vectors: bool = False,
        vectors: Iterable[str] | None = None,
        fields: Iterable[str] | None = None,
        slice: Sequence[int] = (0, 1),
        order_by: str | None = None,
        descending: bool = False,
        consistent: bool = False,
        mode: ReadMode | str = ReadMode.STRONG,
        collection: str = DEFAULT_COLLECTION,
        timeout: Seconds = TIMEOUT,
    ) -> ScanPage:
        """The next documents that match a filter, in the order of their ids, and where the page after them begins.

        A document that is there all the time while the pages are read is in exactly one of them, also when leaders
        change and ranges of keys move; one that is written meanwhile may be in none. A page may hold fewer than `limit`
        documents, or none, and not be the last one. slice: (i, n) gives the i-th of n shares of the ids, for readers
        side by side. cursor: of the page before, also from another process. fields: as in `search`. vectors:
        as in `get`. order_by: a field of metadata in whose order they come instead, or from its greatest value
        (docs/documents.md); a document whose field is changed meanwhile may be in two pages or in none. Raises
        InvalidArgument where many match and no memory is left for the field's index. consistent: all pages show each
        shard as it was at one moment, when the first one was read; its cursors go on so. Raises ScanEnded once that is
        not kept any more, after `limits.pinned_scan_seconds` at the latest.
        """
        order = (order_by, descending)
        asked = filter, limit, with_vectors, fields, slice, order, consistent, mode, collection, timeout
        place, how = _asked(*asked, vectors)
        batch = await read_batch(await self._documents(), place, cursor, how)
        found = answers.documents(batch.documents, vectors is not None)
        return ScanPage(documents=found, cursor=batch.cursor)

    def scan(
        self,
        filter: FilterLike = None,
        *,
        cursor: str | None = None,
        limit: int | None = None,
        with_vectors: bool = False,
        vectors: Iterable[str] | None = None,
        fields: Iterable[str] | None = None,
        slice: Sequence[int] = (0, 1),
        order_by: str | None = None,
        descending: bool = False,
        consistent: bool = False,
        mode: ReadMode | str = ReadMode.STRONG,
        collection: str = DEFAULT_COLLECTION,
        timeout: Seconds = TIMEOUT,
    ) -> Scan:
        """All documents that match a filter, one after the other, as `scan_page` reads them: an async iterator.
        `to_arrow()` of it gives them as an Arrow table instead. limit: the first so many. timeout: of each page.
        consistent: as there; who does not read to the end, or to `limit`, gives back what is kept with
        `await scan.aclose()` (`close()` without asyncio)."""

        order = (order_by, descending)
        most = None if limit is None else values.check_count(limit, "limit")
        names = None if vectors is None else named_values.wanted(vectors)

        async def read(at: str | None, most: int | None) -> Batch:
            begins = consistent and at in (None, cursor)
            page = PAGE if most is None else most
            asked = filter, page, with_vectors, fields, slice, order, begins, mode, collection, timeout
            place, how = _asked(*asked, names)
            return await read_batch(await self._documents(), place, at, how)

        async def end(at: str) -> None:
            place, how = _asked(filter, PAGE, with_vectors, fields, slice, order, False, mode, collection, timeout)
            await end_scan(await self._documents(), place, at, how.timeout)

        return Scan(read, cursor, with_vectors=with_vectors, most=most, end=end, named=names)


def _asked(
    filter: FilterLike,
    limit: int,
    with_vectors: bool,
    fields: Iterable[str] | None,
    slice: Sequence[int],
    order: tuple[str | None, bool],
    consistent: bool,
    mode: ReadMode | str,
    collection: str,
    timeout: Seconds,
    vectors: Iterable[str] | None = None,
) -> tuple[Place, Reading]:
    """What is scanned, and how. Raises InvalidArgument."""
    where, whole = values.check_name(collection), values.check_flag(with_vectors, "with_vectors")
    share, (order_by, descending) = values.check_slice(slice), values.order_by(*order)
    place = Place(where, values.filter_bytes(filter), share, "", order_by=order_by, descending=descending)
    count = min(values.check_count(limit, "limit"), PAGE)
    wanted, seconds = values.choose(mode, ReadMode, "mode"), values.check_timeout(timeout)
    pinned, names = values.check_flag(consistent, "consistent"), named_values.wanted(vectors)
    return place, Reading(count, whole, wanted, seconds, values.field_paths(fields), pinned, named=names)


def _vector_name(name: Any, texts: object) -> str:
    """Of a named vector; "" for the one without a name."""
    if name is not None and texts is not None:
        raise InvalidArgument("give the vector itself: the collection's model makes those without a name", field="text")
    return "" if name is None else values.check_name(name, "name")


def check_ids_are_meant(ids: object) -> None:
    """A filter where ids are meant would be taken for a mapping of names."""
    if isinstance(ids, Filter | Mapping):
        raise invalid("ids", ids, "ids; by a filter there are `delete_where` and `patch_where`")
