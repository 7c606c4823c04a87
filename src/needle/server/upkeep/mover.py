"""Drives the moves of key ranges whose source this node leads: copy, freeze, hand over, switch the map, clean up.

Everything a move needs is in the catalog and in the two shards' logs, so any later leader of the source goes on where
this one stops; two drivers at once disturb each other, but nothing else: imports are numbered, and the order

    source: Freeze - rest of the copy - target: Confirm - source: Release - target: Own - catalog: the map's next epoch

is kept by every driver, as each step begins after the one before it is committed (`move_commands.STEPS`), but for the
rest and its Confirm, whose order the target's log keeps (docs/adr/0092). Until Release there is a way back: a target
that does not confirm in time has the source thaw and the next attempt begin, and a move that the catalog has cancelled
is given up. See docs/adr/0010. It must not know clients.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from needle.base.errors import AlreadyExists, DeadlineExceeded, Internal, NeedleError, Unavailable
from needle.base.events import MOVE_PHASE, MOVE_STUCK, MOVE_SWITCHED, tell
from needle.base.ids import GroupId, shard_group
from needle.protocol.catalog_commands import AdvanceMove, FinishMove, RestartMove
from needle.protocol.move_commands import Confirm, Discard, Forget, Freeze, GiveUp, Own, Release, Thaw
from needle.routing.jobs import JobState
from needle.routing.topology import MoveInfo, MoveState, Topology, public_name
from needle.server.upkeep.copy_turn import CopyTurn
from needle.server.upkeep.move_steps import STEP_SECONDS, MoveSteps, MovingNode, side_by_side
from needle.server.upkeep.range_copy import Copy, RangeCopier
from needle.server.upkeep.switches import End, Step, Switches
from needle.shard.apply.holdings import FROZEN, GIVEN_UP, OPEN, OVER, RELEASED

log = logging.getLogger("needle.server")

PAUSE_SECONDS = 0.2
ROUNDS_MAX = 8
HELD_SECONDS = 2.0
"""Between two attempts of a move that waits for somebody: each is an entry in the target's log."""
HELD_SECONDS_MAX = 30.0
LOOK_SECONDS = 2.0
"""Between two looks, while a copy rests, whether it is still to be made."""
PAUSED_SECONDS = 0.5
"""Between two looks whether a rebalance that is paused goes on."""
WAY_OUT = "or give the move up by `needle rebalance --cancel`, which leaves all documents of its keys where they are"
NOT_ARRIVED = "is decided, and not at its target yet: its writes and all searches wait"
ARRIVAL_SECONDS = 1.0
"""From the decision on: after it that is told, before any step has failed."""
AGAIN_SECONDS = 0.05
"""Between two tries to finish a copy while its ranges are frozen."""


@dataclass(frozen=True)
class _Held:
    """A move that waits for somebody to do something. group: the source's. again: when to try, by the loop's time."""

    group: GroupId
    why: str
    again: float


class Mover:
    """See the module."""

    def __init__(self, node: MovingNode, rows_max: int, freeze_seconds: float = 2.0) -> None:
        """rows_max: documents looked at in one step, and so copied at once at most. freeze_seconds:
        after which the source of a move that is not decided takes writes again."""
        self._node = node
        self._rows_max = rows_max
        self._freeze_seconds = freeze_seconds
        self._steps = MoveSteps(node)
        self._turn = CopyTurn(self._calls)
        self._copier = RangeCopier(node, self._steps, rows_max, self._turn, self._rest)
        self.switches = Switches(node.now)
        self._idle = False
        self._driven: dict[int, asyncio.Task[None]] = {}
        self._held: dict[int, _Held] = {}
        """Both by move, of those that this node drives."""

    def held(self, group: GroupId) -> list[str]:
        """Why moves of what this node's shard `group` owns wait."""
        return [held.why for held in self._held.values() if held.group == group]

    @property
    def waits(self) -> bool:
        """Whether any move that this node drives does."""
        return bool(self._held)

    def copied(self, group: GroupId) -> dict[int, int]:
        """Documents copied by moves of what this node's shard `group` owns, by move, since this node drives them."""
        return {move: copy.documents for move, copy in self._copier.copies.items() if copy.group == group}

    def _calls(self) -> float:
        """Of all shards that this node holds, a second."""
        now, rates = self._node.now(), [hosted.calls for hosted in self._node.groups.values()]
        return sum(one.writes(now) + one.searches(now) for one in rates)

    async def run(self) -> None:
        """Until the node stops: all moves side by side, but one batch after the other."""
        node = self._node
        try:
            while not node.host.stopped:
                moves = node.topology.moves
                copies = self._copier.copies
                self._copier.copies = {info.id: copy for info in moves if (copy := copies.get(info.id)) is not None}
                self._held = {info.id: self._held[info.id] for info in moves if info.id in self._held}
                self._look_at_switches(moves)
                self._begin(moves)
                self._idle = not moves and not self._driven
                await node.beats.next(PAUSE_SECONDS, self._rests)
        finally:
            driven = list(self._driven.values())
            self._driven.clear()
            for task in driven:
                task.cancel()
            await asyncio.gather(*driven, return_exceptions=True)

    def _rests(self) -> bool:
        return self._idle and not self._node.topology.moves

    def _look_at_switches(self, moves: Sequence[MoveInfo]) -> None:
        """Tell of what was decided and does not arrive."""
        host, groups = self._node.host, self._node.groups
        led = {info.id: info for info in moves if (at := shard_group(info.source)) in groups and host.is_leader(at)}
        self.switches.keep(led)
        for move, info in led.items():
            if move not in self._held and self.switches.decided_for(move) > ARRIVAL_SECONDS:
                self._hold(info, NOT_ARRIVED, 0.0)

    def _begin(self, moves: Sequence[MoveInfo]) -> None:
        """Go on with those that are due. Raises what one ended with that this driver does not know."""
        for move, task in list(self._driven.items()):
            if task.done():
                del self._driven[move]
                task.result()
        for info in moves:
            held = self._held.get(info.id)
            waits = held is not None and asyncio.get_running_loop().time() < held.again
            if info.id not in self._driven and (not waits or info.state is MoveState.CANCELLING):
                self._driven[info.id] = asyncio.create_task(self._drive(info))

    async def _drive(self, info: MoveInfo) -> None:
        """From one state to the next, as long as that works and this node leads the source."""
        node, group = self._node, shard_group(info.source)
        now: MoveInfo | None = info
        if group not in node.groups or not node.host.is_leader(group):
            self._held.pop(info.id, None)
        while now is not None and group in node.groups and node.host.is_leader(group):
            try:
                await self._advance(now)
            except AlreadyExists as error:  # under custom routing: see docs/sharding.md, "Which strategy"
                where = public_name(str(error.details.get("collection")))
                self._hold(now, f"({now.state}), collection {where!r}: {error.message}; {WAY_OUT}", HELD_SECONDS)
                return
            except NeedleError as error:
                log.info("move %d (%s) does not advance: %s", info.id, now.state, error)
                source = self._steps.source(now) if group in node.groups else None
                if source is not None and source.phase == RELEASED and _hurried(now):
                    self._hold(now, f"{NOT_ARRIVED} ({error.message})", 0.0)
                if now.state is MoveState.GIVEN_UP:
                    self._hold(now, f"was given up; its target keeps a copy so far: {error.message}", HELD_SECONDS)
                return
            now = node.topology.move(info.id)
            phase = now.state if now else "done"
            tell(MOVE_PHASE, move=info.id, shard=info.source, target=info.target, phase=phase)
            self._held.pop(info.id, None)

    def _hold(self, info: MoveInfo, why: str, seconds: float) -> None:
        text = f"move {info.id} to shard {info.target} {why}"
        known = self._held.get(info.id)
        if known is None or known.why != text:
            tell(MOVE_STUCK, shard=info.source, why=text, move=info.id)
        again = asyncio.get_running_loop().time() + seconds
        self._held[info.id] = _Held(shard_group(info.source), text, again)

    async def _advance(self, info: MoveInfo) -> None:
        if info.state is MoveState.COPYING:
            copy = await self._prepare(info)
            for _ in range(ROUNDS_MAX):
                copied = await self._copier.copy(info, copy, self._node.topology)
                await self._copier.mark(info, copy)
                if not await self._rest(info, 0.0) and copied <= self._rows_max:
                    break
            await self._steps.tell_catalog(AdvanceMove(info.id, MoveState.FREEZING, attempt=info.attempt))
        elif info.state is MoveState.FREEZING:
            await self._hand_over(info)
        elif info.state is MoveState.CANCELLING:
            await self._give_up(info)
        elif info.state is MoveState.GIVEN_UP:
            await self._steps.tell_target(info, self._steps.prepare(info, info.target))
            while not await self._discarded(info):
                pass
            await self._steps.tell_catalog(FinishMove(info.id))
        else:
            while not await self._forgotten(info):
                pass
            await self._steps.tell_catalog(FinishMove(info.id))

    async def _discarded(self, info: MoveInfo) -> bool:
        """Have the target delete some of its copy; whether nothing is left."""
        async with self._turn.batch():
            return (await self._steps.tell_target(info, Discard(info.id, self._rows_max))).phase == GIVEN_UP

    async def _forgotten(self, info: MoveInfo) -> bool:
        """Have the source delete some of what it has left behind; whether nothing is left."""
        async with self._turn.batch():
            return not (await self._steps.propose(info, Forget(info.id, self._rows_max))).count

    # --- the steps ---------------------------------------------------------------------------------------------------
    async def _prepare(self, info: MoveInfo) -> Copy:
        """Have both shards take part; how far the copy is."""
        await self._steps.propose(info, self._steps.prepare(info, info.source))
        return await self._prepare_target(info)

    async def _prepare_target(self, info: MoveInfo) -> Copy:
        return self._copier.reached(info, await self._steps.tell_target(info, self._steps.prepare(info, info.target)))

    async def _hand_over(self, info: MoveInfo) -> None:
        """Freeze, and release as soon as the target has confirmed; or thaw."""
        await self._steps.propose(info, self._steps.prepare(info, info.source))
        source, copy = self._steps.source(info), None
        if source is not None and source.phase == OPEN and source.attempt <= info.attempt:
            copy = await self._prepare_target(info)  # nothing is frozen for a target that does not answer
            await self._copy_last(info, copy)
            self.switches.frozen(info.id)
            await self._steps.propose(info, Freeze(info.id, info.attempt))
            self.switches.passed(info.id, Step.FREEZE)
        source = self._steps.source(info)
        if source is not None and source.phase == OPEN:
            await self._steps.tell_catalog(RestartMove(info.id, info.attempt))
            return
        if source is not None and source.phase == FROZEN:
            self.switches.frozen(info.id)
            try:
                copy = await self._confirmed(info, copy)
            except (AlreadyExists, DeadlineExceeded) as refused:
                await self._steps.propose(info, Thaw(info.id, info.attempt))
                self.switches.ended(info.id, End.THAWED)
                if isinstance(refused, DeadlineExceeded):
                    pause = min(HELD_SECONDS * 2 ** min(info.attempt, 8), HELD_SECONDS_MAX)
                    self._hold(info, refused.message, pause)
                await self._steps.tell_catalog(RestartMove(info.id, info.attempt))
                raise
            self.switches.passed(info.id, Step.REST)
            await self._switch(info, copy)
        else:
            await self._switch(info)

    async def _copy_last(self, info: MoveInfo, copy: Copy) -> None:
        """What was written since the copy ended: of frozen ranges writes would wait for it."""
        try:
            await self._copier.copy(info, copy, self._node.topology)
        except AlreadyExists:
            await self._steps.tell_catalog(RestartMove(info.id, info.attempt))
            raise

    async def _confirmed(self, info: MoveInfo, copy: Copy | None) -> Copy:
        """Copy the rest and have the target confirm that a majority of it holds everything. copy: how far the target
        is, if that is known. Raises AlreadyExists or DeadlineExceeded if the ranges are to be thawed, Unavailable if
        the catalog has decided otherwise meanwhile."""
        loop, why = asyncio.get_running_loop(), "nothing has answered"
        until = loop.time() + self._freeze_seconds
        while loop.time() < until:
            try:
                async with asyncio.timeout_at(until):
                    copy = copy or await self._prepare_target(info)
                    # The catalog is asked beside the copy, but after the freeze: it may have cancelled the move, and
                    # whatever has documents of these ranges was created before they froze.
                    known = self._node.topology
                    asked = self._node.confirmed(STEP_SECONDS)
                    newest, _ = await side_by_side(asked, self._copy_rest(info, copy, known))
                    if newest.move(info.id) != info:
                        raise Unavailable(f"the catalog has changed move {info.id}")
                    if newest.version != known.version and newest.collections != known.collections:
                        await self._copy_rest(info, copy, newest)
                return copy
            except AlreadyExists:
                raise
            except (NeedleError, TimeoutError) as error:
                copy = None
                now = self._node.topology.move(info.id)
                if now is not None and now != info:
                    raise Unavailable(f"move {info.id} is {now.state} meanwhile") from error
                why = error.message if isinstance(error, NeedleError) else why
            await asyncio.sleep(min(AGAIN_SECONDS, max(0.0, until - loop.time())))
        raise DeadlineExceeded(
            f"begins again: its target did not confirm within {self._freeze_seconds:g} s, so writes go on ({why})"
        )

    async def _copy_rest(self, info: MoveInfo, copy: Copy, topology: Topology) -> None:
        """Copy what is left, of frozen ranges, and have the target confirm it."""
        await self._copier.rest(info, copy, topology, lambda step: Confirm(info.id, step, info.attempt))

    async def _switch(self, info: MoveInfo, copy: Copy | None = None) -> None:
        """Release the ranges, from where there is no way back, and have the target own them. copy: that the target has
        confirmed just now; None of a driver that finds them released."""
        released = await self._steps.propose(info, Release(info.id, info.attempt))
        source = self._steps.source(info)
        if source is None or source.phase != RELEASED:
            raise Internal(f"the source of move {info.id} is not released, but {source}")
        self.switches.passed(info.id, Step.RELEASE)
        self.switches.ended(info.id, End.DECIDED)
        if copy is None:
            target = await self._steps.tell_target(info, self._steps.prepare(info, info.target))
            if target.phase != OVER:
                copy = self._copier.reached(info, target)
                await self._copy_rest(info, copy, await self._node.confirmed(STEP_SECONDS))
        if copy is not None:
            target = await self._steps.tell_target(info, Own(info.id, copy.step, source.floor, info.attempt))
        self.switches.passed(info.id, Step.OWN)
        self.switches.arrived(info.id)
        await self._steps.tell_catalog(
            AdvanceMove(info.id, MoveState.SWITCHED, released.index, target.at, attempt=info.attempt)
        )
        self.switches.passed(info.id, Step.MAP)
        if steps := self.switches.steps(info.id):
            tell(MOVE_SWITCHED, move=info.id, shard=info.source, target=info.target, steps=steps)

    async def _give_up(self, info: MoveInfo) -> None:
        """Have the source keep the ranges; unless it has released them already."""
        await self._steps.propose(info, self._steps.prepare(info, info.source))
        await self._steps.propose(info, GiveUp(info.id))
        source = self._steps.source(info)
        if source is not None and source.phase == GIVEN_UP:
            self.switches.ended(info.id, End.GIVEN_UP)
            await self._steps.tell_catalog(AdvanceMove(info.id, MoveState.GIVEN_UP, attempt=info.attempt))
        else:
            await self._switch(info)

    async def _rest(self, info: MoveInfo, seconds: float) -> bool:
        """Between two batches of a copy, and for as long as its rebalance is paused; returns whether it was. Raises
        Unavailable as soon as the catalog says something else of the move, or this node does not lead its source any
        more. What is copied is known when it goes on."""
        loop, node, source = asyncio.get_running_loop(), self._node, shard_group(info.source)
        until, paused = loop.time() + seconds, False
        while True:
            if node.topology.move(info.id) != info or source not in node.groups or not node.host.is_leader(source):
                raise Unavailable(f"move {info.id} is not to be copied here any more")
            if self._paused(info):
                paused = True
                await asyncio.sleep(PAUSED_SECONDS)
                continue
            if (left := until - loop.time()) <= 0:
                return paused
            await asyncio.sleep(min(left, LOOK_SECONDS))

    def _paused(self, info: MoveInfo) -> bool:
        """Not one that has begun to freeze: it ends, or what is written meanwhile would be copied without its pace."""
        if info.state is not MoveState.COPYING:
            return False
        job = self._node.topology.rebalance
        return job is not None and job.state is JobState.PAUSED and any(one.id == info.id for one in job.running)


def _hurried(info: MoveInfo) -> bool:
    """Whether writes may wait for a move."""
    return info.state in (MoveState.FREEZING, MoveState.CANCELLING)
