"""LangChain's own suite for vector stores, unmodified, over a database in this process and over three nodes; and what
it does not ask."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance
from langchain_needle import NeedleVectorStore
from langchain_tests.integration_tests.vectorstores import VectorStoreIntegrationTests

import needle
from needle.local.process_cluster import ProcessCluster

EMBEDDING = DeterministicFakeEmbedding(size=6)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[needle.SyncClient]:
    with needle.open_sync(tmp_path_factory.mktemp("data")) as opened:
        yield opened


@pytest.fixture()
def store(client: needle.SyncClient) -> Iterator[NeedleVectorStore]:
    yield NeedleVectorStore(EMBEDDING, client)
    _drop(client)


def _drop(client: needle.SyncClient) -> None:
    if "langchain" in {one.name for one in client.collections()}:
        client.drop_collection("langchain")


class TestOneNode(VectorStoreIntegrationTests):
    """The asynchronous methods run the blocking ones in threads."""

    @pytest.fixture()
    def vectorstore(self, store: NeedleVectorStore) -> VectorStore:  # type: ignore[override]
        return store


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The addresses of three nodes, each a process."""
    with ProcessCluster(Path(tmp_path_factory.mktemp("cluster")), 3).running() as nodes:
        yield [node.address for node in nodes.nodes.values()]


class TestThreeNodes(VectorStoreIntegrationTests):
    """The asynchronous methods have a client of their own."""

    @pytest.fixture()
    async def vectorstore(self, cluster: list[str]) -> AsyncIterator[VectorStore]:  # type: ignore[override]
        with needle.connect_sync(cluster) as client:
            async with needle.connect(cluster) as other:
                yield NeedleVectorStore(EMBEDDING, client, async_client=other)
            _drop(client)


TEXTS = [f"text {n}" for n in range(20)]
METADATA = [{"n": n, "kind": "even" if n % 2 == 0 else "odd"} for n in range(20)]


@pytest.fixture()
def filled(store: NeedleVectorStore) -> NeedleVectorStore:
    store.add_texts(TEXTS, METADATA, ids=[f"t{n}" for n in range(20)])
    return store


def _ids(found: list[Document]) -> list[str | None]:
    return [one.id for one in found]


def test_filters_are_those_of_other_stores_or_needles_own(filled: NeedleVectorStore) -> None:
    own = filled.similarity_search("text 3", k=20, filter=needle.Filter.eq("kind", "odd"))
    assert sorted(_ids(own)) == sorted(f"t{n}" for n in range(1, 20, 2))
    said = filled.similarity_search("text 3", k=20, filter={"kind": "odd", "n": {"$gte": 11}})
    assert sorted(_ids(said)) == ["t11", "t13", "t15", "t17", "t19"]
    with pytest.raises(needle.InvalidArgument, match="ilike"):
        filled.similarity_search("text 3", filter={"kind": {"$ilike": "ODD"}})


def test_scores_are_distances_and_relevance_is_highest_for_the_same_text(filled: NeedleVectorStore) -> None:
    found = filled.similarity_search_with_score("text 7", k=3)
    assert found[0][0].id == "t7"
    assert found[0][1] == pytest.approx(0.0, abs=1e-6)
    assert [score for _, score in found] == sorted(score for _, score in found)
    relevant = filled.similarity_search_with_relevance_scores("text 7", k=20)
    assert relevant[0][1] == pytest.approx(1.0, abs=1e-6)
    assert all(0.0 <= score <= 1.0 for _, score in relevant)


async def test_hits_that_are_unlike_each_other_are_those_that_langchain_would_choose(
    filled: NeedleVectorStore,
) -> None:
    query = EMBEDDING.embed_query("another text")
    vectors = EMBEDDING.embed_documents(TEXTS)
    for weight in (0.0, 0.3, 0.5, 0.9):
        near = filled.similarity_search_by_vector(query, k=12)
        chosen = maximal_marginal_relevance(
            np.array(query), [vectors[int((one.id or "t")[1:])] for one in near], lambda_mult=weight, k=5
        )
        expected = [near[at].id for at in chosen]
        assert _ids(filled.max_marginal_relevance_search("another text", 5, 12, weight)) == expected
        assert _ids(await filled.amax_marginal_relevance_search("another text", 5, 12, weight)) == expected
    retriever = filled.as_retriever(search_type="mmr", search_kwargs={"k": 3, "filter": {"kind": "odd"}})
    assert all(one.metadata["kind"] == "odd" for one in retriever.invoke("text 7"))
    with pytest.raises(ValueError, match="lambda_mult = 2"):
        filled.max_marginal_relevance_search("text 7", lambda_mult=2)


def test_a_retriever_is_made_of_it(filled: NeedleVectorStore) -> None:
    retriever = filled.as_retriever(search_kwargs={"k": 2, "filter": {"kind": "even"}})
    assert _ids(retriever.invoke("text 4"))[0] == "t4"


def test_documents_are_deleted_by_a_filter_and_all_of_them(
    filled: NeedleVectorStore, client: needle.SyncClient
) -> None:
    filled.delete(filter={"kind": "odd"})
    assert client.count(collection="langchain") == 10
    filled.delete([])
    assert client.count(collection="langchain") == 10
    with pytest.raises(needle.InvalidArgument, match="only one of both"):
        filled.delete(["t0"], filter={"kind": "even"})
    filled.delete()
    assert client.count(collection="langchain") == 0


def test_what_cannot_be_kept_is_refused(store: NeedleVectorStore) -> None:
    with pytest.raises(ValueError, match="may not use 'text'"):
        store.add_texts(["a"], [{"text": "b"}])
    with pytest.raises(ValueError, match="ids has 1 members, and there are 2 texts"):
        store.add_texts(["a", "b"], ids=["1"])
    with pytest.raises(TypeError, match="namespace"):
        store.add_texts(["a"], namespace="x")
    assert store.similarity_search("a") == []


def test_a_store_that_may_not_make_its_collection_says_that_it_is_missing(client: needle.SyncClient) -> None:
    strict = NeedleVectorStore(EMBEDDING, client, collection="nowhere", create=False)
    for ask in (lambda: strict.similarity_search("a"), lambda: strict.add_texts(["a"]), strict.delete):
        with pytest.raises(needle.CollectionNotFound):
            ask()


def test_another_collection_of_that_name_is_not_written_to(store: NeedleVectorStore, client: needle.SyncClient) -> None:
    client.create_collection("langchain", dimensions=7)
    with pytest.raises(needle.CollectionExists):
        store.add_texts(["a"])


def test_a_store_of_an_asynchronous_client_only_says_so() -> None:
    with pytest.raises(ValueError, match="connect_sync makes one"):
        NeedleVectorStore(EMBEDDING)


def test_the_readme_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text()
    exec(compile(text.split("```python")[1].split("```")[0], "README.md", "exec"), {})
    assert "page_content='What a shard is'" in capsys.readouterr().out
