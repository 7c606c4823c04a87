"""Answers with many bytes or many rows are encoded in a thread, into the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from needle.base.model import HitBatch
from needle.base.parts import whole
from needle.protocol import calls
from needle.protocol.calls import DocumentBatch, FacetAnswer, SearchManyAnswer
from needle.server.service.served import LARGE_ROWS, encoded


class Node:
    beside = 0

    async def blocking(self, fn: Callable[..., Any], *arguments: object) -> Any:
        self.beside += 1
        return fn(*arguments)


def hits(count: int) -> HitBatch:
    return HitBatch([f"d{n}" for n in range(count)], [0.5] * count, [7] * count, [], b"", 9)


def counts(count: int) -> FacetAnswer:
    return FacetAnswer([f"v{n}" for n in range(count)], [1] * count, count, count, 0, 9)


DOCUMENTS = DocumentBatch(["a", "b"], [1, 2], [b"{}" * 300_000, b"{}" * 300_000], b"", 9)


@pytest.mark.parametrize(
    ("answer", "beside"),
    [
        (hits(10), 0),
        (hits(LARGE_ROWS), 1),
        (SearchManyAnswer([hits(10)] * 5), 0),
        (SearchManyAnswer([hits(10)] * (LARGE_ROWS // 10)), 1),
        (DOCUMENTS, 1),
        (counts(10), 0),
        (counts(LARGE_ROWS), 1),
    ],
)
async def test_what_takes_long_to_encode_is_encoded_beside_the_event_loop(answer: Any, beside: int) -> None:
    node = Node()
    assert whole(await encoded(node, answer)) == calls.encode(answer)
    assert node.beside == beside


def test_hits_without_metadata_weigh_something() -> None:
    assert calls.batch_bytes(hits(1000)) > 20_000
