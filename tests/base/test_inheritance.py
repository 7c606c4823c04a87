"""Inheritance is not used as scissors: no class is a file that was cut in two, with its halves calling into each other.

A base is a whole of its own. It uses nothing of `self` that neither it nor its own bases have; and who inherits from it
in another module knows of it only what is public, its `__init__`, and what it leaves open: its abstract methods, and
the attributes that it only declares. What needs more than that is a part that is handed in, or stands in the same file.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import needle
from harness.statements import statements

ROOT = Path(str(needle.__file__)).parent
EMPTY = {"ABC", "Generic", "Protocol"}


class Class(NamedTuple):
    """A class of the sources. bases: those of the sources. foreign: it has others, which may have any attribute."""

    module: str
    node: ast.ClassDef
    bases: list[str]
    foreign: bool


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    """The trees of all modules are millions of objects, which each full collection would walk while other tests run."""
    yield
    for one in (_sources, _of_self, _made):
        one.cache_clear()


@cache
def _sources() -> dict[str, ast.Module]:
    return {
        ".".join(["needle", *path.relative_to(ROOT).with_suffix("").parts]): ast.parse(path.read_text(encoding="utf-8"))
        for path in ROOT.rglob("*.py")
    }


def _imported(tree: ast.Module) -> dict[str, str]:
    """Where names that others define come from."""
    return {
        one.asname or one.name: f"{line.module}.{one.name}"
        for line in statements(tree)
        if isinstance(line, ast.ImportFrom)
        for one in line.names
    }


def _classes(sources: Mapping[str, ast.Module]) -> dict[str, Class]:
    imports = {module: _imported(tree) for module, tree in sources.items()}
    nodes = {
        f"{module}.{node.name}": (module, node)
        for module, tree in sources.items()
        for node in statements(tree)
        if isinstance(node, ast.ClassDef)
    }
    found = {}
    for name, (module, node) in nodes.items():
        imported = imports[module]
        written = [ast.unparse(base.value if isinstance(base, ast.Subscript) else base) for base in node.bases]
        whole = [imported.get(base, f"{module}.{base}") for base in written]
        foreign = any(full not in nodes and base not in EMPTY for base, full in zip(written, whole, strict=True))
        found[name] = Class(module, node, [full for full in whole if full in nodes], foreign)
    return found


def _above(name: str, classes: Mapping[str, Class]) -> set[str]:
    """All bases of a class, and theirs."""
    return {above for base in classes[name].bases for above in {base} | _above(base, classes)}


def _defined(node: ast.ClassDef) -> Iterator[tuple[str, bool]]:
    """The names in a class's body, and whether others are to fill them."""
    protocol = any(ast.unparse(base).startswith("Protocol") for base in node.bases)
    for one in node.body:
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef):
            yield one.name, protocol or any("abstractmethod" in ast.unparse(mark) for mark in one.decorator_list)
        elif isinstance(one, ast.Assign):
            names = [name for target in one.targets for name in getattr(target, "elts", [target])]
            yield from ((ast.unparse(name), False) for name in names)
        elif isinstance(one, ast.AnnAssign):
            yield ast.unparse(one.target), one.value is None


def _is_self(node: ast.expr) -> bool:
    """Whether this is `self`, `cls` or `super()`."""
    if isinstance(node, ast.Call) and not node.args:
        return isinstance(node.func, ast.Name) and node.func.id == "super"
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


@cache
def _of_self(node: ast.ClassDef) -> list[ast.Attribute]:
    return [one for one in ast.walk(node) if isinstance(one, ast.Attribute) and _is_self(one.value)]


@cache
def _made(node: ast.ClassDef) -> set[str]:
    """What a class has: its methods and values, and what its methods give `self`."""
    given = {one.attr for one in _of_self(node) if isinstance(one.ctx, ast.Store)}
    return given | {name for name, is_open in _defined(node) if not is_open}


def lacking(classes: Mapping[str, Class]) -> dict[str, set[str]]:
    """What classes use of `self` that nobody above them has."""
    found = {}
    for name, one in classes.items():
        whole = [classes[base] for base in {name} | _above(name, classes)]
        if not any(base.foreign for base in whole):
            there = {attr for base in whole for attr in _made(base.node) | dict(_defined(base.node)).keys()}
            used = {attr.attr for attr in _of_self(one.node)}
            found[name] = used - there - set(dir(object))
    return {name: attrs for name, attrs in found.items() if attrs}


def torn(classes: Mapping[str, Class]) -> dict[tuple[str, str], set[str]]:
    """What classes use, or replace, of what is private to a base of another module."""
    found = {}
    for name, one in classes.items():
        used = {attr.attr for attr in _of_self(one.node)} | _made(one.node)
        for base in _above(name, classes):
            if classes[base].module != one.module:
                private = {a for a in _made(classes[base].node) if a.startswith("_") and not a.startswith("__")}
                found[name, base] = used & private
    return {names: attrs for names, attrs in found.items() if attrs}


def test_no_class_uses_of_itself_what_it_does_not_have() -> None:
    assert not lacking(_classes(_sources()))


def test_who_inherits_from_another_module_knows_nothing_private_of_it() -> None:
    assert not torn(_classes(_sources()))


def test_a_class_that_was_cut_in_two_is_seen() -> None:
    sources = {
        "a": ast.parse("class Half(ABC):\n    def one(self): return self._two()\n    def _kept(self): self._n = 1"),
        "b": ast.parse("from a import Half\nclass Whole(Half):\n    def _two(self): return self._kept() + self._n"),
    }
    assert lacking(_classes(sources)) == {"a.Half": {"_two"}}
    assert torn(_classes(sources)) == {("b.Whole", "a.Half"): {"_kept", "_n"}}
    left_open = (
        "class Half(ABC):\n    _n: int\n    @abstractmethod\n    def _two(self): ...\n    def one(self): self._two()"
    )
    assert not lacking(_classes({**sources, "a": ast.parse(left_open)})).keys() - {"b.Whole"}
    assert not torn(_classes({**sources, "a": ast.parse(left_open)}))
