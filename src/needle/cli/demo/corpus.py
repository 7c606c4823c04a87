"""The demo's documents: the docstrings of Python's own standard library, read from source without importing anything.

A long docstring becomes several passages, since one vector cannot stand for twenty paragraphs. Invariant: the same
interpreter yields the same passages in the same order, each id once. Nothing here knows about clusters or embeddings.
"""

from __future__ import annotations

import ast
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from needle.base.errors import StorageError

SKIPPED_DIRECTORIES = frozenset(
    {"__pycache__", "dist-packages", "idlelib", "lib2to3", "site-packages", "test", "tests", "turtledemo"}
)
PASSAGE_CHARACTERS = 300
"""Paragraphs are joined up to this many characters."""
TEXT_CHARACTERS_MAX = 800
"""A single paragraph that is longer (a table, an example) is cut here."""

CODE: Final = re.compile(r"(?:RFC|PEP) [0-9]+|[A-Za-z]+(?:[-_]?[0-9]+)+[A-Za-z]*|[A-Za-z0-9]+(?:_[A-Za-z0-9]+)+")
T = TypeVar("T")
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class Passage(NamedTuple):
    """A part of one docstring. id: the dotted name, "#2" and so on for what follows the first passage; kind: module,
    class, function or method; text: one line."""

    id: str
    module: str
    kind: str
    name: str
    text: str

    @property
    def sentence(self) -> str:
        """What is embedded: the name as words, then the text."""
        words = self.id.partition("#")[0].replace(".", " ").replace("_", " ")
        return f"{' '.join(words.split())}: {self.text}"

    @property
    def metadata(self) -> dict[str, str]:
        return {"module": self.module, "kind": self.kind, "name": self.name, "text": self.text}


def stdlib_directory() -> Path:
    """Where the running interpreter keeps the standard library's source."""
    return Path(sysconfig.get_path("stdlib"))


def split_docstring(docstring: str) -> list[str]:
    """Its paragraphs, each as one line, short neighbours joined."""
    passages: list[str] = []
    for paragraph in docstring.split("\n\n"):
        line = " ".join(paragraph.split())
        if len(line) > TEXT_CHARACTERS_MAX:
            line = line[:TEXT_CHARACTERS_MAX].rsplit(" ", 1)[0] + " ..."
        if passages and line and len(passages[-1]) + 1 + len(line) <= PASSAGE_CHARACTERS:
            passages[-1] += " " + line
        elif line:
            passages.append(line)
    return passages


def module_name(path: Path, root: Path) -> str:
    """ "json/decoder.py" as "json.decoder", "json/__init__.py" as "json"."""
    parts = list(path.relative_to(root).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def source_files(root: Path) -> Iterator[Path]:
    """Every module file below `root` in sorted order, without tests, site-packages and the like."""
    for entry in sorted(root.iterdir(), key=lambda found: found.name):
        if entry.is_dir():
            if entry.name.isidentifier() and entry.name not in SKIPPED_DIRECTORIES:
                yield from source_files(entry)
        elif entry.suffix == ".py" and entry.stem.isidentifier():
            yield entry


def passages_of(source: str, module: str) -> Iterator[Passage]:
    """Every passage of one module's source: of the module, its classes, functions and methods, outermost first.

    Functions inside functions are not reachable by name and are left out. Raises SyntaxError for what is not Python.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old modules are not ours to report
        tree = ast.parse(source)
    yield from _passages(tree, module, module, "module")
    yield from _definitions(tree.body, module, module, in_class=False)


def _passages(node: ast.Module | _Definition, dotted: str, module: str, kind: str) -> Iterator[Passage]:
    for number, text in enumerate(split_docstring(ast.get_docstring(node) or ""), start=1):
        passage_id = dotted if number == 1 else f"{dotted}#{number}"
        yield Passage(passage_id, module, kind, dotted.rpartition(".")[2], text)


def _definitions(body: list[ast.stmt], prefix: str, module: str, in_class: bool) -> Iterator[Passage]:
    for node in body:
        if isinstance(node, _Definition):
            dotted = f"{prefix}.{node.name}"
            is_class = isinstance(node, ast.ClassDef)
            yield from _passages(node, dotted, module, "class" if is_class else "method" if in_class else "function")
            if is_class:
                yield from _definitions(node.body, dotted, module, in_class=True)
        elif isinstance(node, ast.If | ast.Try | ast.With):  # definitions that depend on the platform
            for part in ("body", "orelse", "finalbody"):
                yield from _definitions(getattr(node, part, []), prefix, module, in_class)
            for handler in getattr(node, "handlers", []):
                yield from _definitions(handler.body, prefix, module, in_class)


def read_corpus(root: Path, limit: int | None = None) -> list[Passage]:
    """The passages below `root`, each id once (the first definition counts), `limit` of them spread evenly.

    A file that cannot be read as Python (some are broken on purpose) is left out. Raises StorageError when there is
    no source at all: some interpreters ship without it.
    """
    found: dict[str, Passage] = {}
    for path in source_files(root):
        try:
            passages = list(passages_of(path.read_text(encoding="utf-8"), module_name(path, root)))
        except (SyntaxError, ValueError):
            continue
        for passage in passages:
            found.setdefault(passage.id, passage)
    corpus = list(found.values())
    if not corpus:
        raise StorageError(f"{root} holds no Python source with docstrings: this interpreter ships without it")
    return corpus if limit is None else spread(corpus, limit)


def codes(passages: Sequence[Passage], most: int) -> list[tuple[str, str]]:
    """What has digits or underscores and stands in one text only, and is no name of code there is (RFC 2732,
    SEEK_SET), with the id of the passage it stands in; `most` of them."""
    known = {part for one in passages for part in one.id.partition("#")[0].split(".")}
    found = [(code, one.id) for one in passages for code in set(CODE.findall(one.text)) if code not in known]
    count = Counter(code.lower() for code, _ in found)
    return spread(sorted((code, id_) for code, id_ in found if count[code.lower()] == 1 and len(code) > 3), most)


def spread(items: Sequence[T], most: int) -> list[T]:
    """So many of them, evenly."""
    return [items[at * len(items) // most] for at in range(most)] if len(items) > most else list(items)
