"""What a node keeps beside Raft: which cluster it belongs to, and the last topology it saw.

`cluster.json` and `topology.bin` in the data directory. Invariant: `incarnation` is drawn once, when the directory is
new; a node whose directory was lost gets another one, by which the catalog refuses it under its old name (a node that
forgot its votes must not vote again). The topology is a cache: it lets a node open its shards before it reaches anyone.
"""

from __future__ import annotations

import contextlib
import logging
import os

import msgspec

from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import InvalidArgument, UnsupportedFormat, WrongCluster
from needle.base.file_errors import SHORTAGES, os_failure
from needle.base.ids import NodeId
from needle.catalog.machine import FILE_NAME as CATALOG_FILE
from needle.routing.topology import Topology
from needle.server.files import CLUSTER_FILE, CLUSTER_REMEDY, read_file, read_json, replace_file
from needle.server.summed import json_is_whole, json_with_sum, packed_is_whole, packed_with_sum

log = logging.getLogger("needle.server")

TOPOLOGY_FILE = "topology.bin"


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
            return msgspec.msgpack.decode(data, type=Topology)
        except DECODE_ERRORS as error:
            why = str(error)
    log.warning("%s is damaged, and not used: other nodes are asked for the cluster's shape (%s)", path, why)
    return Topology()


def save_topology(data_dir: str, topology: Topology) -> None:
    """Replace topology.bin, durably."""
    replace_file(os.path.join(data_dir, TOPOLOGY_FILE), packed_with_sum(topology))
