"""Lists that no call may have are refused before they are decoded: that holds the whole process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, get_args, get_origin

import msgspec
import pytest

from needle.base.config import Limits
from needle.base.dtypes import DType
from needle.base.errors import InvalidArgument, ProtocolError
from needle.base.model import IndexParams, Metric
from needle.protocol import calls, commands
from needle.protocol.calls import ELEMENTS_MAX, AddressBook, Freshness, GetCall, ScanCall, WriteCall
from needle.protocol.command_bounds import check_lists
from needle.routing.shard_map import KeyRange
from needle.routing.strategy import ShardStrategy, parse_strategy
from needle.server.service.dispatch import Service

MANY = b"\xdd" + (1 << 30).to_bytes(4, "big")
MANY_PAIRS = b"\xdf" + (1 << 30).to_bytes(4, "big")


def _said(*values: object) -> bytes:
    return b"".join(map(msgspec.msgpack.encode, values))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (GetCall, b"\x95" + _said(1, "default") + MANY),
        (GetCall, b"\x97" + _said(1, "default", ["a"], False, Freshness(), 0) + MANY),
        (ScanCall, b"\x9a" + _said(1, "default", b"", "", 1, False, Freshness(), (0, 1), 0) + MANY),
        (AddressBook, b"\x91" + MANY_PAIRS),
    ],
)
def test_a_list_that_is_too_long_is_refused_by_its_length(kind: type, body: bytes) -> None:
    """None of its elements is there, and nobody misses them."""
    with pytest.raises(ProtocolError, match=f"length <= {ELEMENTS_MAX}"):
        calls.decode(body, kind)


def test_what_a_call_may_have_is_read() -> None:
    call = GetCall(1, "default", ["a"] * ELEMENTS_MAX, False, Freshness(), fields=("a.b",))
    assert calls.decode(calls.encode(call), GetCall) == call


def _list_fields() -> list[tuple[type[msgspec.Struct], str]]:
    """Every list of every command, those of a struct in it as "change.set"."""
    found = []
    for kind in get_args(commands.Command):
        for field in msgspec.structs.fields(kind):
            if get_origin(field.type) is list:
                found.append((kind, field.name))
            elif field.name == "change":
                inner = msgspec.structs.fields(commands.Change)
                found += [(kind, f"change.{one.name}") for one in inner if get_origin(one.type) is list]
    return found


EXAMPLES: dict[Any, object] = {
    str: "a",
    DType: DType.FLOAT32,
    int: 1,
    bytes: b"",
    bool: False,
    int | None: None,
    bytes | None: None,
}


def _example(kind: Any) -> object:
    if kind in EXAMPLES:
        return EXAMPLES[kind]
    if get_origin(kind) is list:
        return []
    if type(None) in get_args(kind):
        return None
    if commands.Change in (kind, *get_args(kind)):
        return commands.Change()
    assert kind is commands.Session
    return commands.NO_SESSION


def _told_to_have_many(kind: type[msgspec.Struct], path: str) -> bytes:
    """The command whose list at `path` says that a billion elements follow, of which none does, nor anything else."""
    body, tag, at = b"", kind.__struct_config__.tag, path.split(".")
    while True:
        fields = msgspec.structs.fields(kind)
        head = [tag] if tag else []
        before = [_example(field.type) for field in fields[: [field.name for field in fields].index(at[0])]]
        assert len(head) + len(fields) < 16
        body += bytes([0x90 + len(head) + len(fields)])
        body += _said(*head, *before)
        if len(at) == 1:
            return commands.FORMAT + body + MANY + bytes(ELEMENTS_MAX)
        kind, tag, at = commands.Change, None, at[1:]


@pytest.mark.parametrize(
    ("kind", "path"), _list_fields(), ids=lambda one: one if isinstance(one, str) else one.__name__
)
def test_a_list_of_a_command_that_is_too_long_is_refused_by_its_length(kind: type[msgspec.Struct], path: str) -> None:
    with pytest.raises(InvalidArgument, match=r"with at most 65536 elements in a list: .* of length <= "):
        check_lists(_told_to_have_many(kind, path), 10_000)


def test_a_callers_write_is_looked_at_before_it_is_decoded() -> None:
    """And what may be, is: a limit that was raised counts, and a log reads what it holds."""
    limits = Limits(batch_documents_max=ELEMENTS_MAX + 1)
    service = Service.__new__(Service)
    service._node = SimpleNamespace(config=SimpleNamespace(limits=limits))
    service._decoders = {calls.WRITE: msgspec.msgpack.Decoder(WriteCall)}
    for count in (ELEMENTS_MAX + 1, ELEMENTS_MAX + 2):
        command = commands.encode(commands.Delete("default", ["a"] * count))
        body = calls.encode(WriteCall(0, command))
        assert len(commands.decode(command).ids) == count
        if count > limits.batch_documents_max:
            with pytest.raises(InvalidArgument, match="with at most 65537 elements in a list"):
                service._decoded(calls.WRITE, body)
        else:
            assert service._decoded(calls.WRITE, body).command == command


def _full(kind: Any) -> Any:
    """A value of a type, with something in each of its fields."""
    if kind in FILLED:
        return FILLED[kind]
    if get_origin(kind) is list:
        return [_full(get_args(kind)[0])] * 2
    if get_origin(kind) is tuple:
        return tuple(map(_full, get_args(kind)))
    inner = next(one for one in get_args(kind) or (kind,) if one is not type(None))
    return inner(**{field.name: _full(field.type) for field in msgspec.structs.fields(inner)})


LARGE = "x" * (ELEMENTS_MAX + 1)
FILLED: dict[Any, object] = {
    str: LARGE, int: 3, bytes: b"y" * ELEMENTS_MAX, bool: True, float: 0.5, int | None: 4, bytes | None: b"z",
    Metric: Metric.DOT, DType: DType.INT8, IndexParams: IndexParams(), KeyRange: (b"a" * ELEMENTS_MAX, None),
    ShardStrategy: parse_strategy("strategy", "custom:tenant"),
}  # fmt: skip


@pytest.mark.parametrize("kind", get_args(commands.Command), ids=lambda one: one.__name__)
def test_a_large_command_that_the_log_reads_is_let_through(kind: type[msgspec.Struct]) -> None:
    command = _full(kind)
    data = commands.encode(command)
    assert commands.decode(data) == command
    check_lists(data, 10)
    least = {field.name: _full(field.type) for field in msgspec.structs.fields(kind) if field.required}
    check_lists(commands.encode(kind(**least)), 10)


def test_what_is_no_command_is_refused_and_another_format_left_for_whoever_decodes_it() -> None:
    with pytest.raises(InvalidArgument, match="does not decode"):
        check_lists(commands.FORMAT + bytes(ELEMENTS_MAX + 1), 10)
    check_lists(b"\x09" + bytes(ELEMENTS_MAX + 1), 10)
