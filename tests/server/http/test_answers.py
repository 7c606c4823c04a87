"""What handlers answer, where nodes behind them do not."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from harness.door import Idle, ask, request, serving
from needle.base.model import CollectionSpec, WriteResult
from needle.server.http.routes import ROUTES


class MadeAndGone(SimpleNamespace):
    """The rest of a cluster: makes a collection, and answers nothing else."""

    made: CollectionSpec

    def __init__(self) -> None:
        super().__init__(seen={})

    async def create_collection(self, spec: CollectionSpec, if_absent: bool, timeout: float) -> WriteResult:
        self.made = spec
        return WriteResult(version=1, index=1, existed=False)

    def in_session(self, seen: Any) -> MadeAndGone:
        return self


async def test_a_collection_that_was_made_is_said_to_be(monkeypatch: Any) -> None:
    node = Idle()
    node.router = router = MadeAndGone()
    async with serving([route for route in ROUTES if route.name == "create_collection"], node) as server:
        body = {"name": "b", "dimensions": 4, "metric": "l2", "index": {"m": 8}, "ttl": 60}
        status, answer = await ask(server, request("POST", "/v1/collections", json.dumps(body).encode()))
    assert status == 200, answer
    told = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert told["documents"] is None
    assert (told["name"], told["dimensions"], told["metric"], told["ttl"]) == ("b", 4, "l2", 60)
    assert told["index"] == {"m": 8, "ef_construction": 100, "ef_search": 64}
    assert router.made.index.m == 8
