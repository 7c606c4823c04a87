"""What clients asked and were answered, in the order the world saw it: the input of the linearizability checker.

`invoked` and `returned` are positions in one total order of events (not seconds), so that two events of the same
virtual instant still have an order. An operation whose fate is unknown stays open forever (returned is None).
`to_json_lines` writes the documented form: one invoke, ok, fail or info event a line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

Kind = Literal["put", "insert", "cas", "patch", "update", "delete", "get", "search"]
Outcome = Literal["open", "ok", "refused", "failed", "unknown"]


class Operation(msgspec.Struct, kw_only=True):
    """One operation on one key (or a search, key "").

    tag: the unique value a write carries; of a patch, what it adds to the value that is there ("value+added", in place
    of what an earlier patch added). expected: the version a cas, or a patch unless it is 0, asked for.
    outcome: ok; refused (a condition did
    not hold, version says what was there); failed (surely no effect); unknown (may take effect at any later time);
    open (still running). version: of the written or read document, 0 for absent. seen: tag that a get read.
    existed: what the answer says about before (None: it does not say). index: log index of an acknowledged write.
    """

    id: int
    client: str
    kind: Kind
    key: str
    invoked: int
    time: float
    tag: str = ""
    expected: int = 0
    returned: int | None = None
    returned_time: float = 0.0
    outcome: Outcome = "open"
    version: int = 0
    seen: str = ""
    existed: bool | None = None
    index: int = 0
    error: str = ""
    details: dict[str, Any] = msgspec.field(default_factory=dict)


class History:
    """Append-only record of one run."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self._events = 0

    def invoke(self, client: str, kind: Kind, key: str, time: float, **fields: Any) -> Operation:
        """Note that an operation begins."""
        operation = Operation(
            id=len(self.operations), client=client, kind=kind, key=key, invoked=self._tick(), time=time, **fields
        )
        self.operations.append(operation)
        return operation

    def finish(self, operation: Operation, outcome: Outcome, time: float, **fields: Any) -> None:
        """Note how it ended. `unknown` leaves it open for the checker."""
        for name, value in fields.items():
            setattr(operation, name, value)
        operation.outcome = outcome
        operation.returned_time = time
        position = self._tick()
        if outcome in ("ok", "refused", "failed"):
            operation.returned = position

    def _tick(self) -> int:
        self._events += 1
        return self._events

    def by_key(self) -> dict[str, list[Operation]]:
        """Operations that may have had an effect or saw one, per key."""
        keys: dict[str, list[Operation]] = {}
        for operation in self.operations:
            reads_nothing = operation.kind == "get" and operation.outcome in ("open", "unknown", "failed")
            if operation.kind != "search" and operation.outcome != "failed" and not reads_nothing:
                keys.setdefault(operation.key, []).append(operation)
        return keys

    def eventual_by_key(self) -> dict[str, list[Operation]]:
        """Eventual gets per key: they are recorded as searches of one key, for they promise no place in its order."""
        keys: dict[str, list[Operation]] = {}
        for operation in self.operations:
            if operation.kind == "search" and operation.key and operation.outcome == "ok":
                keys.setdefault(operation.key, []).append(operation)
        return keys

    def to_json_lines(self) -> Iterator[str]:
        """One JSON object an event (docs/history-format.md), by position; unknown outcomes at the end."""
        events: list[tuple[int, int, dict[str, Any]]] = []
        for op in self.operations:
            events.append((op.invoked, op.id, invoke_event(op)))
            if op.outcome != "open":
                events.append((op.returned or self._events + 1, op.id, return_event(op)))
        for _, _, event in sorted(events, key=lambda event: event[:2]):
            yield json.dumps(event, sort_keys=True)


SHAPES = ("of_each", "diversify", "pool", "order_by", "descending")
"""What a search asks for beside the nearest: see shaping.py."""
ASKED = ("mode", "required", "k", "filter", "exact", "vector", "metadata", "shard", *SHAPES)
"""Details of an operation that its invocation states; the others are part of the answer."""
TYPES = {"ok": "ok", "refused": "fail", "failed": "fail", "unknown": "info"}


def invoke_event(op: Operation) -> dict[str, Any]:
    """The line that says that an operation begins: {"type": "invoke", "id", "process", "f", "key", "value", ...}."""
    asked = {name: op.details[name] for name in ASKED if name in op.details}
    return {**_base("invoke", op), "value": op.tag, "expected": op.expected, "time": op.time, **asked}


def return_event(op: Operation) -> dict[str, Any]:
    """The line that says how it ended: type ok, fail (no effect) or info (its fate is unknown)."""
    answered = {name: value for name, value in op.details.items() if name not in ASKED}
    return {
        **_base(TYPES[op.outcome], op),
        "outcome": op.outcome,
        "value": op.seen or op.tag,
        "version": op.version,
        "index": op.index,
        "existed": op.existed,
        "error": op.error,
        "time": op.returned_time,
        **answered,
    }


def _base(kind: str, op: Operation) -> dict[str, Any]:
    f = "get" if op.kind == "search" and op.key else op.kind  # an eventual get is checked as a search is
    return {"type": kind, "id": op.id, "process": op.client, "f": f, "key": op.key}


def shown(vector: Any, metadata: Any) -> dict[str, Any]:
    """What a write carries, for the record."""
    return {"vector": vector.tolist(), "metadata": metadata}
