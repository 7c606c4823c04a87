"""What the clients of a run share: which keys and filters they use, what they need of a database and of the shards.

Keys rotate, so that unknown outcomes do not pile up on one key. What a client does is client.py's. It must not know the
servers.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec
import numpy as np

from needle.base.errors import NeedleError
from needle.base.model import HitBatch, ReadMode, WriteResult
from needle.routing.shard_map import KeyRange
from proof.checkers.history import History, Operation
from proof.checkers.replay import GetSeen
from proof.checkers.scatter import ScatterSeen
from proof.checkers.shaping import Shaping
from proof.checkers.violation import Violation
from proof.sim.spec import Profile
from proof.sim.trace import Trace

COLLECTION = "default"
HOT_SLOTS = 2
Documents = list[tuple[str, Any, Any]]
Keep = Callable[[Any], bool]

NAMED: Final = [f"k{slot}.{use}" for slot in (0, 1, 3) for use in range(40)]
"""Some of the names that documents have, as ids and in their metadata."""
FILTERS: tuple[tuple[dict[str, Any] | None, Keep | None], ...] = (
    (None, None),
    (None, None),
    ({"odd": True}, lambda metadata: metadata["odd"] is True),
    ({"n": {"$gte": 5}}, lambda metadata: metadata["n"] >= 5),
    (
        {"$or": [{"$ids": NAMED}, {"n": {"$in": [1, 2, 3]}}]},
        lambda metadata: metadata.get("key") in NAMED or metadata["n"] in (1, 2, 3),
    ),
    (
        {"$and": [{"odd": False}, {"$not": {"$ids": NAMED}}, {"n": {"$lt": 7}}]},
        lambda metadata: metadata["odd"] is False and metadata.get("key") not in NAMED and metadata["n"] < 7,
    ),
)


class Answer(msgspec.Struct):
    """A search's answer. applied: by shard, None if the client is not told. epoch: of the map, 0 if not told."""

    batch: HitBatch
    applied: dict[int, int] | None = None
    missing: tuple[int, ...] = ()
    gaps: list[KeyRange] = []
    epoch: int = 0


class Database(Protocol):
    """The part of the real client that the workload uses; sim.databases adapts it. by_filter: whether it may be asked
    to delete by a filter. keyed: whether its writes may have idempotency keys."""

    by_filter: bool
    keyed: bool

    @property
    def via(self) -> str:
        """The node that routes for this client, where that is of interest."""
        ...

    async def put(self, key: str, vector: Any, metadata: Any) -> WriteResult: ...
    async def put_expiring(self, key: str, vector: Any, metadata: Any, expires_at: str) -> WriteResult: ...
    async def insert_if_absent(self, key: str, vector: Any, metadata: Any) -> WriteResult: ...
    async def compare_and_set(self, key: str, expected: int, vector: Any, metadata: Any) -> WriteResult: ...
    async def insert_many(self, documents: Documents) -> dict[str, WriteResult | NeedleError]:
        """The fate of each id. A WriteResult's version is 0 if the client does not tell."""
        ...

    async def delete(self, key: str) -> WriteResult: ...
    async def delete_many(self, keys: list[str]) -> WriteResult: ...
    async def delete_where(self, filter: dict[str, Any]) -> WriteResult: ...
    async def patch(self, key: str, added: dict[str, Any], expected: int) -> WriteResult:
        """expected: 0 for any version."""
        ...

    async def update(self, key: str, vector: Any) -> WriteResult:
        """Give a document another vector."""
        ...

    def vector(self) -> Any:
        """Of the document that the last get found."""
        ...

    async def get(self, key: str, mode: ReadMode) -> tuple[int, Any, int]:
        """(version or 0, metadata, applied index or 0 if the client does not tell)."""
        ...

    async def find(
        self, vector: Any, k: int, filter: Any, mode: ReadMode, exact: bool, partial: bool, shaping: Shaping
    ) -> Answer: ...
    async def find_many(
        self, vectors: Any, k: int, filter: Any, mode: ReadMode, exact: bool, shaping: Shaping
    ) -> list[Answer]:
        """`find` for each row, in one call."""
        ...

    def tokens(self, latest: dict[int, int]) -> dict[int, int]:
        """By shard, the index that this session's eventual reads must have seen."""
        ...

    def answered_by(self) -> int:
        """The shard that answered the last get; -1 if the client is not told."""
        ...


class Shards(Protocol):
    """What is known of the shards while clients work."""

    def owner(self, name: str) -> int:
        """The shard that owns a document now."""
        ...

    def last(self) -> dict[int, int]:
        """By shard, the index that a strong read has to have seen."""
        ...

    def contended(self) -> bool:
        """Whether ranges move under a strategy by which a delete has to ask all shards."""
        ...


class Timed(Protocol):
    """What the workload needs of an event loop, virtual or real."""

    def time(self) -> float: ...


def value_of(metadata: Any) -> str:
    """What a read has seen (history.Operation.tag)."""
    return str(metadata.get("tag", "")) + (f"+{metadata['added']}" if "added" in metadata else "")


class Budget:
    """Operations that all clients together may still begin."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self) -> bool:
        self.left -= 1
        return self.left >= 0


class Keys:
    """Names in use: each slot moves on to a fresh key after some operations. The last slots are the hot ones."""

    def __init__(self, profile: Profile) -> None:
        self._slots = profile.key_slots
        self._hot = profile.hot_share
        self._uses = [0] * (self._slots + HOT_SLOTS)
        self._per_key = profile.operations_per_key

    def draw(self, rng: random.Random) -> str:
        hot = self._hot and rng.random() < self._hot
        slot = self._slots + rng.randrange(HOT_SLOTS) if hot else rng.randrange(self._slots)
        self._uses[slot] += 1
        return f"k{slot}.{self._uses[slot] // self._per_key}"


class Workload:
    """State shared by the clients of a run. wide: they also write batches, patch, delete by a filter, and have lulls
    in which nobody writes."""

    def __init__(
        self,
        loop: Timed,
        history: History,
        trace: Trace,
        profile: Profile,
        seed: int,
        budget: Budget,
        shards: Shards,
        *,
        wide: bool,
    ) -> None:
        self.loop = loop
        self.wide = wide
        self.history = history
        self.trace = trace
        self.profile = profile
        self.seed = seed
        self.budget = budget
        self.shards = shards
        self.keys = Keys(profile)
        self.scatters: list[ScatterSeen] = []
        self.gets: list[tuple[int, GetSeen]] = []
        """With the shard that answered."""
        self.updated: dict[str, list[tuple[str, Any]]] = {}
        """By key, what updates of its vector are called, and the vectors of length 1."""
        self.in_batches: list[Operation] = []
        """Acknowledged writes whose versions the client was not told."""
        self.stopping = False
        self.broken: Violation | None = None
        self.on_ack: Callable[[str, int], None] = lambda key, index: None

    def updating(self, key: str, tag: str, vector: Any) -> None:
        """A document is to get a vector, which tells from now on that it has."""
        self.updated.setdefault(key, []).append((tag, vector / np.linalg.norm(vector)))

    def vector_of(self, key: str, vector: Any) -> str:
        """Which update gave a document its vector, as a part of what a read has seen; "" for the one of its put."""
        if vector is None or key not in self.updated:
            return ""
        direction = vector / np.linalg.norm(vector)  # a collection with the metric cosine keeps no more than this
        found = [tag for tag, one in self.updated[key] if np.allclose(one, direction, atol=1e-5)]
        return f"~{found[0]}" if found else ""
