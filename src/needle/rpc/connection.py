"""What both ends of a connection share: decoding, joined writes, flow control, counters.

Invariant: all frames written in one loop turn leave in one socket write, in order; once a connection is closing nothing
more is written. Does not know which end it is: `server` and `transport` subclass it.
"""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import msgspec

from needle.base.parts import Payload
from needle.rpc.frame import ENVELOPE_BYTES, HEADER, HEADER_BYTES, Frame, FrameDecoder

SLICE_BYTES = 256 * 1024
"""At most so much is handed to the socket in one turn of the loop: more would hold it for the time of the copies."""


class RpcLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one connection. Bytes, counts and seconds.

    frame_bytes_max: largest frame either way. inflight_requests_max, inflight_bytes_max: requests a server works on for
    one connection before it stops reading. held_bytes_max: what a server holds for all its peers: unfinished
    frames, requests, answers that were not read. answers_bytes_max: unread answers of one connection.
    write_buffer_bytes: unsent bytes at which a connection counts as slow. oneway_bytes_max: unsent bytes at which
    one-way frames are dropped. connections_max: more are refused. hello_bytes_max: largest frame before the hello's
    answer. hello_timeout: from connecting to the hello's answer. frame_timeout, frame_bytes_per_second: how long a
    frame may take to arrive, and how much longer for its size. stall_timeout: unacknowledged data for so long
    closes the connection (TCP_USER_TIMEOUT). backoff_min/max: pause after a failed connect, doubling. stop_timeout:
    how long a stopping server lets requests finish.
    """

    frame_bytes_max: int = 64 * 1024 * 1024
    inflight_requests_max: int = 1024
    inflight_bytes_max: int = 64 * 1024 * 1024
    held_bytes_max: int = 512 * 1024 * 1024
    answers_bytes_max: int = 64 * 1024 * 1024
    write_buffer_bytes: int = 1024 * 1024
    oneway_bytes_max: int = 32 * 1024 * 1024
    connections_max: int = 10_000
    hello_bytes_max: int = 64 * 1024
    hello_timeout: float = 3.0
    frame_timeout: float = 10.0
    frame_bytes_per_second: int = 512 * 1024
    stall_timeout: float = 10.0
    backoff_min: float = 0.02
    backoff_max: float = 1.0
    stop_timeout: float = 2.0


class RpcStats(msgspec.Struct):
    """Counters of one client or server since it was made; `connections` is the present number.

    dropped_frames/_bytes: one-way frames not sent. late_answers: answers to calls that had already ended.
    protocol_errors: peers refused or closed for what they sent. handler_failures: exceptions other than NeedleError.
    """

    bytes_in: int = 0
    bytes_out: int = 0
    frames_in: int = 0
    frames_out: int = 0
    connections: int = 0
    connects: int = 0
    connect_failures: int = 0
    reconnects: int = 0
    timeouts: int = 0
    late_answers: int = 0
    dropped_frames: int = 0
    dropped_bytes: int = 0
    protocol_errors: int = 0
    handler_failures: int = 0


class FrameConnection(asyncio.Protocol, ABC):
    """One end of a connection. Subclasses implement `on_frames`, `on_lost` and `on_flow`."""

    def __init__(self, limits: RpcLimits, stats: RpcStats) -> None:
        self.limits = limits
        self.stats = stats
        self.loop = asyncio.get_running_loop()
        self.decoder = FrameDecoder(limits.frame_bytes_max)
        self.transport: asyncio.Transport | None = None
        self.closing = False
        self.write_paused = False
        self.remote = ""
        self._out: list[Payload] = []
        self._out_bytes = 0
        self._corked = False
        self._scheduled = False
        self._much = False
        self._linger: asyncio.TimerHandle | None = None
        self._lost = False

    # --- what a subclass provides ------------------------------------------------------------------------------------
    @abstractmethod
    def on_frames(self, frames: list[Frame]) -> None:
        """Frames arrived, in order; `decoder.error` may be set behind them."""

    @abstractmethod
    def on_lost(self, error: Exception | None) -> None:
        """The connection is gone; called once."""

    @abstractmethod
    def on_flow(self) -> None:
        """`slow` may have changed."""

    # --- writing -----------------------------------------------------------------------------------------------------
    def write_frame(self, kind: int, request_id: int, parts: Sequence[Payload]) -> None:
        """Queue one frame for this loop turn's write. `parts` must not be changed afterwards."""
        if self.closing:
            return
        size = ENVELOPE_BYTES
        for part in parts:
            size += len(part)
        out = self._out
        if not self._scheduled and not self._corked:
            self._schedule()
        out.append(HEADER.pack(size, kind, request_id))
        out.extend(parts)
        self._out_bytes += size + HEADER_BYTES - ENVELOPE_BYTES
        self.stats.frames_out += 1

    def unsent_bytes(self) -> int:
        """Bytes queued here and, once the transport reported itself slow, in its buffer."""
        if self.write_paused and self.transport is not None:
            return self._out_bytes + self.transport.get_write_buffer_size()
        return self._out_bytes

    @property
    def slow(self) -> bool:
        """Whether so much is unsent that nothing more should be asked for."""
        return self.write_paused or self._out_bytes >= self.limits.write_buffer_bytes

    def _schedule(self) -> None:
        self._scheduled = True
        self.loop.call_soon(self._flush_next)

    def _flush_next(self) -> None:
        self._scheduled = False
        was_much, self._much = self._much, False
        self._flush()
        if was_much and not self.slow:
            self.on_flow()

    def _flush(self) -> None:
        """Hand over what is queued: a slice of it if it is much, and the rest in later turns as the peer reads."""
        out = self._out
        if not out:
            return
        if self.transport is None or self.transport.is_closing():
            out.clear()
            self._out_bytes = 0
            return
        size = self._out_bytes
        if size <= SLICE_BYTES:
            self._out, self._out_bytes = [], 0
            self.stats.bytes_out += size
            self._much = size >= self.limits.write_buffer_bytes
            self.transport.write(b"".join(out))
        elif not self.write_paused:
            self._write(self._slice())
            self._much = True
        if self._much and not self._scheduled and not self.write_paused:
            self._schedule()

    def _write(self, pieces: list[Payload]) -> None:
        data = b"".join(pieces)
        self._out_bytes -= len(data)
        self.stats.bytes_out += len(data)
        if self.transport is not None:
            self.transport.write(data)

    def _slice(self) -> list[Payload]:
        """The first SLICE_BYTES of what is queued."""
        room, whole = SLICE_BYTES, 0
        taken: list[Payload] = []
        for part in self._out:
            if len(part) > room:
                break
            taken.append(part)
            room -= len(part)
            whole += 1
        del self._out[:whole]
        if room and self._out:
            part = memoryview(self._out[0])
            taken.append(part[:room])
            self._out[0] = part[room:]
        return taken

    def _flush_all(self) -> None:
        """Hand over everything: the connection ends."""
        if self._out and self.transport is not None and not self.transport.is_closing():
            pieces, self._out = self._out, []
            self._write(pieces)

    # --- closing -----------------------------------------------------------------------------------------------------
    def close(self) -> None:
        """Send what is queued, then close; a peer that does not read is cut off after hello_timeout. Idempotent."""
        if not self.closing:
            self.closing = True
            self._flush_all()
        if self._linger is None:
            self._linger = self.loop.call_later(self.limits.hello_timeout, self.abort)
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """Close at once; what is queued is lost. Idempotent."""
        self.closing = True
        self._out.clear()
        self._out_bytes = 0
        if self.transport is not None:
            self.transport.abort()

    def close_after_refusal(self) -> None:
        """Send what is queued and end our side, but keep reading (and discarding) for a while.

        Closing a socket with unread input resets the connection, and the reset can overtake the error just written.
        """
        if self.closing or self.transport is None:
            return
        self.closing = True
        self._flush_all()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.transport.resume_reading()
        self._linger = self.loop.call_later(self.limits.hello_timeout, self.abort)

    # --- asyncio.Protocol --------------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=self.limits.write_buffer_bytes)
        peer = transport.get_extra_info("peername")
        self.remote = f"{peer[0]}:{peer[1]}" if peer else "?"
        self.stats.connections += 1
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self.limits.stall_timeout * 1000))

    def data_received(self, data: bytes) -> None:
        self.stats.bytes_in += len(data)
        if self.closing:
            return
        frames = self.decoder.feed(data)
        self.stats.frames_in += len(frames)
        # Corked: answers given while these frames are handled leave together at the end, without waiting a loop turn.
        self._corked = True
        try:
            self.on_frames(frames)
        finally:
            self._corked = False
            self._flush()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self.write_paused = True
        self.on_flow()

    def resume_writing(self) -> None:
        self.write_paused = False
        self._flush()
        self.on_flow()

    def given_up(self) -> None:
        """Whoever opened this was cancelled meanwhile. uvloop closes the transport then without a word, others tell of
        the loss later: it counts once."""
        if self.transport is not None:
            self.abort()
            self.connection_lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._lost:
            return
        self._lost = self.closing = True
        self._out.clear()
        self._out_bytes = 0
        if self._linger is not None:
            self._linger.cancel()
        self.stats.connections -= 1
        self.on_lost(exc)
