"""What people are told names a collection as they do: inside a shard the catalog adds a number to its name."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import needle.shard
from needle.base.config import Limits
from needle.base.errors import CollectionNotFound, InvalidArgument
from needle.base.model import CollectionSpec
from needle.client.router.routes import said_of
from needle.protocol.catalog_commands import CreateCollection
from needle.routing.topology import CollectionInfo, called
from needle.server.service.catalog import CatalogCalls
from needle.shard.apply.spec_validation import GIVEN_NAME_BYTES_MAX, check_spec


@pytest.mark.parametrize("length", [5, 76, 78, 80, 200])
def test_a_shards_error_is_told_in_the_callers_words_also_where_a_long_name_is_shortened(length: int) -> None:
    info = CollectionInfo(id=17, spec=CollectionSpec(name="n" * length, dimensions=2))
    stored = info.stored_name
    error = CollectionNotFound(f"there is no collection {stored[:80]!r}", collection=stored[:80])
    said_of(error, info)
    assert error.message == error.args[0] == f"there is no collection {info.spec.name[:80]!r}"
    assert error.details["collection"] == info.spec.name[:80]


def test_a_name_that_is_too_long_is_shown_as_it_was_given_and_all_that_are_allowed_fit() -> None:
    limits = Limits()
    node = SimpleNamespace(config=SimpleNamespace(limits=limits), host=None)
    check = CatalogCalls(cast(Any, node))._check_command
    for length in range(GIVEN_NAME_BYTES_MAX - 1, 258):
        spec = CollectionSpec(name="n" * length, dimensions=2)
        if length <= GIVEN_NAME_BYTES_MAX:
            check(CreateCollection(spec, False, 1))
            check_spec(CollectionInfo(id=2**63 - 1, spec=spec).stored_spec, limits)
            continue
        with pytest.raises(InvalidArgument, match=f"1 to {GIVEN_NAME_BYTES_MAX} bytes") as refused:
            check(CreateCollection(spec, False, 1))
        assert f"({length + 2} characters)" in refused.value.message


def test_what_the_catalog_gave_no_name_keeps_its_own() -> None:
    assert [called(name) for name in ("a@4", "a@4@17", "default", "a@b", "@")] == ["a", "a@4", "default", "a@b", "@"]


def _named(node: ast.AST) -> bool:
    return any(isinstance(one, ast.Attribute) and ast.unparse(one).endswith("spec.name") for one in ast.walk(node))


def _texts(tree: ast.AST) -> list[ast.AST]:
    """What is put into texts that are logged, or end in an error that a node tells of without a caller."""
    found: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            what = ast.unparse(node.func)
            if what.startswith(("log.", "_log.")) or what == "CorruptDocuments":
                found.extend(node.args)
    return found


def test_no_log_and_no_report_of_damage_shows_the_name_inside() -> None:
    root = Path(needle.shard.__file__).parent.parent
    places = [
        f"{path.relative_to(root)}:{text.lineno}"  # type: ignore[attr-defined]
        for path in sorted((root / "shard").rglob("*.py"))
        for text in _texts(ast.parse(path.read_text()))
        if _named(text) and "called(" not in ast.unparse(text)
    ]
    assert not places, "say called(name) instead: " + ", ".join(places)
