"""The replicated dedupe table: which writes of which client sessions were executed, and what they were answered.

Ongaro's thesis, section 6.3. Deterministic: everything depends on log entries only, so all replicas agree, also on
which session is evicted. Invariant: sessions are ordered by the log index that last used them, and there are at most
SESSIONS_MAX; a session keeps at most ANSWERS_MAX answers, all with seq >= acked.

Stored through the rows that `dirty` hands out, in the transaction of the batch. It must not know SQLite.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import msgspec

from needle.base.errors import NeedleError, SessionExpired, from_wire
from needle.base.model import WriteResult
from needle.shard.commands import Session

SESSIONS_MAX = 10_000
ANSWERS_MAX = 4096

SessionRow = tuple[int, bytes, int, bytes]
"""(session id, nonce as 16 bytes, index of the last entry that used it, state as MessagePack)."""

NONCE_MAX = 2**64 - 1


class _State(msgspec.Struct, array_like=True):
    """What one session's row holds. answers: seq -> [version, index, existed, count] or [code, message, details]."""

    acked: int = 1
    answers: dict[int, Any] = {}  # msgspec copies the default


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_State)


def _pack(result: WriteResult | NeedleError) -> list[Any]:
    if isinstance(result, NeedleError):
        return [result.code, result.message, result.details]
    return [result.version, result.index, result.existed, result.count]


def _unpack(stored: list[Any]) -> WriteResult | NeedleError:
    if isinstance(stored[0], str):
        return from_wire(stored[0], stored[1], stored[2])
    return WriteResult(version=stored[0], index=stored[1], existed=stored[2], count=stored[3])


class SessionTable:
    """All sessions of a shard. `open`, `find` and `record` are called in log order by apply only."""

    def __init__(self, rows: Iterable[SessionRow] = (), sessions_max: int = SESSIONS_MAX) -> None:
        """rows: as stored, in any order."""
        self._max = sessions_max
        self._states: OrderedDict[int, _State] = OrderedDict()
        self._nonces: dict[int, bytes] = {}
        self._by_nonce: dict[bytes, int] = {}
        self._used: dict[int, int] = {}
        self._touched: dict[int, None] = {}
        self._evicted: dict[int, None] = {}
        for session, nonce, used, state in sorted(rows, key=lambda row: row[2]):
            self._add(session, nonce, used, _decoder.decode(state))

    def __len__(self) -> int:
        return len(self._states)

    def _add(self, session: int, nonce: bytes, used: int, state: _State) -> None:
        self._states[session] = state
        self._nonces[session] = nonce
        self._by_nonce[nonce] = session
        self._used[session] = used

    def _touch(self, session: int, index: int) -> _State:
        self._used[session] = index
        self._touched[session] = None
        self._states.move_to_end(session)
        return self._states[session]

    def open(self, nonce: int, index: int) -> int:
        """Register a session; a nonce that is known gives the id it got before. Evicts the least recently used."""
        key = (nonce & (2**128 - 1)).to_bytes(16, "little")
        known = self._by_nonce.get(key)
        if known is not None:
            self._touch(known, index)
            return known
        while len(self._states) >= self._max:
            self._evict(next(iter(self._states)))
        self._add(index, key, index, _State())
        self._touch(index, index)
        return index

    def _evict(self, session: int) -> None:
        del self._states[session], self._used[session]
        del self._by_nonce[self._nonces.pop(session)]
        self._touched.pop(session, None)
        self._evicted[session] = None

    def find(self, session: Session, index: int) -> WriteResult | NeedleError | None:
        """The answer this numbered write got before, or None if it is to be executed now.

        SessionExpired when the session is unknown, or when this write's answer was forgotten because the client
        acknowledged it (or left ANSWERS_MAX later ones unacknowledged).
        """
        if session.id not in self._states:
            return SessionExpired(
                f"session {session.id} is unknown here: it was evicted, being the least recently used of {self._max}, "
                f"or never opened. Whether write {session.seq} took effect is not known; read, then open a new session",
                session=session.id,
            )
        state = self._touch(session.id, index)
        if session.acked > state.acked:
            state.acked = session.acked
            # Answers stand in the order of their writes' log entries, nearly that of their numbers: the few that
            # hide behind a later number go when they come first. Looking at all of them would cost every write.
            answers = state.answers
            while answers and (first := next(iter(answers))) < state.acked:
                del answers[first]
        if session.seq < state.acked:
            return SessionExpired(
                f"write {session.seq} of session {session.id} was answered before and its answer is forgotten; "
                f"it was not executed again",
                session=session.id,
            )
        stored = state.answers.get(session.seq)
        return None if stored is None else _unpack(stored)

    def record(self, session: Session, result: WriteResult | NeedleError) -> None:
        """Keep the answer of an executed write, after `find` returned None."""
        state = self._states[session.id]
        state.answers[session.seq] = _pack(result)
        if len(state.answers) > ANSWERS_MAX:
            oldest = min(state.answers)
            del state.answers[oldest]
            state.acked = max(state.acked, oldest + 1)

    def dirty(self) -> tuple[dict[int, SessionRow], list[int]]:
        """(rows to store, by session id; ids to delete) since the last call."""
        rows = {s: (s, self._nonces[s], self._used[s], _encoder.encode(self._states[s])) for s in sorted(self._touched)}
        evicted = sorted(self._evicted)
        self._touched.clear()
        self._evicted.clear()
        return rows, evicted

    def rows(self) -> list[SessionRow]:
        """Every session, by id: equal on replicas at equal applied index."""
        return [(s, self._nonces[s], self._used[s], _encoder.encode(self._states[s])) for s in sorted(self._states)]
