"""The record of a chaos run as JSON lines: written line by line while it happens, read back by the checkers.

Format: docs/history-format.md. Invariant: the order of the lines is the order in which the clients saw the events, so
that a reader needs no clock. Lines of other types than invoke, ok, fail and info are no operations.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import IO, Any

import msgspec

from needle.base.errors import InvalidArgument
from proof.checkers.history import ASKED, TYPES, History, Operation, invoke_event, return_event

FORMAT = 2
_ANSWERS = ("type", "id", "process", "f", "key", "outcome", "value", "version", "index", "existed", "error", "time")


class Recorder(History):
    """A history that writes each event down as it is noted."""

    def __init__(self, file: IO[str], **facts: Any) -> None:
        """facts: about the run, for its first line: seed, nodes, metric, ..."""
        super().__init__()
        self._file = file
        self.note("run", format=FORMAT, **facts)

    def invoke(self, client: str, kind: Any, key: str, time: float, **fields: Any) -> Operation:
        op = super().invoke(client, kind, key, time, **fields)
        self._write(invoke_event(op))
        return op

    def finish(self, operation: Operation, outcome: Any, time: float, **fields: Any) -> None:
        super().finish(operation, outcome, time, **fields)
        self._write(return_event(operation))

    def note(self, kind: str, **fields: Any) -> None:
        """A line that is no operation: run, fault, heal, recovery, replica."""
        self._write({"type": kind, **fields})

    def replica(self, replica: Replica) -> None:
        """What a node held at the end."""
        self.note("replica", **msgspec.structs.asdict(replica))

    def _write(self, event: dict[str, Any]) -> None:
        self._file.write(json.dumps(event, sort_keys=True) + "\n")


class Replica(msgspec.Struct, frozen=True):
    """What one node held at the end (of a shard). documents: version by key."""

    node: str
    applied_index: int
    digest: str
    documents: dict[str, int]
    shard: int = 0


class Recorded(msgspec.Struct):
    """A file read back. complete: the run came to its end; faults: lines of the type fault. ranges: of the shards' map,
    [shard, start, end] with hexadecimal keys; none without shards."""

    facts: dict[str, Any]
    history: History
    replicas: list[Replica]
    faults: list[dict[str, Any]]
    recoveries: list[dict[str, Any]]
    complete: bool = False
    ranges: list[tuple[int, str, str | None]] = []


def read(lines: Iterable[str]) -> Recorded:
    """Read a record. Raises InvalidArgument that names the line."""
    found = Recorded({}, History(), [], [], [])
    for number, line in enumerate(lines, 1):
        try:
            _take(found, json.loads(line))
        except (ValueError, KeyError, TypeError, IndexError, msgspec.MsgspecError) as error:
            raise InvalidArgument(f"line {number} is no event of a history: {error!r}", line=number) from error
    if found.facts.get("format") != FORMAT:
        raise InvalidArgument(f"the first line must say type run and format {FORMAT}, not {found.facts}")
    return found


def _take(found: Recorded, event: dict[str, Any]) -> None:
    kind = event["type"]
    if kind == "invoke":
        _invoke(found.history, event)
    elif kind in ("ok", "fail", "info"):
        _finish(found.history, event)
    elif kind == "run":
        found.facts = event
    elif kind == "replica":
        found.replicas.append(msgspec.convert({k: v for k, v in event.items() if k != "type"}, Replica))
    elif kind == "fault":
        found.faults.append(event)
    elif kind == "recovery":
        found.recoveries.append(event)
    elif kind == "map":
        found.ranges = msgspec.convert(event["ranges"], list[tuple[int, str, str | None]])
    elif kind == "end":
        found.complete = True


def _invoke(history: History, event: dict[str, Any]) -> None:
    if event["id"] != len(history.operations):
        raise ValueError(f"id {event['id']} where {len(history.operations)} comes next")
    details = {name: event[name] for name in ASKED if name in event}
    kind: Any = "search" if event["f"] == "get" and details.get("mode") == "eventual" else event["f"]
    fields = {"tag": event["value"], "expected": event["expected"], "details": details}
    history.invoke(event["process"], kind, event["key"], event["time"], **fields)


def _finish(history: History, event: dict[str, Any]) -> None:
    op = history.operations[event["id"]]
    if op.outcome != "open" or TYPES.get(event["outcome"]) != event["type"]:
        raise ValueError(f"operation {op.id} is {op.outcome} and cannot become {event['type']} {event['outcome']}")
    op.details |= {name: value for name, value in event.items() if name not in _ANSWERS}
    seen = event["value"] if op.kind == "get" or (op.kind == "search" and op.key) else ""
    fields = {"version": event["version"], "index": event["index"], "existed": event["existed"], "seen": seen}
    history.finish(op, event["outcome"], event["time"], error=event["error"], **fields)
