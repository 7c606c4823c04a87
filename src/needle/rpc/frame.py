"""Frames on a byte stream, without I/O: u32 LE length | u8 kind | u64 LE request id | payload.

`length` counts what follows it (9 + payload). Invariant: the frames decoded depend on the bytes alone, not on how they
were cut into chunks; a length over the limit is refused when its four bytes are known, before anything is buffered for
it; memory held is what came of one frame and one chunk, and address space twice that, whatever a header announces. What
is done for one chunk takes time by the bytes of that chunk, in the midst of a large frame and at its end: nothing grows
by copying. Knows nothing of sockets or of what payloads mean.
"""

from __future__ import annotations

import mmap
import struct
import sys
from collections.abc import Sequence

from needle.base.errors import FrameTooLarge, OutOfMemory, ProtocolError, TlsFailed
from needle.base.parts import Payload

HELLO, HELLO_ACK, REQUEST, RESPONSE, ERROR, ONEWAY = range(1, 7)
HEADER = struct.Struct("<IBQ")
_HTTP = int.from_bytes(b"HTTP", "little")
_TLS = frozenset(int.from_bytes(first, "little") for first in (b"\x16\x03\x01", b"\x16\x03\x03", b"\x15\x03\x03"))
"""How TLS begins: a handshake of a caller, an alert of who is called."""
HEADER_BYTES = HEADER.size
LENGTH_BYTES = 4
ENVELOPE_BYTES = HEADER_BYTES - LENGTH_BYTES
VIEW_BYTES_MIN = 16 * 1024
"""Payloads from this size on are views of the received chunk; below it a copy is cheaper than keeping a chunk alive."""
GATHERED_BYTES_MIN = 512 * 1024
"""Larger frames are put together in pages of their own as they arrive: a joint at the end takes 40 ms for 64 MiB, and a
buffer that grows is copied whole by the C library (33 ms). A page takes memory when the first byte is written to it."""
_PAGES_MOVE = sys.platform == "linux"
"""Whether pages get more address space without being copied (mremap)."""
_SMALL_CHUNK = 4096
_LENGTH = struct.Struct("<I")

Frame = tuple[int, int, Payload]
"""(kind, request id, payload). A memoryview is over bytes that never change again: safe to keep, but its whole chunk or
frame stays alive with it."""


def encode_frame(kind: int, request_id: int, parts: Sequence[Payload]) -> bytes:
    """One frame as one bytes object; `parts` are joined as its payload."""
    size = sum(map(len, parts))
    return b"".join((HEADER.pack(ENVELOPE_BYTES + size, kind, request_id), *parts))


class FrameDecoder:
    """Incremental decoder. After a violation `error` is set, earlier frames are still returned, later bytes ignored."""

    __slots__ = ("_gathered", "_have", "_need", "_parts", "error", "frame_bytes_max")

    def __init__(self, frame_bytes_max: int) -> None:
        """frame_bytes_max: the largest `length` field accepted, in bytes."""
        self.frame_bytes_max = frame_bytes_max
        self._parts: list[bytes | bytearray] = []
        """Of the frame under way: all of it, or only its header if its payload is `_gathered`."""
        self._gathered: mmap.mmap | None = None
        self._have = 0
        self._need = 0
        self.error: ProtocolError | OutOfMemory | None = None

    @property
    def buffered(self) -> int:
        """Bytes of an incomplete frame held back."""
        return self._have

    @property
    def expected(self) -> int:
        """Bytes that the incomplete frame will have, as far as its header tells."""
        return self._need

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes, in order. Never raises for what a peer sent: see `error`."""
        frames: list[Frame] = []
        if self.error is not None:
            return frames
        offset = 0
        if self._parts:
            if self._need <= HEADER_BYTES:
                # A header cut in two: rare and tiny, so join and parse again.
                data = b"".join((*self._parts, data))
                self._parts.clear()
            elif self._have + len(data) < self._need:
                self._keep(data)
                return frames
            else:
                offset = self._need - self._have
                if not self._finish(data, offset, frames):
                    return frames
        self._scan(data, offset, frames)
        return frames

    def _scan(self, data: bytes, offset: int, frames: list[Frame]) -> None:
        """Cut whole frames out of `data` from `offset` on; keep the rest."""
        end = len(data)
        unpack = HEADER.unpack_from
        length_max = self.frame_bytes_max
        while end - offset >= HEADER_BYTES:
            length, kind, request_id = unpack(data, offset)
            if not (ENVELOPE_BYTES <= length <= length_max and HELLO <= kind <= ONEWAY):
                self._refuse(length, kind)
                return
            stop = offset + LENGTH_BYTES + length
            if stop > end:
                break
            start = offset + HEADER_BYTES
            if stop - start < VIEW_BYTES_MIN:
                frames.append((kind, request_id, data[start:stop]))
            else:
                frames.append((kind, request_id, memoryview(data)[start:stop]))
            offset = stop
        self._have = end - offset
        if not self._have:
            return
        self._need = HEADER_BYTES
        if self._have >= LENGTH_BYTES:
            length = _LENGTH.unpack_from(data, offset)[0]
            if not ENVELOPE_BYTES <= length <= length_max:
                self._refuse(length, None)
                return
            if self._have >= HEADER_BYTES:
                self._need = LENGTH_BYTES + length
        if self._need >= GATHERED_BYTES_MIN:
            self._gather(memoryview(data)[offset:])
        else:
            self._parts.append(data[offset:] if offset else data)

    def _gather(self, data: memoryview) -> None:
        """Begin a large frame with `data`, its header and more."""
        whole = self._need - HEADER_BYTES
        size = min(whole, max(2 * len(data), GATHERED_BYTES_MIN)) if _PAGES_MOVE else whole
        try:
            self._gathered = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            self._no_memory(error)
            return
        self._parts.append(bytes(data[:HEADER_BYTES]))
        self._gathered.write(data[HEADER_BYTES:])

    def _append(self, pages: mmap.mmap, data: Payload) -> bool:
        """Write to a large frame; False if there is no memory for it."""
        end = pages.tell() + len(data)
        if end > len(pages):
            try:
                pages.resize(min(self._need - HEADER_BYTES, 2 * end))
            except OSError as error:
                self._no_memory(error)
                return False
        pages.write(data)
        return True

    def _no_memory(self, error: OSError) -> None:
        wanted = self._need
        self.drop()
        self.error = OutOfMemory(f"there is no memory for a frame of {wanted} bytes: {error}")

    def _keep(self, data: bytes) -> None:
        """Hold a chunk of the frame under way; many tiny chunks share one buffer, so overhead stays bounded."""
        self._have += len(data)
        if self._gathered is not None:
            self._append(self._gathered, data)
        elif len(data) >= _SMALL_CHUNK:
            self._parts.append(data)
        elif isinstance(last := self._parts[-1], bytearray):
            last += data
        else:
            self._parts.append(bytearray(data))

    def _finish(self, data: bytes, offset: int, frames: list[Frame]) -> bool:
        """The frame under way is completed by data[:offset]; its payload is copied once. False if it cannot be."""
        first = self._parts[0]
        _, kind, request_id = HEADER.unpack_from(first, 0)
        if self._gathered is None:
            payload: Payload = b"".join((memoryview(first)[HEADER_BYTES:], *self._parts[1:], memoryview(data)[:offset]))
        elif self._append(self._gathered, memoryview(data)[:offset]):
            payload = memoryview(self._gathered).toreadonly()
        else:
            return False
        self.drop()
        frames.append((kind, request_id, payload))
        return True

    def drop(self) -> None:
        """Forget the frame under way: nothing more will come."""
        self._parts.clear()
        self._gathered = None
        self._have = 0

    def _refuse(self, length: int, kind: int | None) -> None:
        self.drop()
        if length == _HTTP:
            self.error = ProtocolError("the other side speaks HTTP, not Needle's protocol: is this an http_address?")
        elif length & 0xFFFFFF in _TLS:
            self.error = TlsFailed("the other side speaks TLS, and this side does not (docs/security.md)")
        elif length > self.frame_bytes_max:
            self.error = FrameTooLarge(
                f"a frame of {length} bytes is over the limit of {self.frame_bytes_max}",
                bytes=length,
                limit=self.frame_bytes_max,
            )
        elif length < ENVELOPE_BYTES:
            self.error = ProtocolError(f"a frame length of {length} is below the minimum of {ENVELOPE_BYTES}")
        else:
            self.error = ProtocolError(f"frame kind {kind} is unknown: known are {HELLO} to {ONEWAY}")
