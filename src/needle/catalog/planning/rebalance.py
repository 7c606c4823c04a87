"""A rebalance from its start to its end, as a pure state machine: what may start now, when it is over, how far it is.

The coordinator asks once a round, with a plan made of what is so at that moment; so a successor that knows the job
alone goes on where its predecessor stopped. Invariants (`check_invariants`): no more moves at a time than the limit;
two moves at a time are about different groups, unless both move ranges; what starts has room beside all that is
running; nothing starts unless the job is running; a job that is over stays so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import msgspec

from needle.base.errors import InvalidArgument, invalid
from needle.base.ids import GroupId, NodeId, shard_group
from needle.routing.jobs import Job, JobState, Phase, Progress, RebalanceConfig, Running
from needle.routing.pace import rate_max
from needle.routing.planned_moves import Move, MoveRange, MoveReplicas, disjoint, size_in_words
from needle.routing.plans import Balance, Plan, Wish
from needle.routing.topology import NodeState, Topology

_replace = msgspec.structs.replace

NOTHING = Plan(moves=(), unmet=(), before=Balance(shards=0, nodes=0), after=Balance(shards=0, nodes=0), least=0)

_GIVEN_UP = frozenset({Phase.PREPARE, Phase.COPY, Phase.CATCH_UP})
"""Phases in which a cancelled job gives a move up."""


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """What one look led to. start: moves to start now. give_up: ids of running ones."""

    job: Job
    start: tuple[Move, ...] = ()
    give_up: tuple[int, ...] = ()


# --- what people ask for ---------------------------------------------------------------------------------------------
def pause(job: Job) -> Job:
    """Start nothing more; what copies stops behind its next batch, and what is further goes on to its end."""
    return _asked(job, JobState.PAUSED, {JobState.PENDING, JobState.RUNNING})


def resume(job: Job) -> Job:
    """Go on."""
    if job.state is JobState.PENDING:
        return job
    began = job.moves or job.planned_bytes
    return _asked(job, JobState.RUNNING if began else JobState.PENDING, {JobState.PAUSED, JobState.RUNNING})


def cancel(job: Job) -> Job:
    """Give up what is not decided yet, and end."""
    if job.state is JobState.CANCELLED:
        return job
    if not job.running and not job.over:  # nothing to wait for, not even for shards that do not answer
        return _replace(job, state=JobState.CANCELLED, why="", stuck=0)
    return _asked(job, JobState.CANCELLING, {JobState.PENDING, JobState.RUNNING, JobState.PAUSED})


def _asked(job: Job, state: JobState, possible: set[JobState]) -> Job:
    if job.state is state:
        return job
    if job.state not in possible:
        raise InvalidArgument(f"rebalance {job.id} is {job.state}, so it cannot become {state}", field="state")
    return _replace(job, state=state, why="", stuck=0)


# --- what the coordinator does ---------------------------------------------------------------------------------------
STUCK_MAX = 20
"""Rounds without a move that can start, after which a job has failed."""


def look(
    job: Job,
    plan: Plan,
    running: Sequence[Running],
    free: Mapping[NodeId, int | None],
    holders: Mapping[GroupId, Sequence[NodeId]],
    unsettled: str = "",
    others: int = 0,
    silent: Collection[int] = (),
    refused: Collection[int] = (),
) -> Round:
    """One round. plan: made by `job.pressing()` of what is so now; not looked at once the job is being cancelled. free:
    bytes that each node's disk takes, None if any. holders: the nodes of each group. unsettled: what others move, which
    a plan takes for done; "" for nothing. others: how many moves these are. silent: shards whose leader does not
    answer. refused: ids of running moves that get nowhere: they are given up, and planned again."""
    if job.over or job.state is JobState.PAUSED:
        return Round(job=job)
    if job.state is JobState.CANCELLING:
        return _cancelling(job, running, silent)
    if job.state is JobState.PENDING:
        job = _replace(job, state=JobState.RUNNING, planned_bytes=plan.bytes)
    start = startable(plan.moves, running, job.config.max_concurrent_moves - others, free, holders)
    if start or running:
        back = tuple(one.id for one in running if one.id in refused and one.phase in _GIVEN_UP)
        return Round(job=_replace(job, why="", stuck=0), start=start, give_up=back)
    missing = [*plan.beyond_help, *plan.unmet]
    if plan.waiting:  # for nothing that this job could mend
        return Round(job=_replace(job, why="; ".join([*plan.waiting, *missing]), stuck=0))
    if not plan.moves and not missing and unsettled:
        return Round(job=_replace(job, why=unsettled, stuck=0))
    if not plan.moves and not missing:
        stays = f"not a part of it, and left as it is: {'; '.join(plan.besides)}" if plan.besides else ""
        return Round(job=_replace(job, state=JobState.DONE, why=stays, stuck=0))
    if plan.moves and others >= job.config.max_concurrent_moves:
        limit = f"its limit of {job.config.max_concurrent_moves} is used by {others} moves that others began"
        return Round(job=_replace(job, why=f"waits: {limit}", stuck=0))
    why, stuck = "; ".join(missing) or f"no room for: {plan.moves[0].in_words()}", job.stuck + 1
    if stuck >= STUCK_MAX:
        return Round(job=_failed(job, why, stuck))
    return Round(job=_replace(job, why=why, stuck=stuck))


def of_now(wish: Wish, topology: Topology) -> Wish:
    """What is left of the wish of a job that is under way: nodes that were removed since hold nothing, so of them
    nothing is wished any more."""
    gone = {info.id for info in topology.nodes if info.state is NodeState.REMOVED}
    if not gone.intersection((*wish.drain, *wish.lost, *wish.weights, *wish.zones)):
        return wish
    return _replace(
        wish,
        drain=tuple(node for node in wish.drain if node not in gone),
        lost=tuple(node for node in wish.lost if node not in gone),
        weights={node: weight for node, weight in wish.weights.items() if node not in gone},
        zones={node: zone for node, zone in wish.zones.items() if node not in gone},
    )


def _cancelling(job: Job, running: Sequence[Running], silent: Collection[int]) -> Round:
    """What is not decided is given up; the rest ends, or is left to end by itself if a shard stays silent."""
    if not running:
        return Round(job=_replace(job, state=JobState.CANCELLED, why="", stuck=0))
    back = tuple(one.id for one in running if one.phase in _GIVEN_UP)
    if back:
        return Round(job=_replace(job, why="", stuck=0), give_up=back)
    waits = {one.id: _shards(one.move) & set(silent) for one in running}
    why = "; ".join(
        f"{one.move.in_words()}: " + (f"shard {min(waits[one.id])} does not answer" if waits[one.id] else "is decided")
        for one in running
    )
    if not all(waits.values()):
        return Round(job=_replace(job, why=f"waits for what cannot be given up: {why}", stuck=0))
    if job.stuck + 1 < STUCK_MAX:
        return Round(job=_replace(job, why=f"waits for: {why}", stuck=job.stuck + 1))
    left = f"left to end by itself: {why}"
    return Round(job=_replace(job, state=JobState.CANCELLED, running=(), why=left, stuck=job.stuck + 1))


def _shards(move: Move) -> set[int]:
    return {group - 1 for group in move.groups}


def refused(job: Job, why: str, getting_on: bool = False) -> Job:
    """What becomes of a job of which nothing that it wants to begin or to give up is taken. It fails once that goes on
    with nothing running: what runs has to be followed to its end, and can be cancelled. One that is being cancelled
    leaves what it cannot give up to end by itself. getting_on: something of what runs does, so it waits for nothing."""
    if job.running and job.state is not JobState.CANCELLING:
        return _replace(job, why="" if getting_on else why, stuck=0)
    stuck = job.stuck + 1
    if stuck < STUCK_MAX:
        return _replace(job, why=why, stuck=stuck)
    if job.state is JobState.CANCELLING:
        return _replace(job, state=JobState.CANCELLED, running=(), why=f"left to end by itself: {why}", stuck=stuck)
    return _failed(job, why, stuck)


def impossible(job: Job, why: str) -> Job:
    """What becomes of a job whose wish cannot be any more: nothing begins, and it has failed when nothing runs."""
    return _replace(job, why=why) if job.running else _failed(job, why, job.stuck)


def _failed(job: Job, why: str, stuck: int) -> Job:
    """It says first what was done all the same."""
    count = f"{job.moves} move{'s' if job.moves > 1 else ''}"
    done = f"{count} done, {size_in_words(job.moved_bytes)} copied; not done: " if job.moves else ""
    return _replace(job, state=JobState.FAILED, why=f"{done}{why}", stuck=stuck)


def finished(job: Job, move: Move) -> Job:
    """A move that is over, and was not given up."""
    return _replace(
        job,
        moved_documents=job.moved_documents + move.documents,
        moved_bytes=job.moved_bytes + move.bytes,
        moves=job.moves + 1,
    )


def startable(
    moves: Sequence[Move],
    running: Sequence[Running],
    limit: int,
    free: Mapping[NodeId, int | None],
    holders: Mapping[GroupId, Sequence[NodeId]],
) -> tuple[Move, ...]:
    """The first moves that need not wait for another one. A move waits for all before it that are about its groups, and
    until its nodes have room beside what is being copied; room that other moves will free does not count. moves: of one
    plan, which moves no range twice."""
    coming: Counter[NodeId] = Counter()
    for one in running:
        for node in one.nodes:
            coming[node] += one.move.bytes  # what is copied of it may be counted twice, which is on the safe side
    ranged: set[GroupId] = set()
    others: set[GroupId] = set()
    for one in running:
        (ranged if isinstance(one.move, MoveRange) else others).update(one.move.groups)
    chosen: list[Move] = []
    for move in moves:
        if len(running) + len(chosen) >= limit:
            break
        nodes, size = takers(move, holders)
        room = all(free.get(node) is None or (free.get(node) or 0) >= coming[node] + size for node in nodes)
        if isinstance(move, MoveRange):
            apart = not move.groups & others and all(disjoint(move, one.move) for one in running)
        else:
            apart = not move.groups & (others | ranged)
        if room and apart:
            chosen.append(move)
            for node in nodes:
                coming[node] += size
        (ranged if isinstance(move, MoveRange) else others).update(move.groups)
    return tuple(chosen)


def takers(move: Move, holders: Mapping[GroupId, Sequence[NodeId]]) -> tuple[tuple[NodeId, ...], int]:
    """The nodes that a move brings bytes to, and how many to each."""
    if isinstance(move, MoveRange):
        return tuple(holders.get(shard_group(move.target), ())), move.bytes
    if isinstance(move, MoveReplicas) and move.added:
        return move.added, move.bytes // len(move.added)
    return (), 0


def check_invariants(running: Sequence[Running], limit: int) -> None:
    """Raises InvalidArgument if more runs than may, or two moves that must not run together."""
    if len(running) > limit:
        raise invalid("running", len(running), f"at most {limit} moves")
    for at, one in enumerate(running):
        for other in running[:at]:
            if not disjoint(one.move, other.move):
                raise invalid("running", one.move.in_words(), f"not at once with: {other.move.in_words()}")


def progress(job: Job, plan: Plan, running: Sequence[Running], rate: float, held: Sequence[str] = ()) -> Progress:
    """plan: of now, so without what is over or running. rate: bytes a second lately. held: why moves of key ranges
    wait, as their drivers say."""
    copied = job.moved_bytes + sum(min(one.copied, one.move.bytes) for one in running)
    total = job.moved_bytes + sum(one.move.bytes for one in running) + plan.bytes
    if job.state in (JobState.CANCELLED, JobState.FAILED):  # it has no plan any more, and is not all done for that
        total = max(total, job.planned_bytes)
    documents = job.moved_documents + sum(one.move.documents for one in running) + plan.documents
    count = job.moves + len(running) + len(plan.moves)
    part = copied / total if total else job.moves / count if count else 0.0
    return Progress(
        id=job.id,
        state=job.state,
        percent_complete=100.0 if job.state is JobState.DONE else min(99.9, 100 * part),
        moved_documents=job.moved_documents + sum(map(_documents, running)),
        total_documents=documents,
        moved_bytes=copied,
        total_bytes=total,
        rate=rate,
        eta=(total - copied) / rate if rate > 0 and job.state is not JobState.PAUSED else None,
        phases={one.id: one.phase for one in running},
        moves={one.id: _in_words(one, job.config) for one in running},
        why=job.why or "; ".join([*plan.waiting, *plan.beyond_help, *held, *_waiting(job, plan, running)]),
    )


def _in_words(one: Running, config: RebalanceConfig) -> str:
    """A move that runs, with the rate that it is held to while it copies."""
    most = rate_max(one.move, config) if one.phase in (Phase.PREPARE, Phase.COPY) else None
    return one.move.in_words() + (f", at most {size_in_words(round(most))}/s" if most is not None else "")


def _documents(one: Running) -> int:
    """About so many a move has copied so far, by the bytes."""
    move = one.move
    return move.documents * min(one.copied, move.bytes) // move.bytes if move.bytes else 0


def _waiting(job: Job, plan: Plan, running: Sequence[Running]) -> list[str]:
    """What a job that goes on is about, in words."""
    if job.over or not (running or plan.moves):
        return []
    text = f"{len(running)} of at most {job.config.max_concurrent_moves} moves at a time run"
    if job.state is JobState.PAUSED:
        return [f"{text}; nothing starts or copies until it is resumed"]
    if job.state is JobState.CANCELLING:
        return [f"{text}; what is not decided is given up"]
    following = f", {len(plan.moves)} follow" if plan.moves else ""
    return [text + following]
