"""A whole collection, page by page, each shard as it was at one index of its log (docs/adr/0060)."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping
from typing import Final

from needle.base.errors import NeedleError
from needle.base.model import CollectionSpec, ReadMode, VectorSpec
from needle.client import Client
from needle.protocol.calls import DocumentBatch, ScanAnswer, ScanPin

PAGE_BYTES: Final = 256 << 10
PAGE_DOCUMENTS: Final = 1000
END_SECONDS: Final = 2.0
"""For saying that nobody reads on: what is kept for a scan that was broken off would take room for a while."""


async def pages(
    client: Client,
    spec: CollectionSpec,
    collection_id: int,
    timeout: float,
    vectors: Mapping[str, VectorSpec],
    most: int | None = None,
) -> AsyncGenerator[tuple[DocumentBatch, ScanPin], None]:
    """Documents with their vectors in the order of their ids, and where each shard is read; to be closed
    by who breaks off. vectors: the named ones that come with them. collection_id: the id that the collection must have,
    0 for any. most: documents of a page, where fewer than usual have room. Raises ScanEnded, CollectionNotFound,
    InvalidArgument for one of another id."""
    width = 4 * (spec.form.numbers + sum(one.stored_as("").form.numbers for one in vectors.values()))
    limit = max(1, min(PAGE_DOCUMENTS, PAGE_BYTES // width, most or PAGE_DOCUMENTS))
    pin, after, whole = ScanPin(), "", False

    async def page(ask: ScanPin, seconds: float) -> ScanAnswer:
        return await client.documents.scan(
            spec.name, b"", after, limit, True, (0, 1), ReadMode.STRONG, seconds, None, collection_id, ask,
            named=sorted(vectors),
        )  # fmt: skip

    try:
        while True:
            answer = await page(pin, timeout)
            pin, whole = answer.pin or pin, answer.reached is None
            yield answer.documents, pin
            if answer.reached is None:
                return
            after = answer.reached
    finally:
        if pin.open and not whole:
            with contextlib.suppress(NeedleError):
                await page(ScanPin(pin.token, pin.open, True), END_SECONDS)
