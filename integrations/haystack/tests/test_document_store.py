"""Haystack's own suites for document stores, unmodified, over a database in this process and over three nodes; and what
they do not ask."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from haystack import Document, Pipeline
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack.errors import FilterError
from haystack.testing.document_store import (
    CountDocumentsByFilterTest,
    DocumentStoreBaseExtendedTests,
    FilterableDocsFixtureMixin,
)
from haystack.testing.document_store_async import (
    CountDocumentsAsyncTest,
    CountDocumentsByFilterAsyncTest,
    DeleteAllAsyncTest,
    DeleteByFilterAsyncTest,
    DeleteDocumentsAsyncTest,
    FilterDocumentsAsyncTest,
    UpdateByFilterAsyncTest,
    WriteDocumentsAsyncTest,
)
from haystack.utils import Secret
from haystack_integrations.components.retrievers.needle import NeedleEmbeddingRetriever
from haystack_integrations.document_stores.needle import NeedleDocumentStore

import needle
from needle.local.process_cluster import ProcessCluster


class _Alike:
    """A store has no order of its own, and embeddings are kept as float32."""

    @staticmethod
    def assert_documents_are_equal(received: list[Document], expected: list[Document]) -> None:
        assert len(received) == len(expected)
        for one, other in zip(sorted(received, key=_id), sorted(expected, key=_id), strict=True):
            embeddings = one.embedding, other.embedding
            assert replace(one, embedding=None) == replace(other, embedding=None)
            assert (embeddings[0] is None) == (embeddings[1] is None)
            assert np.allclose(embeddings[0] or [], embeddings[1] or [], rtol=1e-6, atol=1e-7)


def _id(document: Document) -> str:
    return document.id


@pytest.fixture(scope="module")
def here() -> Iterator[NeedleDocumentStore]:
    store = NeedleDocumentStore(directory=":memory:")
    yield store
    store.close()


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NeedleDocumentStore]:
    """Over three nodes, each a process."""
    with ProcessCluster(Path(tmp_path_factory.mktemp("cluster")), 3).running() as nodes:
        store = NeedleDocumentStore([node.address for node in nodes.nodes.values()])
        yield store
        store.close()


class _Policy:
    def test_write_documents(self, document_store: NeedleDocumentStore) -> None:
        """Without a policy a document must be new."""
        one = Document(content="once")
        assert document_store.write_documents([one]) == 1
        with pytest.raises(DuplicateDocumentError, match=one.id):
            document_store.write_documents([one])


class TestHere(_Alike, _Policy, DocumentStoreBaseExtendedTests, CountDocumentsByFilterTest):
    @pytest.fixture
    def document_store(self, here: NeedleDocumentStore) -> NeedleDocumentStore:
        here.delete_all_documents()
        return here


class TestThreeNodes(TestHere):
    @pytest.fixture
    def document_store(self, far: NeedleDocumentStore) -> NeedleDocumentStore:
        far.delete_all_documents()
        return far


class TestAsync(
    _Alike,
    CountDocumentsAsyncTest,
    CountDocumentsByFilterAsyncTest,
    DeleteAllAsyncTest,
    DeleteByFilterAsyncTest,
    DeleteDocumentsAsyncTest,
    FilterDocumentsAsyncTest,
    UpdateByFilterAsyncTest,
    WriteDocumentsAsyncTest,
    FilterableDocsFixtureMixin,
):
    @pytest.fixture
    def document_store(self, here: NeedleDocumentStore) -> NeedleDocumentStore:
        here.delete_all_documents()
        return here

    async def test_write_documents_async(self, document_store: NeedleDocumentStore) -> None:
        one = Document(content="once")
        assert await document_store.write_documents_async([one]) == 1
        with pytest.raises(DuplicateDocumentError):
            await document_store.write_documents_async([one])


@pytest.fixture
def store() -> Iterator[NeedleDocumentStore]:
    opened = NeedleDocumentStore(directory=":memory:", embedding_dim=2)
    opened.write_documents(
        [
            Document(id="a", content="east", meta={"at": "2024-01-01T00:00:00+02:00"}, embedding=[1.0, 0.0]),
            Document(id="b", content="north", meta={"at": "2024-06-01T00:00:00Z"}, embedding=[0.0, 1.0]),
            Document(id="c", content="nowhere"),
        ]
    )
    yield opened
    opened.close()


def _ids(documents: list[Document]) -> list[str]:
    return [one.id for one in documents]


def test_retrieval_finds_what_has_an_embedding_and_matches(store: NeedleDocumentStore) -> None:
    retriever = NeedleEmbeddingRetriever(document_store=store)
    found = retriever.run([1.0, 0.1])["documents"]
    assert _ids(found) == ["a", "b"]
    assert found[0].score is not None
    assert found[0].score > (found[1].score or 0.0)
    late = {"field": "meta.at", "operator": ">", "value": "2023-12-31T22:00:00Z"}
    assert _ids(retriever.run([1.0, 0.1], filters=late)["documents"]) == ["b"]  # the other one is of that instant
    assert _ids(retriever.run([1.0, 0.1], top_k=1)["documents"]) == ["a"]
    assert _ids(asyncio.run(retriever.run_async([0.0, 1.0], top_k=1))["documents"]) == ["b"]


def test_filters_ask_for_a_documents_own_id(store: NeedleDocumentStore) -> None:
    def found(operator: str, value: object) -> list[str]:
        return _ids(store.filter_documents({"field": "id", "operator": operator, "value": value}))

    assert (found("==", "b"), found("!=", "b"), found("==", None)) == (["b"], ["a", "c"], [])
    assert (found("in", ["a", "x"]), found("in", []), found("not in", [])) == (["a"], [], ["a", "b", "c"])
    assert store.delete_by_filter({"field": "id", "operator": "not in", "value": ["a"]}) == 2
    assert _ids(store.filter_documents()) == ["a"]
    for field, operator, value in (("id", ">", "a"), ("id", "in", "a"), ("id", "==", 7), ("score", "!=", 1.0)):
        with pytest.raises(FilterError, match=f"of {field} is not allowed|field = 'score'"):
            store.filter_documents({"field": field, "operator": operator, "value": value})


def test_dates_that_are_changed_are_found_anew(store: NeedleDocumentStore) -> None:
    late = {"field": "meta.at", "operator": ">=", "value": "2024-06-01"}
    assert _ids(store.filter_documents(late)) == ["b"]
    store.update_by_filter({"field": "content", "operator": "==", "value": "east"}, {"at": "2025-01-01T00:00:00"})
    assert _ids(store.filter_documents(late)) == ["a", "b"]
    store.update_by_filter({"field": "content", "operator": "==", "value": "north"}, {"at": 7})
    assert _ids(store.filter_documents(late)) == ["a"]


def test_a_pipeline_is_written_and_read(tmp_path: Path) -> None:
    where = NeedleDocumentStore(
        directory=str(tmp_path / "data"), embedding_dim=2, api_key=Secret.from_env_var("KEY", strict=False)
    )
    pipeline = Pipeline()
    pipeline.add_component("retriever", NeedleEmbeddingRetriever(document_store=where, top_k=3))
    again = Pipeline.loads(pipeline.dumps())
    retriever = again.get_component("retriever")
    assert retriever.to_dict() == pipeline.get_component("retriever").to_dict()
    assert again.run({"retriever": {"query_embedding": [1.0, 0.0]}}) == {"retriever": {"documents": []}}
    retriever.document_store.close()


def test_what_cannot_be_kept_or_asked_is_refused(store: NeedleDocumentStore) -> None:
    with pytest.raises(ValueError, match="has 3 dimensions, and embedding_dim is 2"):
        store.write_documents([Document(id="x", embedding=[1.0, 2.0, 3.0])])
    with pytest.raises(DuplicateDocumentError, match="d"):
        store.write_documents([Document(id="d", content="1"), Document(id="d", content="2")])
    with pytest.raises(FilterError, match="one of ==, !=,"):
        store.filter_documents({"field": "meta.at", "operator": "like", "value": "x"})
    with pytest.raises(FilterError, match="AND, OR or NOT"):
        store.filter_documents({"operator": "XOR", "conditions": [{"field": "a", "operator": "==", "value": 1}]})
    with pytest.raises(ValueError, match="either cluster"):
        NeedleDocumentStore()
    assert store.count_documents() == 3


def test_any_number_of_documents_is_checked_and_deleted(store: NeedleDocumentStore) -> None:
    many = [Document(id=f"m{n}", content="x") for n in range(10_001)]  # a cluster takes 10,000 ids at once
    store.write_documents(many[-1:])
    with pytest.raises(DuplicateDocumentError, match="m10000"):
        store.write_documents(many)
    store.delete_documents(_ids(many))
    assert store.count_documents() == 3


def test_a_document_of_each_kind_comes_back(store: NeedleDocumentStore) -> None:
    given = Document.from_dict(
        {
            "id": "whole",
            "content": "text",
            "meta": {"a": {"b": [1, None]}},
            "blob": {"data": [1, 2], "mime_type": "x/y", "meta": {}},
            "embedding": [0.5, 0.25],
            "sparse_embedding": {"indices": [1], "values": [0.5]},
        }
    )
    store.write_documents([given], DuplicatePolicy.OVERWRITE)
    found = store.filter_documents({"field": "content", "operator": "==", "value": "text"})
    _Alike.assert_documents_are_equal(found, [given])


def test_another_collection_of_that_name_is_not_written_to(tmp_path: Path) -> None:
    with needle.open_sync(tmp_path) as client:
        client.create_collection("haystack", dimensions=7)
    store = NeedleDocumentStore(directory=str(tmp_path))
    for _ in range(2):  # it holds nothing open
        with pytest.raises(needle.CollectionExists):
            store.count_documents()
    store.close()


async def test_calls_that_open_the_store_at_the_same_time_open_one() -> None:
    store = NeedleDocumentStore(directory=":memory:", embedding_dim=2)
    documents = [Document(id=f"d{n}", content="x") for n in range(4)]
    written = await asyncio.gather(
        *(store.write_documents_async([one], DuplicatePolicy.OVERWRITE) for one in documents)
    )
    assert (written, store.count_documents()) == ([1] * 4, 4)
    store.close()


def test_the_readme_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text()
    exec(compile(text.split("```python")[1].split("```")[0], "README.md", "exec"), {})
    assert "What a shard is" in capsys.readouterr().out
