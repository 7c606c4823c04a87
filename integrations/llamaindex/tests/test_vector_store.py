"""The vector store over a database in this process and over three nodes, beside LlamaIndex's own one in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import MockEmbedding, StorageContext, VectorStoreIndex
from llama_index.core.schema import BaseNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from llama_index.vector_stores.needle import NeedleVectorStore

import needle
from needle.local.process_cluster import ProcessCluster

VECTORS = [[1.0, 0.0, 0.1], [0.9, 0.3, 0.0], [0.2, 1.0, 0.0], [0.0, 0.4, 1.0], [0.5, 0.5, 0.5]]
METADATA: list[dict[str, Any]] = [
    {"theme": "mafia", "year": 1972, "tags": ["a", "b"]},
    {"theme": "dream", "year": 2010, "tags": ["b"]},
    {"theme": "prison", "year": 1994, "tags": []},
    {"theme": "love story", "year": 1997},
    {"theme": "", "year": 2001, "tags": ["c", "a"]},
]


def nodes() -> list[BaseNode]:
    return [
        TextNode(
            id_=f"n{n}",
            text=f"text {n}",
            metadata=metadata,
            embedding=vector,
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"doc{n % 2}")},
        )
        for n, (vector, metadata) in enumerate(zip(VECTORS, METADATA, strict=True))
    ]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[needle.SyncClient]:
    with needle.open_sync(tmp_path_factory.mktemp("data")) as opened:
        yield opened


@pytest.fixture
def store(client: needle.SyncClient) -> Iterator[NeedleVectorStore]:
    made = NeedleVectorStore(client)
    made.add(nodes())
    yield made
    client.drop_collection("llamaindex")


def _found(store: Any, filters: MetadataFilters | None = None, top_k: int = 5, **more: Any) -> list[str]:
    asked = VectorStoreQuery(query_embedding=[1.0, 0.2, 0.0], similarity_top_k=top_k, filters=filters, **more)
    return list(store.query(asked).ids)


def _one(key: str, operator: FilterOperator, value: Any) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key=key, operator=operator, value=value)])


EACH = [
    _one("theme", FilterOperator.EQ, "mafia"),
    _one("theme", FilterOperator.NE, "mafia"),
    _one("year", FilterOperator.GT, 1994),
    _one("year", FilterOperator.GTE, 1994),
    _one("year", FilterOperator.LT, 1997),
    _one("year", FilterOperator.LTE, 1997),
    _one("theme", FilterOperator.IN, ["mafia", "dream"]),
    _one("theme", FilterOperator.NIN, ["mafia", "dream"]),
    _one("tags", FilterOperator.ANY, ["b", "c"]),
    _one("tags", FilterOperator.ALL, ["a", "b"]),
    _one("tags", FilterOperator.CONTAINS, "a"),
    _one("theme", FilterOperator.TEXT_MATCH, "a"),
    _one("tags", FilterOperator.IS_EMPTY, None),
    _one("theme", FilterOperator.IS_EMPTY, None),
    *(
        MetadataFilters(
            filters=[
                MetadataFilter(key="year", operator=FilterOperator.GT, value=1995),
                MetadataFilter(key="theme", operator=FilterOperator.EQ, value="dream"),
            ],
            condition=condition,
        )
        for condition in FilterCondition
    ),
]


@pytest.mark.parametrize("filters", EACH, ids=lambda one: f"{one.condition.value}-{one.filters[0].operator.value}")
def test_each_filter_finds_what_llamaindex_own_store_finds(store: NeedleVectorStore, filters: MetadataFilters) -> None:
    own = SimpleVectorStore()
    own.add(nodes())
    found = _found(store, filters)
    assert sorted(found) == sorted(_found(own, filters))
    assert 0 < len(found) < 5


def test_filters_are_nested_and_what_is_not_understood_is_refused(store: NeedleVectorStore) -> None:
    inner = MetadataFilters(
        filters=[
            MetadataFilter(key="theme", operator=FilterOperator.EQ, value="mafia"),
            MetadataFilter(key="theme", operator=FilterOperator.EQ, value="prison"),
        ],
        condition=FilterCondition.OR,
    )
    outer = MetadataFilters(filters=[inner, MetadataFilter(key="year", operator=FilterOperator.GT, value=1980)])
    assert _found(store, outer) == ["n2"]
    with pytest.raises(ValueError, match="text_match_insensitive"):
        _found(store, _one("theme", FilterOperator.TEXT_MATCH_INSENSITIVE, "A"))
    with pytest.raises(ValueError, match="mode = 'hybrid'"):
        _found(store, mode=VectorStoreQueryMode.HYBRID)
    with pytest.raises(TypeError, match="namespace"):
        store.add(nodes(), namespace="x")


def test_the_nearest_come_first_with_what_was_stored(store: NeedleVectorStore) -> None:
    found = store.query(VectorStoreQuery(query_embedding=[1.0, 0.0, 0.1], similarity_top_k=2))
    assert found.ids == ["n0", "n1"]
    assert found.similarities is not None
    assert found.similarities[0] == pytest.approx(1.0, abs=1e-6)
    assert found.nodes is not None
    first = found.nodes[0]
    assert (first.get_content(), first.metadata, first.ref_doc_id) == ("text 0", METADATA[0], "doc0")
    assert _found(store, node_ids=["n3", "n4"]) == ["n4", "n3"]
    assert _found(store, doc_ids=["doc1"]) == ["n1", "n3"]


def _unlike(asked: list[float], count: int, weight: float) -> list[str]:
    """Maximal marginal relevance as its authors have it: unlike all that were chosen before. LlamaIndex's own function
    looks at the one that was chosen last only."""
    rows = np.array([asked, *VECTORS])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    near, alike = rows[1:] @ rows[0], rows[1:] @ rows[1:].T
    chosen = [int(near.argmax())]
    while len(chosen) < count:
        worth = weight * near - (1 - weight) * alike[:, chosen].max(axis=1)
        worth[chosen] = -np.inf
        chosen.append(int(worth.argmax()))
    return [f"n{n}" for n in chosen]


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
def test_hits_are_unlike_each_other_where_that_is_asked_for(store: NeedleVectorStore, weight: float) -> None:
    asked = [1.0, 0.2, 0.0]
    mmr = VectorStoreQueryMode.MMR
    query = VectorStoreQuery(query_embedding=asked, similarity_top_k=3, mode=mmr, mmr_threshold=weight)
    assert store.query(query, mmr_prefetch_factor=2).ids == _unlike(asked, 3, weight)


def test_nodes_are_read_and_deleted(store: NeedleVectorStore) -> None:
    read = store.get_nodes(["n1", "n9", "n0"])
    assert [one.node_id for one in read] == ["n0", "n1"]
    assert read[0].embedding is not None
    assert len(store.get_nodes(filters=_one("year", FilterOperator.GT, 1995))) == 3
    with pytest.raises(ValueError, match="clear"):
        store.delete_nodes()
    store.delete_nodes(["n0", "n1"], _one("theme", FilterOperator.EQ, "mafia"))
    assert sorted(_found(store)) == ["n1", "n2", "n3", "n4"]
    store.delete("doc1")
    assert sorted(_found(store)) == ["n2", "n4"]
    store.clear()
    assert store.get_nodes() == []


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The addresses of three nodes, each a process."""
    with ProcessCluster(Path(tmp_path_factory.mktemp("cluster")), 3).running() as started:
        yield [node.address for node in started.nodes.values()]


@pytest.fixture(params=["threads", "own client"])
async def far(cluster: list[str], request: pytest.FixtureRequest) -> AsyncIterator[NeedleVectorStore]:
    with needle.connect_sync(cluster) as blocking:
        async with needle.connect(cluster) as other:
            async_client = other if request.param == "own client" else None
            yield NeedleVectorStore(blocking, async_client=async_client, collection_name="far")
        blocking.drop_collection("far")


async def test_the_asynchronous_methods_do_the_same(far: NeedleVectorStore) -> None:
    asked = VectorStoreQuery(query_embedding=[1.0, 0.2, 0.0], similarity_top_k=5)
    assert (await far.aquery(asked)).ids == []
    assert await far.aget_nodes() == []
    await far.aclear()
    assert await far.async_add(nodes()) == ["n0", "n1", "n2", "n3", "n4"]
    assert (await far.aquery(asked)).ids == _found(far)
    await far.adelete_nodes(["n0"])
    await far.adelete("doc1")
    assert [one.node_id for one in await far.aget_nodes()] == ["n2", "n4"]
    await far.aclear()
    assert await far.aget_nodes() == []


def test_an_index_is_built_over_it_and_opened_again(client: needle.SyncClient) -> None:
    made = NeedleVectorStore(client, collection_name="index")
    embedding = MockEmbedding(embed_dim=4)
    VectorStoreIndex(
        [TextNode(id_="x", text="a text")],
        storage_context=StorageContext.from_defaults(vector_store=made),
        embed_model=embedding,
    )
    again = VectorStoreIndex.from_vector_store(
        NeedleVectorStore(client, collection_name="index"), embed_model=embedding
    )
    assert [one.node.node_id for one in again.as_retriever().retrieve("anything")] == ["x"]
    client.drop_collection("index")


def test_the_readme_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text()
    exec(compile(text.split("```python")[1].split("```")[0], "README.md", "exec"), {})
    assert "Raft in short" in capsys.readouterr().out
