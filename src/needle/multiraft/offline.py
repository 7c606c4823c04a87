"""What people may do to the Raft logs of a node that is stopped, when it refuses to start or to go on by itself.

Invariant: entries are never changed, and nothing that the node said is forgotten but what the caller is told; or all of
it, where the directory becomes that of another cluster (`begin_anew`). It works on the store below the logs, so that it
also works where the logs do not open.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from needle.base.errors import CorruptLog
from needle.base.ids import GroupId, group_name
from needle.multiraft.log.log_records import (
    BOOTSTRAP,
    ENTRY,
    HARD,
    IDENTITY_KEY,
    LOST,
    META_KEY,
    PEER_PREFIX,
    START,
    Identity,
    LostRecord,
    MetaRecord,
    StartRecord,
    decode_entry,
    decode_record,
    encode_record,
    parse_key,
    record_key,
)
from needle.multiraft.ports import KeyValueStore, KeyValueTxn
from needle.raft.messages import ConfState, HardState
from needle.raft.plausible import TERM_ON_DISK_MAX

TERM_STEP = 1 << 36
"""Repaired terms are multiples of this: the same on all nodes, above every term that elections came to, and near enough
that a node that was repaired later is heard by the others."""
SCAN_BYTES = 4 << 20


class LoweredTerm(msgspec.Struct, frozen=True):
    """A group's term, before and after."""

    group: GroupId
    before: int
    after: int


def lower_terms(store: KeyValueStore) -> list[LoweredTerm]:
    """Give every group whose term no elections can have come to one that they go on from. Do it on every node of the
    cluster while all are stopped: a vote in the terms in between is forgotten, and nobody else may remember one.

    Raises CorruptLog if entries of such a term are in a log.
    """
    highest: dict[GroupId, int] = {}
    hard_states: dict[GroupId, HardState] = {}
    start = b"g"
    while pairs := store.scan(start, b"h", SCAN_BYTES):
        for key, value in pairs:
            group, kind, index = parse_key(key)
            term = 0
            if kind == ENTRY:
                term = decode_entry(key, value, group, index).term
            elif kind == START:
                found = decode_record(key, value, StartRecord)
                term = found.term if found is not None else 0
            elif kind == HARD:
                hard_states[group] = decode_record(key, value, HardState) or HardState()
            if term > TERM_ON_DISK_MAX:
                raise CorruptLog(
                    f"entry {index} of {group_name(group)} is of term {term}: restore a backup", group=group
                )
            highest[group] = max(highest.get(group, 0), term)
        start = pairs[-1][0] + b"\x00"
    lowered: list[LoweredTerm] = []
    for group, state in sorted(hard_states.items()):
        if state.term > TERM_ON_DISK_MAX:
            after = TERM_STEP * (highest[group] // TERM_STEP + 1)
            _put(store, group, HARD, HardState(after, "", state.commit))
            lowered.append(LoweredTerm(group, state.term, after))
    return lowered


def resume(store: KeyValueStore) -> dict[GroupId, str]:
    """Let replicas that contradicted others go on: somebody decided that their data is what counts. Groups and why they
    had stopped. A node that is lost as a whole stays so."""
    cleared: dict[GroupId, str] = {}
    start = b"g"
    while pairs := store.scan(start, b"h", SCAN_BYTES):
        for key, value in pairs:
            group, kind, _ = parse_key(key)
            found = decode_record(key, value, LostRecord) if kind == LOST else None
            if found is not None:
                cleared[group] = found.reason
        start = pairs[-1][0] + b"\x00"

    def clear(txn: KeyValueTxn) -> None:
        for group in cleared:
            txn.delete(record_key(group, LOST))

    store.commit(clear, True)
    return cleared


def _put(store: KeyValueStore, group: GroupId, kind: bytes, record: msgspec.Struct) -> None:
    key = record_key(group, kind)
    store.commit(lambda txn: txn.put(key, encode_record(key, record)), True)


class Standing(msgspec.Struct, frozen=True):
    """Where a group's log starts again: behind entry `index` of `term`, which the state machine has applied."""

    index: int
    term: int


def owner(store: KeyValueStore) -> MetaRecord:
    """Whose log this is. Raises CorruptLog."""
    value = store.get(META_KEY)
    found = None if value is None else decode_record(META_KEY, value, MetaRecord)
    if found is None:
        raise CorruptLog("the record that names this Raft log's node is missing, or fails its checksum")
    return found


def begin_anew(store: KeyValueStore, cluster_id: str, identity: Identity, groups: Mapping[GroupId, Standing]) -> None:
    """Make this the log of another cluster, in one transaction: of these groups, each without an entry and with its
    term begun, and of no others; and nothing is remembered of other nodes."""
    mine = msgspec.structs.replace(owner(store), cluster_id=cluster_id)

    def fill(txn: KeyValueTxn) -> None:
        txn.delete_range(b"g", b"h")
        txn.delete_range(PEER_PREFIX, META_KEY)
        txn.put(META_KEY, encode_record(META_KEY, mine))
        txn.put(IDENTITY_KEY, encode_record(IDENTITY_KEY, identity))
        for group, at in groups.items():
            for kind, record in (
                (BOOTSTRAP, ConfState()),
                (HARD, HardState(at.term, "", at.index)),
                (START, StartRecord(at.index, at.term)),
            ):
                key = record_key(group, kind)
                txn.put(key, encode_record(key, record))

    store.commit(fill, True)
