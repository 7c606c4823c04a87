"""A rebalance as the catalog keeps it: what is wished, within which limits, what is under way, how much is done.

Plain data; what follows from it is `catalog.planning.rebalance`'s to say. It holds no plan: each round plans again.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from needle.base.config import check_range
from needle.base.errors import InvalidArgument
from needle.base.ids import NodeId
from needle.base.schema import Seconds, check_whole
from needle.routing.planned_moves import Move
from needle.routing.plans import Wish

PRESSING = 0.05
"""While a job runs it plans key ranges with this threshold: else it would end as soon as its first moves bring it
below the wish's."""


ENDED_MAX = 16
"""Rebalances before the last one of which the catalog keeps how they ended: it travels whole at each change."""
WHY_CHARS = 300
"""Of why each of them ended."""


class RebalanceConfig(msgspec.Struct, frozen=True, kw_only=True):
    """max_concurrent_moves: at a time. batch_size: documents of a move copied between two pauses. throttle_rate:
    how long these are, in seconds as float or `datetime.timedelta`, kept as float; a new replica comes as slowly
    (routing.pace). Raises InvalidArgument."""

    max_concurrent_moves: int = 10
    batch_size: int = 1000
    throttle_rate: Seconds = 0.1

    def __post_init__(self) -> None:
        if hasattr(self.throttle_rate, "total_seconds"):
            msgspec.structs.force_setattr(self, "throttle_rate", self.throttle_rate.total_seconds())
        check_whole("max_concurrent_moves", self.max_concurrent_moves, 1, 100)
        check_whole("batch_size", self.batch_size, 1, 10_000)
        check_range("throttle_rate", self.throttle_rate, 0, 3600)


class JobState(StrEnum):
    """cancelling: what can be given up is; what is decided ends. waiting is no state: a running job says `why`."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


OVER = frozenset({JobState.DONE, JobState.FAILED, JobState.CANCELLED})


class Phase(StrEnum):
    """How far a move is, as the guide names it. Until `switch` it can be given up. switch: of replicas, the new ones
    vote, and those that go give up leadership and their votes; of key ranges it is part of catch up, in which writes
    wait some milliseconds."""

    PREPARE = "prepare"
    COPY = "copy"
    CATCH_UP = "catch up"
    SWITCH = "switch"
    CLEAN_UP = "clean up"


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A move that was started and is not over. id: of the catalog's record. nodes: that get its bytes. copied: bytes;
    phase and copied are of the moment, and are not stored."""

    id: int
    move: Move
    nodes: tuple[NodeId, ...]
    phase: Phase = Phase.PREPARE
    copied: int = 0


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """id: the catalog's index of its start. why: what it waits for, or failed by. moved_documents, moved_bytes: by
    moves that are over. planned_bytes: by the first plan; who has copied twice that was wrong about sizes, and ends
    at the wish's threshold. stuck: rounds in a row in which nothing was running and nothing could start. running: what
    it has started. revision: counts its changes. healing: the cluster began it by itself, because nodes are gone."""

    id: int
    wish: Wish
    config: RebalanceConfig
    state: JobState = JobState.PENDING
    why: str = ""
    moved_documents: int = 0
    moved_bytes: int = 0
    planned_bytes: int = 0
    moves: int = 0
    stuck: int = 0
    running: tuple[Running, ...] = ()
    revision: int = 0
    healing: bool = False

    @property
    def over(self) -> bool:
        """Whether nothing of it is to come."""
        return self.state in OVER

    def pressing(self) -> Wish:
        """The wish to plan by: once something moves, until it is near its goal. Who has copied twice what was planned
        goes no nearer than the threshold: beside a shard that stays too heavy, two others may give each other one
        document for good."""
        if self.state is JobState.PENDING:
            return self.wish
        if self.moved_bytes > 2 * self.planned_bytes:
            own = self.wish.range_threshold
            near = self.wish.threshold if own is None else min(own, self.wish.threshold)
            return msgspec.structs.replace(self.wish, goal=near)
        threshold = max(2 * self.wish.goal, PRESSING)
        return msgspec.structs.replace(self.wish, range_threshold=min(self.wish.threshold, threshold))


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """moved_*: by moves that are over, and so far by those that run. total_*: moved and planned. rate: bytes a second
    lately. eta: seconds; None while nothing is known of the rate, or it is paused. phases: of what is running, by id;
    moves: the same in words. why: what it waits for, or failed by."""

    id: int
    state: JobState
    percent_complete: float
    moved_documents: int
    total_documents: int
    moved_bytes: int
    total_bytes: int
    rate: float
    eta: float | None
    phases: Mapping[int, Phase]
    moves: Mapping[int, str] = {}
    why: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether nothing of it is to come: done, failed or cancelled."""
        return self.state in OVER


class Ended(msgspec.Struct, frozen=True, array_like=True):
    """How a rebalance ended. Fields as in Job."""

    id: int
    state: JobState
    why: str
    moved_documents: int
    moved_bytes: int
    planned_bytes: int
    moves: int

    @classmethod
    def of(cls, job: Job) -> Ended:
        """What is kept of one that is over."""
        sums = job.moved_documents, job.moved_bytes, job.planned_bytes, job.moves
        return cls(job.id, job.state, job.why, *sums)

    def progress(self) -> Progress:
        """As it was told when it ended. One that did not do what was wished is not all done for that."""
        done = self.state is JobState.DONE
        total = self.moved_bytes if done else max(self.moved_bytes, self.planned_bytes)
        part = self.moved_bytes / total if total else 1.0 if self.moves else 0.0
        return Progress(
            id=self.id,
            state=self.state,
            percent_complete=100.0 if done else min(99.9, 100 * part),
            moved_documents=self.moved_documents,
            total_documents=self.moved_documents,
            moved_bytes=self.moved_bytes,
            total_bytes=total,
            rate=0.0,
            eta=None,
            phases={},
            why=self.why,
        )


def kept(ended: tuple[Ended, ...], over: Job) -> tuple[Ended, ...]:
    """The last ones with one more, the last of which is `over`."""
    made = Ended.of(over)
    return (*ended, msgspec.structs.replace(made, why=made.why[:WHY_CHARS]))[-ENDED_MAX:]


def check_over(job: Job | None) -> None:
    """Raises InvalidArgument while a rebalance is not over: one runs at a time."""
    if job is None or job.over:
        return
    by = ", which the cluster began by itself because nodes are gone," if job.healing else ""
    look = "`needle rebalance --status` shows how far it is, and what it waits for"
    raise InvalidArgument(
        f"one rebalance runs at a time, and rebalance {job.id}{by} {_GOES_ON[job.state]}. "
        f"Repeat this when it is over ({look}){_ENDED_BY[job.state]}",
        field="rebalance",
    )


_GOES_ON = {
    JobState.PENDING: "is about to begin",
    JobState.RUNNING: "is under way",
    JobState.PAUSED: "is paused, so that it does not end by itself",
    JobState.CANCELLING: "is being cancelled",
}
_CANCEL = "`needle rebalance --cancel` ends it: what it has moved stays where it is"
_ENDED_BY = {
    JobState.PENDING: f", or end it first: {_CANCEL}",
    JobState.RUNNING: f", or end it first: {_CANCEL}",
    JobState.PAUSED: f". `needle rebalance --resume` has it go on; {_CANCEL}",
    JobState.CANCELLING: "",
}
