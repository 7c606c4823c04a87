"""Searches by words in one replica: which of the documents with one score are hits, and how many of them are read."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from needle.base.model import HitBatch, SearchRequest
from needle.base.text import TextField, TextQuery, added, weights_of
from needle.protocol.commands import CreateCollection
from needle.shard import text_search
from needle.shard.state_machine import Replica
from shard.replica_util import Log, open_replica, put, spec

TEXT = TextField(field="body")


def filled(directory: Path, ids: Sequence[str], bodies: Sequence[str]) -> Replica:
    replica, log = open_replica(directory), Log()
    replica.apply(log.add(CreateCollection(spec())))
    for start in range(0, len(ids), 500):
        part = slice(start, start + 500)
        rows = [[1.0, 2.0, 3.0]] * len(ids[part])
        replica.apply(log.add(put(ids[part], rows, [{"body": body} for body in bodies[part]])))
    return replica


def asked(replica: Replica, **fields: Any) -> HitBatch:
    request = SearchRequest(collection="c", vector=b"", keywords="term", with_metadata=False, **fields)
    return replica.reads().scored(request, None, lambda: None, None, lambda: 0.0)


def found(replica: Replica, k: int) -> list[str]:
    """In two rounds, as a shard that is alone."""
    told = asked(replica, k=1, words=TextQuery(TEXT)).statistics
    assert told is not None
    return asked(replica, k=k, words=TextQuery(TEXT, *weights_of(added([told])))).ids


IDS = [f"d{n:04}" for n in range(900)]
random.Random(3).shuffle(IDS)


@pytest.fixture(scope="module")
def replica(module_path: Path) -> Iterator[Replica]:
    """900 documents with one score, as old as they stand in IDS, and "z" with a higher one."""
    made = filled(module_path, [*IDS, "z"], ["a term"] * 900 + ["term term"])
    yield made
    made.close()


def test_of_a_few_that_are_tied_those_with_the_first_ids_are_hits(replica: Replica) -> None:
    assert found(replica, 5) == ["z", *sorted(IDS)[:4]]
    assert found(replica, 1000) == ["z", *sorted(IDS)]


def test_of_very_many_the_oldest_count_on_all_pages_and_the_others_are_not_read(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_search, "TIED_MAX", 200)
    monkeypatch.setattr(text_search, "TIED_ROWS", 90)
    read: list[int] = []
    whole = text_search.read_documents

    def counted(*args: Any, **options: Any) -> Any:
        documents = whole(*args, **options)
        read.append(len(documents))
        return documents

    monkeypatch.setattr(text_search, "read_documents", counted)
    oldest = ["z", *sorted(IDS[:200])]
    for k in (2, 10, 80, 201):
        read.clear()
        assert found(replica, k) == oldest[:k]
        assert sum(read) <= 200 + k and max(read) <= max(90, k)
    assert set(found(replica, 300)) == {"z", *IDS[:299]}
