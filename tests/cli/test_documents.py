"""Documents through the commands, against real processes."""

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from needle import connect_sync
from needle.base.errors import InvalidArgument, NoQuorum, Overloaded
from needle.base.model import VectorSpec
from needle.cli.document_commands import BATCH_BYTES, by_bytes, insert_all
from needle.cli.inputs import Record
from needle.client.naming import CollectionDescription


def test_jsonl_in_and_out(needle, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"id": f"j{n}", "vector": [n, 0, 0, 0], "metadata": {"n": n, "even": n % 2 == 0}} for n in range(25)]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert needle.json("insert", str(path), "--batch", "4")["inserted"] == 25

    documents = needle.json("get", "j3", "j24", "--with-vectors")
    assert [(d["id"], d["metadata"], d["vector"]) for d in documents] == [
        ("j3", {"n": 3, "even": False}, [3, 0, 0, 0]),
        ("j24", {"n": 24, "even": True}, [24, 0, 0, 0]),
    ]
    assert "not there: jx" in (needle.run("get", "j3", "jx", expect=1) and needle.notes)
    assert needle.json("delete", "j3", "j4", "jx") == {"deleted": 2}
    assert needle.json("get", "j3", expect=1) == []


def test_npy_and_parquet_in(needle, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.eye(4))
    assert needle.json("insert", str(tmp_path / "v.npy"), "--id-prefix", "row-")["inserted"] == 4
    assert needle.json("get", "row-2", "--with-vectors")[0]["vector"] == [0, 0, 1, 0]
    table = pyarrow.table({"id": ["p1", "p2"], "vector": [[9.0, 9, 9, 9], [8.0, 8, 8, 8]], "lang": ["en", "de"]})
    pyarrow.parquet.write_table(table, tmp_path / "v.parquet")
    needle.run("insert", str(tmp_path / "v.parquet"))
    assert "2 documents in" in needle.notes
    assert needle.json("get", "p2")[0]["metadata"] == {"lang": "de"}


def test_bits_in_and_out(needle, tmp_path: Path) -> None:
    """From arrays of bytes, of bool and of lists; what is exported goes in again as it is."""
    needle.run("collections", "create", "bits", "--dimensions", "16", "--dtype", "bit", "--metric", "hamming")
    bits = np.random.default_rng(1).integers(0, 2, (6, 16)).astype(bool)
    packed = np.packbits(bits, axis=1)
    np.save(tmp_path / "packed.npy", packed[:2])
    np.save(tmp_path / "bool.npy", bits[2:4])
    rows = [{"id": "c-0", "vector": packed[4].tolist()}, {"id": "c-1", "vector": packed[5].tolist()}]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, prefix in (("packed.npy", "a-"), ("bool.npy", "b-"), ("c.jsonl", "c-")):
        needle.run("insert", str(tmp_path / name), "--id-prefix", prefix, "-c", "bits")
    names = ["a-0", "a-1", "b-0", "b-1", "c-0", "c-1"]
    told = needle.json("get", *names, "--with-vectors", "-c", "bits")
    assert [one["vector"] for one in told] == packed.tolist()
    np.save(tmp_path / "q.npy", packed[3])
    hits = needle.json("search", "--vector", str(tmp_path / "q.npy"), "-k", "6", "-c", "bits")
    far = (bits != bits[3]).sum(axis=1).tolist()
    assert [(hit["distance"], hit["id"]) for hit in hits] == sorted(zip(far, names, strict=True))
    needle.run("export", str(tmp_path / "out.jsonl"), "-c", "bits")
    needle.run("collections", "create", "again", "--like", "bits")
    needle.run("insert", str(tmp_path / "out.jsonl"), "-c", "again")
    told = needle.json("get", *names, "--with-vectors", "-c", "again")
    assert [one["vector"] for one in told] == packed.tolist()
    (tmp_path / "wrong.jsonl").write_text(json.dumps({"id": "x", "vector": [1, 2, 3]}))
    needle.run("insert", str(tmp_path / "wrong.jsonl"), "-c", "bits", expect=1)
    assert "wrong.jsonl:1: the vector has 3 numbers" in needle.notes


def test_search_in_every_mode(needle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"id": f"s{n}", "vector": [0, 0, 100 + n, 0], "kind": "odd" if n % 2 else "even"} for n in range(10)]
    (tmp_path / "s.jsonl").write_text("\n".join(map(json.dumps, rows)))
    needle.run("insert", str(tmp_path / "s.jsonl"))
    np.save(tmp_path / "q.npy", np.array([0, 0, 103, 0], dtype=np.float32))
    query = ["search", "--vector", str(tmp_path / "q.npy"), "-k", "3"]
    for extra in (["--mode", "strong"], ["--mode", "leased"], ["--exact"]):
        hits = needle.json(*query, *extra)
        assert [hit["id"] for hit in hits] == ["s3", "s2", "s4"]
        assert [hit["distance"] for hit in hits] == [0, 1, 1]
    needle.until(lambda: [hit["id"] for hit in needle.json(*query, "--mode", "eventual")] == ["s3", "s2", "s4"])
    filtered = needle.json(*query, "--filter", '{"kind": "even"}')
    assert [hit["id"] for hit in filtered] == ["s2", "s4", "s0"]
    explained = needle.json(*query, "--filter", '{"kind": "even"}', "--explain")
    assert explained["hits"] == filtered and [shard["allowed"] for shard in explained["explained"]] == [5]
    assert "growing" in needle.run(*query, "--explain")
    grouped = needle.json(*query[:3], "-k", "2", "--group-by", "kind", "--group-size", "2", "--exact")
    assert [(hit["group"], hit["id"]) for hit in grouped] == [
        ("odd", "s3"),
        ("odd", "s1"),
        ("even", "s2"),
        ("even", "s4"),
    ]
    assert needle.run(*query, "--group-by", "kind").split()[0] == "kind"
    like = needle.json("search", "--like", "s3", "-k", "2", "--fields", "kind,absent", "--exact")
    assert [(hit["id"], hit["metadata"]) for hit in like] == [("s2", {"kind": "even"}), ("s4", {"kind": "even"})]
    bounds = ["--offset", "1", "--max-distance", "1.5", "--exact"]
    assert [hit["id"] for hit in needle.json(*query, *bounds)] == ["s2", "s4"]
    assert [hit["id"] for hit in needle.json(*query, "--min-score", "-0.5", "--exact")] == ["s3"]
    needle.run("search", "--like", "nobody", expect=1)
    assert "[document_not_found]" in needle.notes
    ordered = needle.json(*query, "--order-by", "kind", "--descending", "--exact")
    assert [hit["id"] for hit in ordered] == ["s3", "s2", "s4"]
    unlike = needle.json(*query[:3], "-k", "2", "--diversify", "1", "--exact")
    assert unlike[0]["id"] == "s3" and unlike[1]["distance"] > 5
    shown = needle.run(*query)
    assert "s3" in shown and '"kind": "odd"' in shown and "3 hits, strong read" in needle.notes

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"[0, 0, 109, 0]")))
    assert needle.json("search", "--vector", "-", "-k", "1")[0]["id"] == "s9"


def test_words_need_a_model_that_the_collection_names(needle, tmp_path: Path) -> None:
    needle.run("search", "any words", expect=1)
    assert "collection 'default' names no model" in needle.notes
    (tmp_path / "t.jsonl").write_text('{"id": "a", "text": "any words"}')
    needle.run("insert", str(tmp_path / "t.jsonl"), expect=1)
    assert "collection 'default' names no model" in needle.notes
    needle.run("collections", "create", "odd", "--model", "wordllama", "--dimensions", "4", expect=1)
    assert "dimensions = 4 is not allowed: 256, as the model 'wordllama' has" in needle.notes


def test_words_are_found_by_words(needle, tmp_path: Path) -> None:
    needle.run("collections", "create", "texts", "--model", "wordllama")
    described = needle.json("collections", "describe", "texts")
    assert (described["model"], described["dimensions"]) == ("wordllama", 256)
    texts = {"fruit": "a ripe red apple", "sky": "clouds above the mountains", "code": "parse the command line"}
    lines = [json.dumps({"id": name, "text": text}) for name, text in texts.items()]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    needle.run("insert", str(tmp_path / "t.jsonl"), "--collection", "texts")
    hits = needle.json("search", "pears and bananas", "-k", "1", "-c", "texts")
    assert hits[0]["id"] == "fruit" and hits[0]["metadata"] == {"text": "a ripe red apple"}


def test_by_nearness_and_by_words_at_once(needle, tmp_path: Path) -> None:
    needle.run("collections", "create", "codes", "--dimensions", "2", "--metric", "l2", "--text", "body")
    bodies = ["set max_retries", "a leader", "max_retries of a leader", "nothing"]
    lines = [{"id": f"b{n}", "vector": [n, 0], "body": body} for n, body in enumerate(bodies)]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines)))
    needle.run("insert", str(tmp_path / "b.jsonl"), "-c", "codes")
    np.save(tmp_path / "q.npy", np.array([3, 0], dtype=np.float32))
    both = ["search", "--vector", str(tmp_path / "q.npy"), "--keywords", "max_retries", "-c", "codes", "--exact"]
    hits = needle.json(*both)
    assert [(hit["id"], hit["ranks"]) for hit in hits] == [
        ("b2", [2, 2]), ("b0", [4, 1]), ("b3", [1, None]), ("b1", [3, None])
    ]  # fmt: skip
    assert [hit["id"] for hit in needle.json(*both, "--weights", "1,0", "-k", "2")] == ["b3", "b2"]
    assert needle.json(*both, "--weights", "0, 1", "--offset", "1")[0]["id"] == "b2"
    like = needle.json("search", "--like", "b3", "--keywords", "max_retries", "-c", "codes", "--exact")
    assert [hit["id"] for hit in like] == ["b2", "b0", "b1"]
    shown = needle.run(*both, "--explain").split()
    assert shown[:4] == ["score", "ranks", "id", "metadata"] and "2 2" in " ".join(shown)
    needle.run(*both, "--weights", "1,-1", expect=1)
    assert "[invalid_argument] fusion.weights" in needle.notes


def test_what_the_cluster_refuses_is_one_line(needle, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.ones((2, 3)))
    needle.run("insert", str(tmp_path / "v.npy"), expect=1)
    (line,) = [line for line in needle.notes.splitlines() if line.startswith("error")]
    assert "[invalid_argument]" in line and "acknowledged before: 0" in line
    needle.run("get", "x", "--collection", "nope", expect=1)
    assert "[collection_not_found]" in needle.notes and "`needle collections` lists them" in needle.notes


def test_collections(needle) -> None:
    needle.run("collections", "create", "images", "--dimensions", "512", "--metric", "dot", "--m", "32")
    specs = {spec["name"]: spec for spec in needle.json("collections")}
    assert specs["images"]["dimensions"] == 512 and specs["images"]["metric"] == "dot"
    assert specs["images"]["index"]["m"] == 32 and specs["default"]["metric"] == "l2"
    shown = needle.run("collections")
    assert "images" in shown and "0.0 MB" in shown and specs["images"]["documents"] == 0
    needle.run("collections", "create", "images", "--dimensions", "512", expect=1)
    assert "[collection_exists]" in needle.notes
    needle.run("collections", "index", "images", "kind")
    needle.run("collections", "create", "copied", "--like", "images", "--ef-search", "99", "--ttl", "60")
    copied = needle.json("collections", "describe", "copied")
    assert (copied["dimensions"], copied["metric"], copied["ttl"]) == (512, "dot", 60)
    assert (copied["index"]["m"], copied["index"]["ef_search"], list(copied["fields"])) == (32, 99, ["kind"])
    needle.run("collections", "create", "other", "--like", "nowhere", expect=1)
    assert "[collection_not_found]" in needle.notes
    needle.run("collections", "drop", "copied", "--yes")
    needle.run("collections", "drop", "images", "--yes")
    assert "images" not in needle.run("collections")
    needle.run("collections", "drop", "images", "--yes", expect=1)
    assert "[collection_not_found]" in needle.notes


class FakeClient:
    """Applies batches in the order in which it lets them finish."""

    def __init__(self, finish: Callable[[list[str]], int]) -> None:
        self.state: dict[str, float] = {}
        self.in_flight_max = 0
        self._in_flight = 0
        self._turns = finish

    async def insert_batch(self, items, *, expires_at=None, collection: str, timeout: float) -> None:
        self._in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self._in_flight)
        for _ in range(self._turns([item[0] for item in items])):
            await asyncio.sleep(0)
        self._in_flight -= 1
        self.state.update({identifier: float(vector[0]) for identifier, vector, _ in items})


def batches(*ids: list[str]) -> Iterator[list[Record]]:
    for number, part in enumerate(ids):
        yield [Record(identifier, np.array([number], dtype=np.float32), None) for identifier in part]


async def test_the_last_of_equal_ids_wins_however_long_batches_take() -> None:
    slow_first = FakeClient(lambda ids: 50 if "slow" in ids else 1)
    seen: list[int] = []
    count = await insert_all(slow_first, batches(["slow", "a"], ["b"], ["a", "c"], ["d"]), "default", 1.0, seen.append)
    assert slow_first.state == {"slow": 0, "a": 2, "b": 1, "c": 2, "d": 3}
    assert count == sum(seen) == 6 and slow_first.in_flight_max > 1


async def test_an_error_says_how_much_was_acknowledged() -> None:
    def refuse(ids: list[str]) -> int:
        if "bad" in ids:
            raise Overloaded("full", limit=7)
        return 0

    with pytest.raises(Overloaded, match=r"full \(acknowledged before: 1\)") as caught:
        await insert_all(FakeClient(refuse), batches(["a"], ["bad"]), "default", 1.0, lambda count: None)
    assert caught.value.details["limit"] == 7


async def test_a_cluster_that_goes_away_does_not_hide_why_a_document_was_refused() -> None:
    class Leaving(FakeClient):
        async def describe_collection(self, name: str) -> CollectionDescription:
            raise NoQuorum("nobody leads")

    def refuse(ids: list[str]) -> int:
        raise InvalidArgument("too long", field="id")

    with pytest.raises(InvalidArgument, match=r"^a to b: too long") as caught:
        await insert_all(Leaving(refuse), batches(["a", "b"]), "default", 1.0, lambda count: None)
    assert caught.value.details["field"] == "id"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"id": "c", "vector": [1, 2]}, "the vector has 2 numbers; the collection's vectors have 4"),
        ({"id": "", "vector": [1, 2, 3, 4]}, "id"),
        ({"id": "c", "vector": [1, 2, 3, 4], "n": float("nan")}, "metadata"),
        ({"id": "c", "vector": [None, 2, 3, 4]}, "real numbers"),
    ],
)
def test_a_document_that_is_refused_is_named_by_its_line(needle, tmp_path: Path, line: dict, says: str) -> None:
    good = [{"id": f"good-{n}", "vector": [1, 2, 3, n]} for n in range(3)]
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [*good, line, *good]))
    needle.run("insert", str(path), expect=1)
    assert f"{path}:4: " in needle.notes.replace("\n", "") and says in needle.notes
    path.write_text("\n".join(json.dumps({"id": row["id"] * 1000, "vector": row["vector"]}) for row in good))
    needle.run("insert", str(path), expect=1)  # only a node knows that these are too long
    assert f"{path}:1 to {path}:3: " in needle.notes.replace("\n", "")


@pytest.mark.parametrize(
    ("vectors", "says"),
    [
        ({"titel": [1, 2]}, "vectors: 'titel' is not allowed: 'title'"),
        ({"title": [1, 2, 3]}, "the vector 'title' has 3 numbers; those of the collection have 2"),
        ({"title": [1, "x"]}, "vector 'title': "),
        ([[1, 2]], '"vectors" = [[1, 2]] is not allowed: an object with a list of numbers by each name of a vector'),
    ],
)
def test_a_named_vector_that_is_refused_is_named_by_its_line(needle, tmp_path: Path, vectors: Any, says: str) -> None:
    with connect_sync(needle.cluster.cluster.split(",")) as client:
        title = VectorSpec(dimensions=2)
        client.create_collection("refusing", dimensions=2, vectors={"title": title}, if_absent=True)
    path = tmp_path / "bad.jsonl"
    lines = [{"id": "a", "vector": [1, 2], "vectors": {"title": [1, 2]}}, {"id": "b", "vector": [1, 2]}]
    path.write_text("\n".join(json.dumps(row) for row in [*lines, {"id": "c", "vector": [1, 2], "vectors": vectors}]))
    needle.run("insert", str(path), "-c", "refusing", expect=1)
    assert f"{path}:3: {says}" in needle.notes.replace("\n", "") or f"{path}:3: {says}" in needle.notes


def test_batches_are_splitby_bytes() -> None:
    wide = np.zeros(BATCH_BYTES // 4 // 3, dtype=np.float32)
    records = [Record(str(n), wide, None) for n in range(7)]
    parts = list(by_bytes(iter([records])))
    assert [len(part) for part in parts] == [3, 3, 1]
    assert [record.id for part in parts for record in part] == list("0123456")
    named = [Record(str(n), wide[:3], None, named={"title": wide} if n == 6 else {}) for n in range(7)]
    assert [len(part) for part in by_bytes(iter([named]))] == [2, 2, 2, 1]
