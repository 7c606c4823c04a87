"""One Raft group as a client sees it: sends to the leader, and repeats what may be repeated.

Invariant: a numbered write is executed at most once, however often it is sent; if it was sent and no answer came before
the deadline, the caller gets OutcomeUnknown, never an error that says nothing happened. A read or an administrative
call is repeated freely. Where the group is, and what of that a write carries, its `Place` knows. Knows nothing of
documents: commands and bodies are made by the caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, Protocol

from needle.base.errors import (
    AlreadyExists,
    CollectionExists,
    ConditionFailed,
    ConnectionLost,
    DeadlineExceeded,
    DiskFailed,
    Internal,
    KeyReused,
    NeedleError,
    NoQuorum,
    NotLeader,
    OutcomeForgotten,
    OutcomeUnknown,
    Overloaded,
    ProtocolError,
    SessionExpired,
    StaleEpoch,
    StorageError,
    TooManyRequests,
    VersionMismatch,
    in_seconds,
)
from needle.base.ids import GroupId
from needle.base.model import RaftStatus, WriteResult
from needle.base.parts import Body, Payload
from needle.base.runtime import Rng
from needle.client.attempts import Attempts, Unanswered
from needle.client.directory import Directory
from needle.client.session import WriteNumbers
from needle.client.waiting import waited_for
from needle.protocol import calls
from needle.protocol.calls import StatusCall
from needle.protocol.commands import Command, OpenSession, Session

CONNECT_SECONDS_MAX = 1.0
HINTS_MAX = 3
LOOK_SECONDS = 0.05

MakeBody = Callable[[float], Body]
"""The request's body, given the seconds that the node may take."""

_JUDGED = (
    OutcomeUnknown,
    StaleEpoch,  # what is raised of it, the place has judged
    AlreadyExists,
    VersionMismatch,
    CollectionExists,
    ConditionFailed,
    KeyReused,
    OutcomeForgotten,
)
"""The answer of a numbered write, however often it was sent: but for the first two what only applying it can find."""


def written(answer: Payload) -> WriteResult:
    """The answer to a write. Raises OutcomeUnknown if it cannot be read: it says that something was done."""
    try:
        return calls.decode(answer, WriteResult)
    except ProtocolError as error:
        raise OutcomeUnknown(f"the write was answered, but {error.message}") from error


class Place(Protocol):
    """What is known of where a group is, beyond who is in it. name: what the group is called in errors."""

    name: str

    def body(self, group: GroupId, command: Command) -> MakeBody:
        """The request of a write."""
        ...

    def look(self) -> None:
        """A node does not answer, or another one does at its address: see whether there is news of it."""
        ...

    async def unreached(self) -> None:
        """No leader was found, or it cannot be reached: see whether there is news, without waiting for it."""
        ...

    async def stale(self, error: StaleEpoch, attempts: Attempts) -> None:
        """The group said that this is not the place any more, or not yet. Returns if it may be asked again."""
        ...


class GroupClient:
    """Calls to one group."""

    def __init__(self, directory: Directory, rng: Rng, place: Place) -> None:
        self.group = directory.group
        self._place = place
        self._directory = directory
        self._caller = directory.caller
        self._rng = rng
        self.unanswered = Unanswered(directory)
        self._numbers: WriteNumbers | None = None
        self._opening: asyncio.Task[WriteNumbers] | None = None

    async def find_leader(self, timeout: float) -> str | None:
        """Ask the nodes who leads: its address; None if none names it in time. Raises only when all refuse to talk."""
        address = await self._directory.find_leader(timeout)
        if address is None:
            self._check_refusal()
        return address

    def forget_leader(self) -> None:
        """Ask who leads before the next call."""
        self._directory.leader = None

    def leads_at(self) -> str | None:
        """The address of the leader, if it is known and connected: it can be asked without waiting for anything."""
        address = self._directory.leader
        return address if address is not None and self._caller.connected(address) else None

    # --- writes ------------------------------------------------------------------------------------------------------
    async def write(self, make: Callable[[Session], Command], timeout: float) -> WriteResult:
        """Execute a command exactly once. Raises its own error, OutcomeUnknown, NoQuorum or DeadlineExceeded."""
        attempts = Attempts(timeout, writes=True)
        while True:
            numbers = self._numbers
            if numbers is None:
                numbers = await self._open(attempts)
            session = numbers.next()
            try:
                body = self._place.body(self.group, make(session))
                answer = await self._ask_leader(calls.WRITE, body, attempts)
                return written(answer)
            except NeedleError as error:
                if isinstance(error, SessionExpired) and self._numbers is numbers:
                    self._numbers = None
                if attempts.unknown and not isinstance(error, _JUDGED):
                    # Whatever is said of this attempt, an earlier one may have been executed.
                    raise OutcomeUnknown(
                        f"the write was sent before and no answer came; now {error.message}"
                    ) from error
                if not isinstance(error, SessionExpired):
                    raise
            finally:
                numbers.done(session.seq)

    async def _open(self, attempts: Attempts) -> WriteNumbers:
        """Open a session; concurrent writes share the attempt."""
        if self._opening is None:
            self._opening = attempts.loop.create_task(self._open_session(attempts.whole))
            self._opening.add_done_callback(self._opened)
        opening = self._opening
        done, _ = await asyncio.wait((opening,), timeout=max(0.0, attempts.left()))
        try:
            if not done:
                self._too_late(attempts)
            return opening.result()
        finally:
            del opening, done  # the task holds its error, and that this frame

    async def _open_session(self, timeout: float) -> WriteNumbers:
        body = self._place.body(self.group, OpenSession(self._rng.getrandbits(64)))
        try:
            answer = await self._ask_leader(calls.WRITE, body, Attempts(timeout, writes=True))
        except OutcomeUnknown as error:
            # Whether the session was opened does not matter: the caller's write was never sent.
            raise DeadlineExceeded(f"no session could be opened: {error.message}") from error
        self._numbers = WriteNumbers(calls.decode(answer, WriteResult).index)
        return self._numbers

    def _opened(self, task: asyncio.Task[WriteNumbers]) -> None:
        self._opening = None
        if not task.cancelled():
            task.exception()  # whoever waits raises it; when nobody does any more it counts as seen

    # --- the leader --------------------------------------------------------------------------------------------------
    def ask_leader(
        self, method: str, make_body: MakeBody, timeout: float, final: tuple[type[NeedleError], ...] = ()
    ) -> Coroutine[Any, Any, Payload]:
        """Ask the leader, repeating until it answers; for reads and calls that may be repeated. final: errors that are
        answers."""
        return self._ask_leader(method, make_body, Attempts(timeout, final))

    async def ask_leader_after(
        self, error: NeedleError | None, address: str, spent: float, method: str, make_body: MakeBody, timeout: float
    ) -> Payload:
        """As `ask_leader`, after the node at `address` was asked together with other groups and has not answered for
        this one. error: why; None if that says nothing. spent: seconds that this took."""
        attempts = Attempts(timeout, spent=spent)
        attempts.sent = True
        if error is not None:
            try:
                await self._after(error, address, attempts)
            except BaseException:
                attempts.forget()
                raise
            finally:
                del error  # as there
        return await self._ask_leader(method, make_body, attempts)

    async def leaders_status(self, timeout: float) -> RaftStatus:
        """How the group is, as its leader says. Any node answers, so who leads no more is not taken for the leader;
        while nobody leads until the end of `timeout`, what was heard last is returned. Raises as `ask_leader`."""
        loop, body = asyncio.get_running_loop(), calls.encode(StatusCall(self.group))
        deadline = loop.time() + timeout
        while True:
            left = deadline - loop.time()
            found = calls.decode(await self.ask_leader(calls.STATUS, lambda _: body, left), RaftStatus)
            if found.state == "Leader" or deadline - loop.time() <= LOOK_SECONDS:
                return found
            self.forget_leader()
            await asyncio.sleep(LOOK_SECONDS)

    async def _ask_leader(self, method: str, make_body: MakeBody, attempts: Attempts) -> Payload:
        directory, caller = self._directory, self._caller
        try:
            while True:
                if (left := attempts.left()) <= attempts.spare:
                    self._too_late(attempts)
                address = directory.leader
                if address is None:
                    address = await directory.find_leader(left)
                    left = attempts.left()
                if address is None:
                    self._check_refusal()
                    await self._unreached(attempts)
                    continue
                attempts.sent = False
                try:
                    if not caller.connected(address):
                        await caller.connect(address, min(max(0.0, left), CONNECT_SECONDS_MAX))
                        left = attempts.left()
                    if left <= attempts.spare:
                        continue  # finding the leader and connecting took all the time there was
                    body = make_body(left)
                    attempts.sent = True
                    answer = await self.unanswered.call(address, method, body, left)
                    if answer is not None:
                        return answer
                    attempts.unknown = True
                    lost = f"{address} had not answered when another node was elected leader"
                    attempts.last = DeadlineExceeded(lost)
                except NeedleError as error:
                    await self._after(error, address, attempts)
        finally:
            attempts.forget()

    async def _after(self, error: NeedleError, address: str, attempts: Attempts) -> None:
        """Decide whether to go on after a failed attempt; raises `error` if repeating it cannot help."""
        directory = self._directory
        if isinstance(error, StaleEpoch):
            await self._place.stale(error, attempts)
            await attempts.pause(self._rng)
            return
        if isinstance(error, ConnectionLost | DeadlineExceeded):
            self._place.look()  # it may have moved
        if isinstance(error, OutcomeUnknown | ConnectionLost | DeadlineExceeded | StorageError | Internal):
            attempts.unknown |= attempts.sent
        attempts.failed(error)
        answers = isinstance(error, attempts.final) and not isinstance(error, NotLeader)  # who does not lead has none
        if answers or (not error.retryable and not isinstance(error, OutcomeUnknown | DiskFailed)):
            try:
                raise error  # a node whose disk failed ends; another will lead
            finally:
                del error  # its traceback holds this frame
        if isinstance(error, DeadlineExceeded) and attempts.sent:
            await attempts.pause(self._rng)  # it took too long: that says nothing about who leads
            return
        if isinstance(error, TooManyRequests):
            left = attempts.left() - attempts.spare  # in what is spared it would not be asked again
            try:
                await asyncio.sleep(max(waited_for(error, left), attempts.next_pause(self._rng)))
            finally:
                del error  # as above
            return
        if isinstance(error, Overloaded):
            attempts.backoff = max(attempts.backoff, 0.05)
            await attempts.pause(self._rng)
            return
        if isinstance(error, NotLeader):
            # The address that works for us, if we know one, rather than the one the nodes use among themselves; but who
            # answers at `address` is another node.
            leader = str(error.details.get("leader"))
            known = directory.address_of(leader)
            if known == address:
                self._place.look()  # nodes have swapped addresses, or one has taken another's
            hint = known if known not in (None, address) else error.details.get("leader_address")
            if hint and hint != address and attempts.hints < HINTS_MAX:
                attempts.hints += 1
                directory.leader = str(hint)
                return
            attempts.hints = 0
            directory.forget_leader(address)
        else:
            directory.forget_leader(address)
            if isinstance(error, ConnectionLost):
                directory.suspect(address)
                await self._unreached(attempts)
                return
        await self._next_leader(attempts)

    async def _unreached(self, attempts: Attempts) -> None:
        """No leader was found, or it cannot be reached: wait before the next attempt."""
        await self._place.unreached()
        await self._next_leader(attempts)

    async def _next_leader(self, attempts: Attempts) -> None:
        """Wait before the next attempt, but no longer than until a node knows of a new leader."""
        await self._directory.await_leader(attempts.next_pause(self._rng))

    def _check_refusal(self) -> None:
        """A node that refuses to talk to us (other cluster, other release) will go on refusing."""
        if (refusal := self._directory.refusal()) is not None:
            try:
                raise refusal
            finally:
                del refusal  # as in _after

    def _too_late(self, attempts: Attempts) -> NoReturn:
        directory, within = self._directory, in_seconds(attempts.whole)
        why = directory.explain(attempts.began)
        last = f"; last error: {attempts.last.message}" if attempts.last is not None else ""
        if attempts.writes and attempts.unknown:
            raise OutcomeUnknown(
                f"the write was sent but not answered within {within}; it may or may not take effect ({why}{last})"
            )
        leader = directory.leader
        short = attempts.until_the_end() or (directory.overloaded(attempts.began) if leader is None else None)
        if short is not None:
            try:
                raise short
            finally:
                del short  # as in _after
        if leader is None or isinstance(attempts.last, NoQuorum):
            asked = directory.heard_since(attempts.began) or isinstance(attempts.last, NoQuorum)
            kind = NoQuorum if asked else DeadlineExceeded  # there was no time to hear of anyone: that says nothing
            raise kind(f"no leader of {self._place.name} was found within {within}: {why}{last}")
        raise DeadlineExceeded(f"{leader}, which leads {self._place.name}, did not answer within {within}{last}")

    # --- any replica -------------------------------------------------------------------------------------------------
    def ask_replica(self, address: str, method: str, body: bytes, timeout: float) -> Coroutine[Any, Any, Payload]:
        """Ask one replica, once."""
        return self._caller.call(address, method, body, timeout)

    def holders(self) -> list[str]:
        """Addresses of the replicas, the preferred leader's first."""
        return self._directory.addresses()

    def replicas(self) -> list[str]:
        """The same, the one to ask first at the front: the next one in turn with each call."""
        return self._directory.in_turn()

    def suspect(self, address: str) -> None:
        """That one failed: put it last for a while."""
        self._directory.suspect(address)
        self._place.look()
