"""What a leader lets into the fields that are sparse vectors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from needle.base.errors import InvalidArgument
from needle.protocol.commands import Change, Delete, Insert, Patch
from needle.server.service.sparse_writes import check_sparse

GOOD, BAD = {"indices": [4, 2], "values": [1, 0.5]}, {"indices": [4, 4], "values": [1, 2]}
NAMES = ("splade", "other")


def data(value: Any) -> bytes:
    return json.dumps(value).encode()


def insert(*metadata: Any) -> Insert:
    rows = [b"" if one is None else data(one) for one in metadata]
    return Insert("c", [f"d{at}" for at in range(len(rows))], b"", rows)


def patch(**change: Any) -> Patch:
    return Patch("c", ["d0"], Change(**change))


@pytest.mark.parametrize(
    "command",
    [
        insert(None, {"n": 1}, {"splade": GOOD}, {"splade": None, "n": BAD}, [BAD], "splade"),
        insert({"n": {"splade": BAD}}),
        patch(set=[("splade", data(GOOD)), ("n", data(BAD))]),
        patch(set=[("splade", data(None))]),
        patch(unset=["splade", "n"], append=[("n", b"[1]")], remove=[("m", b"[1]")]),
        patch(whole=data({"splade": GOOD})),
        Delete("c", ["d0"]),
    ],
)
def test_what_is_one_passes(command: Any) -> None:
    check_sparse(command, NAMES)


@pytest.mark.parametrize(
    ("command", "field"),
    [
        (insert({"splade": GOOD}, {"splade": GOOD, "other": BAD}), "metadata of 'd1': other.indices"),
        (insert({"splade": 3}), "metadata of 'd0': splade"),
        (patch(set=[("splade", data(BAD))]), "change: splade.indices"),
        (patch(whole=data({"splade": "x"})), "metadata: splade"),
        (patch(set=[("splade.values", b"[1]")]), "change"),
        (patch(unset=["other.values"]), "change"),
        (patch(append=[("splade", b"[1]")]), "change"),
        (patch(remove=[("splade.indices", b"[1]")]), "change"),
    ],
)
def test_what_is_written_is_checked(command: Any, field: str) -> None:
    with pytest.raises(InvalidArgument, match="is not allowed") as refused:
        check_sparse(command, NAMES)
    assert refused.value.details["field"] == field
