"""`insert_batch` that raises what went wrong, for those who do not ask what became of each id."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from needle.base.errors import NeedleError, OutcomeUnknown
from needle.base.model import WriteResult
from needle.client.changes import DEFAULT_COLLECTION, TIMEOUT
from needle.client.document_calls import BatchPart
from needle.client.documents import DocumentMethods


class BatchMethods(DocumentMethods):
    """`DocumentMethods` whose batches raise what went wrong: of the client and RaftCluster."""

    async def insert_batch(
        self,
        documents: Iterable[Sequence[Any]] | None = None,
        *,
        ids: Iterable[str] | None = None,
        vectors: Any = None,
        metadatas: Sequence[Any] | None = None,
        expires_at: Any = None,
        collection: str = DEFAULT_COLLECTION,
        timeout: float = TIMEOUT,
    ) -> list[WriteResult]:
        """Insert or replace many documents, given as to `insert_each`, which tells the outcome of each id instead of
        raising.

        Split into log entries; each entry is all or nothing, and gets one WriteResult (`count` documents). On an error,
        details["documents_written"] says how many documents were acknowledged, details["documents_unknown"] how many
        may or may not be written; the others are not. It is OutcomeUnknown if there are any of those.
        """
        _, parts = await self._insert_parts(documents, ids, vectors, metadatas, collection, timeout, expires_at)
        failures = [part.outcome for part in parts if isinstance(part.outcome, NeedleError)]
        if failures:
            raise _failure_of(parts, failures)
        return [part.outcome for part in parts if isinstance(part.outcome, WriteResult)]


def _failure_of(parts: list[BatchPart], failures: list[NeedleError]) -> NeedleError:
    """What a batch failed of: the first failure, but before all others one that says what is not known."""
    unknown = sum(len(part.rows) for part in parts if isinstance(part.outcome, OutcomeUnknown))
    failure = next((error for error in failures if isinstance(error, OutcomeUnknown)), failures[0])
    failure.details["documents_written"] = sum(len(p.rows) for p in parts if isinstance(p.outcome, WriteResult))
    failure.details["documents_unknown"] = unknown
    return failure
