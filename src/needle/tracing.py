"""OpenTelemetry spans, where the process has set up an SDK; without one nothing of it is loaded.

Invariant: nothing depends on a trace: what cannot be told of is not. Spans get their ids and instants from the SDK, so
none of this belongs into code that runs under simulation. Knows no calls.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from needle.base.errors import NeedleError
from needle.base.explain import ShardExplanation
from needle.base.request import Request, current

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

CLIENT, SERVER, INTERNAL = "CLIENT", "SERVER", "INTERNAL"
NAME: Final = "needle"
_NANOS: Final = 1_000_000_000


class Spans:
    """Makes spans with a tracer of the process' provider."""

    def __init__(self) -> None:
        """Needs opentelemetry-api."""
        from opentelemetry import trace

        self._trace = trace
        self._tracer = trace.get_tracer(NAME)

    def begin(self, name: str, kind: str, parent: str, **attributes: Any) -> Span:
        """A span below the one with the traceparent `parent`; with "" below that which is current in this process."""
        of_kind = self._trace.SpanKind[kind]
        return self._tracer.start_span(name, self._context(parent), of_kind, attributes)

    def _context(self, parent: str) -> Context | None:
        if not parent:
            return None
        _, trace_id, span_id, flags = parent.split("-")
        above = self._trace.SpanContext(
            int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=self._trace.TraceFlags(int(flags, 16))
        )
        return self._trace.set_span_in_context(self._trace.NonRecordingSpan(above))

    def end(self, span: Span, error: BaseException | None) -> None:
        """It ends now. error: with which what it measured failed."""
        if error is not None:
            code = error.code if isinstance(error, NeedleError) else type(error).__name__
            span.set_attribute("error.type", code)
            span.set_status(self._trace.StatusCode.ERROR, str(error)[:1000])
        span.end()

    @contextmanager
    def under(self, name: str, kind: str, **attributes: Any) -> Iterator[None]:
        """What is done inside is one span; calls to nodes carry it."""
        outer = current.get()
        span = self.begin(name, kind, outer.trace if outer is not None else "", **attributes)
        token = current.set(Request(outer.id if outer is not None else "", traceparent(span)))
        failure: BaseException | None = None
        try:
            yield
        except BaseException as error:
            failure = error
            raise
        finally:
            current.reset(token)
            self.end(span, failure)

    def tell_search(self, parent: str, explained: Sequence[ShardExplanation], seconds_ago: float) -> None:
        """Spans of how a shard's search was answered. Their lengths were measured; where they begin follows from their
        order. seconds_ago: when it was answered."""
        for shard in explained:
            took = (
                ("filter", shard.filter_milliseconds),
                ("vectors", shard.vectors_milliseconds),
                ("documents", shard.documents_milliseconds),
            )
            at = time.time_ns() - int(seconds_ago * _NANOS) - sum(_nanos(milliseconds) for _, milliseconds in took)
            for name, milliseconds in took:
                span = self._tracer.start_span(f"{NAME}.{name}", self._context(parent), start_time=at)
                if name == "filter":
                    span.set_attributes({"needle.documents": shard.documents, "needle.allowed": shard.allowed})
                elif name == "vectors":
                    span.set_attribute("needle.together", shard.together)
                    self._tell_segments(span, shard, at)
                at += _nanos(milliseconds)
                span.end(at)

    def _tell_segments(self, above: Span, shard: ShardExplanation, at: int) -> None:
        for segment in shard.segments:
            span = self._tracer.start_span(f"{NAME}.segment", self._trace.set_span_in_context(above), start_time=at)
            span.set_attributes({
                "needle.way": str(segment.way),
                "needle.ordinals": f"{segment.first}-{segment.last}",
                "needle.rows": segment.rows,
                "needle.allowed": segment.allowed,
                "needle.ef": segment.ef,
            })  # fmt: skip
            at += _nanos(segment.milliseconds)
            span.end(at)


def _nanos(milliseconds: float) -> int:
    return int(milliseconds * 1_000_000)


def traceparent(span: Span) -> str:
    """How a span is called on the wire."""
    context = span.get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def spans() -> Spans | None:
    """None unless somebody in this process has set up what takes spans: an OpenTelemetry SDK, or an agent with one.
    Loads nothing that is not loaded."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    provider = trace.get_tracer_provider()
    return None if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider) else Spans()
