"""What a rebalance may do, by the catalog's log alone; it shares no code with the coordinator.

Checked at each change of the topology:
- One rebalance at a time; what is over stays so, and the next one has a higher id.
- No more moves at a time than the limit, and no two about the same shard, unless both move key ranges.
- Nothing begins while it is paused, is being cancelled, or is over; what is written down as begun has begun.
- What runs goes on until it has ended: a move of ranges when its record is gone or says that it was given up, one of
  replicas when nobody is leaving, or others were decided on. Only who is cancelled and waits for a shard that stays
  silent leaves it to end by itself, and says so, after many looks.
- Who is cancelled or has failed runs nothing: the next one would begin beside it.
- A node that is being replaced gets no replica.
- Who says `done` has what was wished: who was replaced is removed, retired shards are gone, as many serve as were
  asked for, each owns something, and nodes that are to be emptied hold nothing, nor those that it calls lost or gives
  the weight 0, unless others have decided on their shards since its last step.
- Who says `done` has left each shard with as many replicas as an operator said, unless others have decided on its
  nodes, or an operator on that number, since its last step.
- A retired shard owned nothing, by the shards' logs.
- How a rebalance ended is known when the next one has begun, and stays so while it is among the last few.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

from needle.base.ids import CATALOG_GROUP, NodeId, group_name, shard_group
from needle.routing.jobs import Job, JobState, Running
from needle.routing.planned_moves import MoveRange, MoveReplicas
from needle.routing.shard_map import KeyRange
from needle.routing.topology import MoveState, NodeState, Topology
from proof.checkers.violation import Violation

NAME = "rebalances"
_OVER = {JobState.DONE, JobState.FAILED, JobState.CANCELLED}
ENDINGS = 5
"""The cluster's version from which on their ends are kept; ENDINGS_MIN: of so many at least."""
ENDINGS_MIN = 8
LOOKS_MIN = 10
"""So many steps a cancelled one takes at least before it leaves anything to end by itself."""


class Rebalances:
    """See the module. done: how many ended with what was wished."""

    def __init__(self, owned: Callable[[int], Sequence[KeyRange]]) -> None:
        """owned: what a shard owns now, by its log."""
        self._owned = owned
        self.done = 0
        self.begun = 0
        self._cancelling = (0, 0)
        """The rebalance that was cancelled last, and at which of its revisions."""
        self._wanted: dict[int, tuple[NodeId, ...]] = {}
        """The nodes of each shard, at the last step of a rebalance: who takes the next one has looked since."""
        self._said = 0
        """How many replicas each was to have then."""

    def changed(self, before: Topology, now: Topology) -> None:
        """Raises Violation."""
        for old, new in zip(before.shards, now.shards, strict=False):
            if new.retired and not old.retired and self._owned(new.shard):
                raise Violation(NAME, f"shard {new.shard} is retired and owns key ranges by its log")
        if len(now.shards) < len(before.shards):
            raise Violation(NAME, f"{len(before.shards)} shards were known, now {len(now.shards)}")
        job, was = now.rebalance, before.rebalance
        self._kept(before, now)
        if job is None or job == was:
            if was is not None and job is None:
                raise Violation(NAME, f"rebalance {was.id} is forgotten")
            return
        if was is not None and was.id != job.id and (was.state not in _OVER or job.id < was.id):
            raise Violation(NAME, f"rebalance {job.id} begins while {was.id} is {was.state}")
        if was is not None and was.id == job.id and was.state in _OVER:
            raise Violation(NAME, f"rebalance {job.id} was {was.state} and becomes {job.state}")
        self._at_once(job)
        if job.state is JobState.FAILED and job.running:
            raise Violation(NAME, f"rebalance {job.id} has failed, and still runs: {job.running[0].move.in_words()}")
        known = {one.id for one in was.running} if was is not None and was.id == job.id else set()
        for one in job.running:
            if one.id not in known:
                self._began(job, one, now)
        self._replacing(before, now, job)
        left = self._left(job)
        for one in was.running if was is not None and was.id == job.id and not left else ():
            if one not in job.running:
                self._ended(one, now)
        if job.state is JobState.DONE:
            self._done(job, now)
        self._wanted = {info.shard: info.wanted for info in now.serving}
        self._said = now.replicas

    def _kept(self, before: Topology, now: Topology) -> None:
        job, was = now.rebalance, before.rebalance
        known = [(one.id, one.state) for one in before.ended]
        if job is not None and was is not None and job.id != was.id and now.cluster_version >= ENDINGS:
            known.append((was.id, was.state))
        told = [(one.id, one.state) for one in now.ended]
        if told != known[len(known) - len(told) :] or len(told) < min(len(known), ENDINGS_MIN):
            raise Violation(NAME, f"of the rebalances that ended so, {known}, the catalog keeps {told}")

    def _replacing(self, before: Topology, now: Topology, job: Job) -> None:
        old = job.wish.replace.old if job.wish.replace is not None else ""
        if old and len(_held(now, old)) > len(_held(before, old)):
            raise Violation(NAME, f"{old} is being replaced, and gets a replica: {_held(now, old)}")

    def _left(self, job: Job) -> bool:
        """Whether a cancelled one is over without what it began."""
        if job.state is JobState.CANCELLING and self._cancelling[0] != job.id:
            self._cancelling = (job.id, job.revision)
        if job.state is not JobState.CANCELLED:
            return False
        if job.running:
            raise Violation(NAME, f"rebalance {job.id} is cancelled, and still runs: {job.running[0].move.in_words()}")
        id_, since = self._cancelling
        if job.why and id_ == job.id and job.revision - since < LOOKS_MIN:
            raise Violation(
                NAME, f"rebalance {job.id} is over {job.revision - since} steps after its cancel: {job.why}"
            )
        return bool(job.why)

    def _at_once(self, job: Job) -> None:
        if len(job.running) > job.config.max_concurrent_moves:
            raise Violation(NAME, f"{len(job.running)} moves run, {job.config.max_concurrent_moves} may")
        for one, other in combinations(job.running, 2):
            ranges = isinstance(one.move, MoveRange) and isinstance(other.move, MoveRange)
            if not ranges and one.move.groups & other.move.groups:
                raise Violation(NAME, f"at once: {one.move.in_words()}; {other.move.in_words()}")

    def _began(self, job: Job, one: Running, now: Topology) -> None:
        self.begun += 1
        if job.state is not JobState.RUNNING:
            raise Violation(NAME, f"{one.move.in_words()} begins while rebalance {job.id} is {job.state}")
        if isinstance(one.move, MoveRange):
            info = now.move(one.id)
            there = info is not None and (info.source, info.target) == (one.move.source, one.move.target)
        elif isinstance(one.move, MoveReplicas):
            holders = now.holders(one.move.group)
            there = holders is not None and set(holders.wanted) == set(one.move.after)
        else:
            return
        if one.id != now.version or not there:
            raise Violation(NAME, f"written down as begun, and has not: {one.move.in_words()}")

    def _ended(self, one: Running, now: Topology) -> None:
        info = now.move(one.id) if isinstance(one.move, MoveRange) else None
        if info is not None and info.state is not MoveState.GIVEN_UP:
            raise Violation(NAME, f"counted as done, and goes on: {one.move.in_words()}")
        if isinstance(one.move, MoveReplicas):
            holders = now.holders(one.move.group)
            if holders is not None and holders.leaving and set(holders.wanted) == set(one.move.after):
                raise Violation(NAME, f"counted as done, and nodes are leaving: {one.move.in_words()}")

    def _done_by_hand(self, job: Job, now: Topology) -> None:
        """What was named has moved; nothing is said of the rest."""
        move, split = job.wish.move, job.wish.split
        owned = set(now.map.owners) if now.map is not None else set()
        if split is not None and not {split.shard, split.into} <= owned:
            raise Violation(NAME, f"rebalance {job.id} is done, and shard {split.shard} is not split: {sorted(owned)}")
        new = job.wish.replace
        gone = now.node(new.old) if new is not None else None
        if new is not None and (gone is None or gone.state is not NodeState.REMOVED):
            raise Violation(NAME, f"rebalance {job.id} is done, and {new.old}, which it replaces, is not removed")
        group = shard_group(move.shard) if move is not None else CATALOG_GROUP
        holders, name = now.holders(group), group_name(group)
        if move is not None and (holders is None or move.source in holders.all or move.target not in holders.wanted):
            raise Violation(NAME, f"rebalance {job.id} is done, and {name} is on {holders}")

    def _done(self, job: Job, now: Topology) -> None:
        self.done += 1
        serving = [info.shard for info in now.serving]
        if job.running:
            raise Violation(NAME, f"rebalance {job.id} is done, and moves run")
        if kept := set(job.wish.retire).intersection(serving):
            raise Violation(NAME, f"rebalance {job.id} is done, and shards {sorted(kept)} serve")
        if job.wish.shards is not None and len(serving) != job.wish.shards:
            raise Violation(NAME, f"rebalance {job.id} is done with {len(serving)} of {job.wish.shards} shards")
        owners = set(now.map.owners) if now.map is not None else set()
        if job.wish.shards is not None and (empty := sorted(set(serving) - owners)):
            raise Violation(NAME, f"rebalance {job.id} is done, and shards {empty} own nothing")
        if job.wish.by_hand:
            self._done_by_hand(job, now)
            return
        for node in (info.id for info in now.nodes if info.state is NodeState.DRAINING):
            if held := _held(now, node):
                raise Violation(NAME, f"rebalance {job.id} is done, and {node}, to be emptied, holds {held}")
        emptied = {*job.wish.lost, *(node for node, weight in job.wish.weights.items() if weight == 0)}
        for info in now.serving:
            if (still := emptied.intersection(info.wanted)) and self._wanted.get(info.shard) == info.wanted:
                what = f"{min(still)}, which it was to empty, holds shard {info.shard}"
                raise Violation(NAME, f"rebalance {job.id} is done, and {what}")
        judged = now.replicas == self._said != 0 and job.wish.replicas in (None, now.replicas)
        for info in now.serving if judged else ():
            if len(info.wanted) != now.replicas and self._wanted.get(info.shard) == info.wanted:
                what = f"shard {info.shard} has {len(info.wanted)} of {now.replicas} replicas"
                raise Violation(NAME, f"rebalance {job.id} is done, and {what}")


def _held(now: Topology, node: NodeId) -> list[str]:
    held = [f"shard {info.shard}" for info in now.serving if node in info.replicas]
    return held + (["the catalog"] if node in now.catalog else [])
