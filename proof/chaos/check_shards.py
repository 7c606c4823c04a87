"""Judge the searches and eventual gets of a recorded history: shard by shard, each with its own log.

There is no snapshot across shards, but each shard answers from one state of its own: the hits that a shard owns must be
the nearest of one state of its log, no older than what the search had to see, and no document of that state may be
nearer than the farthest hit (of a search by groups that of each group, with `diversify` the nearest) and be missing.
So an answer never misses an acknowledged document. A shard-aware client
knows the index of each shard's state; for one that went through a node, some state must fit, up to the writes begun
before the answer came.

A shard may be left out only of an answer that might be partial: then it is named, and so are exactly its key ranges;
for the other shards the answer must be as good as any.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from needle.routing.shard_map import KeyRange, uncovered
from proof.chaos.revealed_log import Freshness, Replayed, RevealedLog, View, eventual_get, search_seen
from proof.checkers.history import History, Operation
from proof.checkers.replay import check_fresh
from proof.checkers.scatter import Difference, ScatterSeen, check_choice, check_shape, cutoff_of, differs
from proof.checkers.violation import Violation

NAME = "search across shards"
Range = tuple[int, str, str | None]
ANY = -1
"""Index of a state that the answer does not name."""


def replay_shards(history: History, shards: int, metric: str, ranges: Sequence[Range]) -> Replayed:
    """Raises Violation with the evidence. ranges: [shard, start, end), of the map."""
    counts = Replayed()
    owners = {op.key: op.details["shard"] for op in history.operations if op.key}
    begun = {op.tag: op.invoked for op in history.operations if op.tag}
    searches: dict[int, ScatterSeen] = {}
    for op in _searches(history):
        searches[op.id] = search_seen(op)
        _check_whole(op, searches[op.id], begun, shards)
        _check_coverage(op, owners, ranges)
        counts.partial += bool(op.details.get("partial"))
        counts.searches += 1
        counts.exact += op.details["exact"]
    undetermined: set[int] = set()
    logs: dict[int, RevealedLog] = {}
    for shard in range(shards):
        part = _of_shard(history, shard, owners)
        logs[shard] = _Replay(part, metric, searches, counts, undetermined).run()
    # About in the order of the logs, which are gone through from their begin for each step back.
    for op in sorted(_searches(history), key=lambda op: sum((searches[op.id].applied or {}).values())):
        counts.shaped += not searches[op.id].shaping.plain()
        _check_choice(op, searches[op.id], logs, owners, metric)
    counts.undetermined = len(undetermined)
    return counts


def _searches(history: History) -> Iterator[Operation]:
    return (op for op in history.operations if op.kind == "search" and not op.key and op.outcome == "ok")


def _check_whole(op: Operation, seen: ScatterSeen, begun: dict[str, int], shards: int) -> None:
    """What concerns all shards together: none is missing, nothing twice, nothing that nobody had written, in order.
    begun: by value."""
    if seen.applied is not None and set(seen.applied) != set(range(shards)) - set(seen.missing):
        raise Violation(NAME, f"{seen.label} was answered by shards {sorted(seen.applied)} of {shards}")
    check_shape(seen)
    answered = op.returned or 0
    unknown = [name for name, _, _, tag in op.details["hits"] if begun.get(tag, answered) >= answered]
    if unknown:
        raise Violation(NAME, f"{seen.label} found {unknown}, which nobody had written", unknown[0])


def _check_choice(
    op: Operation, seen: ScatterSeen, logs: dict[int, RevealedLog], owners: dict[str, int], metric: str
) -> None:
    """Of the nearest those are chosen that were asked for, and stand in the order that was asked for."""
    if seen.shaping.by_distance():
        return
    position, shown = op.returned or 0, {hit[0] for hit in seen.hits}
    told = seen.applied or {}
    states = {shard: View(logs[shard], logs[shard].hidden(at, position, shown)) for shard, at in told.items()}
    doubts = sum(logs[shard].doubtful(at, position, shown) for shard, at in told.items())
    check_choice(logs, states, owners.__getitem__, seen, metric, doubts)


def _missing(op: Operation) -> list[int]:
    """The shards that a partial answer says it leaves out."""
    return list(op.details.get("missing", ()))


def _check_coverage(op: Operation, owners: dict[str, int], ranges: Sequence[Range]) -> None:
    """What a partial answer says of what it leaves out is the truth."""
    missing = _missing(op)
    if missing and not op.details.get("partial"):
        raise Violation(NAME, f"search #{op.id} by {op.client} left out shards {missing} without being asked to")
    hits = [hit[0] for hit in op.details["hits"] if owners.get(hit[0]) in missing]
    if hits:
        raise Violation(NAME, f"search #{op.id} by {op.client} leaves out shards {missing}, and has {hits}", hits[0])
    gaps = [_span(start, end) for start, end in op.details.get("gaps", ())]
    true = [_span(start, end) for shard, start, end in ranges if shard in missing]
    if ranges and uncovered(gaps) != uncovered(true):
        raise Violation(NAME, f"search #{op.id} by {op.client} names the gaps {gaps}; shards {missing} own {true}")


def _span(start: str, end: str | None) -> KeyRange:
    return bytes.fromhex(start), None if end is None else bytes.fromhex(end)


def _of_shard(history: History, shard: int, owners: dict[str, int]) -> History:
    """What concerns one shard. Positions stay those of the whole."""
    part = History()
    for op in history.operations:
        if not op.key:
            if shard not in _missing(op):
                part.operations.append(_part_of_search(op, shard, owners))
        elif owners[op.key] == shard:
            part.operations.append(op)
    return part


def _part_of_search(op: Operation, shard: int, owners: dict[str, int]) -> Operation:
    details = dict(op.details)
    hits = [hit for hit in details.get("hits", ()) if owners.get(hit[0]) == shard]
    told = details.get("applied")
    details["hits"] = hits
    details["required"] = int((details.get("required") or {}).get(str(shard), 0))
    details["at"] = int(told[str(shard)]) if told else ANY
    # Without an index of its own the state is at least as new as the newest hit.
    details["applied"] = details["at"] if told else max((hit[1] for hit in hits), default=0)
    return Operation(
        id=op.id,
        client=op.client,
        kind=op.kind,
        key="",
        invoked=op.invoked,
        time=op.time,
        returned=op.returned,
        returned_time=op.returned_time,
        outcome=op.outcome,
        details=details,
    )


class _Replay:
    """One shard's reads against its log."""

    def __init__(
        self,
        part: History,
        metric: str,
        searches: dict[int, ScatterSeen],
        counts: Replayed,
        undetermined: set[int],
    ) -> None:
        """searches: those of all shards, by id."""
        self._history, self._metric, self._searches = part, metric, searches
        self._counts, self._undetermined = counts, undetermined
        self._log = RevealedLog(part)
        self._fresh = Freshness(part)

    def run(self) -> RevealedLog:
        """Raises Violation. Returns the shard's log."""
        reads = [op for op in self._history.operations if op.kind == "search" and op.outcome == "ok"]
        for op in sorted(reads, key=lambda op: (op.details["applied"], op.id)):
            strong = op.details["mode"] != "eventual"
            required = self._fresh.before(op) if strong else op.details["required"]
            if op.key:
                self._counts.eventual_gets += 1
                eventual_get(self._log, op, required)
            else:
                self._search(op, required)
        return self._log

    def _search(self, op: Operation, required: int) -> None:
        seen, failure = self._searches[op.id], ""
        wrong: Difference | None = None
        for index in self._states(op, required):
            check_fresh(f"{seen.label} ({seen.mode})", index, required)
            found = self._differs(op, index)
            if found is None:
                return
            if wrong is None:
                wrong, failure = found, f"{seen.label} ({seen.mode}) at {index}: {found.text}"
        if wrong is not None:
            raise Violation(NAME, failure, wrong.key)

    def _states(self, op: Operation, required: int) -> Iterator[int]:
        """The indexes at which the shard may have answered: the last one of each state, the newest state first."""
        at = op.details["at"]
        if at != ANY:
            yield at
            return
        first = max(required, op.details["applied"])
        *older, newest = self._log.state_ends(first, self._log.newest(op.returned or 0))
        yield newest
        yield from older

    def _differs(self, op: Operation, index: int) -> Difference | None:
        """Why the hits are not the answer of the state at `index`."""
        log, seen, position = self._log, self._searches[op.id], op.returned or 0
        hits = [(key, version, distance) for key, version, distance, _ in op.details["hits"]]
        hidden = log.hidden(index, position, {key for key, _, _ in hits})
        if hidden and not hidden.isdisjoint(log.at(index)):
            self._undetermined.add(op.id)
        return differs(View(log, hidden), index, hits, cutoff_of(seen), seen, self._metric)
