"""What is left of metadata when a reader asks for some of its fields."""

import json
from typing import Any

import pytest

from needle.base.errors import CorruptDocuments, InvalidArgument
from needle.shard.documents.projection import FIELDS_MAX, projection

WHOLE = {"a": 1, "b": {"c": [1, {"d": 2}], "e": None}, "f": "x"}


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        (None, WHOLE),
        ((), {}),
        (("a",), {"a": 1}),
        (("b.c",), {"b": {"c": [1, {"d": 2}]}}),
        (("b.e", "a"), {"a": 1, "b": {"e": None}}),
        (("b.c", "b"), {"b": WHOLE["b"]}),
        (("b", "b.c"), {"b": WHOLE["b"]}),
        (("b.c.d", "a.x", "none", "b.none"), {"b": {}}),
    ],
)
def test_what_is_left(fields: tuple[str, ...] | None, left: Any) -> None:
    assert json.loads(projection(fields)(json.dumps(WHOLE).encode())) == left


@pytest.mark.parametrize("data", [b"", b"null", b"[1, 2]", b'"text"', b"7"])
def test_what_has_no_fields_leaves_nothing(data: bytes) -> None:
    assert projection(("a",))(data) == b""
    assert projection(None)(data) == data


def test_what_is_kept_keeps_its_bytes() -> None:
    data = b'{"big": 123456789012345678901234567890, "f": 1.50, "n": 1}'
    assert projection(("big", "f"))(data) == b'{"big":123456789012345678901234567890,"f":1.50}'


@pytest.mark.parametrize("wrong", ["", "$a", "a..b", "x" * 600])
def test_what_is_no_path_is_refused(wrong: str) -> None:
    with pytest.raises(InvalidArgument, match="fields"):
        projection((wrong,))


def test_bounds() -> None:
    with pytest.raises(InvalidArgument, match="fields"):
        projection([f"f{n}" for n in range(FIELDS_MAX + 1)])
    with pytest.raises(CorruptDocuments):
        projection(("a",))(b'{"a"')
