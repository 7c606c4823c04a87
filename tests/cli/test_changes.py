"""Changing, counting and reading out documents from the command line; files that give a collection back."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import needle as library

WEIRD: list[Any] = [
    None,
    {},
    [],
    "text",
    7,
    {"id": "no", "vector": [1], "text": "x", "metadata": {"deep": [None, {"a": 1.5e-300}]}},
    {"big": 2**63 - 1, "small": -(2**63), "é": "\u2028\x00"},
    [1, [2, {"x": True}]],
]


def fill(needle, tmp_path: Path, count: int = 12) -> None:
    rows = [{"id": f"d{n:02}", "vector": [n, 1, 2, 3], "metadata": {"n": n, "tags": ["a"]}} for n in range(count)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    needle.run("insert", str(path))


def test_patch_count_delete(needle, tmp_path: Path) -> None:
    fill(needle, tmp_path)
    options = ("--set", "title=Ants", "--set", "in.n=[1]", "--append", "tags=b", "--append", 'tags="c"')
    needle.run("patch", "d01", "d02", "absent", *options)
    assert "2 documents patched" in needle.notes
    (one,) = needle.json("get", "d01")
    assert one["metadata"] == {"n": 1, "tags": ["a", "b", "c"], "title": "Ants", "in": {"n": [1]}}
    assert needle.json("patch", "d01", "--unset", "in", "--remove", "tags=a", "--if-matches", '{"n": 1}') == {
        "patched": 1
    }
    assert needle.run("patch", "d01", "--set", "n=5", "--if-version", "1", expect=1) == ""
    assert "[version_mismatch]" in needle.notes
    where = '{"n": {"$gte": 6}}'
    assert needle.json("patch", "--where", where, "--set", "late=true", "--dry-run") == {"matching": 6}
    assert needle.run("count", "--where", '{"late": true}') == "0\n"
    needle.run("patch", "--where", where, "--set", "late=true")
    assert needle.json("count", "--where", '{"late": true}', "--mode", "leased") == {"count": 6}
    assert needle.json("facet", "late", "--where", '{"n": {"$gte": 0}}')["values"] == [{"value": True, "count": 6}]
    assert "true" in needle.run("facet", "late") and "1 value in 12 documents, 6 without one" in needle.notes
    assert needle.json("delete", "--where", where, "--dry-run") == {"matching": 6}
    needle.run("delete", "--where", where, "--yes")
    assert "6 documents deleted" in needle.notes and needle.run("count") == "6\n"
    needle.run("delete", "d01", "absent", "--if-matches", '{"n": 0}', expect=1)
    assert "[condition_failed]" in needle.notes
    needle.run("delete", "d01", "absent")
    assert "deleted 1 of 2" in needle.notes


def test_documents_that_expire(needle, tmp_path: Path) -> None:
    fill(needle, tmp_path)
    needle.run("insert", str(tmp_path / "rows.jsonl"), "--expires-at", "2999-01-01T00:00:00Z")
    assert needle.json("get", "d01")[0]["expires_at"] == "2999-01-01T00:00:00Z"
    needle.run("patch", "d01", "--expires-at", "never")
    assert needle.json("get", "d01")[0]["expires_at"] is None
    assert "2999-01-01T00:00:00Z" in needle.run("get", "d01", "d02")
    needle.run("insert", str(tmp_path / "rows.jsonl"), "--ttl", "3600")
    assert needle.json("get", "d01")[0]["expires_at"] is not None
    needle.run("insert", str(tmp_path / "rows.jsonl"), "--expires-at", "2001-01-01T00:00:00Z", expect=1)
    assert "expires_at" in needle.notes
    needle.run("collections", "alter", "default", "--ttl", "600")
    assert "600 s" in needle.run("collections", "describe", "default")
    needle.run("collections", "alter", "default", "--ttl", "0")
    assert needle.json("collections", "describe", "default")["ttl"] is None
    needle.run("collections", "alter", "default", expect=1)
    needle.run("collections", "create", "brief", "--dimensions", "4", "--ttl", "5")
    assert needle.json("collections", "describe", "brief")["ttl"] == 5


def test_declared_indexes_of_fields(needle, tmp_path: Path) -> None:
    fill(needle, tmp_path)
    needle.run("collections", "index", "default", "n")
    assert set(needle.json("collections", "describe", "default")["fields"]) == {"n"}
    assert "index of n" in needle.run("collections", "describe", "default")
    needle.run("collections", "index", "default", "$n", expect=1)
    assert "[invalid_argument]" in needle.notes
    needle.run("collections", "unindex", "default", "n")
    assert needle.json("collections", "describe", "default")["fields"] == {}
    needle.run("collections", "unindex", "default", "n", expect=1)
    assert "none is" in needle.notes


@pytest.mark.parametrize(
    "words",
    [
        ("patch", "--set", "a=1"),
        ("patch", "d01", "--where", "{}", "--set", "a=1"),
        ("patch", "d01", "--set", "a"),
        ("patch", "d01", "--set", "a=1", "--dry-run"),
        ("patch", "--where", "{}", "--set", "a=1", "--if-version", "3"),
        ("delete",),
        ("delete", "--where", "[]"),
        ("delete", "--where", "{"),
        ("count", "--where", "7"),
    ],
)
def test_wrong_usage(needle, words: tuple[str, ...]) -> None:
    needle.run(*words, expect=2)


def test_scan_goes_on_where_it_stopped(needle, tmp_path: Path) -> None:
    needle.run("delete", "--where", "{}", "--yes")
    fill(needle, tmp_path)
    first = needle.json("scan", "--limit", "5", "--fields", "n", "--where", '{"n": {"$gt": 2}}')
    assert [one["metadata"] for one in first["documents"]] == [{"n": n} for n in range(3, 8)]
    rest = needle.json("scan", "--cursor", first["cursor"], "--where", '{"n": {"$gt": 2}}', "--with-vectors")
    assert [one["id"] for one in rest["documents"]] == ["d08", "d09", "d10", "d11"] and rest["cursor"] is None
    assert rest["documents"][0]["vector"] == [8, 1, 2, 3]
    assert "d04" in needle.run("scan", "--limit", "5") and "--cursor " in needle.notes
    needle.run("scan", "--cursor", first["cursor"], expect=1)
    back = needle.json("scan", "--order-by", "n", "--limit", "3")
    rest = needle.json("scan", "--order-by", "n", "--limit", "100", "--cursor", back["cursor"])
    assert [one["metadata"]["n"] for one in back["documents"]] == sorted(
        one["metadata"]["n"] for one in back["documents"] + rest["documents"]
    )[:3]
    down = needle.json("scan", "--order-by", "n", "--descending", "--limit", "100")
    assert [one["metadata"]["n"] for one in down["documents"]] == list(range(11, -1, -1))
    file = tmp_path / "down.jsonl"
    assert needle.json("export", str(file), "--order-by", "n", "--descending")["exported"] == 12
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == [f"d{n:02}" for n in range(11, -1, -1)]
    shares = [needle.json("scan", "--slice", f"{n}/3", "--limit", "100")["documents"] for n in range(3)]
    assert sorted(one["id"] for share in shares for one in share) == [f"d{n:02}" for n in range(12)]
    assert needle.json("export", str(file), "--slice", "1/3", "--force")["exported"] == len(shares[1]) < 12
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == [one["id"] for one in shares[1]]
    needle.run("scan", "--descending", expect=1)
    assert "descending" in needle.notes
    needle.run("scan", "--order-by", "a..b", expect=1)
    assert "[invalid_argument]" in needle.notes


def test_scan_and_export_show_one_moment(needle, tmp_path: Path) -> None:
    needle.run("delete", "--where", "{}", "--yes")
    fill(needle, tmp_path)
    first = needle.json("scan", "--limit", "5", "--consistent")
    needle.run("patch", "--where", "{}", "--set", "n=-1")
    rest = needle.json("scan", "--cursor", first["cursor"])
    assert [one["metadata"]["n"] for one in first["documents"] + rest["documents"]] == list(range(12))
    with library.connect_sync(needle.cluster.cluster.split(",")) as client, pytest.raises(library.ScanEnded):
        while True:  # until the replica that is asked has applied the end
            client.scan_page(cursor=first["cursor"])
    needle.run("scan", "--cursor", first["cursor"], "--consistent", expect=1)
    assert "[scan_ended]" in needle.notes
    file = tmp_path / "documents.jsonl"
    assert needle.json("export", str(file), "--consistent")["exported"] == 12


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_an_exported_collection_comes_back_as_it_was(needle, tmp_path: Path, suffix: str, metric: str) -> None:
    names = [f"from-{suffix}-{metric}", f"to-{suffix}-{metric}"]
    for name in names:
        needle.run("collections", "create", name, "--dimensions", "7", "--metric", metric)
    vectors = np.random.default_rng(3).normal(size=(1500, 7)).astype("f4")
    with library.connect_sync(needle.cluster.cluster.split(",")) as client:
        metadatas = [WEIRD[n % len(WEIRD)] for n in range(1500)]
        client.insert_batch(
            ids=[f"é{n}" for n in range(1500)], vectors=vectors, metadatas=metadatas, collection=names[0]
        )
        file = tmp_path / f"documents.{suffix}"
        assert needle.json("export", str(file), "-c", names[0])["exported"] == 1500
        needle.run("insert", str(file), "-c", names[1])
        before, after = (
            [
                (d.id, d.vector.tobytes(), json.dumps(d.metadata))
                for d in client.scan(with_vectors=True, collection=name)
            ]
            for name in names
        )
        assert before == after and len(after) == 1500
    needle.run("export", str(file), "-c", names[0], expect=1)
    assert "--force" in needle.notes
    needle.run("export", str(file), "-c", names[0], "--force", "--where", '{"big": {"$exists": true}}')
    assert "188 documents" in needle.notes or "187 documents" in needle.notes
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_named_vectors_come_back_with_their_documents(needle, tmp_path: Path, suffix: str) -> None:
    names = [f"named-from-{suffix}", f"named-to-{suffix}", f"named-imported-{suffix}"]
    file, rng = tmp_path / f"documents.{suffix}", np.random.default_rng(5)
    with library.connect_sync(needle.cluster.cluster.split(",")) as client:
        specs = {
            "title": library.VectorSpec(dimensions=5, metric="l2"),
            "image": library.VectorSpec(dimensions=3),
            "unused": library.VectorSpec(dimensions=1),
        }
        for name in names:
            client.create_collection(name, dimensions=2, metric="l2", vectors=specs)
        titles = [row if n % 3 else None for n, row in enumerate(rng.normal(size=(1200, 5)).astype("f4"))]
        images = [row if n % 2 else None for n, row in enumerate(rng.normal(size=(1200, 3)).astype("f4"))]
        ids, rows = [f"d{n}" for n in range(1200)], rng.normal(size=(1200, 2)).astype("f4")
        named = {"title": titles, "image": images}
        metadatas = [{"n": n} for n in range(1200)]
        client.insert_batch(ids=ids, vectors=rows, metadatas=metadatas, named_vectors=named, collection=names[0])

        def held(name: str) -> list[Any]:
            found = client.scan(with_vectors=True, vectors=list(specs), collection=name)
            return [
                (d.id, d.vector.tobytes(), d.metadata, {at: one.tobytes() for at, one in d.vectors.items()})
                for d in found
            ]

        assert needle.json("export", str(file), "-c", names[0])["exported"] == 1200
        needle.run("insert", str(file), "-c", names[1])
        before = held(names[0])
        assert before == held(names[1]) and sum("title" in one[3] for one in before) == 800
        table = client.scan(with_vectors=True, vectors=["image", "title"], collection=names[0]).to_arrow()
        client.delete_where({}, collection=names[1])
        client.insert_batch(table, collection=names[1])
        assert before == held(names[1])
        report = needle.json("import", str(file), "-c", names[2])
        assert report["verified"]["differences"] == [] and held(names[2])[0][:3] == before[0][:3]
        client.update_vector("d4", [1, 2, 3, 4, 5], name="title", collection=names[2])
        client.update_vector("d6", [1, 2, 3, 4, 5], name="title", collection=names[2])  # which the file says nothing of
        again = needle.json("import", str(file), "-c", names[2])
        assert (again["written"], again["there"]) == (1, 1199)
        for wrong in ("absent", "other"):
            if wrong == "other":
                client.create_collection(wrong, dimensions=2, metric="l2", if_absent=True)
            needle.run("import", str(file), "-c", wrong, expect=1)
            assert "called 'image'" in needle.notes or "called 'title'" in needle.notes
        assert "absent" not in [one.name for one in client.collections()]
        client.drop_vector(names[1], "image")
        needle.run("insert", str(file), "-c", names[1], expect=1)
        assert "vectors: 'image' is not allowed: 'title', 'unused'" in needle.notes.replace("\n", " ")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_instants_come_back_with_their_documents(needle, tmp_path: Path, suffix: str) -> None:
    """Also of one that never expires, in a collection where others do; those that have expired by then do not."""
    names = [f"mortal-{suffix}", f"again-{suffix}"]
    for name in names:
        needle.run("collections", "create", name, "--dimensions", "4", "--ttl", "86400")
    file, vectors = tmp_path / f"documents.{suffix}", np.eye(4)
    with library.connect_sync(needle.cluster.cluster.split(",")) as client:
        ids, until = ["a", "b", "c", "d"], ["2999-01-01T00:00:00.000001Z", "never", None, "2100-02-03T04:05:06Z"]
        metadatas = [{"n": 1}, None, None, "text"]
        client.insert_batch(ids=ids, vectors=vectors, metadatas=metadatas, expires_at=until, collection=names[0])
        needle.run("export", str(file), "-c", names[0])
        needle.run("insert", str(file), "-c", names[1])

        def held(name: str) -> list[Any]:
            found = client.scan(with_vectors=True, collection=name)
            return [(d.id, d.vector.tobytes(), json.dumps(d.metadata), d.expires_at) for d in found]

        before = held(names[0])
        assert before == held(names[1]) and [row[3] for row in before][:2] == [until[0], None]
        client.delete_where({}, collection=names[1])
        table = client.scan(with_vectors=True, collection=names[0]).to_arrow()
        client.insert_batch(table, collection=names[1])
        assert [row[:3] for row in held(names[1])] == [row[:3] for row in before]
        assert held(names[1])[0][3] == until[0]
        client.patch("c", expires_at=datetime.now(UTC) + timedelta(seconds=4), collection=names[0])
        needle.run("export", str(file), "-c", names[0], "--force")
        assert needle.json("insert", str(file), "-c", names[1])["expired"] == 1
        assert needle.json("insert", str(file), "-c", names[1], "--expires-at", "never")["inserted"] == 4


def test_aliases_descriptions_and_changes_of_collections(needle, tmp_path: Path) -> None:
    needle.run("delete", "--where", "{}", "--yes")
    fill(needle, tmp_path)
    needle.run("collections", "create", "second", "--dimensions", "4", "--index", "hnsw_sq8:low_latency", "--m", "12")
    assert "hnsw_sq8 m=12 ef_construction=100 ef_search=20" in needle.run("collections", "describe", "second")
    needle.run("alias", "set", "current", "default")
    assert needle.json("alias", "list") == {"current": "default"} and "current" in needle.run("alias", "list")
    assert needle.run("count", "-c", "current") == "12\n"
    needle.run("alias", "set", "current", "second")
    assert needle.run("count", "-c", "current") == "0\n"
    needle.run("insert", str(tmp_path / "rows.jsonl"), "-c", "current")
    described = needle.json("collections", "describe", "current")
    assert (described["name"], described["aliases"], described["documents"]) == ("second", ["current"], 12)
    needle.run("collections", "alter", "current", "--ef-search", "99")
    assert "ef_search=99" in needle.run("collections", "describe", "second")
    for words, code in (
        (("alias", "set", "second", "default"), "collection_exists"),
        (("alias", "set", "x", "absent"), "collection_not_found"),
        (("alias", "set", "x", "current"), "invalid_argument"),
        (("alias", "remove", "x"), "collection_not_found"),
        (("collections", "drop", "second", "--yes"), "invalid_argument"),
        (("collections", "describe", "absent"), "collection_not_found"),
        (("collections", "alter", "current", "--ef-search", "1000000"), "invalid_argument"),
    ):
        needle.run(*words, expect=1)
        assert f"[{code}]" in needle.notes
    needle.run("alias", "remove", "current")
    needle.run("collections", "drop", "second", "--yes")
    assert needle.json("alias", "list") == {}


def test_what_cannot_be_exported(needle, tmp_path: Path) -> None:
    for path, says in (
        (tmp_path / "x.csv", ".jsonl or .parquet"),
        (tmp_path / "none" / "x.jsonl", "no directory"),
    ):
        needle.run("export", str(path), expect=1)
        assert says in needle.notes
    needle.run("export", str(tmp_path / "x.jsonl"), "-c", "absent", expect=1)
    assert "[collection_not_found]" in needle.notes and list(tmp_path.iterdir()) == []
