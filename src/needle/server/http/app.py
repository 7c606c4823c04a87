"""The door as an ASGI application: routes, bounds, errors.

Invariants: whatever a caller sends, it gets one answer: that of its route, or a problem document. Of requests under way
there are at most `REQUESTS_MAX`, which hold what memory.py lets them; what is more is refused by name. Probes are
answered however many there are.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Final

import msgspec
from starlette.exceptions import HTTPException
from starlette.routing import Router

from needle.base.access import ADMIN, MONITOR, Identity, Role, rank_of
from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import (
    Forbidden,
    InMaintenance,
    Internal,
    NeedleError,
    OutcomeUnknown,
    TooManyRequests,
    Unavailable,
)
from needle.base.events import CALLER_REFUSED, tell
from needle.base.request import Request, Stopwatch, current, is_id
from needle.base.runtime import beside
from needle.base.tracebacks import release
from needle.client.asking import asked_by, check_known
from needle.client.client import Client
from needle.server.access import check_collection, refusal
from needle.server.audit import REFUSALS
from needle.server.history import History
from needle.server.http import idempotency, session
from needle.server.http.browsers import check_host
from needle.server.http.call import BESIDE_BYTES, Call, subject_of, takes_long
from needle.server.http.door_node import DoorNode
from needle.server.http.endings import Ending
from needle.server.http.feeds import Feeds
from needle.server.http.memory import Memory, Share, decoded_bytes
from needle.server.http.message import (
    Gone,
    Headers,
    Receive,
    Scope,
    Send,
    body_of,
    check_body,
    encoded,
    given_back,
    headers_of,
    is_taken,
    is_there,
    last_event,
    no_body,
    pieces_of,
    told_of,
    write,
)
from needle.server.http.metered import documents_of, size_of
from needle.server.http.paths import Path, parts_of
from needle.server.http.pieces import JSON_BYTES_MAX, large_decoder
from needle.server.http.problems import CONTENT_TYPE, RETRY_SECONDS, HttpError, problem_of
from needle.server.http.queries import from_query, no_query
from needle.server.http.routes import BASE, Route
from needle.server.http.streams import EVENTS, LINES, in_parts, stream
from needle.server.http.unreadable import unreadable
from needle.server.service.watched import Subject

log = logging.getLogger("needle.server")

BODY_BYTES_MAX: Final = 64 * 1024 * 1024
BODY_SECONDS: Final = 60.0
"""In which a body has arrived."""
SEND_SECONDS: Final = 60.0
"""In which a caller has read a part of its answer."""
PIECE_BYTES: Final = 256 * 1024
REQUESTS_MAX: Final = 1024
LARGE_BYTES: Final = 1024 * 1024
"""Of bodies from this size on one is decoded at a time: a decoder holds the interpreter until it is done."""
STOPPING: Final = "this node is stopping"
_NO_HEADERS: Final = Headers("", False, False, "identity", False, 0, "", None)


class Door:
    """See the module. table: the routes of the API. more: besides these (probes, pages). history: of the last hour.
    hosts: names of this node for browsers."""

    def __init__(
        self, node: DoorNode, table: Sequence[Route], more: Sequence[Path], history: History, hosts: Sequence[str] = ()
    ) -> None:
        self.node, self.history = node, history
        self._hosts = frozenset(host.lower() for host in hosts)
        self.draining, self._requests, self.memory = False, 0, Memory()
        self.refused: Counter[str] = Counter()
        """Answers that were errors, by code."""
        self.decoding, self.feeds = asyncio.Lock(), Feeds(self.memory, lambda: len(node.shards.topology().serving))
        served = [Path(route.path, _Endpoint(self, route), methods=[route.method]) for route in table]
        self._routes = [*served, *more]
        self._api = Router(served, redirect_slashes=False)
        self._more, self._besides = Router(more, redirect_slashes=False), tuple(more)
        self._base = [BASE.strip("/")]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return
        scope["app"] = self  # so that what no route has is raised, not answered
        headers, started = _NO_HEADERS, False

        async def sending(message: Any) -> None:
            """In pieces, each once the one before it was taken off our hands."""
            nonlocal started
            started = True
            for piece in pieces_of(message):
                if is_taken(scope) and piece is message:
                    await send(message)
                    return
                async with asyncio.timeout(SEND_SECONDS):
                    await send(piece)

        request_id = ""
        try:
            try:
                headers = headers_of(scope)
                request_id = scope["needle.request_id"] = self._request_id(headers)
                current.set(Request(request_id, headers.trace))  # in this request's own task
                scope["needle.headers"] = headers
                scope["needle.parts"] = parts_of(scope)
                await self._admitted(scope, receive, sending)
            except HTTPException as error:
                raise self._refused(error, scope) from None
        except Gone:
            return
        except (NeedleError, HttpError) as error:
            if isinstance(error, REFUSALS):
                self.note(scope, error)
                tell(CALLER_REFUSED, code=error.code, why=error.message, **told_of(scope))
            if started:
                raise  # the connection ends in the middle of the answer: that is how its reader learns of it
            await self._write_problem(sending, error, headers, request_id or self._request_id(headers))
            await beside(self.node.blocking if scope.get("needle.large") else None, release, error)
        except TimeoutError:
            log.info("request %s: its caller does not read the answer", request_id)
            if (abort := scope.get("needle.abort")) is not None:
                abort()
            raise
        except Exception as error:  # a bug: its caller is answered, and the node goes on
            log.exception("request %s failed", request_id)
            if started:
                raise
            failed = Internal(f"the request failed ({type(error).__name__}); the node's log says more")
            await self._write_problem(sending, failed, headers, request_id or self._request_id(headers))

    def caller(self, headers: Headers) -> Identity:
        """Who asks. Raises Unauthenticated for a key that is none; Forbidden for a browser that might be misled."""
        access = self.node.access
        if headers.key is not None:
            return access.of_key(headers.key)
        if not access.required:
            check_host(headers.host, self._hosts)
        return access.anonymous

    def check_goes_on(self, headers: Headers, caller: Identity) -> None:
        """Whether an answer that has no end goes on. Raises Unavailable, InMaintenance, Unauthenticated, Forbidden."""
        if self.draining or not self.node.alive():
            raise Unavailable(STOPPING)
        if self.node.host.maintenance:
            raise InMaintenance("this node is in maintenance: go on at another one, behind the last event")
        if self.caller(headers) is not caller:
            raise Forbidden("this API key has changed meanwhile: go on behind the last event")

    def note(self, scope: Scope, error: NeedleError | None, *, about: str = "", seconds: float = 0.0) -> None:
        """Into the audit log, if there is one."""
        if (audit := self.node.audit) is not None:
            audit.note(
                "http",
                f"{scope['method']} {scope['path']}",
                error,
                **told_of(scope),
                request_id=scope.get("needle.request_id", ""),
                about=about,
                seconds=seconds,
            )

    def check_metrics(self, scope: Scope) -> None:
        """Raises unless the caller may read of all collections."""
        caller = self.caller(scope["needle.headers"])
        if caller.rank < MONITOR:
            raise refusal(caller, MONITOR, "GET /metrics")
        check_collection(caller, None, "GET /metrics")

    def _request_id(self, headers: Headers) -> str:
        given = headers.request_id
        if is_id(given):
            return given
        return f"{self.node.rng.getrandbits(64):016x}"

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        """With what it may take counted."""
        parts = scope["needle.parts"]
        if parts[1:2] != self._base and any(one.names_in(parts) is not None for one in self._besides):
            await self._more(scope, receive, send)
            return
        if self._requests >= REQUESTS_MAX:
            raise HttpError(429, "overloaded", f"{REQUESTS_MAX} requests are under way on this node")
        self._requests += 1
        share = scope["needle.share"] = Share(self.memory)
        try:
            await self._api(scope, receive, send)
        finally:
            self._requests -= 1
            share.settle(0)

    def _refused(self, error: HTTPException, scope: Scope) -> HttpError:
        """What no route has."""
        path = str(scope.get("path", ""))
        if error.status_code == 405:
            parts = scope["needle.parts"]
            there = (one for one in self._routes if one.names_in(parts) is not None)
            allow = ", ".join(sorted({method for one in there for method in one.methods or ()}))
            text = f"{scope['method']} is not served at {path[:200]!r}: {allow} is"
            return HttpError(405, "method_not_allowed", text, allow=allow)
        return HttpError(404, "no_such_path", f"nothing is served at {path[:200]!r}; /openapi.json says what is")

    async def _write_problem(self, send: Send, error: NeedleError | HttpError, headers: Headers, id_: str) -> None:
        problem = problem_of(error, id_)
        self.refused[problem.code] += 1
        extra = [(b"x-request-id", id_.encode())]
        if problem.status in (429, 503):
            wait = error.details["wait"] if isinstance(error, TooManyRequests) else RETRY_SECONDS
            extra.append((b"retry-after", str(math.ceil(float(str(wait)))).encode()))
        if problem.status == 408 or (problem.status == 413 and not 0 < headers.length <= BODY_BYTES_MAX):
            extra.append((b"connection", b"close"))  # the rest of the body is not even passed over
        if problem.status == 401:
            extra.append((b"www-authenticate", b"Bearer"))
        if isinstance(error, HttpError) and error.allow:
            extra.append((b"allow", error.allow.encode()))
        plain = headers._replace(wants_packed=False, wants_gzip=False)
        told, body = await encoded(problem, plain, extra, size=0, blocking=self.node.blocking, kind=CONTENT_TYPE)
        await write(send, problem.status, told, body)


class _Endpoint:
    """One route, as ASGI."""

    def __init__(self, door: Door, route: Route) -> None:
        self._door, self._route = door, route
        self._rank = rank_of(Role(route.role))
        self._what = f"{route.method} {route.path}"
        self._json, self._large = msgspec.json.Decoder(route.body), large_decoder(route.body)
        self._msgpack = msgspec.msgpack.Decoder(route.body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        node, headers, share = self._door.node, scope["needle.headers"], scope["needle.share"]
        start, took, failure, done = node.now(), None, None, False
        watched = node.service.watch.begin(f"http_{self._route.name}", Subject(), "")
        ending = Ending(scope, self._route.role == "reader")
        try:
            caller = self._admitted(scope, headers)
            if (meter := caller.meter) is not None:
                meter.admit(node.now())
            call = await self._call(scope, receive, headers, caller)
            if watched is not None:
                asks = subject_of(call, filtered=node.service.watch.tells_slow)
                watched.asks(asks, caller.name, "body", node.now() - start)
            extra, stopwatch = [(b"x-request-id", scope["needle.request_id"].encode())], Stopwatch(node.now)
            with asked_by(call.asked):
                answer: Any = await self._route.handler(call)
            stopwatch.stop("handle")
            done, stopwatch = True, Stopwatch(node.now)
            if headers.session is not None:
                seen = session.encode(call.router.seen, node.shards.topology().founding)
                extra.append((b"needle-session", seen.encode()))
            if in_parts(answer):
                form, took = (EVENTS, node.now() - start) if self._route.events else (LINES, None)
                failure = await stream(send, answer, extra, share, scope["needle.request_id"], caller, form)
            else:
                size = max(size_of(answer), share.held)
                told, body = await encoded(answer, headers, extra, size=size, blocking=node.blocking)
                if meter is not None:
                    meter.pay(documents_of(call.path, call.body, answer), len(body))
                held = [answer, call]
                del answer, call  # a reader may take its time: what is held for it meanwhile is the answer's bytes
                await given_back(held, size, node.blocking)
                share.settle(len(body))
                await write(send, 200, told, body)
            stopwatch.stop("answer")
        except NeedleError as error:
            failure = error
            raise
        except (HttpError, Gone):
            raise
        except Exception:  # a bug counts as a failure, too; whoever answers is told by it
            if not done:  # else it is the answer that did not get through
                failure = Internal("the request failed")
            raise
        except asyncio.CancelledError:
            if ending.left:
                ending.task.uncancel()
                raise Gone from None
            if not self._door.draining:
                raise
            ending.task.uncancel()
            failure = Unavailable(STOPPING) if ending.drops else OutcomeUnknown(f"{STOPPING}; the write may be done")
            raise failure from None
        finally:
            ending.close()
            node.observe(f"http_{self._route.name}", node.now() - start if took is None else took, failure)
            if watched is not None:
                watched.end(failure, took)
            if self._rank == ADMIN and (done or failure is not None) and not isinstance(failure, REFUSALS):
                self._door.note(scope, failure, about=self._route.name, seconds=node.now() - start)

    def _admitted(self, scope: Scope, headers: Headers) -> Identity:
        """Who asks, if it may. Raises Unauthenticated, Forbidden."""
        caller = self._door.caller(headers)
        scope["needle.key"] = caller.name
        if caller.rank < self._rank:
            raise refusal(caller, self._rank, self._what)
        if not caller.is_for_all and not self._route.filtered:
            if (name := scope["path_params"].get("collection")) is not None:
                alias = self._door.node.shards.topology().alias(name)
                # What was judged is what is called, also if the alias leads elsewhere once the body has arrived.
                name = scope["path_params"]["collection"] = name if alias is None else alias.collection
            check_collection(caller, name, self._what)
        return caller

    async def _call(self, scope: Scope, receive: Receive, headers: Headers, caller: Identity) -> Call:
        door, node, share, large = self._door, self._door.node, scope["needle.share"], False
        if door.draining or not node.alive():
            raise Unavailable(STOPPING)
        path, data = scope["path_params"], b""
        key = idempotency.key_of(scope["headers"], self._route)
        if self._route.in_query:
            no_body(scope, headers)
            body = from_query(self._route.body, scope["query_string"])
        else:
            no_query(scope["query_string"])
            check_body(scope["method"], headers)
            try:
                async with asyncio.timeout(BODY_SECONDS) if not is_there(scope) else nullcontext():
                    most = BODY_BYTES_MAX if headers.packed else min(BODY_BYTES_MAX, JSON_BYTES_MAX)
                    data = await body_of(receive, headers, most, node.blocking, share)
            except TimeoutError:
                text = f"the body did not arrive within {BODY_SECONDS:g} s"
                raise HttpError(408, "request_timeout", text, field="body") from None
            if caller.meter is not None:
                caller.meter.pay(0, len(data))
            body = await self._from_body(data, headers, share)
            scope["needle.large"] = large = len(data) >= BESIDE_BYTES or takes_long(body)
        asked = None
        if key is not None:
            check_known(node.shards.topology())
            said = (self._route, scope["needle.parts"], scope["query_string"], headers.packed, data)
            asked = await beside(node.blocking if large else None, idempotency.request_of, caller.name, key, *said)
        del data
        router = node.router.in_session(session.decode(headers.session or "", node.shards.topology().founding))
        if caller.filter:
            router = router.bound_to(caller.filter)
        return Call(
            client=Client(node.caller, node.shards, router),
            router=router,
            path=path,
            body=body,
            packed=headers.wants_packed,
            session=headers.session is not None,
            blocking=node.blocking,
            caller=caller,
            share=share,
            large=large,
            asked=asked,
            history=door.history,
            feeds=door.feeds,
            last_event=last_event(scope) if self._route.events else "",
            go_on=lambda: door.check_goes_on(headers, caller),
        )

    async def _from_body(self, data: bytes, headers: Headers, share: Share) -> Any:
        decode: Callable[[bytes], Any] = (self._msgpack if headers.packed else self._json).decode
        try:
            if len(data) < BESIDE_BYTES:
                return decode(data or (b"\x80" if headers.packed else b"{}"))
            blocking = self._door.node.blocking
            share.take(await blocking(decoded_bytes, data, headers.packed))
            if len(data) < LARGE_BYTES:
                return await blocking(decode, data)
            async with self._door.decoding:
                return await blocking(decode if headers.packed else self._large, data)
        except DECODE_ERRORS as error:
            raise unreadable(error, data, headers.packed, self._route.body) from None
