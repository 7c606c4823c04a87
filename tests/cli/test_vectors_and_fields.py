"""Which vectors documents have, and by what they are found, from the command line: named and sparse vectors that come
and go, another index, places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from needle.cli import document_vector_commands

NAME = "places"
TOWNS = {"berlin": (52.52, 13.4), "potsdam": (52.39, 13.06), "suva": (-18.14, 178.44), "apia": (-13.83, -171.76)}
SPARSE = json.dumps({"splade": {"indices": [7], "values": [2.0]}})


@pytest.fixture
def filled(needle, tmp_path: Path) -> Any:
    """A collection with four towns, of which the n-th has the vector n; dropped at the end."""
    rows = [
        {
            "id": town,
            "vector": [n, 0, 0, 0],
            "metadata": {"at": {"lat": lat, "lon": lon}, "splade": {"indices": [7, n], "values": [n + 1, 1]}},
        }
        for n, (town, (lat, lon)) in enumerate(TOWNS.items())
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    needle.run("collections", "create", NAME, "--dimensions", "4", "--metric", "l2")
    needle.run("insert", str(tmp_path / "rows.jsonl"), "-c", NAME)
    yield needle
    needle.run("collections", "drop", NAME, "--yes")


def ids(hits: list[Any]) -> list[str]:
    return [hit["id"] for hit in hits]


def test_sparse_vectors_come_and_go(filled) -> None:
    asked = ("search", "--sparse", SPARSE, "-c", NAME)
    filled.run(*asked, expect=1)
    assert "it has no sparse vectors" in filled.notes
    filled.run("collections", "add-sparse", NAME, "splade")
    assert "are found by the sparse vectors in splade now" in filled.notes
    assert [(hit["id"], hit["score"]) for hit in filled.json(*asked, "-k", "2")] == [("apia", 8.0), ("suva", 6.0)]
    assert set(filled.json("collections", "describe", NAME)["sparse"]) == {"splade"}
    filled.run("collections", "drop-sparse", NAME, "splade")
    assert "splade of places is a field as any other now" in filled.notes
    filled.run(*asked, expect=1)
    assert "it has no sparse vectors" in filled.notes
    assert filled.json("get", "suva", "-c", NAME)[0]["metadata"]["splade"] == {"indices": [7, 2], "values": [3, 1]}
    filled.run("collections", "drop-sparse", NAME, "splade", expect=1)
    assert "[invalid_argument] sparse" in filled.notes


def test_named_vectors_come_and_go(filled, tmp_path: Path) -> None:
    filled.run("collections", "add-vector", NAME, "title", "--dimensions", "2", "--metric", "l2", "--index", "flat")
    assert "may have a vector title now" in filled.notes
    lines, query = tmp_path / "named.jsonl", tmp_path / "q.npy"
    given = {"berlin": [1, 0], "suva": [5, 0], "nowhere": [0, 0]}
    lines.write_text("\n".join(json.dumps({"id": id_, "vector": one, "n": 1}) for id_, one in given.items()))
    np.save(query, np.array([1, 0], np.float32))
    of_title = ("--vector-name", "title", "-c", NAME)
    asked = ("search", "--vector", str(query), *of_title)
    assert filled.json(*asked) == []
    assert filled.json("update-vectors", str(lines), *of_title) == {"updated": 2, "absent": 1}
    assert [(hit["id"], hit["distance"]) for hit in filled.json(*asked)] == [("berlin", 0.0), ("suva", 4.0)]
    one, other = filled.json("get", "berlin", "potsdam", *of_title)
    assert (one["vectors"], other["vectors"]) == ({"title": [1.0, 0.0]}, {})
    assert one["metadata"]["at"] == {"lat": 52.52, "lon": 13.4} and "n" not in one["metadata"]
    shown = filled.run("get", "berlin", "potsdam", *of_title)
    assert "title" in shown and "[1.000, 0.000] (2)" in shown
    filled.run("delete-vector", "title", "berlin", "potsdam", "-c", NAME)
    assert "title taken from 1 document" in filled.notes
    assert ids(filled.json(*asked)) == ["suva"]
    filled.run("collections", "drop-vector", NAME, "title", "--yes")
    for gone in (asked, ("get", "berlin", *of_title), ("delete-vector", "title", "suva", "-c", NAME)):
        filled.run(*gone, expect=1)
        assert "[invalid_argument]" in filled.notes and "title" in filled.notes
    assert filled.run("count", "-c", NAME) == "4\n"


def test_vectors_of_documents_that_are_there(filled, tmp_path: Path) -> None:
    """Those without a name: all else of a document stays."""
    before = {one["id"]: one for one in filled.json("get", *TOWNS, "-c", NAME)}
    rows = tmp_path / "rows.npy"
    np.save(rows, np.array([[7, 7, 7, 7], [8, 8, 8, 8]], np.float32))
    assert filled.json("update-vectors", str(rows), "-c", NAME) == {"updated": 0, "absent": 2}
    lines = tmp_path / "some.jsonl"
    lines.write_text(
        "\n".join(json.dumps({"id": id_, "vector": [n] * 4}) for n, id_ in enumerate(["apia", "suva", "apia"]))
    )
    filled.run("update-vectors", str(lines), "-c", NAME)
    assert "2 vectors updated" in filled.notes
    after = {one["id"]: one for one in filled.json("get", *TOWNS, "--with-vectors", "-c", NAME)}
    assert (after["apia"]["vector"], after["suva"]["vector"]) == ([2.0] * 4, [1.0] * 4)
    assert {id_: one["metadata"] for id_, one in after.items()} == {id_: one["metadata"] for id_, one in before.items()}
    assert (
        after["berlin"]["version"] == before["berlin"]["version"]
        and after["apia"]["version"] > before["apia"]["version"]
    )
    lines.write_text(json.dumps({"id": "apia", "vector": [1, 2]}))
    filled.run("update-vectors", str(lines), "-c", NAME, expect=1)
    assert "[invalid_argument]" in filled.notes and "some.jsonl" in filled.notes
    lines.write_text(json.dumps({"id": "apia", "text": "palms"}))
    filled.run("update-vectors", str(lines), "--vector-name", "title", "-c", NAME, expect=1)
    assert "a text makes the vector without a name only" in filled.notes


def test_a_named_vector_of_bits_has_the_metric_of_bits(filled) -> None:
    """It was cosine, unless another was named, and refused: of bits there is but one."""
    filled.run("collections", "add-vector", NAME, "code", "--dimensions", "16", "--dtype", "bit")
    told = filled.json("collections", "describe", NAME)["vectors"]["code"]
    assert (told["dtype"], told["metric"]) == ("bit", "hamming")
    filled.run("collections", "drop-vector", NAME, "code", "--yes")


def test_an_update_that_is_refused_names_the_line_and_says_how_far_it_came(
    filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It named the first and the last of 500 lines, and not whether those before them were written."""
    monkeypatch.setattr(document_vector_commands, "BATCH", 2)
    filled.run("collections", "add-vector", NAME, "title", "--dimensions", "2", "--metric", "l2")
    lines = tmp_path / "some.jsonl"
    for more, width in ((), 4), (("--vector-name", "title"), 2):
        given = [("berlin", width), ("potsdam", width), ("suva", width), ("apia", 3)]
        lines.write_text("\n".join(json.dumps({"id": id_, "vector": [1] * size}) for id_, size in given))
        filled.run("update-vectors", str(lines), *more, "-c", NAME, expect=1)
        said = " ".join(filled.notes.split())
        assert f"some.jsonl:4: the vector has 3 numbers; the collection's vectors have {width}" in said
        assert "(updated before: 2)" in said
    lines.write_text(lines.read_text().replace('"apia"', "apia"))
    filled.run("update-vectors", str(lines), "--vector-name", "title", "-c", NAME, expect=1)
    said = " ".join(filled.notes.split())
    assert "some.jsonl:4: " in said and "(updated before: 2)" in said, "also where the file cannot be read further"


def test_another_index(filled) -> None:
    filled.run("collections", "alter", NAME, "--index", "ivf_pq:high_recall")
    assert "altered places" in filled.notes
    assert "ivf_pq ef_search=200" in filled.run("collections", "describe", NAME)
    assert ids(filled.json("search", "--like", "berlin", "-c", NAME)) == ["potsdam", "suva", "apia"]
    filled.run("collections", "alter", NAME, "--index", "hnsw_sq9", expect=1)
    assert "[invalid_argument] index" in filled.notes


def test_places(filled) -> None:
    near = {"at": {"$geo_radius": {"centre": {"lat": 52.52, "lon": 13.4}, "metres": 50_000}}}
    assert sorted(ids(filled.json("search", "--like", "suva", "--filter", json.dumps(near), "-c", NAME))) == [
        "berlin",
        "potsdam",
    ]
    south = {"at": {"$geo_box": {"south": -20, "west": 177, "north": -10, "east": -170}}}
    assert filled.run("count", "--where", json.dumps(south), "-c", NAME) == "2\n"
    wrong = {"at": {"$geo_box": {"south": -20, "west": 177, "north": -100, "east": -170}}}
    filled.run("count", "--where", json.dumps(wrong), "-c", NAME, expect=1)
    assert "[invalid_" in filled.notes and "north" in filled.notes
