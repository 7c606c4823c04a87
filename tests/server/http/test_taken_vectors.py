"""A named vector is taken away by HTTP: its condition, which may be long, is read beside the event loop."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from needle.base.errors import InvalidArgument
from needle.base.model import WriteResult
from needle.server.http.vectors import UpdateVectors, update_vectors


async def test_the_condition_of_what_is_taken_away_is_read_beside_the_loop() -> None:
    beside, asked = list[object](), list[tuple[Any, ...]]()

    async def run_beside(work: Any) -> object:
        beside.append(made := work())
        return made

    async def routed(*call: Any) -> WriteResult:
        asked.append(call)
        return WriteResult(version=3, index=3, count=2)

    router = SimpleNamespace(update_vectors=routed)
    body = UpdateVectors(ids=["a", "b", "a"], vectors=None, name="title", if_matches={"n": 1}, timeout=5.0)
    call: Any = SimpleNamespace(body=body, collection="c", beside=run_beside, router=router)
    assert (await update_vectors(call)).count == 2
    assert beside == [b'{"n":{"$eq":1}}']
    assert asked == [("c", ["a", "b"], b"", None, b'{"n":{"$eq":1}}', 5.0, 0, "title", True)]
    call.body = UpdateVectors(ids=["a"], vectors=None, timeout=5.0)
    with pytest.raises(InvalidArgument, match="none is named"):
        await update_vectors(call)
