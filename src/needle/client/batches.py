"""`insert_batch` that raises what went wrong, for those who do not ask what became of each id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from needle.base.errors import NeedleError, OutcomeUnknown
from needle.base.model import WriteResult
from needle.client.columns import Documents, as_columns
from needle.client.document_calls import BatchPart
from needle.client.documents import DocumentMethods, insert_parts
from needle.client.feeds import DEFAULT_COLLECTION, TIMEOUT
from needle.client.texts import vectors_of
from needle.client.values import Seconds


class BatchMethods(DocumentMethods):
    """`DocumentMethods` whose batches raise what went wrong: of the client and RaftCluster."""

    async def insert_batch(
        self,
        documents: Documents | None = None,
        *,
        ids: Iterable[str] | None = None,
        vectors: Any = None,
        texts: Iterable[str] | None = None,
        metadatas: Sequence[Any] | None = None,
        expires_at: Any = None,
        named_vectors: Mapping[str, Any] | None = None,
        collection: str = DEFAULT_COLLECTION,
        timeout: Seconds = TIMEOUT,
    ) -> list[WriteResult]:
        """Insert or replace many documents, given as to `insert_each`, which tells the outcome of each id instead of
        raising.

        Split into log entries; each entry is all or nothing, and gets one WriteResult (`count` documents). A document
        that is sure to be refused (its id or metadata is too long, the metric does not take its vector, it has no shard
        key) is told before the others are written. On any other error some may be written: the message says how many,
        and so does details["documents_written"]; details["documents_unknown"] says how many may or may not be written;
        the others are not. It is OutcomeUnknown if there are any of those.
        """
        vectors, timeout = await vectors_of(self.embedder, self._documents, vectors, texts, collection, timeout)
        batch = as_columns(documents, ids, vectors, metadatas, expires_at, named_vectors)
        parts = await insert_parts(self._documents, batch, collection, timeout, whole=True)
        failures = [part.outcome for part in parts if isinstance(part.outcome, NeedleError)]
        if failures:
            try:
                raise _failure_of(parts, failures)
            finally:
                del failures, parts  # the error's traceback holds this frame
        return [part.outcome for part in parts if isinstance(part.outcome, WriteResult)]


def _failure_of(parts: list[BatchPart], failures: list[NeedleError]) -> NeedleError:
    """What a batch failed of: before all others what says that something is not known, then what repeating it does not
    help; that parts were not sent for it comes last."""
    unknown = sum(len(part.rows) for part in parts if isinstance(part.outcome, OutcomeUnknown))
    written = sum(len(part.rows) for part in parts if isinstance(part.outcome, WriteResult))
    failure = min(failures, key=lambda error: (not isinstance(error, OutcomeUnknown), error.retryable))
    if (count := sum(len(part.rows) for part in parts)) > 1:
        perhaps = f", {unknown} may or may not be" if unknown else ""
        text = f"{failure.message} ({written} of the {count} documents of the batch are written{perhaps})"
        failure = type(failure)(text, **failure.details)
    failure.details["documents_written"] = written
    failure.details["documents_unknown"] = unknown
    return failure
