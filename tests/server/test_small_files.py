"""The small files of a data directory, damaged: what nobody else can tell is refused with what to do, the rest is not
used; and what is written now is what the release before could read."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from catalog.catalog_util import topology
from needle.base.errors import StorageError, UnsupportedFormat
from needle.routing.topology import Topology
from needle.server.cluster_files import ClusterFile, load_cluster, load_topology, save_cluster, save_topology
from needle.server.files import NodeFile, claim, load_addresses, save_addresses
from needle.server.summed import json_is_whole, json_with_sum

MADE = ClusterFile(incarnation=7, uid=1234567, voters={"n1": "127.0.0.1:5001", "n2": "127.0.0.1:5002"})


def claimed(directory: str) -> object:
    return claim(directory, "n1", "c")()


def cluster_of(directory: str) -> object:
    return load_cluster(directory, 99)


FILES: dict[str, tuple[Callable[[str], object], Callable[[str], object], str]] = {
    "cluster.json": (lambda directory: save_cluster(directory, MADE), cluster_of, "Restore that file from a copy"),
    "node.json": (claimed, claimed, "delete that file: it is written again"),
}


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_bit_is_found_and_any_shorter_file(tmp_path: Path, name: str) -> None:
    save, load, remedy = FILES[name]
    save(str(tmp_path))
    path = tmp_path / name
    whole = path.read_bytes()
    found = load(str(tmp_path))
    tail = whole.index(b'"checksum"')
    for at in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            if tail <= at:  # the damage may be such that it reads as a file of an older release, whose content is whole
                with contextlib.suppress(StorageError):
                    assert load(str(tmp_path)) == found
                continue
            with pytest.raises(StorageError, match=f"{name} is damaged: .* {remedy}"):
                load(str(tmp_path))
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(StorageError, match=remedy):
            load(str(tmp_path))
    path.write_bytes(whole + b"\n")  # an editor's
    assert load(str(tmp_path)) == found


def test_files_of_the_release_before_are_taken_and_get_their_checksum(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_bytes(msgspec.json.encode(MADE))
    mine = NodeFile(node_id="n1", cluster_id="c", kind="sharded")
    (tmp_path / "node.json").write_bytes(msgspec.json.encode(mine))
    claimed(str(tmp_path))
    assert load_cluster(str(tmp_path), 99) == MADE
    for name, kind, value in (("node.json", NodeFile, mine), ("cluster.json", ClusterFile, MADE)):
        data = (tmp_path / name).read_bytes()
        assert json_is_whole(data) is True
        assert msgspec.json.decode(data, type=kind) == value, "the release before reads it"


def test_a_file_that_was_changed_by_hand_is_taken_without_its_checksum(tmp_path: Path) -> None:
    changed = json_with_sum(MADE).replace(b"5002", b"6002")
    (tmp_path / "cluster.json").write_bytes(changed)
    with pytest.raises(StorageError, match="takes `checksum` out of it"):
        load_cluster(str(tmp_path), 99)
    (tmp_path / "cluster.json").write_bytes(changed[: changed.index(b',"checksum"')] + b"}")
    assert load_cluster(str(tmp_path), 99).voters["n2"] == "127.0.0.1:6002"


def test_the_directory_of_another_node_is_not_called_damaged(tmp_path: Path) -> None:
    claimed(str(tmp_path))
    with pytest.raises(UnsupportedFormat, match="belongs to a node with node_id"):
        claim(str(tmp_path), "n2", "c")


@pytest.mark.parametrize(
    "data",
    [b'{"n4":"127.0.0.1:50', b'{"n4":"127.0.0.1"}', b'{"n4":7}', b'{"n/4":"127.0.0.1:5004"}', b"", b"\xff\x00"],
)
def test_addresses_that_are_damaged_are_learned_again(
    tmp_path: Path, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "addresses.json").write_bytes(data)
    with caplog.at_level(logging.WARNING, "needle.server"):
        assert load_addresses(str(tmp_path)) == {}
    assert "addresses.json is damaged" in caplog.text
    save_addresses(str(tmp_path), {"n4": "127.0.0.1:5004"})
    assert load_addresses(str(tmp_path)) == {"n4": "127.0.0.1:5004"}


def test_a_topology_that_is_damaged_is_fetched_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = topology()
    save_topology(str(tmp_path), now)
    assert load_topology(str(tmp_path)) == now
    path = tmp_path / "topology.bin"
    whole = path.read_bytes()
    assert msgspec.msgpack.decode(whole, type=Topology) == now, "the release before reads it"
    for at in range(len(whole) - 26):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        assert load_topology(str(tmp_path)) == Topology()
    assert "topology.bin is damaged" in caplog.text
    path.write_bytes(msgspec.msgpack.encode(now))  # as the release before wrote it
    assert load_topology(str(tmp_path)) == now
