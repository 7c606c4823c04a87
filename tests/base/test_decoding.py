"""Bytes that no decoder can read, in each place where bytes of others, or of a disk, are decoded: an error by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import needle
from needle.base.decoding import routed_metadata
from needle.base.errors import NeedleError
from needle.base.filters.builder import Filter
from needle.catalog.machine import CatalogMachine
from needle.client.router.routes import owner_of
from needle.multiraft import codec
from needle.multiraft.log.log_records import Life, decode_record, encode_record
from needle.protocol import calls, catalog_commands, commands
from needle.raft.membership import decode_conf, readable_conf
from needle.raft.messages import ConfState, Entry, EntryKind, SnapshotMeta
from needle.routing.shard_map import initial_map
from needle.routing.strategy import ShardStrategy
from needle.routing.topology import Ownership, Topology
from needle.rpc.codec import Hello
from needle.rpc.codec import decode as decode_wire
from needle.server.cluster_files import load_cluster, load_topology
from needle.server.files import load_addresses
from needle.shard.disk import ReplicaDisk
from needle.shard.documents.image import IMAGE_NAME, verify_image
from needle.shard.documents.metadata_rows import decode_metadata

SOURCES = Path(needle.__file__).parent
DEEP = 200_000


def struct_of(value: object) -> bytes:
    """An array-like struct with one more field than it has, nested deep."""
    data = msgspec.msgpack.encode(value)
    assert 0x90 <= data[0] < 0x9F
    return bytes((data[0] + 1,)) + data[1:] + b"\x91" * DEEP + b"\xc0"


def not_text(value: object) -> bytes:
    """A struct whose text "name" is not UTF-8."""
    data = msgspec.msgpack.encode(value)
    assert b"name" in data
    return data.replace(b"name", b"\xff\xfe\xff\xfe")


CONF = ConfState(voters=("name",))
STATE = codec.StateRequest(1, 2, "name")
META = SnapshotMeta(5, 1, CONF, b"")
DROP = commands.DropCollection("name")
CATALOG = catalog_commands.DropCollection("name", 1)


def conf_entry(data: bytes) -> Entry:
    return Entry(1, 1, int(EntryKind.CONF_CHANGE), data)


UNREADABLE: dict[str, tuple[Callable[[bytes], object], object]] = {
    "a command": (lambda data: commands.decode(commands.FORMAT + data), DROP),
    "a catalog command": (lambda data: catalog_commands.decode(catalog_commands.FORMAT + data), CATALOG),
    "a call": (lambda data: calls.decode(data, calls.StepDownCall), calls.StepDownCall(1, "name")),
    "a request for a snapshot": (codec.decode_state_request, STATE),
    "a snapshot's description": (codec.decode_state, META),
    "a configuration": (codec.decode_conf, CONF),
    "a configuration in the log": (lambda data: decode_conf(conf_entry(data)), CONF),
    "a manifest": (codec.decode_manifest, codec.Manifest("name", ())),
}


@pytest.mark.parametrize("what", UNREADABLE)
@pytest.mark.parametrize("spoil", [not_text, struct_of])
def test_what_cannot_be_read_is_said_by_name(what: str, spoil: Callable[[object], bytes]) -> None:
    decode, value = UNREADABLE[what]
    decode(msgspec.msgpack.encode(value))
    with pytest.raises(NeedleError):
        decode(spoil(value))


def test_a_frame_whose_configuration_cannot_be_read_is_refused_and_not_fatal() -> None:
    for spoil in (not_text, struct_of):
        assert readable_conf(conf_entry(spoil(CONF))) is None


@pytest.mark.parametrize("text", [b'{"a":"\xff"}', b"[" * DEEP + b"]" * DEEP, b"{"])
def test_metadata_that_is_no_json_is_refused_wherever_a_key_is_made_of_it(text: bytes) -> None:
    owned = Ownership(initial_map(ShardStrategy.custom("tenant"), 2))
    for decode in (
        routed_metadata,
        decode_metadata,
        Filter.from_json,
        lambda data: owner_of(owned, "id", data),
    ):
        with pytest.raises(NeedleError):
            decode(text)


@pytest.mark.parametrize("data", [b'{"a":"\xff"}', b"[" * DEEP, b"\xa2\xff\xff"])
def test_files_that_cannot_be_read_are_named(tmp_path: Path, data: bytes) -> None:
    for name in ("addresses.json", "cluster.json", "topology.bin", IMAGE_NAME, "catalog.image"):
        (tmp_path / name).write_bytes(data)
    for load in (
        lambda: load_cluster(str(tmp_path), 1),
        lambda: verify_image(str(tmp_path), ReplicaDisk()),
        lambda: CatalogMachine(str(tmp_path / "catalog")).check_snapshot(str(tmp_path)),
        lambda: decode_wire(data, Hello),
    ):
        with pytest.raises(NeedleError):
            load()
    assert load_addresses(str(tmp_path)) == {}  # what is learned again is no reason not to start
    assert load_topology(str(tmp_path)) == Topology()


def test_a_record_of_the_log_that_cannot_be_read_is_none() -> None:
    key = b"nname"
    whole = encode_record(key, Life(1, 2, 3))
    assert decode_record(key, whole, Life) is not None
    assert decode_record(key, encode_record(key, msgspec.Raw(struct_of(Life(1, 2, 3)))), Life) is None  # type: ignore[arg-type]


def test_nobody_catches_only_some_of_what_decoders_raise() -> None:
    rule = re.compile(r"\bmsgspec\.(MsgspecError|DecodeError)\b")
    found = [
        f"{path.relative_to(SOURCES)}:{number}"
        for path in sorted(SOURCES.rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if rule.search(line) and path.name != "decoding.py"
    ]
    assert not found, f"catch needle.base.decoding.DECODE_ERRORS instead: {found}"
