"""How the Raft log of a node is laid out in an ordered key-value store: keys, values and their checksums.

Invariant: every value starts with the CRC-32 of its key and the rest of it, so that a flipped bit, a torn value and a
value under a wrong key are all detected. It must not know what store is below.

    i                      which directory this is, and its starts (lives.py)
    k <node>               the last life of another node that this one knows of
    m                      what node, cluster and format this store belongs to
    g <group> c            the configuration the group was bootstrapped with, and whether its replica was given up since
    g <group> e <index>    one log entry
    g <group> h            HardState
    g <group> l            the replica contradicts others about what is committed: it must not go on (doubts.py)
    g <group> p            a snapshot install that was begun
    g <group> r            the replica is being repaired and must not vote
    g <group> s            where the log starts: index and term of the last entry that is no longer in it
"""

from __future__ import annotations

import struct
import zlib
from typing import TypeVar

import msgspec

from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import CorruptLog
from needle.base.ids import GroupId, NodeId, group_name
from needle.raft.messages import ConfState, Entry, EntryKind, SnapshotMeta

FORMAT_VERSION = 1
META_KEY = b"m"
IDENTITY_KEY = b"i"
PEER_PREFIX = b"k"
STARTS_MAX = 4096
BOOTSTRAP, ENTRY, HARD, LOST, PENDING, REPAIR, START = b"c", b"e", b"h", b"l", b"p", b"r", b"s"
NAMES = {
    BOOTSTRAP: "bootstrap configuration",
    ENTRY: "entry",
    HARD: "HardState",
    LOST: "record of loss",
    PENDING: "pending snapshot",
    REPAIR: "repair record",
    START: "log start",
}

_KEY = struct.Struct(">cIc")
_ENTRY_KEY = struct.Struct(">cIcQ")
_CRC = struct.Struct("<I")
_HEAD = struct.Struct("<QB")
_BODY = _CRC.size + _HEAD.size
_KINDS = (EntryKind.NORMAL, EntryKind.CONF_CHANGE)
_encoder = msgspec.msgpack.Encoder()

T = TypeVar("T")


class MetaRecord(msgspec.Struct, frozen=True, array_like=True):
    """Whose log this is."""

    format_version: int
    node_id: str
    cluster_id: str


class Life(msgspec.Struct, frozen=True, array_like=True):
    """One start of a node. incarnation: of its data directory, drawn when that was made. start: which of its starts.
    nonce: drawn at that start, so that a copy of the directory, started as often, is told apart."""

    incarnation: int
    start: int
    nonce: int


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """A directory's own history. starts: (start, nonce), the present one last, at most STARTS_MAX. lost: why the node
    must not go on, "" if it may."""

    incarnation: int
    starts: tuple[tuple[int, int], ...]
    lost: str = ""

    @property
    def life(self) -> Life:
        """The present one."""
        return Life(self.incarnation, *self.starts[-1])

    def knows(self, life: Life) -> bool:
        """Whether this directory has had that life. A start older than the history counts as had."""
        if life.incarnation != self.incarnation:
            return False
        return life.start < self.starts[0][0] or (life.start, life.nonce) in self.starts

    def started(self, nonce: int) -> Identity:
        """The same with one start more."""
        starts = (*self.starts, (self.starts[-1][0] + 1, nonce))
        return Identity(self.incarnation, starts[-STARTS_MAX:], self.lost)


class LostRecord(msgspec.Struct, frozen=True, array_like=True):
    """Why the replica must not go on."""

    reason: str


class StartRecord(msgspec.Struct, frozen=True, array_like=True):
    """The last entry that is no longer in the log, or (0, 0)."""

    index: int
    term: int


class PendingInstall(msgspec.Struct, frozen=True, array_like=True):
    """A verified snapshot that is about to replace state machine and log. directory: where its files are."""

    meta: SnapshotMeta
    directory: str


class BootstrapRecord(msgspec.Struct, frozen=True, array_like=True):
    """A ConfState, and what releases before this one pass over. given_up: the replica's files are, or are about to be,
    deleted on purpose: if it is opened again without them, nothing of it was lost."""

    voters: tuple[NodeId, ...] = ()
    learners: tuple[NodeId, ...] = ()
    voters_outgoing: tuple[NodeId, ...] = ()
    learners_next: tuple[NodeId, ...] = ()
    given_up: bool = False

    @property
    def conf(self) -> ConfState:
        """Without that."""
        return ConfState(self.voters, self.learners, self.voters_outgoing, self.learners_next)


GIVEN_UP = BootstrapRecord(given_up=True)


class RepairRecord(msgspec.Struct, frozen=True, array_like=True):
    """The log lost entries this replica may have acknowledged, in terms up to lost_term. See repair.py. returned: for
    it was given up, on purpose, and has come back."""

    lost_term: int
    lost_index: int
    reason: str
    returned: bool = False


def record_key(group: GroupId, kind: bytes) -> bytes:
    """The key of a group's record of a kind other than ENTRY."""
    return _KEY.pack(b"g", group, kind)


def entry_key(group: GroupId, index: int) -> bytes:
    """The key of one entry. Keys of a group's entries sort by index."""
    return _ENTRY_KEY.pack(b"g", group, ENTRY, index)


def entries_end(group: GroupId) -> bytes:
    """The first key after all entries of a group."""
    return _KEY.pack(b"g", group, bytes([ENTRY[0] + 1]))


def parse_key(key: bytes) -> tuple[GroupId, bytes, int]:
    """(group, kind, index) of a group's key; index is 0 for kinds other than ENTRY. Raises CorruptLog."""
    if len(key) == _ENTRY_KEY.size and key[5:6] == ENTRY:
        _, group, kind, index = _ENTRY_KEY.unpack(key)
        return group, kind, index
    if len(key) == _KEY.size and key[5:6] in NAMES and key[5:6] != ENTRY:
        _, group, kind = _KEY.unpack(key)
        return group, kind, 0
    raise CorruptLog(f"the Raft log holds a key that is none of its own: {key.hex()}", key=key.hex())


def encode_entry(key: bytes, entry: Entry) -> bytes:
    """The value of an entry under `key`: CRC-32, term, kind, data."""
    head = _HEAD.pack(entry.term, entry.kind)
    crc = zlib.crc32(entry.data, zlib.crc32(key + head))
    return _CRC.pack(crc) + head + entry.data


def decode_entry(key: bytes, value: bytes, group: GroupId, index: int) -> Entry:
    """The entry under `key`. Raises CorruptLog that names group and index."""
    checked = memoryview(value)[_CRC.size :]  # not copied: an entry may have 16 MB
    if len(value) >= _BODY and zlib.crc32(checked, zlib.crc32(key)) == _CRC.unpack_from(value)[0]:
        term, kind = _HEAD.unpack_from(value, _CRC.size)
        if kind in _KINDS:
            return Entry(index, term, kind, value[_BODY:])
    raise corrupt(group, ENTRY, index)


def encode_record(key: bytes, record: msgspec.Struct) -> bytes:
    """The value of any other record: CRC-32 and MessagePack."""
    body = _encoder.encode(record)
    return _CRC.pack(zlib.crc32(body, zlib.crc32(key))) + body


def decode_record(key: bytes, value: bytes, kind: type[T]) -> T | None:
    """The record under `key`, or None if its checksum or shape is wrong."""
    if len(value) < _CRC.size or zlib.crc32(value[_CRC.size :], zlib.crc32(key)) != _CRC.unpack_from(value)[0]:
        return None
    try:
        return msgspec.msgpack.decode(value[_CRC.size :], type=kind)
    except DECODE_ERRORS:
        return None


def corrupt(group: GroupId, kind: bytes, index: int, why: str = "fails its checksum") -> CorruptLog:
    """The error for a bad record: names group, record and index."""
    where = f"entry {index}" if kind == ENTRY else NAMES[kind]
    return CorruptLog(f"Raft log of {group_name(group)}: {where} {why}", group=group, record=NAMES[kind], index=index)
