"""What people read is in their words: they know shards and the catalog, not the Raft groups that replicate them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import needle

SOURCES = Path(needle.__file__).parent
INNER = ("group %", "group {}")


def _texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every string of a module with its line; "{}" stands for what an f-string inserts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def test_no_message_numbers_a_group() -> None:
    found = [
        f"{path.relative_to(SOURCES)}:{line}: {text[:60]}"
        for path in sorted(SOURCES.rglob("*.py"))
        if path.relative_to(SOURCES).parts[0] != "sim"  # its reports are for who works on Needle
        for line, text in _texts(ast.parse(path.read_text()))
        if any(word in text for word in INNER)
    ]
    assert not found, "say group_name(group) instead:\n" + "\n".join(found)
