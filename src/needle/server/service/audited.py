"""What of the binary protocol's calls goes into the audit log: what an administrator's call does, and what is refused.

What nodes pass on to each other is told by the node that was asked first. It must not know how calls are answered.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from needle.base.access import ADMIN
from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import NeedleError, UnsupportedFormat
from needle.base.parts import Body, Pieces
from needle.base.request import current
from needle.base.runtime import Clock, Rng
from needle.protocol import calls, catalog_commands, commands
from needle.protocol.archive_calls import IMAGE_CHUNK, LOG
from needle.protocol.calls import WriteCall
from needle.protocol.index_file_calls import INDEX_HOLD, INDEX_PUT
from needle.protocol.peer_calls import CATALOG, INDEX_ROOM, SYNC, CatalogCall
from needle.protocol.probe_calls import CLOCK, PROBE
from needle.rpc.promise import Promise
from needle.server.audit import REFUSALS, Audit
from needle.server.ports import PeerLike
from needle.server.service.methods import NEEDS

DOOR: Final = "binary"
LOOKED_AT_BYTES: Final = 64 * 1024
"""What makes and drops collections is smaller than this."""
STEPS: Final = (
    catalog_commands.RegisterNode,
    catalog_commands.ConfirmReplicas,
    catalog_commands.AdvanceMove,
    catalog_commands.RestartMove,
    catalog_commands.FinishMove,
    catalog_commands.StepRebalance,
    catalog_commands.RaiseVersion,
)
"""What nodes do by themselves with what was asked for before."""
ASKING: Final = (SYNC, INDEX_ROOM, CLOCK, PROBE, LOG, IMAGE_CHUNK, INDEX_HOLD, INDEX_PUT)
"""Calls of an administrator's client that change nothing yet."""
UNTOLD: Final = frozenset({"nonce", "epoch", "id"})

_TAGS: Final = {b"create": "CreateCollection", b"drop": "DropCollection"}
_BEGINNING: Final = 48
_ARRAY: Final = rb"(?:[\x90-\x9f]|\xdc..|\xdd.{4})"
_MAKES_OR_DROPS: Final = re.compile(
    _ARRAY
    + rb"(?:[\x00-\x7f]|[\xcc\xd0].|[\xcd\xd1]..|[\xce\xd2].{4}|[\xcf\xd3].{8})(?:\xc4.|\xc5..|\xc6.{4})"
    + re.escape(commands.FORMAT)
    + _ARRAY
    + rb"(?:[\xa0-\xbf]|\xd9.|\xda..|\xdb.{4})(create|drop)",
    re.DOTALL,
)
"""A call in msgpack, in each way in which it may be written: an array of a group's number and a command, which is an
array with its tag in front."""

Begin = Callable[[PeerLike, str, Any], Body | Awaitable[Body]]


class Audited:
    """See the module. begin: what answers a call."""

    def __init__(self, audit: Audit, clock: Clock, rng: Rng, begin: Begin) -> None:
        self._audit = audit
        self._clock = clock
        self._rng = rng
        self._begin = begin

    def on_request(self, peer: PeerLike, method: str, body: Any) -> Body | Awaitable[Body]:
        """One call of a client."""
        told = _told(method, body, peer.identity.name)
        start = self._clock.monotonic()
        try:
            answer = self._begin(peer, method, body)
        except NeedleError as error:
            self._note(peer, method, told, start, error)
            raise
        if isinstance(answer, Promise) and not peer.identity.is_for_all:  # the log may refuse what it writes
            return self._heard(answer, peer, method, start)
        if isinstance(answer, bytes | Pieces | Promise):
            return answer
        return self._watched(answer, peer, method, told, start)

    async def _watched(
        self, answer: Awaitable[Body], peer: PeerLike, method: str, told: str | None, start: float
    ) -> Body:
        try:
            body = await answer
        except NeedleError as error:
            self._note(peer, method, told, start, error)
            raise
        except BaseException as error:
            if told is not None:  # whether it was done is not known
                self._note(peer, method, told, start, None, outcome=type(error).__name__)
            raise
        if told is not None:
            self._note(peer, method, told, start, None)
        return body

    def _heard(self, answer: Promise[bytes], peer: PeerLike, method: str, start: float) -> Promise[bytes]:
        heard, request = _Heard(answer), current.get()

        def settled(body: bytes | None, error: BaseException | None) -> None:
            if isinstance(error, NeedleError):
                token = current.set(request)  # whoever settles it works for another one
                try:
                    self._note(peer, method, None, start, error)
                finally:
                    current.reset(token)
            if error is not None:
                heard.set_exception(error)
            else:
                heard.set_result(body or b"")

        answer.then(settled)
        return heard

    def _note(
        self, peer: PeerLike, method: str, told: str | None, start: float, error: NeedleError | None, outcome: str = ""
    ) -> None:
        if told is None and not isinstance(error, REFUSALS):
            return
        call, _, about = (told or method).partition(" ")
        request = current.get()
        self._audit.note(
            DOOR,
            call,
            error,
            key=peer.identity.name,
            remote=peer.remote,
            request_id=(request.id if request is not None else "") or f"{self._rng.getrandbits(64):016x}",
            about=about,
            seconds=self._clock.monotonic() - start,
            outcome=outcome,
        )


class _Heard(Promise[bytes]):
    """What another one is settled with, once that was noted."""

    __slots__ = ("_of",)

    def __init__(self, of: Promise[bytes]) -> None:
        super().__init__()
        self._of = of

    def cancel(self) -> None:
        """Its caller has gone: reads end then."""
        self._of.cancel()


def _told(method: str, body: Any, key: str) -> str | None:
    """An administrator's call, and what it is about, in words; None for any other. key: its name; nodes have none."""
    needs = NEEDS.get(method)
    if method == calls.WRITE:
        return _written(body) if len(body) <= LOOKED_AT_BYTES else _tag_of(body)
    if needs is None or needs.rank != ADMIN or method in ASKING:
        return None
    if method != CATALOG or len(body) > LOOKED_AT_BYTES:
        return method
    try:
        call = msgspec.msgpack.decode(body, type=CatalogCall)
        command = catalog_commands.decode(call.command)
    except (*DECODE_ERRORS, UnsupportedFormat):
        return method
    return None if isinstance(command, STEPS) and not key else _words(command)


def _written(body: Any) -> str | None:
    try:
        call = msgspec.msgpack.decode(body, type=WriteCall)
        if call.epoch:
            return None  # a shard's: it makes and drops no collections
        command = commands.decode(call.command)
    except (*DECODE_ERRORS, UnsupportedFormat):
        return None
    return _words(command) if isinstance(command, commands.CreateCollection | commands.DropCollection) else None


def _tag_of(body: Any) -> str | None:
    """What a write that is too large to be looked at begins with, if it makes or drops a collection: whoever pads such
    a one with what nobody reads is told of, too."""
    found = _MAKES_OR_DROPS.match(bytes(body[:_BEGINNING]))
    return None if found is None else _TAGS[found[1]]


def _words(command: msgspec.Struct) -> str:
    """The name of a command, and what it says in short."""
    said = []
    for field in command.__struct_fields__:
        value = getattr(command, field)
        name = getattr(value, "id", None) or getattr(value, "name", None)
        if isinstance(value, str | int | float) and field not in UNTOLD:
            said.append(f"{field}={value}")
        elif isinstance(value, msgspec.Struct) and isinstance(name, str):
            said.append(f"{field}={name}")
    return " ".join([type(command).__name__, *said])
