"""Is a history of one key linearizable? The search of Wing and Gong with Lowe's memo, as Porcupine does it.

Walk the calls in real-time order; linearize a call if the model allows it, otherwise try the next one that overlaps;
on meeting the return of a call that was not linearized, go back. The memo of (set of linearized calls, state) makes
each configuration visited once. Source: Lowe, "Testing for linearizability" (2017).
"""

from __future__ import annotations

from collections.abc import Sequence

from proof.checkers.history import History, Operation
from proof.checkers.register_model import ABSENT, RegisterModel, State
from proof.checkers.violation import Violation

NAME = "linearizability"
CONFIGURATIONS_MAX = 400_000


class TooComplex(Exception):
    """The search exceeded its bound; nothing is proven either way."""


class _Timeline:
    """Calls and returns of one key in order, as a doubly linked list that can drop and restore an operation."""

    def __init__(self, operations: list[Operation]) -> None:
        events: list[tuple[int, int, bool]] = []
        for number, op in enumerate(operations):
            events.append((op.invoked, number, True))
            if op.returned is not None:
                events.append((op.returned, number, False))
        events.sort()
        size = len(events)
        self.operation = [-1, *(number for _, number, _ in events), -1]
        self.is_call = [False, *(call for _, _, call in events), False]
        self.next = list(range(1, size + 3))
        self.previous = list(range(-1, size + 1))
        self.end = size + 1
        self.returns = sum(1 for op in operations if op.returned is not None)
        self.call_at = {number: i + 1 for i, (_, number, call) in enumerate(events) if call}
        self.return_at = {number: i + 1 for i, (_, number, call) in enumerate(events) if not call}

    def lift(self, number: int) -> None:
        for place in (self.call_at[number], self.return_at.get(number)):
            if place is not None:
                self.next[self.previous[place]] = self.next[place]
                self.previous[self.next[place]] = self.previous[place]

    def unlift(self, number: int) -> None:
        for place in (self.return_at.get(number), self.call_at[number]):
            if place is not None:
                self.next[self.previous[place]] = place
                self.previous[self.next[place]] = place


def explain(operations: list[Operation], eventual: Sequence[Operation] = ()) -> Operation | None:
    """None if the operations of one key are linearizable; otherwise the first one that fits nowhere.

    eventual: reads of the key that promise no order (register_model.py says what they are good for).
    Raises TooComplex after CONFIGURATIONS_MAX configurations.
    """
    model = RegisterModel(operations, eventual)
    timeline = _Timeline(operations)
    seen: set[tuple[int, State]] = set()
    stack: list[tuple[int, State]] = []
    state, linearized, returned = ABSENT, 0, 0
    furthest = 0
    entry = timeline.next[0]
    while returned < timeline.returns:
        number = timeline.operation[entry]
        if entry != timeline.end and timeline.is_call[entry]:
            after = model.step(state, operations[number])
            key = (linearized | 1 << number, after or ABSENT)
            if after is None or key in seen:
                entry = timeline.next[entry]
                continue
            seen.add(key)
            if len(seen) > CONFIGURATIONS_MAX:
                raise TooComplex(f"{len(operations)} operations of key {operations[0].key!r}")
            stack.append((number, state))
            state, linearized = after, linearized | 1 << number
            returned += operations[number].returned is not None
            timeline.lift(number)
            entry = timeline.next[0]
            continue
        furthest = max(furthest, entry)
        if not stack:
            return operations[timeline.operation[furthest]]
        number, state = stack.pop()
        linearized &= ~(1 << number)
        returned -= operations[number].returned is not None
        timeline.unlift(number)
        entry = timeline.next[timeline.call_at[number]]
    return None


def check(history: History) -> int:
    """Check every key; the number of keys whose search was given up as too complex. Raises Violation."""
    given_up = 0
    eventual = history.eventual_by_key()
    for key, operations in history.by_key().items():
        conflict = RegisterModel(operations, eventual.get(key, ())).conflict
        if conflict:
            raise Violation(NAME, f"key {key!r}: {conflict}", key)
        try:
            culprit = explain(operations, eventual.get(key, ()))
        except TooComplex:
            given_up += 1
            continue
        if culprit is not None:
            raise Violation(NAME, f"key {key!r} has no legal order; stuck at {describe(culprit)}", key)
    return given_up


def describe(op: Operation) -> str:
    """One operation in one line."""
    asked = (
        f"{op.kind} {op.key}"
        + (f" tag={op.tag}" if op.tag else "")
        + (f" expected={op.expected}" if op.expected else "")
    )
    answer = (
        f"{op.outcome} version={op.version}"
        + (f" seen={op.seen}" if op.seen else "")
        + (f" {op.error}" if op.error else "")
    )
    return f"#{op.id} {op.client} {asked} -> {answer} [{op.time:.3f}..{op.returned_time:.3f}s, log {op.index}]"
