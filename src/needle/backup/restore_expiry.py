"""When documents of a backup expire that is restored: nodes take none whose instant has passed, and there may be any
number of them in a backup of yesterday. They are written all the same, for index files are about them, too, and are
gone some seconds later. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

from needle.backup.format import Piece
from needle.base.errors import NeedleError
from needle.protocol.commands import NEVER

SOON_SECONDS: Final = (10.0, 10.0, 100.0, 1000.0)
"""They live so long by the leader's clock: more where it took as long to write them, or the leader does not say what
its clock is, as one of a release before, and that is ahead of this machine's."""
AHEAD_SECONDS_MAX: Final = 2000.0
"""Of a clock that is ahead by more, documents are refused: what expires within the hour by this machine's is not
compared (restore_comparing.py)."""


def with_instants(piece: Piece, *, lives: bool) -> Piece:
    """What is said of each document, if anything is. lives: the collection has a time to live, which must not be given
    to documents that had none."""
    expires = [one or NEVER for one in piece.expires]
    if lives and not expires:
        expires = [NEVER] * len(piece.ids)
    return msgspec.structs.replace(piece, expires=expires)


def not_passed(piece: Piece, now: int, seconds: float) -> Piece:
    """The same documents; none that expires sooner than in so many seconds. now: microseconds since 1970."""
    soon = now + int(seconds * 1e6)
    if all(one == NEVER or one >= soon for one in piece.expires):
        return piece
    return msgspec.structs.replace(piece, expires=[one if one == NEVER else max(one, soon) for one in piece.expires])


class LateInstants:
    """What leaders said that refused documents because the instant of one has passed. Until one does, instants are as
    the backup has them; then none is sooner than in a moment by that leader's clock, not by this machine's: by one that
    is ahead documents would come back for as long as that."""

    def __init__(self) -> None:
        self._ahead: int | None = None

    def given(self, piece: Piece, now: int, seconds: float) -> Piece:
        """A piece as it is written. now: this machine's clock, microseconds since 1970. seconds: see SOON_SECONDS."""
        return piece if self._ahead is None else not_passed(piece, now + self._ahead, seconds)

    def heard(self, error: object, now: int) -> bool:
        """Whether a node refused documents for that. now: as above."""
        if not isinstance(error, NeedleError) or error.details.get("field") != "expires_at":
            return False
        said = error.details.get("now")
        ahead = min(said - now, int(AHEAD_SECONDS_MAX * 1e6)) if isinstance(said, int) else 0
        self._ahead = ahead if self._ahead is None else max(self._ahead, ahead)
        return True
