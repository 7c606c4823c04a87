"""Frames between hosts: all Raft messages of one loop turn to one peer, of all groups, in one body.

Invariant: decode(encode(x)) == x. It must not know what a message means.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final, TypeVar

import msgspec

from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import ProtocolError
from needle.base.ids import GroupId, NodeId
from needle.base.parts import LARGE_BYTES, Body, Payload, encode_parts
from needle.multiraft.log.log_records import Life
from needle.multiraft.ports import SnapshotFile
from needle.raft.messages import ConfState, Message, SnapshotMeta

MESSAGE_OVERHEAD = 96
PLAIN_BYTES: Final = 64 << 10
"""Of a larger frame it is counted what it holds while it is decoded: 64 MiB of the smallest messages take seconds and
1.6 GB."""
MESSAGES_MAX: Final = 1 << 16
"""Of one frame: more than fit into 4 MiB (`in_frames`)."""
FRAME_ENTRIES_MAX: Final = 1 << 18
"""The same of the entries in all its messages."""
TOLD_MAX: Final = 1 << 14
"""Groups of which nodes tell each other at once: more than there are shards."""
T = TypeVar("T")

_FRAME: Final = "a frame of Raft messages"

Addressed = tuple[GroupId, Message]


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """What one body holds. nonce: of the sender's present life. news: how often it learned of others' lives."""

    nonce: int
    news: int
    messages: list[Addressed]


class Told(msgspec.Struct, frozen=True, array_like=True):
    """A node said that it holds the group's entries up to `index` in `term`."""

    group: GroupId
    term: int
    index: int


class _Parcel(msgspec.Struct, frozen=True, array_like=True):
    """A frame whose messages are still to be decoded."""

    nonce: int
    news: int
    messages: Annotated[list[tuple[GroupId, msgspec.Raw]], msgspec.Meta(max_length=MESSAGES_MAX)]


class LifeCall(msgspec.Struct, frozen=True, array_like=True):
    """A node (nonce: of its life) asks another who it is, and says what it knows of it."""

    nonce: int
    remembered: Life | None
    told: Annotated[list[Told], msgspec.Meta(max_length=TOLD_MAX)]


class LifeAnswer(msgspec.Struct, frozen=True, array_like=True):
    """knows: the life that the asker remembers. missing, lost: what it should hold and does not, why it must not go on.
    remembered: lives of others. told: what the asker told it in an earlier life."""

    life: Life
    news: int
    knows: bool
    missing: str
    lost: str
    remembered: dict[NodeId, Life]
    told: Annotated[list[Told], msgspec.Meta(max_length=TOLD_MAX)]


class StandingCall(msgspec.Struct, frozen=True, array_like=True):
    """Asks how a replica stands to one entry. term: of that entry as committed where it is asked, 0 if it is not."""

    group: GroupId
    index: int
    term: int


class Standing(msgspec.Struct, frozen=True, array_like=True):
    """term_at: of the entry asked for, 0 if it is not in the log, -1 if it is compacted. match: what this leader takes
    the asker to hold, or took before it found that it does not."""

    term: int
    leads: bool
    commit: int
    last_index: int
    term_at: int
    match: int


class ChunkRequest(msgspec.Struct, frozen=True, array_like=True):
    """Asks for `length` bytes from `offset` of one file of a snapshot."""

    group: GroupId
    snapshot: str
    name: str
    offset: int
    length: int


class HashesRequest(msgspec.Struct, frozen=True, array_like=True):
    """Asks for the hashes of `count` blocks (blocks.py) of one file of a snapshot, from block `first` on."""

    group: GroupId
    snapshot: str
    name: str
    first: int
    count: int


class BlocksRequest(msgspec.Struct, frozen=True, array_like=True):
    """Asks for some blocks of one file of a snapshot, one behind the other."""

    group: GroupId
    snapshot: str
    name: str
    blocks: list[int]


class StateRequest(msgspec.Struct, frozen=True, array_like=True):
    """Asks for a snapshot at index `applied` or later, which is not the one called `refused`."""

    group: GroupId
    applied: int
    refused: str = ""


class Manifest(msgspec.Struct, frozen=True, array_like=True):
    """What SnapshotMeta.descriptor holds: the snapshot's id on its sender, and its files."""

    snapshot: str
    files: tuple[SnapshotFile, ...]


_encoder = msgspec.msgpack.Encoder()
_frame = msgspec.msgpack.Decoder(Frame)
_parcel = msgspec.msgpack.Decoder(_Parcel)
_message = msgspec.msgpack.Decoder(Message)
_life_call = msgspec.msgpack.Decoder(LifeCall)
_life_answer = msgspec.msgpack.Decoder(LifeAnswer)
_standing_call = msgspec.msgpack.Decoder(StandingCall)
_standing = msgspec.msgpack.Decoder(Standing)
_chunk = msgspec.msgpack.Decoder(ChunkRequest)
_hashes = msgspec.msgpack.Decoder(HashesRequest)
_blocks = msgspec.msgpack.Decoder(BlocksRequest)
_manifest = msgspec.msgpack.Decoder(Manifest)
_state_request = msgspec.msgpack.Decoder(StateRequest)
_state = msgspec.msgpack.Decoder(SnapshotMeta)
_conf = msgspec.msgpack.Decoder(ConfState)


def message_bytes(message: Message) -> int:
    """About how many bytes a message takes in a frame."""
    if not message.entries:
        return MESSAGE_OVERHEAD
    return MESSAGE_OVERHEAD + sum([len(entry.data) + 24 for entry in message.entries])


def encode_frame(nonce: int, news: int, messages: list[Addressed]) -> bytes:
    """One frame's body."""
    return _encoder.encode((nonce, news, messages))


def frame_body(nonce: int, news: int, messages: list[Addressed]) -> Body:
    """As `encode_frame`; in pieces if it is large, so that entries are not copied for each member."""
    if sum([message_bytes(message) for _, message in messages]) < LARGE_BYTES:
        return encode_frame(nonce, news, messages)
    return encode_parts((nonce, news, messages))


def decode_frame(body: Payload) -> Frame:
    """What a frame holds. Raises ProtocolError."""
    if len(body) <= PLAIN_BYTES:
        return _decoded(_frame, body, _FRAME)
    parcel = _decoded(_parcel, body, _FRAME)
    messages: list[Addressed] = []
    entries = 0
    for group, raw in parcel.messages:
        message = _decoded(_message, raw, _FRAME)
        messages.append((group, message))
        entries += len(message.entries)
        if entries > FRAME_ENTRIES_MAX:
            raise ProtocolError(f"{_FRAME} holds more than {FRAME_ENTRIES_MAX} entries")
    return Frame(parcel.nonce, parcel.news, messages)


def _decoded(decoder: msgspec.msgpack.Decoder[T], body: Payload | msgspec.Raw, what: str) -> T:
    try:
        return decoder.decode(body)
    except DECODE_ERRORS as error:
        raise ProtocolError(f"{what} cannot be read: {error}") from error


def encode_body(body: LifeCall | LifeAnswer | StandingCall | Standing) -> bytes:
    """The body of a call between hosts, or of its answer."""
    return _encoder.encode(body)


def decode_life_call(body: bytes) -> LifeCall:
    """Raises ProtocolError."""
    return _decoded(_life_call, body, "a question for a node's life")


def decode_life_answer(body: Payload) -> LifeAnswer:
    """Raises ProtocolError."""
    return _decoded(_life_answer, body, "the life of a node")


def decode_standing_call(body: bytes) -> StandingCall:
    """Raises ProtocolError."""
    return _decoded(_standing_call, body, "a question for an entry")


def decode_standing(body: Payload) -> Standing:
    """Raises ProtocolError."""
    return _decoded(_standing, body, "the answer about an entry")


def in_frames(messages: list[Addressed], bytes_max: int) -> Iterator[list[Addressed]]:
    """The messages in runs that fit into a frame of `bytes_max` (a message that does not is alone): mostly one."""
    start, size = 0, 0
    for at, (_, message) in enumerate(messages):
        more = message_bytes(message) if message.entries else MESSAGE_OVERHEAD
        if size + more > bytes_max and at > start:
            yield messages[start:at]
            start, size = at, 0
        size += more
    yield messages[start:] if start else messages


def encode_file_request(request: ChunkRequest | HashesRequest | BlocksRequest) -> bytes:
    """The body of a call for a part of a snapshot's file."""
    return _encoder.encode(request)


def decode_chunk_request(body: bytes) -> ChunkRequest:
    """The request of a "raft.snapshot_chunk" call. Raises ProtocolError."""
    return _decoded(_chunk, body, "a request for a snapshot chunk")


def decode_hashes_request(body: bytes) -> HashesRequest:
    """The request of a "raft.snapshot_hashes" call. Raises ProtocolError."""
    return _decoded(_hashes, body, "a request for hashes of a snapshot's blocks")


def decode_blocks_request(body: bytes) -> BlocksRequest:
    """The request of a "raft.snapshot_blocks" call. Raises ProtocolError."""
    return _decoded(_blocks, body, "a request for blocks of a snapshot")


def encode_state_request(request: StateRequest) -> bytes:
    """The body of a "raft.state" call."""
    return _encoder.encode(request)


def decode_state_request(body: bytes) -> StateRequest:
    """The request of a "raft.state" call. Raises ProtocolError."""
    return _decoded(_state_request, body, "a request for a snapshot")


def encode_state(meta: SnapshotMeta) -> bytes:
    """The answer to a "raft.state" call."""
    return _encoder.encode(meta)


def decode_state(body: Payload) -> SnapshotMeta:
    """The snapshot that a "raft.state" call was answered with. Raises ProtocolError."""
    return _decoded(_state, body, "a snapshot's description")


def encode_manifest(manifest: Manifest) -> bytes:
    """The descriptor of a snapshot."""
    return _encoder.encode(manifest)


def decode_manifest(descriptor: bytes) -> Manifest:
    """The manifest in a descriptor. Raises ProtocolError, also for a file name that leaves the directory."""
    manifest = _decoded(_manifest, descriptor, "the descriptor of a snapshot")
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
    return _decoded(_conf, conf, "a stored configuration") if conf else ConfState()
