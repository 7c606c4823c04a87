"""What is told of calls that somebody follows: which request, shard and term the log's lines belong to, the line of a
slow one, its span.

Invariant: a call of which nobody wants to know costs the look whether anybody does. Of what callers store and ask for
only names are told: collections, fields, operators. It must not know what a call does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextvars import Token
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from needle.base.errors import NeedleError
from needle.base.events import SLOW_REQUEST, tell
from needle.base.explain import ShardExplanation
from needle.base.filters.shape import shape
from needle.base.ids import CATALOG_GROUP, GroupId, NodeId
from needle.base.model import HitBatch
from needle.base.request import Request, current
from needle.multiraft.host import Host
from needle.routing.topology import called
from needle.tracing import SERVER, Spans, traceparent

if TYPE_CHECKING:
    from opentelemetry.trace import Span

NEVER: Final = float("inf")
SAID_MAX: Final = 200


class WatchedNode(Protocol):
    """The node, as far as this needs it."""

    node_id: NodeId
    host: Host

    def now(self) -> float: ...


class Subject:
    """What a call asks for, as far as it is told. shard: -1 if the node routes it."""

    __slots__ = ("collection", "filter", "k", "shard")

    def __init__(self, collection: str = "", filter: bytes = b"", k: int = 0, shard: int = -1) -> None:
        self.collection, self.filter, self.k, self.shard = collection, filter, k, shard


class Watch:
    """Of one node. slow: seconds from which on a call is told; 0 for none. spans: where there is a tracer."""

    def __init__(self, node: WatchedNode, slow: float, spans: Spans | None) -> None:
        self._node, self.spans = node, spans
        self.slow = slow or NEVER
        self._always = spans is not None or self.tells_slow

    @property
    def tells_slow(self) -> bool:
        """Whether any call may leave a line."""
        return self.slow < NEVER

    def follows(self) -> bool:
        """Whether anybody wants to know of a call that begins here."""
        return current.get() is not None or self._always

    def follows_now(self) -> bool:
        """Whether anybody wants to know of a call while it runs; who tells slow ones only need not, see `ended`."""
        return current.get() is not None or self.spans is not None

    def ended(
        self,
        method: str,
        asked: Any,
        key: str,
        began: float,
        parts: Mapping[str, float],
        explained: list[ShardExplanation],
        error: NeedleError | None,
    ) -> None:
        """A call that nobody followed was answered: it leaves its line if it was slow. began: by `now`. parts,
        explained: as of a Request."""
        took = self.now() - began
        if took >= self.slow:
            watched = Watched(self, method, asked, key, Request(), None)
            watched.request.parts.update(parts)
            watched.request.explained = explained
            watched.end(error, took)

    def begin(self, method: str, asked: Any, key: str, command: Any = None) -> Watched | None:
        """None if nobody wants to know. asked: a Subject, or a call. key: the name of the caller's API key. command:
        the call's, if it is decoded."""
        if not self.follows():
            return None
        outer = current.get()
        return Watched(self, method, asked, key, outer or Request(), command)

    def now(self) -> float:
        return self._node.now()

    def term(self, group: GroupId) -> int:
        """Of a replica here; -1 without one."""
        found = self._node.host.engine.groups.get(group)
        return found.raft.term if found is not None else -1

    def span(self, method: str, asked: Subject, key: str, above: str) -> Span | None:
        """Of a call that begins."""
        if self.spans is None:
            return None
        told: dict[str, Any] = {"needle.node": self._node.node_id}
        if asked.shard >= 0:
            told["needle.shard"] = asked.shard
        if asked.collection:
            told["needle.collection"] = called(asked.collection)
        if key:
            told["needle.key"] = key
        if asked.k:
            told["needle.k"] = asked.k
        return self.spans.begin(f"needle.{method}", SERVER, above, **told)


class Watched:
    """One call, from `begin` to `end`: what runs between works for it."""

    def __init__(self, watch: Watch, method: str, asked: Any, key: str, outer: Request, command: Any) -> None:
        self._watch, self._method, self._key = watch, method, key
        self._call, self._subject = asked, asked if isinstance(asked, Subject) else subject_of(asked, command)
        shard = self._subject.shard
        self._span = watch.span(method, self._subject, key, outer.trace)
        trace = traceparent(self._span) if self._span is not None else outer.trace
        self.request = Request(outer.id, trace, shard, watch.term(shard + 1) if shard >= 0 else -1)
        self.request.explains = self._span is not None and self._span.is_recording()
        self._began = watch.now()
        self._token: Token[Request | None] = current.set(self.request)

    def asks(self, asked: Subject, key: str, part: str, seconds: float) -> None:
        """What was not known at its beginning. part, seconds: what was done until then."""
        self._subject, self._key = asked, key
        self.request.took(part, seconds)
        if self._span is not None and asked.collection:
            self._span.set_attribute("needle.collection", asked.collection)

    def leave(self) -> None:
        """What follows here works for somebody else; the call goes on."""
        current.reset(self._token)

    def end(self, error: BaseException | None = None, took: float | None = None) -> None:
        """It was answered, where `leave` was called before, or where it began. took: seconds until its answer began, of
        one that is as long as its reader likes."""
        request, took = self.request, self._watch.now() - self._began if took is None else took
        before = current.get()
        token = current.set(request) if before is not request else None
        try:
            if took >= self._watch.slow:
                self._tell(took, error)
        finally:
            request.over = True
            if token is not None:
                current.reset(token)
            else:
                current.reset(self._token)
        if self._span is not None and (spans := self._watch.spans) is not None:
            spans.tell_search(request.trace, request.explained, request.parts.get("encode", 0.0))
            spans.end(self._span, None if isinstance(error, asyncio.CancelledError) else error)

    def _tell(self, took: float, error: BaseException | None) -> None:
        request = self.request
        asked = self._subject if request.command is None else subject_of(self._call, request.command)
        parts = {part: _milliseconds(seconds) for part, seconds in request.parts.items()}
        explain = [_explained(shard) for shard in request.explained]
        told: dict[str, Any] = {
            "collection": called(asked.collection)[:SAID_MAX] if asked.collection else "",
            "filter": shape(asked.filter),
            "k": asked.k,
            "parts": parts,
            "key": self._key,
            "code": error.code if isinstance(error, NeedleError) else type(error).__name__ if error else "",
        }
        said = [f"{name} {_words(value)}" for name, value in told.items() if value]
        if request.shard >= 0:
            said.insert(0, f"shard {request.shard}, term {request.term}")
        if explain:
            said.append(f"explain {explain}")
        text = ", ".join(said) or "nothing more is known of it"
        tell(SLOW_REQUEST, method=self._method, milliseconds=_milliseconds(took), told=text, explain=explain, **told)


def noted(about: Request | None, batches: list[HitBatch], *, asked: bool) -> list[HitBatch]:
    """Of answers how the one that took longest was found, for the line of a slow request. They go on without it unless
    somebody asked."""
    if not any(batch.explained for batch in batches):  # of several, some may have taken long
        return batches
    if about is not None:
        about.explained = max((batch.explained for batch in batches), key=_took)
    return batches if asked else [msgspec.structs.replace(batch, explained=[]) for batch in batches]


def _took(explained: list[ShardExplanation]) -> float:
    return sum(one.filter_milliseconds + one.vectors_milliseconds + one.documents_milliseconds for one in explained)


def _milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 3)


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{part} {milliseconds} ms" for part, milliseconds in value.items()) + ")"
    return f"({value})" if isinstance(value, str) and " " in value else str(value)


def _explained(shard: ShardExplanation) -> dict[str, Any]:
    """Its figures, with the segments counted if they are told."""
    told: dict[str, Any] = {
        "documents": shard.documents,
        "allowed": shard.allowed,
        "together": shard.together,
        "filter_ms": shard.filter_milliseconds,
        "vectors_ms": shard.vectors_milliseconds,
        "documents_ms": shard.documents_milliseconds,
    }
    return {**told, "segments": len(shard.segments)} if shard.segments else told


def subject_of(call: Any, command: Any = None) -> Subject:
    """Of a call of protocol.calls; command: that it has, decoded."""
    group: GroupId = getattr(call, "group", CATALOG_GROUP)
    shard = -1 if group == CATALOG_GROUP or not getattr(call, "epoch", 1) else group - 1
    request = getattr(call, "request", None)
    if request is not None:
        return Subject(request.collection, request.filter, request.k, shard)
    told = call if command is None else command
    filter, collection = getattr(told, "filter", b""), getattr(told, "collection", "")
    return Subject(str(collection), filter if isinstance(filter, bytes) else b"", 0, shard)
