"""The replicated dedupe table: which writes of which client sessions were executed, and what they were answered.

Ongaro's thesis, section 6.3. Deterministic: everything depends on log entries only, so all replicas agree, also on
which session is evicted. Invariant: sessions are ordered by the log index that last used them, and there are at most
SESSIONS_MAX; a session keeps at most ANSWERS_MAX answers, all with seq >= acked; all of them together take at most
ANSWERS_BYTES_MAX, for which sessions that were not used for longest forget their oldest answers.

Stored through the rows that `dirty` hands out, in the transaction of the batch: an answer is a row of its own, so that
a write costs the same however many are kept. It must not know SQLite.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from needle.base.errors import NeedleError, SessionExpired
from needle.base.model import WriteResult
from needle.protocol.commands import Session
from needle.shard.apply.once import SESSION, OnceTable
from needle.shard.apply.stored_answers import ANSWER_BYTES, pack, unpack
from needle.shard.documents.records import AnswerRow, SessionRow

SESSIONS_MAX = 10_000
ANSWERS_MAX = 4096
ANSWERS_BYTES_MAX = 64 << 20

NONCE_MAX = 2**64 - 1


class _State(msgspec.Struct):
    """answers: by seq, as stored."""

    acked: int = 1
    answers: dict[int, bytes] = {}  # msgspec copies the default


class Changed(msgspec.Struct, frozen=True):
    """What is to be stored. sessions: by id. evicted: sessions, to be deleted with all of their answers. answers: by
    (session, seq); None: to be deleted."""

    sessions: dict[int, SessionRow]
    evicted: list[int]
    answers: dict[tuple[int, int], bytes | None]


class SessionTable:
    """All sessions of a shard. `open`, `find` and `record` are called in log order by apply only. once: what is
    remembered of requests with idempotency keys, which is stored with them."""

    def __init__(
        self,
        rows: Iterable[SessionRow] = (),
        answers: Iterable[AnswerRow] = (),
        sessions_max: int = SESSIONS_MAX,
        bytes_max: int = ANSWERS_BYTES_MAX,
    ) -> None:
        """rows, answers: as stored; rows in any order, answers by session and seq."""
        self._max = sessions_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self._states: OrderedDict[int, _State] = OrderedDict()
        self._keeping: OrderedDict[int, None] = OrderedDict()
        """Sessions with answers, in the order of `_states`."""
        self._nonces: dict[int, bytes] = {}
        self._by_nonce: dict[bytes, int] = {}
        self._used: dict[int, int] = {}
        self._touched: dict[int, None] = {}
        self._evicted: dict[int, None] = {}
        self._changed: dict[tuple[int, int], bytes | None] = {}
        kept: dict[int, dict[int, bytes]] = {}
        requests: list[AnswerRow] = []
        for session, seq, answer in answers:
            if session == SESSION:
                requests.append((session, seq, answer))
                continue
            kept.setdefault(session, {})[seq] = answer
            self._bytes += len(answer) + ANSWER_BYTES
        for session, nonce, used, acked in sorted(rows, key=lambda row: row[2]):
            self._add(session, nonce, used, _State(acked, kept.get(session, {})))
            if session in kept:
                self._keeping[session] = None
        self.once = OnceTable(requests)

    @property
    def kept_bytes(self) -> int:
        """What all kept answers are counted with."""
        return self._bytes

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
        if session in self._keeping:
            self._keeping.move_to_end(session)
        return self._states[session]

    def open(self, nonce: int, index: int, owner: int = 0) -> int:
        """Register a session; a nonce that is known gives its owner the id it got before. Evicts the least recently
        used."""
        key = (nonce & NONCE_MAX).to_bytes(8, "little") + owner.to_bytes(8, "little")
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
        for answer in self._states.pop(session).answers.values():
            self._bytes -= len(answer) + ANSWER_BYTES
        self._keeping.pop(session, None)
        del self._used[session]
        del self._by_nonce[self._nonces.pop(session)]
        self._touched.pop(session, None)
        self._evicted[session] = None

    def find(self, session: Session, index: int, owner: int = 0) -> WriteResult | NeedleError | None:
        """The answer this numbered write got before, or None if it is to be executed now.

        SessionExpired when the session is unknown, or another owner's, or when this write's answer was forgotten
        because the client acknowledged it (or left ANSWERS_MAX later ones unacknowledged).
        """
        if session.id not in self._states or self._nonces[session.id][8:] != owner.to_bytes(8, "little"):
            return SessionExpired(
                f"session {session.id} is unknown here: it was evicted, being the least recently used of {self._max}, "
                f"or never opened. Whether write {session.seq} took effect is not known; read, then open a new session",
                session=session.id,
            )
        state = self._touch(session.id, index)
        if session.acked > state.acked:
            before, state.acked = state.acked, session.acked
            numbers: Iterable[int] = range(before, session.acked)
            if session.acked - before > len(state.answers):
                numbers = [seq for seq in state.answers if seq < session.acked]
            for seq in numbers:
                if seq in state.answers:
                    self._forget(session.id, state, seq)
        if session.seq < state.acked:
            return SessionExpired(
                f"write {session.seq} of session {session.id} was answered before and its answer is forgotten; "
                f"it was not executed again",
                session=session.id,
            )
        stored = state.answers.get(session.seq)
        return None if stored is None else unpack(stored)

    def record(self, session: Session, result: WriteResult | NeedleError) -> None:
        """Keep the answer of an executed write, after `find` returned None."""
        state, packed = self._states[session.id], pack(result)
        state.answers[session.seq] = self._changed[session.id, session.seq] = packed
        self._keeping[session.id] = None
        self._bytes += len(packed) + ANSWER_BYTES
        if len(state.answers) > ANSWERS_MAX:
            self._forget_oldest(session.id)
        while self._bytes > self._bytes_max:
            self._forget_oldest(next(iter(self._keeping)))

    def _forget_oldest(self, session: int) -> None:
        state = self._states[session]
        oldest = state.acked if state.acked in state.answers else min(state.answers)
        self._forget(session, state, oldest)
        state.acked = oldest + 1
        self._touched[session] = None

    def _forget(self, session: int, state: _State, seq: int) -> None:
        self._bytes -= len(state.answers.pop(seq)) + ANSWER_BYTES
        if self._changed.get((session, seq)) is None:
            self._changed[session, seq] = None
        else:  # recorded since the last `dirty`: nobody has stored it
            del self._changed[session, seq]
        if not state.answers:
            del self._keeping[session]

    def dirty(self) -> Changed:
        """What changed since the last call."""
        rows = {s: (s, self._nonces[s], self._used[s], self._states[s].acked) for s in sorted(self._touched)}
        changed = Changed(rows, sorted(self._evicted), self._changed | self.once.dirty())
        self._touched.clear()
        self._evicted.clear()
        self._changed = {}
        return changed

    def rows(self) -> list[SessionRow]:
        """Every session, by id: equal on replicas at equal applied index."""
        return [(s, self._nonces[s], self._used[s], self._states[s].acked) for s in sorted(self._states)]

    def answers(self) -> list[AnswerRow]:
        """Every answer, by session and seq, and what is remembered of requests: equal on replicas at equal applied
        index."""
        states = self._states
        own = [(s, seq, states[s].answers[seq]) for s in sorted(states) for seq in sorted(states[s].answers)]
        return self.once.answers() + own
