"""What a run came to, as a value that can be sent between processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from needle.base.ids import GroupId
from proof.checkers import linearizability
from proof.checkers.history import History
from proof.sim.injector import Injector
from proof.sim.observer import Counts
from proof.sim.spec import Spec
from proof.sim.stage import Stage


class Report(msgspec.Struct, kw_only=True):
    """What a run came to. failure: None, or the violated promise and the evidence. given_up: keys whose history could
    not be judged, for there were too many orders to try."""

    spec: Spec
    counts: Counts
    faults: dict[str, int]
    trace_hash: str
    failure: str | None = None
    checker: str = ""
    story: list[str] = []
    history: list[str] = []
    given_up: int = 0


def report_of(
    stage: Stage,
    history: History,
    injector: Injector,
    failure: BaseException | None,
    *,
    groups: Iterable[GroupId],
    searches: int,
    given_up: int,
    moves: int = 0,
) -> Report:
    """The report of a run that has ended. groups: whose entries count. moves: of key ranges, between shards."""
    outcomes = Counter(op.outcome for op in history.operations)
    counts = Counts(
        virtual_seconds=stage.loop.time(),
        operations=len(history.operations),
        answered=outcomes["ok"],
        refused=outcomes["refused"],
        failed=outcomes["failed"],
        unknown=outcomes["unknown"] + outcomes["open"],
        elections=stage.observer.elections.count,
        snapshots=stage.observer.snapshots_installed,
        repaired=stage.observer.repaired,
        entries=sum(len(stage.observer.committed.log(group)) for group in groups),
        restarts=stage.fleet.restarts(),
        messages=stage.network.counts["messages"],
        steps=stage.loop.steps,
        searches=searches,
        moves=moves,
    )
    return Report(
        spec=stage.spec,
        counts=counts,
        faults=dict(sorted(injector.counts.items())),
        trace_hash=stage.trace.digest(),
        failure=None if failure is None else str(failure),
        checker=getattr(failure, "checker", type(failure).__name__) if failure is not None else "",
        story=stage.trace.story if failure is not None else [],
        history=_operations_of(history, failure),
        given_up=given_up,
    )


def _operations_of(history: History, failure: BaseException | None) -> list[str]:
    """What clients did to the key of a violation."""
    key = getattr(failure, "key", "")
    return [linearizability.describe(op) for op in history.operations if key and op.key == key]
