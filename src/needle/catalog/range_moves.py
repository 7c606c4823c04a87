"""What the catalog's commands about moves of key ranges make of the topology. Pure; `state` executes them.

Invariants: a state follows another one as `move_commands.NEXT` says; a command of an attempt that is over changes
nothing; one that comes twice changes nothing the second time (the topology is the same object).
"""

from __future__ import annotations

import msgspec

from needle.base.config import check_range
from needle.base.errors import InvalidArgument, invalid
from needle.protocol.catalog_commands import AdvanceMove, CancelMove, FinishMove, RestartMove, StartMove
from needle.protocol.move_commands import NEXT
from needle.routing.ranges import check_ranges, contains, overlap
from needle.routing.topology import MoveInfo, MoveState, Topology

MOVES_MAX = 256

_replace = msgspec.structs.replace


def started(now: Topology, index: int, command: StartMove) -> Topology:
    """With a move that has its nonce; raises InvalidArgument for one that cannot be."""
    if any(info.nonce == command.nonce for info in now.moves):
        return now
    if now.map is None or now.map.epoch != command.epoch:
        raise InvalidArgument(f"the move was planned by the map of epoch {command.epoch}, which is old", field="epoch")
    if len(now.moves) >= MOVES_MAX:
        raise invalid("move", len(now.moves) + 1, f"at most {MOVES_MAX} at a time")
    for field, shard in (("source", command.source), ("target", command.target)):
        if not 0 <= shard < len(now.shards) or now.shards[shard].retired:
            raise invalid(field, shard, f"a shard below {len(now.shards)} that is not retired")
    if command.source == command.target:
        raise invalid("target", command.target, "another shard than the source")
    check_ranges("ranges", command.ranges)
    if not contains(now.map.ranges(command.source), command.ranges):
        raise invalid("ranges", command.ranges, f"ranges that shard {command.source} owns")
    if any(overlap(command.ranges, info.ranges) for info in now.moves):
        raise invalid("ranges", command.ranges, "ranges that no other move is about")
    check_range("batch_size", command.batch_size, 0, 10_000)
    check_range("throttle_rate", command.throttle_rate, 0, 3600)
    made = MoveInfo(
        id=index,
        nonce=command.nonce,
        ranges=tuple(command.ranges),
        source=command.source,
        target=command.target,
        batch_size=command.batch_size,
        throttle_rate=command.throttle_rate,
    )
    return _replace(now, moves=(*now.moves, made))


def _before(command: str, after: MoveState | None) -> tuple[MoveState, ...]:
    return tuple(state for state, ways in NEXT.items() if (command, after) in ways)


_ADVANCED_FROM = {state: _before("AdvanceMove", state) for state in MoveState}
_RESTARTED_FROM = _before("RestartMove", MoveState.COPYING)
_CANCELLED_FROM = _before("CancelMove", MoveState.CANCELLING)
_FINISHED_FROM = _before("FinishMove", None)
_ORDER = (MoveState.COPYING, MoveState.FREEZING, MoveState.SWITCHED)


def advanced(now: Topology, command: AdvanceMove) -> Topology:
    """In its next state. Raises InvalidArgument if that is not the next one, or of another attempt."""
    info = now.move(command.move)
    if info is None or info.state is command.state or _passed(info.state, command.state):
        return now
    if info.state not in _ADVANCED_FROM[command.state]:
        raise invalid("state", command.state, f"one that follows {info.state}")
    if info.attempt != command.attempt:
        raise invalid("attempt", command.attempt, f"{info.attempt}: the others of move {info.id} are over")
    changed = _replace(info, state=command.state)
    made = _with_move(now, info, changed)
    if command.state is MoveState.SWITCHED and now.map is not None:
        if min(command.source_index, command.target_index) < 1:
            raise invalid("index", [command.source_index, command.target_index], "indices of both shards' entries")
        since = {info.source: command.source_index, info.target: command.target_index}
        shards = tuple(_replace(s, since=max(s.since, since.get(s.shard, 0))) for s in now.shards)
        made = _replace(made, map=now.map.moved(info.ranges, info.target), shards=shards)
    return made


def _passed(state: MoveState, asked: MoveState) -> bool:
    """Whether a move in `state` has left `asked` behind: then the command is a late one."""
    return state in _ORDER and asked in _ORDER and _ORDER.index(state) > _ORDER.index(asked)


def _with_move(now: Topology, info: MoveInfo, changed: MoveInfo) -> Topology:
    return _replace(now, moves=tuple(changed if other is info else other for other in now.moves))


def restarted(now: Topology, command: RestartMove) -> Topology:
    """Copying again. Raises InvalidArgument unless this attempt was freezing."""
    info = now.move(command.move)
    if info is None or info.attempt > command.attempt or info.state not in (*_RESTARTED_FROM, MoveState.COPYING):
        return now
    if info.state not in _RESTARTED_FROM or info.attempt != command.attempt:
        raise invalid("attempt", command.attempt, f"{info.attempt}, of a move that is {_either(_RESTARTED_FROM)}")
    again = _replace(info, state=MoveState.COPYING, attempt=info.attempt + 1)
    return _with_move(now, info, again)


def cancelled(now: Topology, command: CancelMove) -> Topology:
    """To be given up, unless it is decided or over."""
    info = now.move(command.move)
    if info is None or info.state not in _CANCELLED_FROM:
        return now
    return _with_move(now, info, _replace(info, state=MoveState.CANCELLING))


def finished(now: Topology, command: FinishMove) -> Topology:
    """Forgotten. Raises InvalidArgument if something of it is left to do."""
    info = now.move(command.move)
    if info is None:
        return now
    if info.state not in _FINISHED_FROM:
        raise invalid("state", info.state, f"a move that is {_either(_FINISHED_FROM)}")
    return _replace(now, moves=tuple(other for other in now.moves if other is not info))


def _either(states: tuple[MoveState, ...]) -> str:
    return " or ".join(states)
