"""The decoder sees bytes, not chunks; what it refuses, it refuses early and for good."""

import errno
import mmap
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from needle.base.errors import FrameTooLarge, NeedleError, OutOfMemory, ProtocolError
from needle.rpc.client_connection import ClientConnection, Link
from needle.rpc.codec import Hello, decode, decode_error, split_request
from needle.rpc.connection import RpcLimits, RpcStats
from needle.rpc.frame import (
    ENVELOPE_BYTES,
    GATHERED_BYTES_MIN,
    HEADER,
    HEADER_BYTES,
    ONEWAY,
    REQUEST,
    RESPONSE,
    VIEW_BYTES_MIN,
    FrameDecoder,
    encode_frame,
)

LIMIT = 200_000
frames_strategy = st.lists(
    st.tuples(
        st.integers(1, 6),
        st.integers(0, 2**64 - 1),
        st.one_of(st.binary(max_size=40), st.sampled_from([b"x" * VIEW_BYTES_MIN, b"ab" * 40_000])),
    ),
    max_size=6,
)


def plain(frames):
    return [(kind, request_id, bytes(payload)) for kind, request_id, payload in frames]


@settings(max_examples=150, deadline=None)
@given(frames_strategy, st.lists(st.one_of(st.integers(1, 20), st.integers(1000, 9000)), min_size=1, max_size=20))
def test_any_chunking_gives_the_same_frames(frames, sizes):
    stream = b"".join(encode_frame(kind, rid, (payload,)) for kind, rid, payload in frames)
    decoder = FrameDecoder(LIMIT)
    got = []
    offset = turn = 0
    while offset < len(stream):
        size = sizes[turn % len(sizes)]
        got += decoder.feed(stream[offset : offset + size])
        offset, turn = offset + size, turn + 1
    assert plain(got) == frames
    assert decoder.error is None
    assert decoder.buffered == 0


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=8))
def test_garbage_never_raises_and_chunking_does_not_matter(chunks):
    apart, joined = FrameDecoder(100), FrameDecoder(100)
    one = [frame for chunk in chunks for frame in apart.feed(chunk)]
    two = joined.feed(b"".join(chunks))
    assert plain(one) == plain(two)
    assert (apart.error is None) == (joined.error is None)
    assert apart.buffered <= 104


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80))
def test_garbage_payloads_raise_only_protocol_errors(data):
    for parse in (split_request, decode_error, lambda d: decode(d, Hello)):
        try:
            parse(data)
        except NeedleError as error:
            assert isinstance(error, ProtocolError)


def test_oversize_is_refused_at_its_length_before_any_payload():
    decoder = FrameDecoder(1000)
    good = encode_frame(ONEWAY, 0, (b"fine",))
    assert plain(decoder.feed(good + (1001).to_bytes(4, "little"))) == [(ONEWAY, 0, b"fine")]
    assert isinstance(decoder.error, FrameTooLarge)
    assert decoder.error.details == {"bytes": 1001, "limit": 1000}
    assert decoder.buffered == 0
    assert decoder.feed(good) == []


def test_a_frame_of_exactly_the_limit_passes():
    frame = encode_frame(ONEWAY, 7, (b"x" * (1000 - ENVELOPE_BYTES),))
    assert len(FrameDecoder(1000).feed(frame)) == 1


@pytest.mark.parametrize(("length", "kind"), [(8, 1), (9, 0), (9, 7)])
def test_bad_lengths_and_kinds_are_named(length, kind):
    decoder = FrameDecoder(1000)
    assert decoder.feed(HEADER.pack(length, kind, 1)) == []
    assert str(length if length < 9 else kind) in str(decoder.error)


def test_large_payloads_in_one_chunk_are_views_of_it():
    stream = encode_frame(REQUEST, 1, (b"y" * VIEW_BYTES_MIN,))
    payload = FrameDecoder(LIMIT).feed(stream)[0][2]
    assert isinstance(payload, memoryview)
    assert payload.obj is stream


def test_a_byte_at_a_time_holds_little_more_than_the_bytes():
    decoder = FrameDecoder(LIMIT)
    stream = encode_frame(ONEWAY, 3, (b"z" * 20_000,))
    for position in range(len(stream) - 1):
        assert decoder.feed(stream[position : position + 1]) == []
    assert decoder.buffered == len(stream) - 1
    assert len(decoder._parts) <= 3
    assert plain(decoder.feed(stream[-1:])) == [(ONEWAY, 3, b"z" * 20_000)]


def test_no_chunk_of_a_large_frame_takes_longer_than_the_others() -> None:
    """Nothing is put off until the frame is whole, and no buffer is copied as it grows: either holds the event loop."""
    wire, step = encode_frame(ONEWAY, 3, (bytes(60 << 20),)), 256 << 10
    shares = []
    for _ in range(5):
        decoder, took, frames = FrameDecoder(64 << 20), [], []
        for at in range(0, len(wire), step):
            chunk = wire[at : at + step]
            began = time.thread_time()
            frames += decoder.feed(chunk)
            took.append(time.thread_time() - began)
        assert frames == [(ONEWAY, 3, bytes(60 << 20))]
        shares.append(max(took) / sum(took))
    assert min(shares) < 0.2


def test_a_large_frame_that_gets_no_memory_is_an_error_of_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("needle.rpc.frame.mmap.mmap", full)
    decoder = FrameDecoder(64 << 20)
    whole = encode_frame(REQUEST, 1, (b"first",))
    frames = decoder.feed(whole + encode_frame(REQUEST, 2, (bytes(GATHERED_BYTES_MIN),))[:1000])
    assert plain(frames) == [(REQUEST, 1, b"first")]
    assert isinstance(decoder.error, OutOfMemory) and decoder.error.retryable
    assert decoder.feed(whole) == [] and decoder.buffered == 0


def test_a_large_frame_that_gets_no_memory_as_it_grows_is_an_error_of_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Full(mmap.mmap):
        def resize(self, _: int) -> None:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("needle.rpc.frame.mmap.mmap", Full)
    wire = encode_frame(REQUEST, 2, (bytes(3 * GATHERED_BYTES_MIN),)) + encode_frame(REQUEST, 3, (b"next",))
    for step in (1000, len(wire)):  # in its midst, and with its last chunk
        decoder = FrameDecoder(64 << 20)
        assert decoder.feed(wire[:1000]) == []
        assert [frame for at in range(1000, len(wire), step) for frame in decoder.feed(wire[at : at + step])] == []
        assert isinstance(decoder.error, OutOfMemory) and decoder.buffered == 0


def test_a_header_takes_no_memory_for_what_it_announces() -> None:
    decoder = FrameDecoder(64 << 20)
    wire = encode_frame(REQUEST, 2, (bytes(60 << 20),))
    for end in (HEADER_BYTES, 1 << 20, 8 << 20):
        decoder.feed(wire[decoder.buffered : end])
        assert decoder._gathered is not None
        assert len(decoder._gathered) <= max(GATHERED_BYTES_MIN, 2 * end)


async def test_a_large_answer_is_not_copied_when_it_is_whole() -> None:
    """Neither by the decoder nor by the connection that hands it to its caller."""
    wire, step = encode_frame(RESPONSE, 1, (bytes(60 << 20),)), 256 << 10
    shares = []
    for _ in range(3):
        connection = ClientConnection(Link("a:1"), Hello(version=1, cluster_id="c"), RpcLimits(), RpcStats())
        answer, took = connection.request(b"head", b"body", connection.loop.time() + 100), []
        for at in range(0, len(wire), step):
            chunk = wire[at : at + step]
            began = time.thread_time()
            connection.data_received(chunk)
            took.append(time.thread_time() - began)
        assert await answer == bytes(60 << 20)
        shares.append(max(took) / sum(took))
        connection.on_lost(None)
    assert min(shares) < 0.2


@pytest.mark.parametrize("step", [1000, GATHERED_BYTES_MIN, 3 * GATHERED_BYTES_MIN])
def test_large_frames_are_whole_however_they_are_cut(step: int) -> None:
    sizes = [GATHERED_BYTES_MIN - ENVELOPE_BYTES - 5 + n for n in range(10)] + [3, 2 * GATHERED_BYTES_MIN]
    payloads = [bytes([65 + n]) * size for n, size in enumerate(sizes)]
    stream, decoder, found = b"".join(encode_frame(REQUEST, 1, (one,)) for one in payloads), FrameDecoder(1 << 30), []
    for at in range(0, len(stream), step):
        found += [bytes(payload) for _, _, payload in decoder.feed(stream[at : at + step])]
    assert found == payloads and decoder.buffered == 0
