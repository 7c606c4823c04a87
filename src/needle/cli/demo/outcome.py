"""What a demo run measured. Plain values, in the order in which they happen."""

from __future__ import annotations

import msgspec


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One question in words: ids of the nearest passages and the median latency of each read mode in milliseconds."""

    question: str
    ids: list[str]
    strong_ms: float
    leased_ms: float
    eventual_ms: float


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """Codes and names that stand in one passage only: how often that passage is the first hit, and among the hits, of
    searches by nearness, by words, and by both at once."""

    asked: int
    first_near: int
    first_by_words: int
    first_by_both: int
    found_near: int
    found_by_words: int
    found_by_both: int


class Failover(msgspec.Struct, frozen=True, kw_only=True):
    """The leader killed in the middle of writes. failover_ms: from kill -9 to the acknowledgement of a write that was
    sent after it. unknown: writes whose fate the client could not tell; they are not counted as acknowledged."""

    killed: str
    new_leader: str
    term_before: int
    term_after: int
    failover_ms: float
    acknowledged_before: int
    acknowledged_after: int
    unknown: int


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """After the dead node came back: documents and digest on every replica, all equal; acknowledged writes found."""

    acknowledged: int
    missing: int
    documents: int
    digest: str
    replicas: int
    catch_up_seconds: float


class Growth(msgspec.Struct, frozen=True, kw_only=True):
    """The same cluster with more nodes and shards. acknowledged: writes answered meanwhile, all of which were found
    afterwards. documents: by shard, at the end."""

    nodes: int
    shards: int
    seconds: float
    moved_bytes: int
    acknowledged: int
    unknown: int
    slowest_write_ms: float
    documents: dict[str, int]


class Outcome(msgspec.Struct, kw_only=True):
    """Everything a demo run measured; seconds unless the name says otherwise."""

    nodes: int
    passages: int = 0
    read_seconds: float = 0.0
    embed_seconds: float = 0.0
    load_seconds: float = 0.0
    index_seconds: float = 0.0
    index_bytes: int = 0
    answers: list[Answer] = []
    known: Known | None = None
    failover: Failover | None = None
    proof: Proof | None = None
    growth: Growth | None = None
    total_seconds: float = 0.0
