"""Whether SQLite's write-ahead log still holds what was written to it.

SQLite compares the sums of its frames when it opens a log that another process left behind, and never again; pages have
no sums of their own there yet, they get them in the main file (sqlite_file.py). A bit that flipped in between would get
a right one. So the frames are compared before a checkpoint moves them: cost follows what was written since the last.
Those that it cannot move, for somebody reads what was there before, are compared again before the next one.

Format and sums: "WAL File Format" and "Checksum Algorithm", https://www.sqlite.org/fileformat2.html sections 4.1, 4.2.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import apsw
import numpy as np
import numpy.typing as npt

from needle.base.errors import CorruptDocuments
from needle.shard.documents.sqlite_file import PAGE_BYTES

HEADER_BYTES: Final = 32
FRAME_BYTES: Final = 24 + PAGE_BYTES
AT_ONCE: Final = 256
"""Frames that are read together: 1 MiB."""
_SALTS: Final = slice(16, 24)
_PAIRS: Final = (8 + PAGE_BYTES) // 8
_BIG_ENDIAN: Final = 0x377F0683
_Words = npt.NDArray[np.uint32]


def _weights() -> tuple[_Words, tuple[int, int, int]]:
    """The sum of a frame as a linear map of its words, shape (2 * _PAIRS, 2), and of the sum before it: for each pair
    of words s1 += x + s2 and then s2 += y + s1, so (s1, s2) is multiplied by ((1, 1), (1, 2)) and (x, x + y) added."""
    a, b, d = 1, 0, 1
    rows: list[tuple[int, int]] = []
    for _ in range(_PAIRS):
        rows += [(b, d), (a + b, b + d)]
        a, b, d = (n % 2**32 for n in (a + b, a + 2 * b, b + 2 * d))
    return np.array([[n % 2**32 for n in row] for row in reversed(rows)], np.uint32), (a, b, d)


_OF_WORDS, _OF_LAST = _weights()
_OF_HEAD: Final = _OF_WORDS[:2]
_OF_PAGE: Final = np.ascontiguousarray(_OF_WORDS[2:].T)


class Seen(NamedTuple):
    """How many frames of the log with these salts are what was written."""

    salts: bytes
    frames: int


class WalCheck:
    """Compares the frames of one log. path: of the database. compared: how many frames, in all."""

    def __init__(self, path: str) -> None:
        self._path = path + "-wal"
        self.compared = 0

    def run(self, connection: apsw.Connection, seen: Seen | None = None) -> Seen | None:
        """Compare the frames that no checkpoint has moved, but for those that were seen a moment ago; what was seen.
        Nobody writes meanwhile, and the connection is in no transaction. Raises CorruptDocuments, OSError."""
        frames, moved = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
        if frames <= moved:
            return None
        with open(self._path, "rb") as file:
            header = file.read(HEADER_BYTES)
            order = ">u4" if int.from_bytes(header[:4], "big") == _BIG_ENDIAN else "<u4"
            begin = max(moved, seen.frames) if seen is not None and seen.salts == header[_SALTS] else moved
            last = header[24:32]
            if begin:
                file.seek(HEADER_BYTES + (begin - 1) * FRAME_BYTES)
                last = file.read(24)[16:24]
            file.seek(HEADER_BYTES + begin * FRAME_BYTES)
            for first in range(begin, frames, AT_ONCE):
                count = min(AT_ONCE, frames - first)
                last = self._compare(file.read(count * FRAME_BYTES), first, count, header[_SALTS], last, order)
                self.compared += count
        return Seen(header[_SALTS], frames)

    def _compare(self, data: bytes, first: int, count: int, salts: bytes, last: bytes, order: str) -> bytes:
        """Compare `count` frames from `first` on; the sum of the last one. last: of the one before."""
        if len(data) < count * FRAME_BYTES:
            raise self._damaged(f"it ends within frame {first + len(data) // FRAME_BYTES}")
        frames = np.frombuffer(data, np.uint8).reshape(count, FRAME_BYTES)
        head = frames[:, :8].view(order).astype(np.uint32, copy=False)
        page = frames[:, 24:].view(order).astype(np.uint32, copy=False)
        stored = np.ascontiguousarray(frames[:, 16:24]).view(">u4").astype(np.uint32)
        before = np.vstack((np.frombuffer(last, ">u4").astype(np.uint32), stored[:-1]))
        a, b, d = (np.uint32(n) for n in _OF_LAST)
        carried = np.stack((a * before[:, 0] + b * before[:, 1], b * before[:, 0] + d * before[:, 1]), axis=1)
        salted = np.frombuffer(salts, np.uint8)
        # A product of integers takes four times as long as these two sums.
        summed = np.stack([np.einsum("ij,j->i", page, weights) for weights in _OF_PAGE], axis=1) + head @ _OF_HEAD
        wrong = ((summed + carried) != stored).any(axis=1) | (frames[:, 8:16] != salted).any(axis=1)
        if wrong.any():
            raise self._damaged(f"frame {first + int(wrong.argmax())} is not what was written")
        return bytes(stored[-1].astype(">u4"))

    def _damaged(self, what: str) -> CorruptDocuments:
        return CorruptDocuments(f"{self._path} is damaged: {what}", path=self._path)
