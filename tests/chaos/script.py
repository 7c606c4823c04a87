"""A history written by hand, and the judgement of it."""

import io
from collections.abc import Callable
from typing import Any

import pytest

from proof.chaos.check import Verdict, check
from proof.chaos.history_file import Recorder, read
from proof.checkers.history import Operation
from proof.checkers.violation import Violation


class Written:
    """Metric l2, vectors (x, 0), a search asks for what is near (0, 0)."""

    def __init__(self, shards: int, owner: Callable[[str], int]) -> None:
        self.file = io.StringIO()
        self.history = Recorder(self.file, metric="l2", shards=shards)
        self.owner = owner

    def begin_put(self, key: str, tag: str, x: float, n: int = 0) -> Operation:
        details = {"vector": [x, 0.0], "metadata": {"tag": tag, "n": n, "odd": False}, "shard": self.owner(key)}
        return self.history.invoke("c0", "put", key, 0.0, tag=tag, details=details)

    def acknowledge(self, op: Operation, index: int) -> None:
        self.history.finish(op, "ok", 0.0, version=index, index=index)

    def lose(self, op: Operation) -> None:
        self.history.finish(op, "unknown", 0.0, error="outcome_unknown")

    def begin_delete(self, key: str) -> Operation:
        return self.history.invoke("c0", "delete", key, 0.0, details={"shard": self.owner(key)})

    def read(self, key: str, version: int, seen: str, applied: int, mode: str, client: str) -> None:
        kind: Any = "search" if mode == "eventual" else "get"
        details = {"mode": mode, "required": 0, "shard": self.owner(key)}
        op = self.history.invoke(client, kind, key, 0.0, details=details)
        op.details["applied"] = applied
        self.history.finish(op, "ok", 0.0, version=version, seen=seen)

    def begin_search(self, k: int = 10, **asked: Any) -> Operation:
        details = {"mode": "strong", "k": k, "filter": None, "exact": True, "vector": [0.0, 0.0], "required": {}}
        return self.history.invoke("c1", "search", "", 0.0, details=details | asked)

    def answer(self, op: Operation, *hits: tuple[str, int, float, str], applied: dict[int, int] | None = None) -> None:
        op.details |= {"applied": applied, "hits": [list(hit) for hit in hits]}
        self.history.finish(op, "ok", 0.0, version=len(hits))

    def check(self) -> Verdict:
        return check(read(self.file.getvalue().splitlines()))

    def broken(self) -> str:
        with pytest.raises(Violation) as caught:
            self.check()
        return str(caught.value)
