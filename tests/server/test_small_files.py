"""The small files of a data directory, damaged: what nobody else can tell is refused with what to do, the rest is not
used; and what is written now is what the release before could read."""

from __future__ import annotations

import contextlib
import logging
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import xxhash

from catalog.catalog_util import topology
from needle.base.errors import NeedleError, StorageError, UnsupportedFormat
from needle.base.model import CollectionSpec
from needle.routing.topology import CollectionInfo, Topology
from needle.routing.topology_changes import Changes, Summed, changed
from needle.server import cluster_files
from needle.server.cluster_files import (
    CHANGES_BYTES_MAX,
    ClusterFile,
    TopologyFile,
    load_cluster,
    load_topology,
    save_cluster,
    save_topology,
)
from needle.server.files import NodeFile, claim, load_addresses, save_addresses
from needle.server.summed import json_is_whole, json_with_sum

_replace = msgspec.structs.replace

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


def changing(count: int) -> Iterator[Topology]:
    """One collection more, or less, or another one, at a time."""
    now = _replace(topology(), founding=3, map=None, shards=())
    for n in range(count):
        name = f"c{n % 40:02}"
        held = {info.spec.name: info for info in now.collections}
        if held.pop(name, None) is None or n % 3:
            held[name] = CollectionInfo(id=n + 2, spec=CollectionSpec(name=name, dimensions=2))
        collections = tuple(held[one] for one in sorted(held))
        yield (now := _replace(now, version=n + 2, collections=collections))


def test_one_change_of_the_topology_is_written_as_one_change(tmp_path: Path) -> None:
    file, whole, wholes = TopologyFile(str(tmp_path)), b"", 0
    for n, now in enumerate(changing(900)):
        file.save(now)
        if n % 30 == 0 or n == 21:
            assert load_topology(str(tmp_path)) == now
        written = (tmp_path / "topology.bin").read_bytes()
        wholes += written != whole
        whole = written
        if n == 20:  # the next life of the node begins with all of it
            file = TopologyFile(str(tmp_path))
    assert 3 <= wholes <= 6  # the first of each life, and then one for every 64 KiB
    assert (tmp_path / "topology.changes").stat().st_size <= CHANGES_BYTES_MAX


def test_a_release_that_knows_only_the_whole_sees_at_which_version_the_cluster_is(tmp_path: Path) -> None:
    file = TopologyFile(str(tmp_path))
    for now in changing(5):
        file.save(now)
    file.save(_replace(now, version=50, cluster_version=4))
    whole = msgspec.msgpack.decode((tmp_path / "topology.bin").read_bytes(), type=Topology)
    assert whole.cluster_version == 4
    older = _replace(now, version=60, replicas=3, cluster_version=4)
    save_topology(str(tmp_path), older)  # by the release before, which leaves the changes where they are
    assert load_topology(str(tmp_path)) == older


def test_changes_of_a_topology_that_are_not_whole_are_passed_over(tmp_path: Path) -> None:
    """Each prefix of the file, and each byte damaged, leaves the topology as it was before the first that is lost."""
    file, path, seen = TopologyFile(str(tmp_path)), tmp_path / "topology.changes", []
    for now in changing(6):
        file.save(now)
        seen.append((path.stat().st_size, now))
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        assert load_topology(str(tmp_path)) == [one for size, one in seen if size <= end][-1]
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        assert load_topology(str(tmp_path)) == [one for size, one in seen if size <= at][-1]
    path.write_bytes(whole)
    assert load_topology(str(tmp_path)) == now


def test_thousands_of_changes_are_put_in_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other they took five seconds where there are 10,000 collections."""
    file, looks = TopologyFile(str(tmp_path)), list[int]()
    for now in changing(200):
        file.save(now)

    def counted(known: Summed, changes: Changes) -> Summed | None:
        looks.append(changes.version)
        return changed(known, changes)

    monkeypatch.setattr(cluster_files, "changed", counted)
    assert load_topology(str(tmp_path)) == now and looks == [now.version]
    # A release before has written the whole again, otherwise than it was: what fits no more is not used.
    save_topology(str(tmp_path), other := _replace(now, version=now.version - 3, replicas=9))
    assert load_topology(str(tmp_path)) == other


def test_changes_of_another_release_leave_the_whole_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, path = TopologyFile(str(tmp_path)), tmp_path / "topology.changes"
    for now in changing(5):
        file.save(now)
    body = msgspec.msgpack.encode([now.version, now.version + 1, 7, {}, [{"id": "of another kind"}], []])
    path.write_bytes(path.read_bytes() + struct.pack("<IQ", len(body), xxhash.xxh3_64_intdigest(body)) + body)
    with caplog.at_level(logging.WARNING, "needle.server"):
        assert load_topology(str(tmp_path)) == now
    assert "topology.changes is not used from byte" in caplog.text and "topology.bin" not in caplog.text


def test_what_was_left_behind_an_earlier_whole_changes_nothing(tmp_path: Path) -> None:
    """As after a crash between the two files."""
    file, path = TopologyFile(str(tmp_path)), tmp_path / "topology.changes"
    for now in changing(9):
        file.save(now)
    left = path.read_bytes()
    save_topology(str(tmp_path), now)
    assert path.read_bytes() == left and load_topology(str(tmp_path)) == now
    other = _replace(
        now, version=5, collections=now.collections[:1]
    )  # of a catalog that was restored from an older copy
    save_topology(str(tmp_path), other)
    assert load_topology(str(tmp_path)) == other


def test_a_topology_that_found_no_room_is_written_whole(tmp_path: Path) -> None:
    file, path, (first, second, third) = TopologyFile(str(tmp_path)), tmp_path / "topology.changes", changing(3)
    file.save(first)
    path.unlink()
    path.mkdir()
    with pytest.raises(NeedleError):
        file.save(second)
    path.rmdir()
    assert load_topology(str(tmp_path)) == first
    file.save(third)
    assert load_topology(str(tmp_path)) == third
    assert msgspec.msgpack.decode((tmp_path / "topology.bin").read_bytes(), type=Topology) == third
