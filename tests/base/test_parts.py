"""Messages in pieces are the messages, and nothing large in them is copied."""

from __future__ import annotations

from typing import Any

import pytest

from needle.base.explain import SegmentExplanation, ShardExplanation, Way
from needle.base.model import HitBatch, Metric
from needle.base.parts import LARGE_BYTES, PART_BYTES_MIN, Pieces, body_bytes, encode_parts, whole
from needle.multiraft.codec import decode_frame, frame_body
from needle.protocol import calls, commands
from needle.protocol.calls import DocumentBatch, Freshness, GetCall, SearchManyAnswer, WriteCall
from needle.protocol.commands import Insert, Session
from needle.raft.messages import ConfState, Entry, EntryKind, Message, MessageType, SnapshotMeta

BIG = bytes(range(256)) * (PART_BYTES_MIN // 256)
APPEND = Message(
    MessageType.APPEND, "b", "a", 3, entries=(Entry(7, 3, EntryKind.NORMAL, BIG), Entry(8, 3, 0, b"x")), round=9
)
SNAPSHOT = Message(MessageType.SNAPSHOT, "b", "a", 3, snapshot=SnapshotMeta(1, 2, ConfState(("a",)), b"z" * 300))


SEGMENT = SegmentExplanation(way=Way.GRAPH, first=0, last=9, rows=10, allowed=9, ef=64, milliseconds=0.5)
TOLD = ShardExplanation(
    shard=1, applied_index=7, documents=9, allowed=8, together=1, filter_milliseconds=0.5, vectors_milliseconds=1.5,
    documents_milliseconds=2.5, segments=[SEGMENT], node="n1", notes=["a note"],
)  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [
        (1, 2, [(1, APPEND), (2, SNAPSHOT)]),
        WriteCall(1, BIG, 1.5),
        HitBatch(["a"] * 20, [0.5] * 20, [1] * 20, [b"m" * size for size in range(65_530, 65_550)], BIG, 7),
        HitBatch([], [], [], [], b"", 7, Metric.L2),
        HitBatch(["a"] * 2000, [0.5] * 2000, [1] * 2000, [], BIG, 7, explained=[TOLD]),
        SearchManyAnswer([HitBatch(["a"], [0.5], [1], [], b"", 7, explained=[TOLD])] * 1000),
        DocumentBatch([f"d{n}" for n in range(70_000)], [], [b"1" * (n % 300) for n in range(70_000)], b"", 1),
        GetCall(1, "c", ["a"], True, Freshness()),
        Insert("c", ["a", "b"], BIG, [b"{}", b""], None, Session(1, 2, 3)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_pieces_joined_are_the_message(value: Any) -> None:
    assert whole(encode_parts(value)) == calls.encode(value)


def test_what_is_large_is_not_copied() -> None:
    large = bytes(LARGE_BYTES)
    command = commands.encode_body(Insert("c", ["a"], large, [b""]))
    assert isinstance(command, Pieces) and any(piece is large for piece in command)
    assert commands.decode(whole(command)) == Insert("c", ["a"], large, [b""])
    call = calls.encode_body((1, command, 2.0), command)
    assert isinstance(call, Pieces) and any(piece is large for piece in call)
    assert calls.decode(whole(call), WriteCall) == WriteCall(1, whole(command), 2.0)
    append = Message(MessageType.APPEND, "b", "a", 3, entries=(Entry(7, 3, EntryKind.NORMAL, large),))
    frame = frame_body(5, 6, [(1, append)])
    assert isinstance(frame, Pieces) and any(piece is large for piece in frame)
    assert decode_frame(whole(frame)).messages == [(1, append)]
    assert body_bytes(frame) == len(whole(frame))


def test_what_is_small_stays_in_one_piece() -> None:
    assert isinstance(commands.encode_body(Insert("c", ["a"], b"1234", [b"{}"])), bytes)
    assert isinstance(frame_body(5, 6, [(2, SNAPSHOT)]), bytes)
