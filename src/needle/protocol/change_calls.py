"""The calls of change feeds: what a shard's replica tells of its changes (docs/adr/0098).

| method | takes | answers |
|---|---|---|
| changes | ChangesCall | ChangesAnswer in a peer_calls.ShardAnswer |

Always asked of a shard: with the epoch of a map it says where the shard's changes end by that map, with `ANY_EPOCH` it
tells those behind a position, whatever the map is by now.
"""

from __future__ import annotations

from typing import Final

import msgspec

from needle.base.ids import GroupId
from needle.protocol.calls import DocumentBatch, Freshness

CHANGES: Final = "changes"
ANY_EPOCH: Final = -1
KINDS: Final = ("insert", "update", "delete")
LIMIT_MAX: Final = 10_000
WAIT_SECONDS_MAX: Final = 60.0

Position = tuple[int, int]
"""(index, offset): all changes of a shard's log before that entry, and so many of that entry's."""


class Near(msgspec.Struct, frozen=True, array_like=True):
    """Documents whose vectors are near `vector` (float32 bytes): at most so far, and scored no less; as in a search.
    vector_name: of their vectors that one, by its name inside the shard; "": the one without a name."""

    vector: bytes
    max_distance: float | None = None
    min_score: float | None = None
    vector_name: str = ""


class ChangesCall(msgspec.Struct, frozen=True, array_like=True):
    """The changes of a collection behind `position`, `limit` at most. wait: seconds for the first one, if there is none
    yet. past: the move of ranges that the page may pass, 0 for none: the caller has looked at the other shards. move:
    instead of changes, whether that move took ranges away from this shard behind the position. bound: as in GetCall.
    filter (JSON), near: as if there were only documents that match; b"", None: all. named: named vectors that come with
    documents, by their names inside the shard. with_vectors: those without a name, or of `near` if that says a name."""

    group: GroupId
    collection: str
    position: Position
    limit: int
    with_vectors: bool
    freshness: Freshness
    epoch: int
    wait: float = 0.0
    past: int = 0
    move: int = 0
    bound: bytes = b""
    filter: bytes = b""
    near: Near | None = None
    named: tuple[str, ...] = ()


class ChangesAnswer(msgspec.Struct, frozen=True, array_like=True):
    """kinds: of each change the place of its name in KINDS. documents: of those that are not deletions, as the change
    left them; deleted, versions: of the others. after: the position behind each. reached: up to where was looked.
    owned: the move that brought ranges here next; 0 if that is not what comes next. known: False if this replica does
    not know all changes behind the position; then it tells none. released: the entry by which `ChangesCall.move` took
    ranges away; 0 if none did. owns: whether the shard owned anything after the last entry that is applied. distances:
    of the documents, if they were to be near."""

    kinds: bytes
    documents: DocumentBatch
    deleted: list[str]
    versions: list[int]
    after: list[Position]
    reached: Position
    owned: int = 0
    known: bool = True
    released: int = 0
    owns: bool = True
    distances: list[float] = []
