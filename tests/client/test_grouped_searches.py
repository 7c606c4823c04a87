"""Groups of hits over several shards, in memory: what each shard says of its own becomes what is true of all."""

from __future__ import annotations

import random
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.fake_shards import FakeShards, ask, vector, virtually
from needle.base.errors import ClusterTooOld, InvalidArgument, Unavailable
from needle.base.model import HitBatch, ReadMode, SearchRequest
from needle.client.narrowed import Narrow, search_request
from needle.client.router import routes, searching
from needle.client.router.fan_out import Answers
from needle.client.router.merge import merged_facets, merged_hits
from needle.client.router.router import Router
from needle.client.router.scanning import facet_in_shards
from needle.protocol import calls
from needle.protocol.calls import told_counts

STRONG = ReadMode.STRONG


async def filled(router: Router, rng: random.Random, count: int, values: int) -> list[tuple[float, str, int]]:
    """(distance to 0, id, value) of each document, sorted."""
    rows = []
    for n in range(count):
        at, value = rng.randint(0, 40), rng.randrange(values)
        await router.insert("default", f"doc-{n:03}", vector(at), msgspec.json.encode({"of": value}), None, 5)
        rows.append((float(at * at), f"doc-{n:03}", value))
    return sorted(rows)


def by_groups(k: int, size: int, offset: int = 0) -> SearchRequest:
    return msgspec.structs.replace(ask(0, k + offset), group_by="of", group_size=size, offset=offset)


def expected(rows: list[tuple[float, str, int]], k: int, size: int, offset: int) -> list[tuple[int, str]]:
    groups: dict[int, list[str]] = {}
    for _, name, value in rows:
        groups.setdefault(value, []).append(name)
    return [(value, name) for value in [*groups][offset : offset + k] for name in groups[value][:size]]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32), st.integers(0, 60), st.sampled_from([2, 9, 50]), st.sampled_from([1, 2, 5]),
    st.sampled_from([1, 2, 4, 30]), st.sampled_from([0, 0, 2]),
)  # fmt: skip
def test_groups_of_all_shards_are_those_of_one(
    seed: int, count: int, values: int, size: int, k: int, offset: int
) -> None:
    async def work() -> None:
        shards = FakeShards()
        router = Router(shards)
        rows = await filled(router, random.Random(seed), count, values)
        shards.asked.clear()
        batch = (await router.search(by_groups(k, size, offset), STRONG, 5)).batch
        assert list(zip(batch.groups, batch.ids, strict=True)) == expected(rows, k, size, offset)
        assert len(shards.asked) <= (4 if size == 1 else 8)

    virtually(work())


def test_what_changes_meanwhile_is_in_no_answer_by_half() -> None:
    """Between the two rounds a document goes that made its group one of the nearest: the answer is of the second."""

    async def work() -> None:
        shards = FakeShards()
        router = Router(shards)
        rows = await filled(router, random.Random(5), 60, 30)
        first = rows[0][1]
        left = [row for row in rows if row[1] != first]
        assert expected(rows, 3, 3, 0) != expected(left, 3, 3, 0)

        def gone(_: int) -> None:
            if len(shards.asked) > before + 4:
                for held in shards.data.values():
                    held.pop(first, None)

        before = len(shards.asked)
        shards.before_answer = gone
        batch = (await router.search(by_groups(3, 3), STRONG, 5)).batch
        assert len(shards.asked) >= before + 8
        assert list(zip(batch.groups, batch.ids, strict=True)) == expected(left, 3, 3, 0)

    virtually(work())


def test_documents_that_change_for_ever_end_in_an_error_that_may_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        searching, "merged_groups", lambda answers, asked: merged_hits(answers, asked)._replace(lacking=[1])
    )

    async def work() -> None:
        shards = FakeShards()
        with pytest.raises(Unavailable, match="ask again") as caught:
            await Router(shards).search(by_groups(3, 3), STRONG, 5)
        assert caught.value.retryable and len(shards.asked) == 4 * searching.ROUNDS_MAX

    virtually(work())


def test_many_groups_are_put_together_in_a_time_that_grows_with_their_number() -> None:
    """Of 2,000 in three shards: six seconds if each of them is compared with all of each shard."""

    def told(shard: int) -> HitBatch:
        at = [3 * n + shard for n in range(2000)]
        return HitBatch([f"doc-{n}" for n in at], [float(n) for n in at], [1] * len(at), [], b"", 5, groups=[*at])

    answers = Answers({shard: calls.encode(told(shard)) for shard in range(3)}, {}, [], 1)
    began = time.thread_time()
    found = searching.merged_groups(answers, by_groups(2000, 1))
    assert time.thread_time() - began < 2
    assert found.merged.groups == list(range(2000)) and found.lacking == []


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize(
    ("narrow", "beside"),
    [
        (Narrow(), False),
        (Narrow(group_by="of"), True),
        (Narrow(diversify=0.5, pool=600), True),
    ],
    ids=["plain", "groups", "variety"],
)
def test_what_takes_long_by_the_byte_is_put_together_beside_the_loop(shards: int, narrow: Narrow, beside: bool) -> None:
    """All of these answers are small; of groups and of variety much is made."""
    ran = list[object]()

    async def threads(work: Any, *arguments: Any) -> Any:
        ran.append(work)
        return work(*arguments)

    async def work() -> None:
        there = FakeShards(shards)
        router = Router(there, blocking=threads)
        for n in range(600):
            await router.insert("default", f"doc-{n:03}", vector(n + 1), b'{"of":%d}' % n, None, 5)
        request = search_request([0, 0], 500, None, "default", False, False, False, 0, narrow=narrow)
        found = await router.search(request, STRONG, 5)
        assert len(found.batch.ids) == 500 and found.size < routes.BESIDE_BYTES
        assert bool(ran) == beside

    virtually(work())


def test_a_node_that_knows_no_groups_is_named_not_believed() -> None:
    old = HitBatch(["a"], [0.0], [1], [b"{}"], b"", 1)
    with pytest.raises(ClusterTooOld, match="shard 3"):
        searching.merged_groups(Answers({3: calls.encode(old)}, {}, [], 1), by_groups(1, 1))
    none = Answers({3: calls.encode(HitBatch([], [], [], [], b"", 1))}, {}, [], 1)
    assert searching.merged_groups(none, by_groups(1, 1)).lacking == []


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["a", "b", "1", 1, 2, True, False, 0.5]), max_size=9), max_size=4),
    st.integers(1, 9),
)
def test_counts_of_all_shards_are_summed_and_the_most_frequent_told_first(shards: list[list[Any]], limit: int) -> None:
    answers, whole = {}, Counter[tuple[bool, Any]]()
    for shard, documents in enumerate(shards):
        own = Counter((isinstance(value, bool), value) for value in documents)
        whole += own
        told = told_counts([value for _, value in own], [*own.values()], 0, len(documents) + shard, shard, 7 + shard)
        answers[shard] = calls.encode(told)
    seen, merged = merged_facets(answers, limit)
    assert seen == {shard: 7 + shard for shard in answers}
    assert (merged.distinct, merged.documents - merged.without) == (len(whole), whole.total())
    order = sorted(whole, key=lambda mark: (-whole[mark], mark[0], isinstance(mark[1], str), mark[1]))[:limit]
    assert [(isinstance(value, bool), value) for value in merged.values] == order
    assert merged.counts == [whole[mark] for mark in order]


@pytest.mark.parametrize(("values", "beside"), [(100, False), (2000, True)])
async def test_counts_of_many_values_are_summed_beside_the_loop(values: int, beside: bool) -> None:
    told = calls.encode(told_counts([*range(values)], [1] * values, 0, values, 0, 7))
    ran = list[object]()

    async def read(*_: object, **__: object) -> Answers:
        return Answers({0: told, 1: told}, {}, [], 1)

    async def threads(work: Any, *arguments: Any) -> Any:
        ran.append(work)
        return work(*arguments)

    used = routes.Routes(FakeShards(), batch_bytes_max=1, blocking=threads)
    used.fan_out = SimpleNamespace(read=read)  # type: ignore[assignment]
    found = await facet_in_shards("default@7", "of", b"", 5, 1.0, used, used.fresh(STRONG, 0.0, False))
    assert (found.distinct, len(found.values)) == (values, 5) and len(told) < routes.BESIDE_BYTES / 8
    assert bool(ran) == beside


def test_a_partial_answer_has_the_groups_of_the_shards_that_are_there() -> None:
    async def work() -> None:
        shards = FakeShards()
        router = Router(shards)
        rows = await filled(router, random.Random(6), 60, 20)
        shards.dead.add(1)
        found = await router.search(by_groups(5, 2), STRONG, 1, partial=True)
        there = [row for row in rows if row[1] not in shards.data[1]]
        assert list(found.missing) == [1]
        assert list(zip(found.batch.groups, found.batch.ids, strict=True)) == expected(there, 5, 2, 0)

    virtually(work())


@pytest.mark.parametrize(
    ("count", "size", "says"), [(0, 8, "'0 vectors'"), (-2, 8, "'-2 vectors'"), (3, 8, "'8 bytes'")]
)
def test_vectors_that_are_none_are_refused_as_by_a_shard(count: int, size: int, says: str) -> None:
    async def work() -> None:
        request = msgspec.structs.replace(by_groups(2, 1), vector=bytes(size))
        with pytest.raises(InvalidArgument, match=f"queries = {says}"):
            await Router(FakeShards()).search_many(request, count, STRONG, 5)

    virtually(work())
