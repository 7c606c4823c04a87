"""Plants a bug into the running process: replaces one piece of one function's source, and its code in memory.

Invariant: no file is changed, and a bug is planted whole or the process fails: a function that is gone, a piece that is
not there exactly once or does not compile raise PlantingFailed, so no refactoring disarms a bug in silence. The code
object is exchanged, not the name: whoever holds the function already (a handler table, another module) runs the bug.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import textwrap
from types import CodeType, FunctionType

import msgspec


class PlantingFailed(Exception):
    """The product has changed: this bug must be written again. The message names the function and the piece."""


class Edit(msgspec.Struct, frozen=True):
    """One replacement. where: "module:function" or "module:Class.method", without the leading "needle."."""

    where: str
    old: str
    new: str


class Mutant(msgspec.Struct, frozen=True, kw_only=True):
    """A planted bug. breaks: what goes wrong with it. edits: all of them make the bug. sim: the simulation must see it.
    tests: pytest node ids that must fail with it; at least one catcher is named. minutes, nodes: of the simulated runs;
    nodes 0 for the usual mixture. sharded: they have several shards. growing: only seeds in which these come and go.
    backups: somebody makes backups in all of them. bits: only seeds in which somebody searches vectors of bits. stalls:
    it is seen by the time that callbacks take; a run that fails by that shows no other bug, but a busy machine."""

    name: str
    breaks: str
    edits: tuple[Edit, ...]
    sim: bool = False
    tests: tuple[str, ...] = ()
    minutes: float = 2.0
    nodes: int = 0
    sharded: bool = False
    growing: bool = False
    backups: bool = False
    bits: bool = False
    stalls: bool = False


def plant(mutant: Mutant) -> None:
    """Plant all edits. Raises PlantingFailed."""
    for edit in mutant.edits:
        function, code = _bugged(edit)
        function.__code__ = code


def check_plantable(mutant: Mutant) -> None:
    """Plant nothing, but raise what `plant` would raise."""
    for edit in mutant.edits:
        _bugged(edit)


def _bugged(edit: Edit) -> tuple[FunctionType, CodeType]:
    function = _function(edit.where)
    source = textwrap.dedent(inspect.getsource(function))
    if source.count(edit.old) != 1:
        raise PlantingFailed(f"{edit.where}: {source.count(edit.old)} times, not once: {edit.old!r}")
    names: dict[str, object] = {}
    module = sys.modules[function.__module__]
    changed = "from __future__ import annotations\n" + source.replace(edit.old, edit.new)
    try:
        exec(compile(changed, f"<mutant of {edit.where}>", "exec"), dict(vars(module)), names)
    except Exception as error:
        raise PlantingFailed(f"{edit.where} does not compile with {edit.new!r}: {error!r}") from error
    made = names.get(function.__name__)
    made = made.fget if isinstance(made, property) else made
    made = inspect.unwrap(made) if isinstance(made, FunctionType) else None
    code = made.__code__ if isinstance(made, FunctionType) else None
    if code is None or code.co_freevars != function.__code__.co_freevars:
        raise PlantingFailed(f"{edit.where} is no plain function any more")
    _check_names(edit, code, vars(module))
    return function, code


def _function(where: str) -> FunctionType:
    module, _, path = where.partition(":")
    try:
        found: object = importlib.import_module(f"needle.{module}")
        for name in path.split("."):
            found = inspect.getattr_static(found, name)
    except (ImportError, AttributeError) as error:
        raise PlantingFailed(f"{where} does not exist: {error}") from error
    if isinstance(found, staticmethod | classmethod):
        found = found.__func__
    if isinstance(found, property):
        found = found.fget
    plain = inspect.unwrap(found) if isinstance(found, FunctionType) else found  # as of a contextmanager
    if not isinstance(plain, FunctionType):
        raise PlantingFailed(f"{where} is no function but {found!r}")
    return plain


def _check_names(edit: Edit, code: CodeType, known: dict[str, object]) -> None:
    """A bug that ends in a NameError would be caught for the wrong reason."""
    for name in edit.new.replace("(", " ").replace(",", " ").split():
        if name.isidentifier() and name[:1].isupper() and name in code.co_names and name not in known:
            raise PlantingFailed(f"{edit.where}: {name} is not known there")
