"""Searches by words in one replica: which of the documents with one score are hits, and how many of them are read."""

from __future__ import annotations

import random
from collections.abc import Sequence
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


def test_of_a_few_that_are_tied_those_with_the_first_ids_are_hits(tmp_path: Path) -> None:
    ids = [f"d{n:04}" for n in range(900)]
    random.Random(3).shuffle(ids)
    replica = filled(tmp_path, [*ids, "z"], ["a term"] * 900 + ["term term"])
    assert found(replica, 5) == ["z", *sorted(ids)[:4]]
    assert found(replica, 1000) == ["z", *sorted(ids)]
    replica.close()


def test_of_very_many_the_oldest_count_on_all_pages_and_the_others_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_search, "TIED_MAX", 1000)
    ids = [f"d{n:04}" for n in range(4000)]
    random.Random(4).shuffle(ids)
    replica = filled(tmp_path, [*ids, "best"], ["a term"] * 4000 + ["term term"])
    read: list[int] = []
    whole = text_search.read_documents

    def counted(*args: Any, **options: Any) -> Any:
        documents = whole(*args, **options)
        read.append(len(documents))
        return documents

    monkeypatch.setattr(text_search, "read_documents", counted)
    oldest = ["best", *sorted(ids[:1000])]
    for k in (2, 10, 400, 1001):
        read.clear()
        assert found(replica, k) == oldest[:k]
        assert sum(read) <= 1000 + k
    assert set(found(replica, 1500)) == {"best", *ids[:1499]}
    replica.close()
