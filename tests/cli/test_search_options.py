"""Each option of a search through each way to search: the client, HTTP and the command line find the same, and what
the option says."""

from __future__ import annotations

import inspect
import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from needle import Metric, SyncClient, VectorSpec, connect_sync
from needle.client.searches import SearchMethods
from needle.local.process_cluster import ProcessCluster

from .conftest import DIMENSIONS, Needle

NAME, COUNT = "options", 24
NEAR = [0.0] * DIMENSIONS
WORDS = ("river", "mountain", "sea")


class Found(NamedTuple):
    """A hit, of whatever way."""

    id: str
    distance: float
    metadata: Any
    group: Any


def about(n: int) -> dict[str, Any]:
    return {
        "n": n, "kind": "abc"[n % 3], "size": (7 * n) % COUNT, "text": f"a {WORDS[n % 3]} and a house {n}",
        "splade": {"indices": [n % 2], "values": [float(n + 1)]},
    }  # fmt: skip


@pytest.fixture(scope="module")
def client(processes: ProcessCluster) -> Iterator[SyncClient]:
    with connect_sync(processes.cluster) as made:
        named = {"title": VectorSpec(dimensions=2, metric=Metric.L2)}
        made.create_collection(
            NAME, dimensions=DIMENSIONS, metric="l2", text="text", vectors=named, sparse=["splade"], timeout=60
        )
        for n in range(COUNT):
            vectors = {"title": [float(COUNT - n), 0.0]} if n % 2 else None
            vector = [
                float(n),
                0.0,
                float(n % 3),
                0.0,
            ]  # from the point that is asked for in the order of their numbers
            made.insert(f"d{n:02}", vector, about(n), vectors=vectors, collection=NAME, timeout=60)
        yield made


def ids(hits: list[Found]) -> list[int]:
    return [int(hit.id[1:]) for hit in hits]


# By the name of an option: what a search is asked, and whether that is what it has found. So few documents are found
# the same with `mode`, `exact` and `ef_search`: here these are taken; tests/shard and tests/server try what they do.
PLAIN = list(range(10))
CASES: dict[str, tuple[dict[str, Any], Callable[[list[Found]], bool]]] = {
    "k": ({"k": 3}, lambda found: ids(found) == [0, 1, 2]),
    "offset": ({"offset": 4, "k": 3}, lambda found: ids(found) == [4, 5, 6]),
    "filter": ({"filter": {"kind": "b"}, "k": 3}, lambda found: ids(found) == [1, 4, 7]),
    "fields": ({"fields": ["n", "kind"]}, lambda found: found[1].metadata == {"n": 1, "kind": "b"}),
    "max_distance": ({"max_distance": 4.5}, lambda found: ids(found) == [0, 1, 2, 3, 4]),
    "min_score": ({"min_score": -4.5}, lambda found: ids(found) == [0, 1, 2, 3, 4]),
    "group_by": ({"group_by": "kind", "k": 2}, lambda found: [hit.id + hit.group for hit in found] == ["d00a", "d01b"]),
    "group_size": ({"group_by": "kind", "group_size": 2, "k": 2}, lambda found: ids(found) == [0, 3, 1, 4]),
    "diversify": ({"diversify": 0.9, "k": 3}, lambda found: ids(found)[0] == 0 and ids(found) != [0, 1, 2]),
    "pool": ({"diversify": 0.9, "k": 3, "pool": 3}, lambda found: sorted(ids(found)) == [0, 1, 2]),
    "order_by": ({"order_by": "size", "k": 5}, lambda found: ids(found) == [0, 4, 1, 2, 3]),
    "descending": ({"order_by": "size", "descending": True, "k": 5}, lambda found: ids(found) == [3, 2, 1, 4, 0]),
    "like": ({"like": "d05", "k": 2}, lambda found: 5 not in ids(found) and 3.0 < ids(found)[0] < 9),
    "vector_name": ({"vector_name": "title", "query": [0.0, 0.0], "k": 2}, lambda found: ids(found) == [23, 21]),
    "keywords": ({"keywords": "mountain", "k": 24}, lambda found: sorted(ids(found)) == list(range(1, 24, 3))),
    "sparse": ({"sparse": {"splade": {"indices": [1], "values": [1.0]}}, "k": 2}, lambda found: ids(found) == [23, 21]),
    "exact": ({"exact": True}, lambda found: ids(found) == PLAIN),
    "ef_search": ({"ef_search": 200}, lambda found: ids(found) == PLAIN),
    "mode": ({"mode": "leased"}, lambda found: ids(found) == PLAIN),
    "explain": ({"explain": True}, lambda found: ids(found) == PLAIN),
}  # fmt: skip
BY_OTHERS = {"keywords", "sparse", "like", "vector_name"}
"""These do without the usual vector."""
ELSEWHERE = {"query", "text", "collection", "timeout", "session", "max_staleness", "with_metadata", "with_vectors"}
"""Not options of what is found, or of the client's process only, or tried with models and documents."""


def asked(name: str) -> dict[str, Any]:
    given = CASES[name][0]
    return ({} if name in BY_OTHERS else {"query": NEAR}) | given


def test_every_option_is_tried() -> None:
    there = inspect.signature(SearchMethods.search).parameters.keys() - {"self"}
    assert there - ELSEWHERE == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_the_client(client: SyncClient, name: str) -> None:
    hits = client.search(**asked(name), collection=NAME, timeout=60)
    assert CASES[name][1]([Found(hit.id, hit.distance, hit.metadata, hit.group) for hit in hits]), hits
    assert bool(hits.explained) is (name == "explain")


def of_many() -> list[str]:
    """What `search_many` takes, too."""
    there = inspect.signature(SearchMethods.search_many).parameters.keys() | {"query"}
    return [name for name in CASES if asked(name).keys() <= there]


@pytest.mark.parametrize("name", of_many())
def test_many_at_once(client: SyncClient, name: str) -> None:
    given = asked(name)
    first, second = client.search_many([given.pop("query")] * 2, **given, collection=NAME, timeout=60)
    assert list(first) == list(second)
    assert CASES[name][1]([Found(hit.id, hit.distance, hit.metadata, hit.group) for hit in first]), first
    assert bool(first.explained) is (name == "explain")


@pytest.mark.parametrize("name", CASES)
def test_http(client: SyncClient, processes: ProcessCluster, name: str) -> None:
    given = asked(name)
    if "query" in given:
        given["vector"] = given.pop("query")
    door = next(iter(processes.nodes.values())).http
    body = json.dumps(given | {"timeout": 60}).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"http://{door}/v1/collections/{NAME}/search", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        told = json.loads(answer.read())
    hits = [Found(hit["id"], hit["distance"], hit.get("metadata"), hit.get("group")) for hit in told["hits"]]
    assert CASES[name][1](hits), told
    assert ("explained" in told) is (name == "explain")


@pytest.mark.parametrize("name", CASES)
def test_the_command_line(client: SyncClient, needle: Needle, tmp_path: Path, name: str) -> None:
    given, options = asked(name), ["--collection", NAME, "--timeout", "60"]
    if "query" in given:
        np.save(tmp_path / "query.npy", np.array(given.pop("query"), np.float32))
        options += ["--vector", str(tmp_path / "query.npy")]
    for key, value in given.items():
        options.append("-k" if key == "k" else f"--{key.replace('_', '-')}")
        if value is not True:
            text = ",".join(value) if isinstance(value, list) else value
            options.append(json.dumps(text) if isinstance(text, dict) else str(text))
    told = needle.json("search", *options)
    found = told["hits"] if name == "explain" else told
    hits = [Found(hit["id"], hit["distance"], hit.get("metadata"), hit.get("group")) for hit in found]
    assert CASES[name][1](hits), told
    assert isinstance(told, dict) is (name == "explain")
