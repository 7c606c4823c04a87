"""Searches by words in real processes: the same hits and scores in one shard as in four, whatever is written."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from cluster.processes import ShardedProcesses, healthy
from needle.base.errors import CollectionExists, DocumentNotFound, InvalidArgument
from needle.base.text import TextField
from needle.client import Client
from needle.routing.strategy import routing_key
from proof.checkers.words import fused as plainly_fused
from proof.checkers.words import ranked

WORDS = "index search vector shard replica leader running runs max_retries getUserId log entry term commit"
TEXT = TextField(field="in.body")
NAME = "notes"
Found = list[tuple[str, float]]


async def changes(client: Client, rng: random.Random, held: dict[str, Any]) -> None:
    """Inserts, replacements, patches and deletions, mirrored in `held`."""
    ids = [f"d{rng.randrange(400):03}" for _ in range(60)]
    texts = [" ".join(rng.choices(WORDS.split(), k=rng.choice([0, 2, 12]))) for _ in ids]
    rows = [{"in": {"body": text}, "n": rng.randrange(4)} for text in texts]
    await client.insert_batch(ids=ids, vectors=[[1.0, 2.0]] * len(ids), metadatas=rows, collection=NAME)
    held.update(zip(ids, rows, strict=True))
    gone = rng.sample(sorted(held), 5)
    await client.delete(gone, collection=NAME)
    for name in gone:
        del held[name]
    some = rng.choice(sorted(held))
    await client.patch(some, set={"in.body": "leader leader leader"}, collection=NAME)
    held[some] = {**held[some], "in": {"body": "leader leader leader"}}


async def found(client: Client, keywords: str, **narrow: Any) -> Found:
    return [(hit.id, hit.score) for hit in await client.search(keywords=keywords, collection=NAME, **narrow)]


def wanted(held: dict[str, Any], keywords: str, n: int | None = None) -> Found:
    texts = {name: row["in"]["body"] for name, row in held.items()}
    return ranked(texts, keywords, TEXT, lambda name: n is None or held[name]["n"] == n)


async def check(client: Client, rng: random.Random, held: dict[str, Any]) -> None:
    for _ in range(3):
        keywords = " ".join(rng.choices([*WORDS.split(), "nowhere"], k=rng.choice([1, 2, 4])))
        assert await found(client, keywords, k=10) == wanted(held, keywords)[:10]
        assert await found(client, keywords, k=1000, filter={"n": 2}) == wanted(held, keywords, 2)
        assert await found(client, keywords, k=3, offset=4) == wanted(held, keywords)[4:7]
    best = wanted(held, "leader")[0][1]
    assert await found(client, "leader", k=1000, min_score=best) == [
        one for one in wanted(held, "leader") if one[1] >= best
    ]


@pytest.mark.parametrize("shards", [1, 4])
async def test_hits_and_scores_do_not_depend_on_the_number_of_shards(tmp_path: Path, shards: int) -> None:
    rng, held = random.Random(4), dict[str, Any]()
    async with ShardedProcesses(tmp_path, nodes=3) as processes:
        await processes.create(shards, 3)
        async with processes.connect() as client:
            await healthy(client)
            await client.create_collection(NAME, dimensions=2, text="in.body")
            for _ in range(4):
                await changes(client, rng, held)
                await check(client, rng, held)
            for name in list(processes.addresses):
                processes.kill(name)
                processes.restart(name)
                await healthy(client)
            await check(client, rng, held)
            explained = (await client.search(keywords="leader nowhere", collection=NAME, explain=True)).explained
            assert sorted(one.shard for one in explained) == list(range(shards))
            assert "the word 'nowher' weighs 0: no document has it" in explained[0].notes
            await refusals(client)


async def test_a_hybrid_search_fuses_what_both_searches_find(tmp_path: Path) -> None:
    rng = random.Random(9)
    async with ShardedProcesses(tmp_path, nodes=3) as processes:
        await processes.create(3, 3)
        async with processes.connect() as client:
            await healthy(client)
            await client.create_collection(NAME, dimensions=2, metric="l2", text="t")
            ids = [f"h{n:02}" for n in range(60)]
            rows = [{"t": " ".join(rng.choices(WORDS.split(), k=4)), "n": n % 2} for n in range(60)]
            vectors = [[rng.random(), rng.random()] for _ in ids]
            await client.insert_batch(ids=ids, vectors=vectors, metadatas=rows, collection=NAME)
            for filter in (None, {"n": 1}):
                both: dict[str, Any] = {"collection": NAME, "filter": filter}
                near = [hit.id for hit in await client.search([0.5, 0.5], k=20, exact=True, **both)]
                words = [hit.id for hit in await client.search(keywords="running leader", k=20, **both)]
                scores = {
                    name: sum(1 / (60 + one.index(name) + 1) for one in (near, words) if name in one)
                    for name in {*near, *words}
                }
                best = sorted(scores, key=lambda name: (-scores[name], name))
                hits = await client.hybrid_search(
                    [0.5, 0.5], "running leader", k=7, pool=20, exact=True, explain=True, with_vectors=True, **both
                )
                assert [hit.id for hit in hits] == best[:7] and [hit.score for hit in hits] == [
                    pytest.approx(scores[name]) for name in best[:7]
                ]
                for hit in hits:
                    places = [one.index(hit.id) + 1 if hit.id in one else None for one in (near, words)]
                    assert hit.ranks == tuple(places)
                    assert hit.metadata == rows[ids.index(hit.id)] and hit.vector.shape == (2,)
                assert len(hits.explained) == 6
                later = await client.hybrid_search(
                    [0.5, 0.5], "running leader", k=3, offset=4, pool=20, exact=True, **both
                )
                assert [hit.id for hit in later] == best[4:7]
            at: dict[str, Any] = {"collection": NAME}
            like = await client.hybrid_search(None, "running leader", k=20, like="h07", pool=30, exact=True, **at)
            near = [hit.id for hit in await client.search(k=30, like="h07", exact=True, **at)]
            words = [hit.id for hit in await client.search(keywords="running leader", k=31, **at) if hit.id != "h07"]
            assert [(hit.id, hit.score, hit.ranks) for hit in like] == plainly_fused(near, words[:30], 60, (1, 1))[:20]
            assert "h07" not in {hit.id for hit in like}
            with pytest.raises(DocumentNotFound):
                await client.hybrid_search(None, "leader", like="nobody", **at)
            for wrong in (
                {"keywords": None}, {"vector": None}, {"fusion": 3}, {"pool": 2}, {"keywords": "-"}, {"like": "h07"}
            ):  # fmt: skip
                with pytest.raises(InvalidArgument):
                    await client.hybrid_search(
                        **{"vector": [1, 2], "keywords": "a", "k": 5, "collection": NAME} | wrong  # type: ignore[arg-type]
                    )


async def refusals(client: Client) -> None:
    for wrong in (
        {"keywords": "a", "query": [1.0, 2.0]},
        {"keywords": "a", "like": "d001"},
        {"keywords": "a", "exact": True},
        {"keywords": "a", "group_by": "n"},
        {"keywords": ""},
        {"keywords": "+ -"},
        {"keywords": 3},
        {"keywords": "x" * 5000},
        {"keywords": " ".join(f"a{n}b" for n in range(200))},
    ):
        with pytest.raises(InvalidArgument) as refused:
            await client.search(collection=NAME, **wrong)  # type: ignore[arg-type]
        assert refused.value.details.get("field") or "keywords" in refused.value.message
    for text in ({"field": "a", "language": "klingon"}, {"field": "a..b"}, {"language": "english"}, 5, {"body": "a"}):
        with pytest.raises(InvalidArgument, match="text"):
            await client.create_collection("wrong", dimensions=2, text=text)  # type: ignore[arg-type]
    with pytest.raises(CollectionExists, match=r"text 'in.body' \(english\), not 'other'"):
        await client.create_collection(NAME, dimensions=2, text="other", if_absent=True)
    await client.create_collection(NAME, dimensions=2, if_absent=True)
    await client.create_collection("like", like=NAME)
    assert (await client.describe_collection("like")).text == TEXT
    await client.create_collection("plain", like=NAME, text="")
    with pytest.raises(InvalidArgument, match="made without a text to search"):
        await client.search(keywords="a", collection="plain")


async def test_a_write_that_was_acknowledged_is_found_by_each_client(tmp_path: Path) -> None:
    async with ShardedProcesses(tmp_path, nodes=3) as processes:
        await processes.create(2, 3)
        async with processes.connect() as client, processes.connect() as other:
            await healthy(client)
            await client.create_collection(NAME, dimensions=2, text={"field": "t", "language": "none"})
            for n in range(30):
                await client.insert(f"w{n}", [1, 2], {"t": f"word zz{n}"}, collection=NAME)
                assert (await found(other, f"zz{n}"))[0][0] == f"w{n}"
            both = await asyncio.gather(*(found(other, "word", k=100) for _ in range(20)))
            assert all(one == both[0] and len(one) == 30 for one in both)


async def test_a_partial_search_has_the_hits_of_all_shards_that_answer(tmp_path: Path) -> None:
    async with ShardedProcesses(tmp_path, nodes=3) as processes:
        await processes.create(3, 1)
        async with processes.connect() as client:
            await healthy(client)
            await client.create_collection(NAME, dimensions=2, text="in.body")
            ids = [f"p{n:02}" for n in range(60)]
            rows = [{"in": {"body": f"word {n}" + " and more" * (n % 3)}} for n in range(60)]
            await client.insert_batch(ids=ids, vectors=[[1.0, 2.0]] * 60, metadatas=rows, collection=NAME)
            found_map = client.topology().map
            assert found_map is not None
            held: dict[int, dict[str, Any]] = {0: {}, 1: {}, 2: {}}
            for name, row in zip(ids, rows, strict=True):
                key = routing_key(found_map.strategy, found_map.shard_count, name, None)
                held[found_map.owner(key)][name] = row["in"]["body"]
            whole = await client.search_partial(keywords="word more", k=100, collection=NAME)
            assert whole.complete and [(hit.id, hit.score) for hit in whole.hits] == ranked(
                {name: text for texts in held.values() for name, text in texts.items()}, "word more", TEXT
            )
            processes.kill(client.topology().shards[1].replicas[0])
            part = await client.search_partial(keywords="word more", k=100, collection=NAME, timeout=3.0)
            assert list(part.missing) == [1] and not part.complete
            assert [(hit.id, hit.score) for hit in part.hits] == ranked(held[0] | held[2], "word more", TEXT)
