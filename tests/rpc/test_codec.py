"""Errors and hellos survive the wire."""

import pytest

from needle.base.errors import InvalidArgument, NotLeader, ProtocolError, UnsupportedVersion, WrongCluster, by_code
from needle.rpc.codec import (
    MESSAGE_CHARS_MAX,
    Hello,
    check_hello,
    decode,
    decode_error,
    encode,
    encode_error,
    parse_endpoint,
    request_head,
    split_request,
)


@pytest.mark.parametrize("cls", by_code().values())
def test_every_error_crosses_as_itself(cls):
    got = decode_error(encode_error(cls("why", leader="b", count=3, ratio=0.5, on=True, none=None)))
    assert type(got) is cls
    assert got.message == "why"
    assert got.details == {"leader": "b", "count": 3, "ratio": 0.5, "on": True, "none": None}
    assert got.retryable == cls.retryable


def test_details_named_like_parameters_do_not_break_decoding():
    error = NotLeader("x")
    error.details = {"message": "m", "self": 1}
    assert decode_error(encode_error(error)).details == {"message_": "m", "self_": 1}


def test_long_messages_are_cut():
    assert len(decode_error(encode_error(NotLeader("x" * 100_000))).message) < MESSAGE_CHARS_MAX + 50


def test_decode_names_the_kind():
    with pytest.raises(ProtocolError, match="Hello"):
        decode(b"\xc1", Hello)
    with pytest.raises(ProtocolError, match="version"):
        decode(encode({"cluster_id": "c"}), Hello)


def test_hello_refusals_name_both_sides():
    mine = Hello(version=1, cluster_id="red", node_id="a")
    check_hello(mine, Hello(version=1, cluster_id="red", node_id="b"), expected_node="b")
    with pytest.raises(UnsupportedVersion, match=r"version 2.*speaks 1"):
        check_hello(mine, Hello(version=2, cluster_id="red"))
    with pytest.raises(WrongCluster, match=r"'blue'.*'red'"):
        check_hello(mine, Hello(version=1, cluster_id="blue"))
    with pytest.raises(WrongCluster, match="the caller belongs to cluster 'blue', the node to 'red'"):
        check_hello(mine, Hello(version=1, cluster_id="blue"), accepting=True)
    with pytest.raises(ProtocolError, match=r"'b'.*'c'"):
        check_hello(mine, Hello(version=1, cluster_id="red", node_id="b"), expected_node="c")


def test_request_head_round_trip_and_refusal():
    assert split_request(request_head("raft.x") + b"body") == ("raft.x", b"body")
    assert split_request(request_head("m") + b"b" * 20_000) == ("m", b"b" * 20_000)
    for bad in ("", "ü", "m" * 256):
        with pytest.raises(InvalidArgument):
            request_head(bad)


def test_endpoints():
    assert parse_endpoint("[::1]:0") == ("::1", 0)
    for bad in ("x", ":1", "a:b", "a:70000"):
        with pytest.raises(InvalidArgument, match="address"):
            parse_endpoint(bad)
