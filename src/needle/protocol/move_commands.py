"""The commands by which the logs of two shards move key ranges from one to the other (docs/adr/0010).

Each names its move by the catalog's id. Applied a second time, or after the move is over, it changes nothing. Their
order in the logs is the proof: the source's Freeze, the target's Confirm, the source's Release, the target's Own, and
only then the map's next epoch. Release decides: before it the source's Thaw or GiveUp leads back, after it nothing
does. Entries of earlier releases name no attempt, which is their first and only one.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from needle.base.versions import NAMED
from needle.protocol.named import Named
from needle.protocol.versioned import Versioned
from needle.routing.shard_map import KeyRange
from needle.routing.strategy import ShardStrategy
from needle.routing.topology import MoveState


class PrepareMove(Versioned, frozen=True, tag="move-prepare"):
    """A shard takes part in a move. incoming: as the target. owned: what the shard owned when the cluster was made,
    which it notes if this is its first move. oldest: of the catalog's moves that are under way, which lets it forget
    those that are over; commands of older ones are refused."""

    move: int
    oldest: int
    incoming: bool
    ranges: list[KeyRange]
    owned: list[KeyRange]
    strategy: ShardStrategy
    shard_count: int


class Mark(Versioned, frozen=True, tag="move-mark"):
    """The source, not released yet: find out which documents of one collection, up to this ordinal, are of the ranges.
    So that Release, which has to know all of them, does not have to look at a large shard at once."""

    move: int
    collection: str
    upto: int


class Freeze(Versioned, frozen=True, tag="move-freeze"):
    """The source: from this entry on, writes to the ranges are refused. The answer's version is the highest version
    that the source has given or could have given to a document of them. Refused if the attempt was thawed."""

    move: int
    attempt: int = 0


class Thaw(Versioned, frozen=True, tag="move-thaw"):
    """The source, frozen by this attempt: from this entry on it takes writes to the ranges again, and the attempt is
    over. After Release it changes nothing."""

    move: int
    attempt: int


class Release(Versioned, frozen=True, tag="move-release"):
    """The source, frozen by this attempt: from this entry on it does not own the ranges. What it holds of them is
    invisible. There is no way back from here."""

    move: int
    attempt: int = 0


class GiveUp(Versioned, frozen=True, tag="move-give-up"):
    """The source, not released: from this entry on it takes no part in the move any more, and keeps the ranges. After
    Release it changes nothing."""

    move: int


class Import(Versioned, frozen=True, tag="move-import"):
    """The target: documents of one collection that stay invisible until Own. Applied only as the step-th of the move's
    imports. cursor: all of the source's ordinals up to it were looked at. deleted: ids that the source has deleted
    since they were copied. vectors: as the source stores them. whole: refused if the target has a document of one of
    `ids` that this move did not bring; otherwise, as earlier releases wrote it, such an id is left out. expires: when
    each expires, as the source has it (0: never); [] if none does. named: their named vectors."""

    NEWER: ClassVar[dict[str, int]] = {"expires": 2, "named": NAMED}

    move: int
    step: int
    collection: str
    cursor: int
    ids: list[str]
    versions: list[int]
    vectors: bytes
    metadata: list[bytes]
    deleted: list[str]
    whole: bool = False
    expires: list[int] = []
    named: list[Named] = []


class ImportRequests(Versioned, frozen=True, tag="move-requests"):
    """The target: what requests with idempotency keys the source has executed, so that they are known here as well.
    Applied only as the step-th of the move's imports. rows: as `once.OnceTable.rows_after` has them."""

    SINCE: ClassVar[int] = 3

    move: int
    step: int
    rows: list[bytes]


class Confirm(Versioned, frozen=True, tag="move-confirm"):
    """The target: a majority of it holds all that was imported, if `step` imports were applied. Sent once the source is
    frozen by this attempt and nothing is left to copy; Release follows it, and only then Own."""

    move: int
    step: int
    attempt: int


class Own(Versioned, frozen=True, tag="move-own"):
    """The target: from this entry on it owns the ranges, and what was imported is visible; if `step` imports were
    applied, and the attempt is the one that it has confirmed. floor: what it gives to documents from now on is a higher
    version than this. attempt: -1 of releases that confirmed nothing."""

    move: int
    step: int
    floor: int
    attempt: int = -1


class Discard(Versioned, frozen=True, tag="move-discard"):
    """The target of a move that was given up: delete up to `limit` of the documents that it has imported, and take no
    more of them. The answer's count: how many; with none left the move is over for this shard."""

    move: int
    limit: int


class Forget(Versioned, frozen=True, tag="move-forget"):
    """The source, released: delete up to `limit` of the documents it left behind. The answer's count: how many; with
    none left the move is over for this shard."""

    move: int
    limit: int


MoveCommand = (
    PrepareMove | Mark | Freeze | Release | Import | ImportRequests | Own | Forget | Thaw | GiveUp | Confirm | Discard
)
MOVE_COMMANDS = (
    PrepareMove,
    Mark,
    Freeze,
    Release,
    Import,
    ImportRequests,
    Own,
    Forget,
    Thaw,
    GiveUp,
    Confirm,
    Discard,
)


class Side(StrEnum):
    """One of a move's two shards."""

    SOURCE = "source"
    TARGET = "target"


Step = tuple[Side, type[MoveCommand]]
_BEGIN: tuple[Step, ...] = ((Side.SOURCE, PrepareMove), (Side.TARGET, PrepareMove))
_IMPORTS: tuple[Step, ...] = ((Side.TARGET, Import), (Side.TARGET, ImportRequests))
_DECIDED: tuple[Step, ...] = (*_IMPORTS, (Side.TARGET, Confirm), (Side.SOURCE, Release), (Side.TARGET, Own))

STEPS: dict[MoveState, tuple[Step, ...]] = {
    MoveState.COPYING: (*_BEGIN, *_IMPORTS, (Side.SOURCE, Mark)),
    MoveState.FREEZING: (*_BEGIN, (Side.SOURCE, Freeze), *_DECIDED, (Side.SOURCE, Thaw)),
    MoveState.SWITCHED: ((Side.SOURCE, Forget),),
    MoveState.CANCELLING: (*_BEGIN, (Side.SOURCE, GiveUp), *_DECIDED),
    MoveState.GIVEN_UP: ((Side.TARGET, PrepareMove), (Side.TARGET, Discard)),
}
"""What a driver sends to whose log while the catalog has the move in a state, in this order; nothing else. A driver
that takes over begins its state again. Thaw instead of Release when the target does not confirm in time; what follows
GiveUp only where the source had released."""

NEXT: dict[MoveState, tuple[tuple[str, MoveState | None], ...]] = {
    MoveState.COPYING: (("AdvanceMove", MoveState.FREEZING), ("CancelMove", MoveState.CANCELLING)),
    MoveState.FREEZING: (
        ("AdvanceMove", MoveState.SWITCHED),
        ("RestartMove", MoveState.COPYING),
        ("CancelMove", MoveState.CANCELLING),
    ),
    MoveState.SWITCHED: (("FinishMove", None),),
    MoveState.CANCELLING: (("AdvanceMove", MoveState.GIVEN_UP), ("AdvanceMove", MoveState.SWITCHED)),
    MoveState.GIVEN_UP: (("FinishMove", None),),
}
"""By which command of the catalog a move goes from one state to which; None: it is forgotten."""
