"""A node's data directory: whose it is, and that only one process uses it.

Layout: node.json (whose), lock (held while a process runs), addresses.json (where nodes said that they are), log/ (Raft
logs), shards/<number>/ (replicas; <number>.gone: being deleted), snapshots/ (on their way in or out). Invariant: a
directory is written by one process at a time, and only by the node whose id and cluster stand in node.json.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from needle.base.config import check_node_id, parse_address
from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import ConfigError, InvalidArgument, StorageError, UnsupportedFormat
from needle.base.file_errors import SHORTAGES, os_failure
from needle.base.ids import NodeId
from needle.server.summed import json_is_whole, json_with_sum

_log = logging.getLogger("needle.server")
T = TypeVar("T", bound=msgspec.Struct)

FORMAT_VERSION = 1
NODE_FILE = "node.json"
ADDRESSES_FILE = "addresses.json"
LOCK_FILE = "lock"
CLUSTER_FILE = "cluster.json"
RECOVERY_FILE = "recovery.json"
"""Is there while `needle recover` makes a cluster of its own of the directory: nothing else may use it."""
GONE: Final = ".gone"
"""Ends the name of a replica's directory that is being deleted: `server.upkeep.given_up`."""
SHARDED: Final = "sharded"
"""The kind of all clusters now; earlier releases also had fixed ones, without a catalog."""
NODE_REMEDY: Final = (
    "If this is the directory of the node and the cluster that the settings name, delete that file: it is written "
    "again at the next start"
)
CLUSTER_REMEDY: Final = (
    "Restore that file from a copy of this directory; if there is none and other nodes of the cluster have these "
    "replicas, remove this node and add one with an empty data directory under a new id"
)


class NodeFile(msgspec.Struct, frozen=True, kw_only=True):
    """What node.json holds."""

    node_id: str
    cluster_id: str
    format_version: int = FORMAT_VERSION
    kind: str = ""
    """Of its cluster; "" as written by releases that did not note it."""


class _Named(msgspec.Struct, frozen=True):
    """Of cluster.json, whether it names a cluster."""

    uid: int = 0


def log_directory(data_dir: str) -> str:
    """Where the Raft logs are."""
    return os.path.join(data_dir, "log")


def shards_directory(data_dir: str) -> str:
    """Where the replicas are."""
    return os.path.join(data_dir, "shards")


def shard_directory(data_dir: str, shard: int) -> str:
    """Where the replica of a shard is."""
    return os.path.join(shards_directory(data_dir), str(shard))


def snapshot_directory(data_dir: str) -> str:
    """Where snapshots are staged."""
    return os.path.join(data_dir, "snapshots")


def claim(data_dir: str, node_id: NodeId, cluster_id: str) -> Callable[[], None]:
    """Take `data_dir` for this process; creates it if need be. Returns what gives it back.

    Raises InvalidArgument if it is a file, StorageError if another process has it or node.json is damaged,
    UnsupportedFormat if it belongs to another node, cluster or format, or to a cluster without a catalog; DiskFull,
    TooManyFiles or DiskFailed if it cannot be written.
    """
    try:
        os.makedirs(data_dir, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise _no_directory(data_dir) from None
    except OSError as error:
        raise os_failure(error, data_dir) from error
    release = hold(data_dir)
    try:
        if os.path.exists(os.path.join(data_dir, RECOVERY_FILE)):
            raise StorageError(
                f"data_dir = {data_dir!r}: `needle recover` was begun there and has not come to its end; run it again",
                directory=data_dir,
            )
        _check_owner(data_dir, NodeFile(node_id=node_id, cluster_id=cluster_id, kind=SHARDED))
    except BaseException:
        release()
        raise
    return release


def hold(data_dir: str) -> Callable[[], None]:
    """Keep other processes away from a directory that is there, whosever it is. Returns what gives it back. Raises
    InvalidArgument, StorageError, DiskFull, TooManyFiles or DiskFailed, as `claim` does."""
    try:
        lock = os.open(os.path.join(data_dir, LOCK_FILE), os.O_RDWR | os.O_CREAT, 0o644)
    except NotADirectoryError:
        raise _no_directory(data_dir) from None
    except OSError as error:
        raise os_failure(error, data_dir) from error
    try:
        _lock(lock, data_dir)
    except BaseException:
        os.close(lock)
        raise
    return lambda: os.close(lock)


def _no_directory(data_dir: str) -> InvalidArgument:
    return InvalidArgument(
        f"data_dir = {data_dir} is not allowed: there is a file; name a directory, or a path where one can be made",
        field="data_dir",
    )


def _lock(handle: int, data_dir: str) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "?"
        raise StorageError(
            f"data_dir = {data_dir!r} is in use by process {holder}; two nodes cannot share a directory",
            directory=data_dir,
        ) from None
    # Always as long, and never cut first: on a full disk the file keeps its block.
    with contextlib.suppress(OSError):
        os.pwrite(handle, b"%-31d\n" % os.getpid(), 0)


def read_owner(data_dir: str) -> NodeFile | None:
    """Whose directory this is; None if it is nobody's yet. Raises StorageError if node.json is damaged."""
    path = os.path.join(data_dir, NODE_FILE)
    data = read_file(path)
    return None if data is None else read_json(path, data, NodeFile, NODE_REMEDY)


def _check_owner(data_dir: str, mine: NodeFile) -> None:
    path, found = os.path.join(data_dir, NODE_FILE), read_owner(data_dir)
    if found is None:
        replace_file(path, json_with_sum(mine))
        return
    for field in ("format_version", "cluster_id", "node_id"):
        there, here = getattr(found, field), getattr(mine, field)
        if there != here:
            raise UnsupportedFormat(
                f"data_dir = {data_dir!r} belongs to a node with {field} {there!r}; this node has {here!r}",
                directory=data_dir,
            )
    if (found.kind or _kind_of(data_dir)) != SHARDED:
        raise UnsupportedFormat(
            f"data_dir = {data_dir!r} belongs to a fixed cluster of an earlier release, which has no catalog: this "
            "release cannot open it, and has changed nothing that is stored in it. Run the nodes of that cluster with "
            "their own release, read the documents out with the script in docs/data-on-disk.md (Directories of "
            "releases before the catalog), and give them to `needle insert` on a new cluster in empty data directories",
            directory=data_dir,
        )
    if not found.kind or json_is_whole(read_file(path) or b"") is None:
        with contextlib.suppress(*SHORTAGES):  # the next start notes it
            replace_file(path, json_with_sum(mine))


def _kind_of(data_dir: str) -> str:
    """Of a directory that does not say it: one with a replica and no cluster is of a cluster without a catalog."""
    path = os.path.join(data_dir, CLUSTER_FILE)
    if (data := read_file(path)) is not None and read_json(path, data, _Named, CLUSTER_REMEDY).uid:
        return SHARDED
    return "" if os.path.isdir(shard_directory(data_dir, 0)) else SHARDED


def load_addresses(data_dir: str) -> dict[NodeId, str]:
    """Where nodes said that they are; nothing if the file is damaged: it is learned again."""
    path = os.path.join(data_dir, ADDRESSES_FILE)
    data = read_file(path)
    try:
        found = {} if data is None else msgspec.json.decode(data, type=dict[str, str])
        for node, address in found.items():
            check_node_id("node", node)
            parse_address(f"address of {node}", address)
    except (*DECODE_ERRORS, ConfigError) as error:
        _log.warning("%s is damaged, and not used: addresses of nodes are learned again (%s)", path, error)
        return {}
    return found


def read_file(path: str) -> bytes | None:
    """What is in a small file; None if there is none."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise os_failure(error, path) from error


def read_json(path: str, data: bytes, kind: type[T], remedy: str) -> T:
    """What the file at `path` says. Raises StorageError, with what to do, if it is not what was written."""
    what = "its checksum is another one; whoever changed it by hand takes `checksum` out of it"
    if json_is_whole(data) is not False:
        try:
            return msgspec.json.decode(data, type=kind)
        except DECODE_ERRORS as error:
            what = str(error)
    raise StorageError(f"{path} is damaged: {what}. {remedy}", path=path)


def save_addresses(data_dir: str, addresses: dict[NodeId, str]) -> None:
    """Replace addresses.json, durably."""
    replace_file(os.path.join(data_dir, ADDRESSES_FILE), msgspec.json.encode(dict(sorted(addresses.items()))))


def replace_file(path: str, data: bytes) -> None:
    """Atomically: whole and durable, or as before. Raises DiskFull, TooManyFiles or DiskFailed."""
    part = path + ".part"
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        directory = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        with contextlib.suppress(OSError):  # half of it must not take room, nor be synced a second time
            os.unlink(part)
        raise os_failure(error, path) from error


def append_file(path: str, data: bytes, size: int) -> None:
    """Have a file be its first `size` bytes and then `data`, durably; a crash may leave a part of `data`. Raises
    DiskFull, TooManyFiles or DiskFailed."""
    try:
        with open(path, "ab") as file:
            file.truncate(size)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise os_failure(error, path) from error
