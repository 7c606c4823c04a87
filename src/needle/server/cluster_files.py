"""What a node keeps beside Raft: which cluster it belongs to, and the last topology it saw.

`cluster.json`, `topology.bin` and `topology.changes` in the data directory. Invariant: `incarnation` is drawn once, for
a new directory; a node whose directory was lost gets another, by which the catalog refuses it under its old name
(a node that forgot its votes must not vote again). The topology is a cache: it lets a node open its shards before it
reaches anyone. What changed since it was written whole is in a file beside it: one change is written as one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct

import msgspec
import xxhash

from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import InvalidArgument, UnsupportedFormat, WrongCluster
from needle.base.file_errors import SHORTAGES, os_failure
from needle.base.ids import NodeId
from needle.catalog.machine import FILE_NAME as CATALOG_FILE
from needle.routing.topology import Topology
from needle.routing.topology_changes import Changes, Summed, changed, changes_between, joined
from needle.server.files import CLUSTER_FILE, CLUSTER_REMEDY, append_file, read_file, read_json, replace_file
from needle.server.summed import json_is_whole, json_with_sum, packed_is_whole, packed_with_sum

log = logging.getLogger("needle.server")

TOPOLOGY_FILE = "topology.bin"
CHANGES_FILE = "topology.changes"
CHANGES_BYTES_MAX = 64 * 1024
"""Beyond that, and beyond the size of the whole, the whole is written again."""
_HEAD = struct.Struct("<IQ")
"""Before each of the changes: their length, and their XXH3-64."""
_changes_of = msgspec.msgpack.Decoder(Changes).decode


class ClusterFile(msgspec.Struct, frozen=True, kw_only=True):
    """uid: of the cluster, 0 for none yet. voters: those that founded the catalog's group, with their addresses."""

    incarnation: int
    uid: int = 0
    voters: dict[NodeId, str] = {}


def catalog_directory(data_dir: str) -> str:
    """Where this node's replica of the catalog is."""
    return os.path.join(data_dir, "catalog")


def check_unused(node: NodeId, data_dir: str) -> None:
    """Raises InvalidArgument for a directory that names no cluster and yet holds a part of one."""
    if held := _replicas(data_dir):
        raise InvalidArgument(f"node {node}: {_no_cluster(data_dir, held)}", field="node")


def _replicas(data_dir: str) -> list[str]:
    """What is there of a cluster. Empty directories are not: volumes of their own may be mounted at them."""
    catalog, shards = os.path.join(data_dir, "catalog"), os.path.join(data_dir, "shards")
    held = ["catalog/"] if os.path.exists(os.path.join(catalog, CATALOG_FILE)) else []
    try:
        numbers = sorted(name for name in os.listdir(shards) if name.isdecimal())
    except FileNotFoundError:
        numbers = []
    except OSError as error:
        raise os_failure(error, shards) from error
    return [*held, *(f"shards/{number}/" for number in numbers)]


def _no_cluster(data_dir: str, held: list[str]) -> str:
    some = ", ".join([*held[:5], *(["..."] if len(held) > 5 else [])])
    return (
        f"data_dir = {data_dir!r} holds replicas ({some}), but no "
        f"{CLUSTER_FILE} that says of which cluster. {CLUSTER_REMEDY}"
    )


def check_founding(node: NodeId, now: Topology, heard: Topology) -> None:
    """Raises WrongCluster for a catalog that was made again: it does not know what the shards of the old one hold."""
    if now.settings is not None and heard.settings is not None and heard.founding != now.founding:
        raise WrongCluster(
            f"node {node} belongs to the cluster of founding {now.founding:x}, and this catalog is of founding "
            f"{heard.founding:x}: it was made again. It is not followed, so that nothing is deleted. Restore the "
            "directories of the catalog's nodes",
            founding=heard.founding,
        )


def load_cluster(data_dir: str, draw: int) -> ClusterFile:
    """What cluster.json says; a new directory gets `draw` as its incarnation, durably. Raises StorageError for a
    damaged one, UnsupportedFormat for a directory that is not new and does not say its cluster: that is on disk before
    the first replica is."""
    path = os.path.join(data_dir, CLUSTER_FILE)
    data = read_file(path)
    found = None if data is None else read_json(path, data, ClusterFile, CLUSTER_REMEDY)
    if (found is None or found.uid == 0) and (held := _replicas(data_dir)):
        raise UnsupportedFormat(_no_cluster(data_dir, held), directory=data_dir)
    if found is None:
        found = ClusterFile(incarnation=draw)
        save_cluster(data_dir, found)
    elif data is not None and json_is_whole(data) is None:
        with contextlib.suppress(*SHORTAGES):  # the next start gives it its checksum
            save_cluster(data_dir, found)
    return found


def save_cluster(data_dir: str, cluster: ClusterFile) -> None:
    """Replace cluster.json, durably."""
    replace_file(os.path.join(data_dir, CLUSTER_FILE), json_with_sum(cluster))


def load_topology(data_dir: str) -> Topology:
    """The topology last seen; an empty one if there is none, or it is damaged or of another release: it will be fetched
    again."""
    path = os.path.join(data_dir, TOPOLOGY_FILE)
    data = read_file(path)
    if data is None:
        return Topology()
    why = "its checksum is another one"
    if packed_is_whole(data) is not False:
        try:
            return _with_changes(msgspec.msgpack.decode(data, type=Topology), data_dir)
        except DECODE_ERRORS as error:
            why = str(error)
    log.warning("%s is damaged, and not used: other nodes are asked for the cluster's shape (%s)", path, why)
    return Topology()


def _with_changes(topology: Topology, data_dir: str) -> Topology:
    """With what topology.changes says, up to the first that is not whole, or not of this one. What an earlier file was
    followed by may stand there still: it is older. All of them are put in at once: each for itself takes as long as a
    look at all collections, and there are thousands."""
    due = [one for one in _read_changes(data_dir) if one.version > topology.version]
    if not due:
        return topology
    known = Summed.of(topology)
    if (made := changed(known, joined(due))) is not None:
        return made.topology
    for one in due:
        if (made := changed(known, one)) is None:
            break
        known = made
    return known.topology


def _read_changes(data_dir: str) -> list[Changes]:
    """Those of topology.changes that are whole, up to the first that is not, or is of another release."""
    path = os.path.join(data_dir, CHANGES_FILE)
    data, at, found = read_file(path) or b"", 0, list[Changes]()
    why = "its end is missing"
    while at + _HEAD.size <= len(data):
        length, told = _HEAD.unpack_from(data, at)
        body = data[at + _HEAD.size : at + _HEAD.size + length]
        if len(body) < length:
            break
        if xxhash.xxh3_64_intdigest(body) != told:
            why = "its checksum is another one"
            break
        try:
            found.append(_changes_of(body))
        except DECODE_ERRORS as error:
            why = str(error)
            break
        at += _HEAD.size + length
    if at < len(data):
        log.warning("%s is not used from byte %d on, as after a crash or damage: %s", path, at, why)
    return found


def save_topology(data_dir: str, topology: Topology) -> int:
    """Replace topology.bin, durably. How many bytes it has."""
    data = packed_with_sum(topology)
    replace_file(os.path.join(data_dir, TOPOLOGY_FILE), data)
    return len(data)


class TopologyFile:
    """The topology of a running node on its disk: whole once in each life, and as often as changes have become as much.
    Blocking; one call at a time."""

    def __init__(self, data_dir: str) -> None:
        self._data_dir = data_dir
        self._path = os.path.join(data_dir, CHANGES_FILE)
        self._written: Summed | None = None
        """What the files say; None if they are to be written whole."""
        self._whole_bytes = self._bytes = 0

    def save(self, topology: Topology) -> None:
        """Have the files say this one, durably. Raises DiskFull, TooManyFiles or DiskFailed; then the next call writes
        all of it."""
        before, self._written = self._written, None
        # Who knows less than the cluster is at must see that, also a release that reads only the whole.
        if before is None or before.topology.cluster_version != topology.cluster_version:
            self._write_whole(topology)
            return
        made, changes = changes_between(before, topology)
        body = b"" if changes is None else msgspec.msgpack.encode(changes)
        if not body or self._bytes + len(body) > max(CHANGES_BYTES_MAX, self._whole_bytes):
            self._write_whole(topology, made)
            return
        data = _HEAD.pack(len(body), xxhash.xxh3_64_intdigest(body)) + body
        append_file(self._path, data, self._bytes)
        self._bytes += len(data)
        self._written = made

    def _write_whole(self, topology: Topology, made: Summed | None = None) -> None:
        self._whole_bytes = save_topology(self._data_dir, topology)
        append_file(self._path, b"", 0)
        self._bytes, self._written = 0, made if made is not None else Summed.of(topology)
