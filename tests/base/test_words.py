"""What people read is in their words: they know shards and the catalog, not the Raft groups that replicate them."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import needle
from harness.statements import statements

SOURCES = Path(needle.__file__).parent
INNER = ("group %", "group {}")
CALLED_BY_OTHERS = {
    "handleError",  # logging
    *("eof_received", "pause_writing", "resume_writing"),  # asyncio.Protocol
    *("on_url", "on_message_complete"),  # httptools
    *("seekable", "readinto"),  # io.RawIOBase
    "sslobject_class",  # ssl.SSLContext
    "_options",  # typer, of the command line itself
    "visit_Subscript",  # ast.NodeTransformer
}
FOR_LATER_NODES: set[str] = set()
"""What a newer node of the same cluster may write, and this one must be able to read."""


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
        if "group" in (source := path.read_text())
        for line, text in _texts(ast.parse(source))
        if any(word in text for word in INNER)
    ]
    assert not found, "say group_name(group) instead:\n" + "\n".join(found)


def _defined(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in statements(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.Assign):
            yield from ((node.lineno, target.id) for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.lineno, node.target.id


def test_no_name_is_without_use() -> None:
    """Used is what is named twice somewhere: in the product, its stubs, its proof, a benchmark or a test."""
    root = Path(__file__).parents[2]
    places = (SOURCES.rglob("*.py*"), *((root / name).rglob("*.py") for name in ("proof", "bench", "tests")))
    texts = {path: path.read_text() for place in places for path in place if path.suffix != ".pyc"}
    named = Counter(word for text in texts.values() for word in re.findall(r"\b[A-Za-z_]\w*\b", text))
    known = CALLED_BY_OTHERS | FOR_LATER_NODES
    dead = [
        f"{path.relative_to(SOURCES)}:{line}: {name}"
        for path, text in sorted(texts.items())
        if path.is_relative_to(SOURCES) and path.suffix == ".py"
        for line, name in _defined(ast.parse(text))
        if named[name] == 1 and name not in known and not name.startswith("__")
    ]
    assert not dead, "\n".join(dead)


def test_what_people_read_has_no_odd_words() -> None:
    """Words that slow a reader down: there is a common one for each. Decisions stay as they were written."""
    root = Path(__file__).parents[2]
    pages = [page for page in (root / "docs").glob("*.md") if page.name != "roadmap.md"]
    prose = [*pages, root / "README.md", *SOURCES.rglob("*.py")]
    odd = re.compile(r"\b(anew|for ever|in vain|thereof|whilst|therein)\b(?!\()", re.IGNORECASE)
    found = [
        f"{path.relative_to(root)}:{number}: {match[0]}"
        for path in prose
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for match in odd.finditer(line)
    ]
    assert len(pages) > 20 and not found, "\n".join(found)


def test_every_word_of_the_glossary_is_in_the_code() -> None:
    glossary = Path(__file__).parents[2] / "docs" / "glossary.md"
    words = re.findall(r"^\| ([a-z][a-z -]+) \|", glossary.read_text(), re.MULTILINE)[1:]
    code = "\n".join(path.read_text().lower() for path in SOURCES.rglob("*.py"))
    missing = [word for word in words if not re.search(word.replace(" ", "[ _-]?"), code)]
    assert words and not missing, f"not in the code: {', '.join(missing)}"
