"""A bulk load into a collection with sparse vectors: what is none is refused, as any write of it would be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from needle.base.errors import InvalidArgument
from needle.base.model import CollectionSpec
from needle.cli.bulk.job import Job
from needle.cli.bulk.partitioning import partition
from needle.cli.bulk.pieces import pieces_of
from needle.client import arrow_tables
from needle.routing.shard_map import initial_map
from needle.routing.strategy import CONSISTENT_HASH

SPEC = CollectionSpec(name="papers", dimensions=1)


def of(tmp_path: Path, *values: Any) -> Job:
    """A job of documents whose field `splade` has these values."""
    rows = [json.dumps({"splade": value}) for value in values]
    columns = [[f"d{at}" for at in range(len(rows))], [[1.0]] * len(rows), rows]
    fields = [("id", pyarrow.string()), ("vector", pyarrow.list_(pyarrow.float32()))]
    form = pyarrow.schema([*fields, pyarrow.field("metadata", pyarrow.string(), metadata=arrow_tables.JSON)])
    source = tmp_path / "papers.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns, schema=form), source)
    ring = initial_map(CONSISTENT_HASH, 1)
    return Job("papers@2", SPEC, ring, [], pieces_of(str(source))[0], True, sparse=("splade",))


def divided(job: Job, tmp_path: Path) -> dict[str, int]:
    return partition(job, 0, job.pieces[0], str(tmp_path / "work"))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"indices": [3, 3], "values": [1, 2]}, "splade.indices = 3 is not allowed: each index once"),
        ({"indices": [3], "values": []}, "splade.values"),
        ("words", "splade"),
    ],
)
def test_a_document_whose_field_is_none_is_refused_with_its_row(tmp_path: Path, value: Any, says: str) -> None:
    good = {"indices": [1], "values": [0.5]}
    with pytest.raises(InvalidArgument) as caught:
        divided(of(tmp_path, good, value), tmp_path)
    assert "papers.parquet" in caught.value.message and "row 1" in caught.value.message
    assert says in caught.value.message


def test_sparse_vectors_null_and_nothing_are_taken(tmp_path: Path) -> None:
    job = of(tmp_path, {"indices": [1], "values": [0.5]}, None)
    assert divided(job, tmp_path) == {"0": 2}
