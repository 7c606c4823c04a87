"""A batch of which a document is refused for what it is: nothing of it is written where that can be known beforehand,
and what is written nonetheless is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from client.fake_shards import FakeShards, virtually
from needle.base.config import Limits
from needle.base.errors import InvalidArgument, NoQuorum, Unavailable
from needle.base.model import WriteResult
from needle.client.batches import BatchMethods
from needle.client.router.batch_plan import doubtful
from needle.client.router.router import Router
from needle.routing.strategy import CONSISTENT_HASH, ShardStrategy

GOOD = [(f"doc-{n:03}", [1.0, float(n)], {"n": n, "tenant": "a"}) for n in range(60)]
BAD = {
    "metadata": ("hbad", [1.0, 2.0], {"tenant": "a", "text": "x" * 70_000}),
    "id": ("h" * 600, [1.0, 2.0], {"tenant": "a"}),
    "id of other letters": ("\u00e9" * 300, [1.0, 2.0], {"tenant": "a"}),
    "vector": ("hbad", [0.0, 0.0], {"tenant": "a"}),
}


class Documents(BatchMethods):
    """The methods of a client, on shards in memory; entries of a few documents."""

    def __init__(self, shards: FakeShards) -> None:
        self._router = Router(shards, batch_bytes_max=100)

    async def _documents(self) -> Router:
        return self._router


def shards_with(limits: Limits | None = None, strategy: ShardStrategy = CONSISTENT_HASH) -> FakeShards:
    shards = FakeShards(strategy=strategy)
    shards.limits = limits or Limits()
    return shards


def held(shards: FakeShards) -> int:
    return sum(map(len, shards.data.values()))


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_nothing_is_written_of_a_batch_with_a_document_that_is_refused(bad: tuple[Any, ...]) -> None:
    async def work() -> None:
        shards = shards_with()
        with pytest.raises(InvalidArgument, match=r"is not allowed: .*\(0 of the 61 documents of the batch") as told:
            await Documents(shards).insert_batch([*GOOD, bad])
        assert held(shards) == 0
        assert told.value.details["documents_written"] == told.value.details["documents_unknown"] == 0

    virtually(work())


def test_nothing_is_written_of_a_batch_with_a_document_that_has_no_shard_key() -> None:
    async def work() -> None:
        shards = shards_with(strategy=ShardStrategy.custom("tenant"))
        with pytest.raises(InvalidArgument, match=r"tenant.*\(0 of the 61 documents"):
            await Documents(shards).insert_batch([*GOOD, ("hbad", [1.0, 2.0], {"n": 1})])
        assert held(shards) == 0
        fates = await Documents(shards).insert_each([*GOOD, ("hbad", [1.0, 2.0], {"n": 1})])
        assert isinstance(fates["hbad"], InvalidArgument)  # who asks for the fate of each gets the others written
        assert held(shards) == len(GOOD) == sum(isinstance(fate, WriteResult) for fate in fates.values())

    virtually(work())


def test_what_the_nodes_take_is_written_whatever_limits_are_usual() -> None:
    async def work() -> None:
        shards = shards_with(Limits(metadata_bytes_max=100_000, id_bytes_max=1000))
        await Documents(shards).insert_batch([*GOOD, BAD["metadata"], BAD["id"]])
        assert held(shards) == len(GOOD) + 2

    virtually(work())


def test_how_much_of_a_batch_is_written_is_in_the_message() -> None:
    async def work() -> None:
        shards = shards_with(Limits(metadata_bytes_max=20))  # fewer than usual, which nobody here can know
        bad = ("hbad", [1.0, 2.0], {"text": "x" * 30})
        with pytest.raises(InvalidArgument) as told:
            await Documents(shards).insert_batch([(name, vector, {}) for name, vector, _ in GOOD] + [bad])
        written = held(shards)
        assert 0 < written <= len(GOOD)
        assert f"({written} of the 61 documents of the batch are written)" in told.value.message
        assert told.value.details["documents_written"] == written

    virtually(work())


def test_a_shard_that_is_away_is_not_hidden_by_what_was_not_sent_for_it() -> None:
    async def work() -> None:
        shards = shards_with()
        shards.dead = {2}
        with pytest.raises((NoQuorum, Unavailable), match=r"shard 2 is dead.* \(\d+ of the 60 documents") as told:
            await Documents(shards).insert_batch(GOOD, timeout=0.5)
        assert told.value.details["documents_written"] == held(shards) > 0

    virtually(work())


def doubted(ids: Sequence[str], vectors: Any, metadata: Sequence[bytes]) -> set[int]:
    return doubtful(ids, memoryview(np.asarray(vectors, "<f4").tobytes()), metadata, Limits())


def test_only_what_may_be_refused_is_doubted() -> None:
    json = msgspec.json.encode({"text": "x" * 100})
    ids = ["a" * 512, "\u00e9" * 256, "b", "c"]
    assert doubted(ids, [[1.0, 0.0], [1e-25, 0.0], [1e18, 1.0], [0.5, 0.5]], [json, b"", b"", b"x" * 65536]) == {1}
    assert doubted(["a" * 513, "\u00e9" * 257, "b"], [[1.0, 0.0]] * 3, [b""] * 3) == {0, 1}
    assert doubted(["a", "b", "c"], [[0.0, 0.0], [3e38, 3e38], [1.0, 1.0]], [b"", b"", b"x" * 65537]) == {0, 1, 2}
    assert doubtful([], memoryview(b""), [], Limits()) == set()
    assert doubtful(["a", "b"], memoryview(b"12345"), [b"", b""], Limits()) == set()
