"""What the multi-Raft host needs from the outside, as protocols. Adapters match structurally."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from needle.base.errors import NeedleError
from needle.base.ids import NodeId
from needle.base.parts import Body, Payload


class Transport(Protocol):
    """Messages to other nodes, by node id. Delivery is best effort: lost, late, doubled or reordered is allowed."""

    def send(self, to: NodeId, body: Body) -> bool:
        """Queue one one-way frame of Raft messages. False if it was dropped (no address, queue full)."""
        ...

    async def call(self, to: NodeId, method: str, body: bytes, timeout: float) -> Payload:
        """Ask and wait. Raises the peer's NeedleError, ConnectionLost or DeadlineExceeded."""
        ...


class KeyValueTxn(Protocol):
    """One transaction: all of it or none of it survives a crash."""

    def get(self, key: bytes) -> bytes | None: ...
    def put(self, key: bytes, value: bytes) -> None: ...
    def delete(self, key: bytes) -> None: ...
    def delete_range(self, start: bytes, end: bytes) -> None:
        """Delete every key in [start, end)."""
        ...


class KeyValueStore(Protocol):
    """An ordered, durable key-value store: the disk under the Raft log (wal_store.py; simulated in proof.sim)."""

    def get(self, key: bytes) -> bytes | None: ...
    def scan(self, start: bytes, end: bytes, bytes_max: int) -> list[tuple[bytes, bytes]]:
        """Pairs in [start, end) in key order; stops after the pair that reaches bytes_max."""
        ...

    def commit(self, fill: Callable[[KeyValueTxn], None], sync: bool) -> None:
        """Run `fill` inside one write transaction and commit it; durable on return if `sync`. From any thread: those
        that come meanwhile wait.

        Raises DiskFailed on any I/O error: the store must not be used for writing afterwards.
        """
        ...

    def bytes_used(self) -> int:
        """Bytes that it takes on the disk, without what is there to be used again. May be called from any thread."""
        ...

    def close(self) -> None: ...


class Applied(msgspec.Struct, frozen=True, gc=False):
    """A committed entry as the state machine sees it. data is b"" for no-ops and configuration changes; conf is the
    encoded configuration in force from this entry on when the entry changed it, else None."""

    index: int
    term: int
    data: bytes
    conf: bytes | None


class SnapshotFile(msgspec.Struct, frozen=True, array_like=True):
    """One file of a snapshot: name relative to its directory, size in bytes, xxh3-128 hex of its content."""

    name: str
    size: int
    checksum: str


class StateMachine(Protocol):
    """What a group replicates. Blocking methods. apply and install_snapshot never run at the same time, nor do
    checkpoint, export_snapshot and install_snapshot; but a checkpoint or an export may run beside an apply."""

    def applied_index(self) -> int:
        """Index of the last applied entry (0 for none), as found on disk when opened."""
        ...

    def applied_term(self) -> int: ...

    def conf(self) -> bytes:
        """The encoded configuration in force at applied_index; b"" for none yet."""
        ...

    @property
    def damage(self) -> NeedleError | None:
        """Why it can neither apply nor answer: what it stores is not what was written. Then every other method but
        install_snapshot and close raises, applied_index may be 0, and installing a snapshot mends it."""
        ...

    def apply(self, entries: Sequence[Applied]) -> list[Any]:
        """Apply in order, in one transaction that also stores index, term and conf. One result an entry: a value,
        or a NeedleError instance for a command that was refused (deterministically, on every replica). For want of
        room, or of file handles, it may apply the first ones only: then there are fewer results. Raises DiskFull or
        TooManyFiles if it applied none. It is called again with the rest. Any other error ends the node."""
        ...

    def takes_long(self, entries: Sequence[Applied]) -> bool:
        """Whether applying these may take far longer than their bytes tell: then it is done in a thread for that, and
        other groups' entries are applied meanwhile. Looks at nothing but the entries, and blocks nobody."""
        ...

    def checkpoint(self) -> int:
        """Make everything applied durable; returns the applied index that is now safe to compact below."""
        ...

    def export_snapshot(self, directory: str) -> tuple[int, int, bytes, list[SnapshotFile]]:
        """Write a consistent image into `directory` (exists, empty): (index, term, conf, files)."""
        ...

    def held_file(self, name: str) -> str | None:
        """Where this state machine has a file that a snapshot may hold by that name, if such files never change."""
        ...

    def similar_file(self, name: str) -> str | None:
        """Where this state machine has a file that may share parts with a snapshot's file of that name. It may be
        written to, damaged or deleted at any time: nothing that is read from it may be believed."""
        ...

    def check_snapshot(self, directory: str) -> None:
        """Raises CorruptSnapshot if install_snapshot would."""
        ...

    def install_snapshot(self, directory: str) -> None:
        """Replace all state by the verified image in `directory`, durably and atomically: after a crash either the
        old or the new state is there. May be repeated after a crash with the same directory. Raises DiskFull or
        TooManyFiles while it still answers from the state before: it is called again."""
        ...

    def close(self) -> None: ...
