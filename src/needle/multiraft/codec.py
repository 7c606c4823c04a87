"""Frames between hosts: all Raft messages of one loop turn to one peer, of all groups, in one body.

Invariant: decode(encode(x)) == x. It must not know what a message means.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from needle.base.errors import ProtocolError
from needle.base.ids import GroupId
from needle.multiraft.ports import SnapshotFile
from needle.raft.messages import ConfState, Message

MESSAGE_OVERHEAD = 96

Addressed = tuple[GroupId, Message]


class ChunkRequest(msgspec.Struct, frozen=True, array_like=True):
    """Asks for `length` bytes from `offset` of one file of a snapshot."""

    group: GroupId
    snapshot: str
    name: str
    offset: int
    length: int


class Manifest(msgspec.Struct, frozen=True, array_like=True):
    """What SnapshotMeta.descriptor holds: the snapshot's id on its sender, and its files."""

    snapshot: str
    files: tuple[SnapshotFile, ...]


_encoder = msgspec.msgpack.Encoder()
_frame = msgspec.msgpack.Decoder(list[Addressed])
_chunk = msgspec.msgpack.Decoder(ChunkRequest)
_manifest = msgspec.msgpack.Decoder(Manifest)
_conf = msgspec.msgpack.Decoder(ConfState)


def message_bytes(message: Message) -> int:
    """About how many bytes a message takes in a frame."""
    if not message.entries:
        return MESSAGE_OVERHEAD
    return MESSAGE_OVERHEAD + sum([len(entry.data) + 24 for entry in message.entries])


def encode_frame(messages: list[Addressed]) -> bytes:
    """One frame's body."""
    return _encoder.encode(messages)


def decode_frame(body: bytes) -> list[Addressed]:
    """The messages of a frame. Raises ProtocolError."""
    try:
        return _frame.decode(body)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"a frame of Raft messages cannot be read: {error}") from error


def in_frames(messages: list[Addressed], bytes_max: int) -> Iterator[list[Addressed]]:
    """The messages in runs that fit into a frame of `bytes_max` (a message that does not is alone): mostly one."""
    start, size = 0, 0
    for at, (_, message) in enumerate(messages):
        more = message_bytes(message)
        if size + more > bytes_max and at > start:
            yield messages[start:at]
            start, size = at, 0
        size += more
    yield messages[start:] if start else messages


def encode_chunk_request(request: ChunkRequest) -> bytes:
    """The body of a "raft.snapshot_chunk" call."""
    return _encoder.encode(request)


def decode_chunk_request(body: bytes) -> ChunkRequest:
    """The request of a "raft.snapshot_chunk" call. Raises ProtocolError."""
    try:
        return _chunk.decode(body)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"a request for a snapshot chunk cannot be read: {error}") from error


def encode_manifest(manifest: Manifest) -> bytes:
    """The descriptor of a snapshot."""
    return _encoder.encode(manifest)


def decode_manifest(descriptor: bytes) -> Manifest:
    """The manifest in a descriptor. Raises ProtocolError, also for a file name that leaves the directory."""
    try:
        manifest = _manifest.decode(descriptor)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"the descriptor of a snapshot cannot be read: {error}") from error
    for name in (manifest.snapshot, *(file.name for file in manifest.files)):
        parts = name.split("/")
        if "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
            raise ProtocolError(f"a snapshot names a file {name!r} outside of its directory")
    if "/" in manifest.snapshot:
        raise ProtocolError(f"a snapshot has the id {manifest.snapshot!r}, which is not one path component")
    return manifest


def encode_conf(conf: ConfState) -> bytes:
    """A configuration as the state machine stores it."""
    return _encoder.encode(conf)


def decode_conf(conf: bytes) -> ConfState:
    """The configuration a state machine stored; the empty one for b"". Raises ProtocolError."""
    if not conf:
        return ConfState()
    try:
        return _conf.decode(conf)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"a stored configuration cannot be read: {error}") from error
