"""`needle import`: what the comparison sees, and which sources are refused. The databases: integrations/imports."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from needle.base.errors import CollectionNotFound, ConfigError, InvalidArgument
from needle.base.model import METRICS_OF_NUMBERS, Document, Hit, Metric
from needle.cli.import_command import _plan
from needle.cli.imports.comparing import Digest, Nearest, agreeing, distances, kinds_of
from needle.cli.imports.copying import Target, compare, copy
from needle.cli.imports.opening import open_source
from needle.cli.imports.source import Asked, Shape, joined, one_of
from needle.cli.inputs import Record

VECTORS = np.random.default_rng(3).normal(size=(40, 4)).astype(np.float32)
RECORDS = [Record(f"d{n}", vector, {"n": n, "b": None}, f"row {n}") for n, vector in enumerate(VECTORS)]


class Listed:
    """A source in memory; `nearest` by `metric`, which need not be the true one."""

    exact = True

    def __init__(self, records: list[Record], metric: Metric = Metric.L2) -> None:
        self.records, self._metric = records, metric
        self.shape = Shape(len(records), 4, metric, ())

    def batches(self) -> Iterator[list[Record]]:
        for start in range(0, len(self.records), 7):
            yield self.records[start : start + 7]

    def nearest(self, query: Any, k: int) -> list[str] | None:
        order = np.argsort(distances(query, np.stack([one.vector for one in self.records]), self._metric))
        return [self.records[at].id for at in order[:k]]

    def close(self) -> None: ...


class Kept:
    """A client of one collection in memory, of the metric l2."""

    def __init__(self) -> None:
        self.documents: dict[str, Document] = {}
        self.left = 10**9

    async def insert_batch(self, items: list[Any], **_: Any) -> None:
        if self.left < len(items):
            raise InvalidArgument("it broke off")
        self.left -= len(items)
        for id, vector, metadata in items:
            self.documents[id] = Document(id=id, vector=vector, metadata=metadata, version=1)

    async def get_many(self, ids: set[str], **_: Any) -> list[Document]:
        return [self.documents[one] for one in ids if one in self.documents]

    async def count(self, **_: Any) -> int:
        return len(self.documents)

    async def describe_collection(self, name: str) -> Any:
        raise CollectionNotFound(name)

    async def search(self, query: Any, k: int, **_: Any) -> list[Hit]:
        rows = list(self.documents.values())
        found = distances(query, np.stack([one.vector for one in rows]), Metric.L2)
        return [Hit(id=rows[at].id, distance=found[at], score=0.0) for at in np.argsort(found)[:k]]


def quiet(count: int) -> None: ...


async def broken_off() -> tuple[Kept, Listed, Target, int]:
    """A copy that ended after some documents: the client, what is copied, where to, and how many it has."""
    client, source = Kept(), Listed(RECORDS)
    to = Target(client, "c", Metric.L2, 1.0)  # type: ignore[arg-type]
    client.left = 20
    with pytest.raises(InvalidArgument, match="it broke off"):
        await copy(source, to, check=False, done=quiet)
    held, client.left = len(client.documents), 10**9
    assert 0 < held < len(RECORDS)
    return client, source, to, held


async def test_a_copy_that_broke_off_goes_on_and_is_equal() -> None:
    _, source, to, held = await broken_off()
    assert await copy(source, to, check=True, done=quiet) == (len(RECORDS) - held, held, 0)
    report = await compare(source, to, add=False, done=quiet)
    assert report.differences == [] and report.source_digest == report.target_digest
    assert (report.source, report.target, report.sample, report.neighbours) == (40, 40, 16, 1.0)


async def test_a_copy_tells_how_many_others_it_replaced() -> None:
    client, source, to, held = await broken_off()
    for id in ("d0", "d1"):
        client.documents[id] = Document(id=id, vector=VECTORS[0], metadata={"mine": 1}, version=2)
    assert await copy(source, to, check=True, done=quiet) == (len(RECORDS) - held + 2, held - 2, 2)


async def differences(change: Any, source: Listed | None = None, add: bool = False) -> list[str]:
    """What the comparison says after `change` was made to an equal copy."""
    client, read = Kept(), source or Listed(RECORDS)
    to = Target(client, "c", Metric.L2, 1.0)  # type: ignore[arg-type]
    await copy(read, to, check=False, done=quiet)
    change(client.documents)
    report = await compare(read, to, add=add, done=quiet)
    if any("documents differ" in one for one in report.differences):
        assert report.source_digest != report.target_digest
    return report.differences


def changed(**fields: Any) -> Any:
    def change(documents: dict[str, Document]) -> None:
        old = documents["d7"]
        told = {"id": "d7", "vector": old.vector, "metadata": old.metadata, "version": 1}
        documents["d7"] = Document(**{**told, **fields})

    return change


async def test_each_difference_is_named() -> None:
    assert await differences(changed(metadata={"b": None, "n": 7})) == []  # the order of keys is none
    assert await differences(changed(metadata={"n": 7})) == ["1 documents differ: 'd7' has other metadata"]
    other = np.nextafter(VECTORS[7], np.float32(9))
    assert await differences(changed(vector=other)) == ["1 documents differ: 'd7' has another vector"]
    missing = await differences(lambda documents: documents.pop("d7"))
    assert missing[0] == "1 documents differ: 'd7' is not there" and "the collection 39" in missing[1]

    def one_more(documents: dict[str, Document]) -> None:
        documents["x"] = Document(id="x", vector=VECTORS[0], metadata=None, version=1)

    assert "there are others in it" in (await differences(one_more))[0]
    assert await differences(one_more, add=True) == []
    doubled = Listed([*RECORDS, RECORDS[3]])
    (twice,) = await differences(lambda documents: None, doubled)
    assert twice == "several of the source have one id: 41 documents, 40 ids"
    told = await differences(one_more, doubled)  # as many documents on both sides, and not the same ones
    assert told[0] == twice and "there are others in it" in told[1]
    assert await differences(one_more, doubled, add=True) == [twice]
    (metric,) = await differences(lambda documents: None, Listed(RECORDS, Metric.DOT))
    assert metric.startswith("the nearest neighbours of 16 documents agree by 0.")
    by_graph = Listed(RECORDS, Metric.DOT)
    by_graph.exact = False
    assert (await differences(lambda documents: None, by_graph))[0].startswith("the nearest neighbours")


async def test_a_source_whose_graph_misses_some_is_equal() -> None:
    class Missing(Listed):
        exact = False

        def nearest(self, query: Any, k: int) -> list[str] | None:
            return (super().nearest(query, k) or [])[::2]

    assert await differences(lambda documents: None, Missing(RECORDS)) == []


def test_digests_know_no_order_and_every_part() -> None:
    def digest(*documents: tuple[str, Any, Any]) -> str:
        made = Digest()
        for one in documents:
            made.add(*one)
        return str(made)

    a, b = ("a", VECTORS[0], {"x": 1, "y": 2}), ("b", VECTORS[1], None)
    assert digest(a, b) == digest(b, ("a", VECTORS[0], {"y": 2, "x": 1})) != digest(a)
    assert len({digest(one) for one in (a, b, ("b", VECTORS[0], None), ("b", VECTORS[1], {}))}) == 4


def test_neighbours_that_go_by_and_ties() -> None:
    for metric in METRICS_OF_NUMBERS:
        nearest = Nearest([VECTORS[0]], metric)
        for start in range(0, 40, 9):
            nearest.add(RECORDS[start : start + 9])
        assert nearest.found()[0] == sorted(distances(VECTORS[0], VECTORS, metric))[:10]
    assert agreeing([1.0, 2.00001], [1.0, 2.0]) == 1.0 and agreeing([1.0, 3.0], [1.0, 2.0]) == 0.5
    assert agreeing([], [1.0]) == agreeing([1.0], []) == 0.0


def test_kinds_of_metadata() -> None:
    records = [
        Record("a", VECTORS[0], {"n": 1, "l": []}),
        Record("b", VECTORS[0], {"n": 1.5}),
        Record("c", VECTORS[0], 3),
    ]
    assert kinds_of(records) == {"(itself)": "integer", "l": "array", "n": "integer, number"}


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (Asked("documents.csv"), "neither chroma:PLACE"),
        (Asked("none.jsonl"), "no such file"),
        (Asked("index.pkl"), "FAISS.load_local"),
        (Asked("faiss:./none", vector="a"), "--vector says nothing about faiss"),
        (Asked("chroma:./none", vector="a"), "--vector says nothing about chroma"),
        (Asked("faiss:./none", collection="a"), "--from-collection says nothing about faiss"),
    ],
)
def test_what_is_no_source(asked: Asked, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        open_source(asked)


def test_a_source_without_its_library_says_which_extra_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "chromadb", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"pip install 'needle-vdb\[import-chroma\]'"):
        open_source(Asked("chroma:./there"))


def test_files_with_texts_or_expiring_documents_are_for_insert(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for line in ('{"id": "a", "text": "words"}', '{"id": "a", "vector": [1], "metadata": {}, "expires_at": "never"}'):
        path.write_text(line)
        with pytest.raises(InvalidArgument, match="needle insert"):
            open_source(Asked(str(path)))


def test_the_lists_of_a_faiss_index_may_have_ids_of_their_own(tmp_path: Path) -> None:
    path = str(tmp_path / "index.faiss")

    def read(ids: Any, own: bool = False, file: str | None = None) -> tuple[list[Record], Any]:
        coarse = faiss.IndexFlatL2(4)
        index = faiss.IndexIVFFlat(coarse, 4, 2)
        index.train(VECTORS)
        index.nprobe = 2
        whole = faiss.IndexIDMap(index) if own else index
        whole.add_with_ids(VECTORS, np.asarray(ids))
        faiss.write_index(whole, path)
        source = open_source(Asked(f"faiss:{path}", ids=file, rows=7))
        return [one for batch in source.batches() for one in batch], source.nearest(VECTORS[3], 1)

    for ids in (np.arange(40), np.arange(40) * 7 + 1000, np.arange(40)[::-1] * 3):
        for own in (False, True):
            records, nearest = read(ids, own)
            held = {one.id: one.vector for one in records}
            assert len(held) == 40 and nearest == [str(ids[3])]
            assert all(np.array_equal(held[str(id)], vector) for id, vector in zip(ids, VECTORS, strict=True))
    records, _ = read([0, 0, *range(1, 39)])
    assert sorted(one.id for one in records)[:3] == ["0", "0", "1"]  # the comparison says that several have one id
    (tmp_path / "ids.txt").write_text("\n".join(f"x{n}" for n in range(40)))
    records, nearest = read(np.arange(40), file=str(tmp_path / "ids.txt"))
    assert nearest == ["x3"] and np.array_equal(records[5].vector, VECTORS[5])
    with pytest.raises(InvalidArgument, match="ids of their own"):
        read(np.arange(40) + 1, file=str(tmp_path / "ids.txt"))


def test_names_and_keys_are_never_guessed() -> None:
    assert one_of("s", "--vector", None, ["a"]) == "a"
    with pytest.raises(InvalidArgument, match="choose one by --vector; there are: a, b"):
        one_of("s", "--vector", None, ["b", "a"])
    with pytest.raises(InvalidArgument, match="there is no 'c'"):
        one_of("s", "--vector", "c", ["a"])
    with pytest.raises(InvalidArgument, match="has a key 'document' already"):
        joined("s", {"document": 1}, document="x")


@pytest.mark.parametrize("bad", [Record("a", VECTORS[0], {"m": float("nan")}), Record("", VECTORS[0], None)])
def test_a_document_that_no_collection_takes_is_named_before_one_is_made(bad: Record) -> None:
    source = Listed([RECORDS[0], bad._replace(where="file.jsonl:2")])
    with pytest.raises(InvalidArgument, match=r"^file\.jsonl:2: (metadata\.m|id) = "):
        _plan(source, "articles", None, Metric.L2)


def test_a_collection_with_other_documents_is_refused_before_the_first_write(needle: Any, tmp_path: Path) -> None:
    """All was written first, and then it said that there were others: the two were mixed by then."""
    rows = [{"id": f"d{n}", "vector": [n, 1, 0, 0], "n": n} for n in range(30)]
    file = tmp_path / "documents.jsonl"
    file.write_text("\n".join(map(json.dumps, rows[:20])))
    words = ["import", str(file), "--collection", "mixed", "--batch", "7"]
    assert needle.json(*words)["written"] == 20
    file.write_text("\n".join(map(json.dumps, rows)))
    assert needle.json(*words)["there"] == 20, "a copy that broke off goes on"
    assert needle.json(*words)["written"] == 0
    fewer = [{**row, "n": -1} for row in rows[1:]]  # their number tells
    for source in (fewer, [{**row, "id": f"e{n}"} for n, row in enumerate(rows)]):
        file.write_text("\n".join(map(json.dumps, source)))
        for more in ([], ["--dry-run"]):
            needle.run(*words, *more, expect=1)
            said = " ".join(needle.notes.split())
            assert "nothing was written" in said and "--add" in said
        assert needle.json("count", "--collection", "mixed") == {"count": 30}
        assert needle.json("get", "d3", "--collection", "mixed")[0]["metadata"] == {"n": 3}
    assert "30 documents under ids that the source does not have, such as 'd" in said
    assert needle.json(*words, "--add")["verified"]["other"] == 30
