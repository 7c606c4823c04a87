"""What one frame, or one call of a host, may hold: it is decoded in one turn of the event loop."""

from __future__ import annotations

import msgspec
import pytest

from needle.base.errors import ProtocolError
from needle.multiraft.codec import (
    FRAME_ENTRIES_MAX,
    MESSAGES_MAX,
    PLAIN_BYTES,
    TOLD_MAX,
    Frame,
    LifeCall,
    Told,
    decode_frame,
    decode_life_call,
    encode_body,
    encode_frame,
)
from needle.raft.messages import ENTRIES_MAX, Entry, Message, MessageType

TINY = Entry(1, 1, 0, b"")


def _append(count: int, entry: Entry = TINY) -> Message:
    return Message(MessageType.APPEND, "b", "a", 1, entries=(entry,) * count)


@pytest.mark.parametrize("size", [0, 1, PLAIN_BYTES, 3 * PLAIN_BYTES])
def test_a_frame_of_any_size_is_read_as_it_was_written(size: int) -> None:
    said = [(1, _append(2, Entry(1, 1, 0, bytes(size)))), (2, Message(MessageType.HEARTBEAT, "b", "a", 1, round=7))]
    assert decode_frame(encode_frame(3, 4, said)) == Frame(3, 4, said)


@pytest.mark.parametrize(
    "said",
    [
        [(1, Message(MessageType.HEARTBEAT, "b", "a", 1))] * (MESSAGES_MAX + 1),
        [(1, _append(ENTRIES_MAX + 1))],
        [(1, _append(ENTRIES_MAX))] * (FRAME_ENTRIES_MAX // ENTRIES_MAX + 1),
    ],
    ids=["messages", "entries of one message", "entries of all"],
)
def test_a_frame_of_more_than_any_node_sends_is_refused(said: list[tuple[int, Message]]) -> None:
    with pytest.raises(ProtocolError):
        decode_frame(encode_frame(1, 0, said))


def test_a_refused_frame_is_not_decoded_first() -> None:
    """Of the elements behind the bound there are none, and nobody misses them."""
    body = msgspec.msgpack.encode((1, 0)) + b"\xdd" + (1 << 30).to_bytes(4, "big") + bytes(PLAIN_BYTES)
    with pytest.raises(ProtocolError, match=str(MESSAGES_MAX)):
        decode_frame(b"\x93" + body[1:])


def test_who_asks_for_a_life_tells_of_no_more_groups_than_there_are() -> None:
    call = LifeCall(1, None, [Told(group, 1, 1) for group in range(TOLD_MAX)])
    assert decode_life_call(encode_body(call)) == call
    with pytest.raises(ProtocolError):
        decode_life_call(encode_body(LifeCall(1, None, [*call.told, Told(0, 1, 1)])))
