"""One Raft group as a client sees it: sends to the leader or to any replica, and repeats what may be repeated.

Invariant: a numbered write is executed at most once, however often it is sent; if it was sent and no answer came before
the deadline, the caller gets OutcomeUnknown, never an error that says nothing happened. A read or an administrative
call is repeated freely. Knows nothing of documents: commands and bodies are made by the caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NoReturn

from needle.base import protocol
from needle.base.commands import Command, OpenSession, Session, encode
from needle.base.errors import (
    CollectionNotFound,
    ConnectionLost,
    DeadlineExceeded,
    NeedleError,
    NoQuorum,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    ProtocolError,
    SessionExpired,
    TooStale,
)
from needle.base.ids import GroupId
from needle.base.model import WriteResult
from needle.base.protocol import WriteCall
from needle.base.runtime import Rng
from needle.client.directory import Directory
from needle.client.session import WriteNumbers

BACKOFF_MIN = 0.005
BACKOFF_MAX = 0.25
ATTEMPT_SECONDS_MIN = 1.0
CONNECT_SECONDS_MAX = 1.0
HINTS_MAX = 3

MakeBody = Callable[[float], bytes]
"""The request's body, given the seconds that the node may take."""


class _Attempts:
    """The bookkeeping of one call: its deadline, what went wrong last, whether a write may have been executed."""

    __slots__ = ("backoff", "deadline", "hints", "last", "loop", "sent", "unknown", "whole")

    def __init__(self, timeout: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.whole = timeout
        self.deadline = self.loop.time() + timeout
        self.backoff = BACKOFF_MIN
        self.hints = 0
        self.last: NeedleError | None = None
        self.sent = False
        self.unknown = False

    def left(self) -> float:
        return self.deadline - self.loop.time()

    def attempt_seconds(self) -> float:
        """A node that is paused must not use up the whole timeout, a slow one must not be asked twice too soon."""
        return min(self.left(), max(ATTEMPT_SECONDS_MIN, self.whole / 5))

    def next_pause(self, rng: Rng) -> float:
        """How long to wait before the next attempt: longer each time, at a random point so that clients spread out."""
        seconds = min(max(0.0, self.left()), self.backoff * rng.uniform(0.5, 1.5))
        self.backoff = min(BACKOFF_MAX, self.backoff * 2)
        return seconds

    async def pause(self, rng: Rng) -> None:
        """Wait before the next attempt."""
        await asyncio.sleep(self.next_pause(rng))


class GroupClient:
    """Calls to one group. `last_index` is the newest log index an answer has carried: the session token."""

    def __init__(self, group: GroupId, directory: Directory, rng: Rng, prefer: str | None = None) -> None:
        """prefer: the address to ask first in eventual reads (the node in this process)."""
        self.group = group
        self.last_index = 0
        self._directory = directory
        self._caller = directory.caller
        self._rng = rng
        self._prefer = prefer
        self._numbers: WriteNumbers | None = None
        self._opening: asyncio.Task[WriteNumbers] | None = None
        self._write = protocol.WRITE
        self._named = f"group {group}"
        """In errors."""

    def saw(self, index: int) -> None:
        """An answer carried this log index."""
        if index > self.last_index:
            self.last_index = index

    # --- writes ------------------------------------------------------------------------------------------------------
    async def write(self, make: Callable[[Session], Command], timeout: float) -> WriteResult:
        """Execute a command exactly once. Raises its own error, OutcomeUnknown, NoQuorum or DeadlineExceeded."""
        attempts = _Attempts(timeout)
        while True:
            numbers = self._numbers
            if numbers is None:
                numbers = await self._open(attempts)
            session = numbers.next()
            try:
                answer = await self._ask_leader(self._write, self._body(make(session)), attempts)
                result = protocol.decode(answer, WriteResult)
                self.saw(result.index)
                return result
            except SessionExpired as error:
                if self._numbers is numbers:
                    self._numbers = None
                if attempts.unknown:
                    raise OutcomeUnknown(
                        "the write was sent before, no answer came, and its session is not known any more: "
                        + error.message
                    ) from error
            finally:
                numbers.done(session.seq)

    def _body(self, command: Command) -> MakeBody:
        group, data = self.group, encode(command)
        return lambda seconds: protocol.encode(WriteCall(group, data, seconds))

    async def _open(self, attempts: _Attempts) -> WriteNumbers:
        """Open a session; concurrent writes share the attempt."""
        if self._opening is None:
            self._opening = attempts.loop.create_task(self._open_session(attempts.whole))
            self._opening.add_done_callback(self._opened)
        opening = self._opening
        done, _ = await asyncio.wait((opening,), timeout=max(0.0, attempts.left()))
        if not done:
            self._too_late(attempts)
        return opening.result()

    async def _open_session(self, timeout: float) -> WriteNumbers:
        body = self._body(OpenSession(self._rng.getrandbits(64)))
        try:
            answer = await self._ask_leader(self._write, body, _Attempts(timeout))
        except OutcomeUnknown as error:
            # Whether the session was opened does not matter: the caller's write was never sent.
            raise DeadlineExceeded(f"no session could be opened: {error.message}") from error
        self._numbers = WriteNumbers(protocol.decode(answer, WriteResult).index)
        return self._numbers

    def _opened(self, task: asyncio.Task[WriteNumbers]) -> None:
        self._opening = None
        if not task.cancelled():
            task.exception()  # whoever waits raises it; when nobody does any more it counts as seen

    # --- the leader --------------------------------------------------------------------------------------------------
    async def ask_leader(self, method: str, make_body: MakeBody, timeout: float) -> bytes:
        """Ask the leader, repeating until it answers; for reads and calls that may be repeated."""
        return await self._ask_leader(method, make_body, _Attempts(timeout))

    async def _ask_leader(self, method: str, make_body: MakeBody, attempts: _Attempts) -> bytes:
        directory = self._directory
        while True:
            if attempts.left() <= 0:
                self._too_late(attempts, writing=method is self._write)
            address = directory.known_leader(self.group)
            if address is None:
                address = await directory.find_leader(self.group, attempts.left())
            if address is None:
                self._check_refusal()
                await self._unreached(attempts)
                continue
            attempts.sent = False
            try:
                seconds = attempts.attempt_seconds()
                if not self._caller.connected(address):
                    await self._caller.connect(address, min(seconds, CONNECT_SECONDS_MAX))
                attempts.sent = True
                return await self._caller.call(address, method, make_body(seconds), seconds)
            except NeedleError as error:
                if attempts.unknown and method is self._write and isinstance(error, CollectionNotFound):
                    # Checked before the log: an earlier attempt may have been executed before the collection went.
                    raise OutcomeUnknown(f"the write was sent before, no answer came; now {error.message}") from error
                await self._after(error, address, attempts)

    async def _after(self, error: NeedleError, address: str, attempts: _Attempts) -> None:
        """Decide whether to go on after a failed attempt; raises `error` if repeating it cannot help."""
        directory = self._directory
        if isinstance(error, OutcomeUnknown | ConnectionLost | DeadlineExceeded):
            attempts.unknown |= attempts.sent
        elif not error.retryable:
            raise error
        attempts.last = error
        if isinstance(error, Overloaded):
            attempts.backoff = max(attempts.backoff, 0.05)
            await attempts.pause(self._rng)
            return
        if isinstance(error, NotLeader):
            # The address that works for us, if we know one, rather than the one the nodes use among themselves.
            hint = directory.address_of(str(error.details.get("leader"))) or error.details.get("leader_address")
            if hint and hint != address and attempts.hints < HINTS_MAX:
                attempts.hints += 1
                directory.set_leader(self.group, str(hint))
                return
            attempts.hints = 0
            directory.forget_leader(self.group, address)
        else:
            directory.forget_leader(self.group, address)
            if isinstance(error, ConnectionLost):
                directory.suspect(address)
                await self._unreached(attempts)
                return
        await self._next_leader(attempts)

    async def _unreached(self, attempts: _Attempts) -> None:
        """No leader was found, or it cannot be reached: wait before the next attempt."""
        await self._next_leader(attempts)

    async def _next_leader(self, attempts: _Attempts) -> None:
        """Wait before the next attempt, but no longer than until a node knows of a new leader."""
        await self._directory.await_leader(self.group, attempts.next_pause(self._rng))

    def _check_refusal(self) -> None:
        """A node that refuses to talk to us (other cluster, other release) will go on refusing."""
        directory = self._directory
        if directory.refusal is not None and len(directory.failures) == len(directory.addresses()):
            raise directory.refusal

    def _too_late(self, attempts: _Attempts, *, writing: bool = False) -> NoReturn:
        why = self._directory.explain()
        last = f"; last error: {attempts.last.message}" if attempts.last is not None else ""
        if writing and attempts.unknown:
            raise OutcomeUnknown(
                f"the write was sent but not answered within {attempts.whole:g} s; it may or may not take effect "
                f"({why}{last})"
            )
        if self._directory.known_leader(self.group) is None:
            raise NoQuorum(f"{self._named} has no leader after {attempts.whole:.3g} s: {why}{last}")
        raise DeadlineExceeded(f"{self._named} did not answer within {attempts.whole:.3g} s: {why}{last}")

    # --- any replica -------------------------------------------------------------------------------------------------
    async def ask_any(self, method: str, make_body: MakeBody, timeout: float) -> bytes:
        """Ask one replica after the other, in turn, until one answers."""
        attempts = _Attempts(timeout)
        failures: dict[str, NeedleError] = {}
        while attempts.left() > 0:
            order = self._directory.in_turn(self._prefer)
            for address in order:
                if (left := attempts.left()) <= 0:
                    break
                seconds = min(left, ATTEMPT_SECONDS_MIN) if len(order) > 1 else left
                try:
                    return await self._caller.call(address, method, make_body(seconds), seconds)
                except NeedleError as error:
                    if not error.retryable and not isinstance(error, ProtocolError):
                        raise
                    failures[address] = error
                    if not isinstance(error, TooStale | Overloaded):
                        self._directory.suspect(address)
            if len(failures) == len(order) and all(isinstance(e, ProtocolError) for e in failures.values()):
                raise next(iter(failures.values()))
            await attempts.pause(self._rng)
        return self._no_replica(failures, timeout)

    @staticmethod
    def _no_replica(failures: dict[str, NeedleError], timeout: float) -> NoReturn:
        told = "; ".join(f"{address}: {error.message}" for address, error in sorted(failures.items()))
        stale = [error for error in failures.values() if isinstance(error, TooStale)]
        if stale:
            raise TooStale(f"no replica is fresh enough after {timeout:g} s ({told})", **stale[0].details)
        raise DeadlineExceeded(f"no replica answered within {timeout:g} s ({told or 'none was reached'})")
