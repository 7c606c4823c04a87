"""docs/api.md and needle/__init__.pyi, made from the public names: `python -m needle.cli.api_reference` writes both.

A test compares the files with this, and fails for a public name without a docstring.
"""

from __future__ import annotations

import ast
import enum
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import needle
from needle import backup, distributed
from needle.backup.format import CollectionBackup, IndexFile, PieceRef
from needle.backup.store import Stat
from needle.base.collection_sizes import FieldIndex
from needle.base.errors import NeedleError
from needle.client import SyncClient
from needle.client.activity import Activity, CallsNow, MoveNow, NodeNow, ShardNow
from needle.client.alerts import Condition
from needle.client.batches import BatchMethods
from needle.client.changes import ChangeMethods
from needle.client.counting import CountMethods
from needle.client.document_calls import ValueCount
from needle.client.documents import DocumentMethods
from needle.client.feeds import FeedMethods
from needle.client.fitness import Diagnosis, Finding, LinkFound, NodeFound
from needle.client.health import ReplicaStatus
from needle.client.naming import NamingMethods
from needle.client.restarting import Restart
from needle.client.scanning import Scan
from needle.client.searches import SearchMethods
from needle.protocol.calls import DigestAnswer
from needle.protocol.peer_calls import DiskRoom, WhoAnswer
from needle.protocol.probe_calls import Facts, LoadAnswer
from needle.routing.jobs import JobState, Phase, Progress
from needle.routing.planned_moves import FoundShard, GiveUpShard, MoveRange, MoveReplicas, PreferLeader
from needle.routing.plans import Balance, Plan
from needle.routing.shard_map import ShardMap
from needle.routing.stats import HotRange, NodeLoad, RebalanceStats, ShardSize
from needle.routing.topology import (
    AliasInfo,
    ClusterSettings,
    CollectionInfo,
    MoveInfo,
    MoveState,
    NodeInfo,
    NodeState,
    ShardInfo,
    Topology,
)

PACKAGE = Path(str(needle.__file__)).parent
STUB = PACKAGE / "__init__.pyi"
PAGE = PACKAGE.parents[1] / "docs" / "api.md"

HEAD = """# Python

Made from the code by `python -m needle.cli.api_reference`; do not edit. Every call that takes a `timeout` raises
DeadlineExceeded, NoQuorum or OutcomeUnknown after it. `Seconds` is a number of seconds or a `datetime.timedelta`;
`Documents` are (id, vector[, metadata]) tuples, or a table: of pyarrow, pandas, polars, anything with the Arrow
PyCapsule protocol.

Names in the first part come from `needle`, those in the second from `needle.distributed`, those in the third from
`needle.backup` ([backup.md](backup.md)); what methods return is described in the fourth, each with the module that has
it. The methods for documents and
collections are written once: `Client`, `RaftCluster`, `DistributedCluster` and `ShardRouter` have those of
`SearchMethods`, `FeedMethods`, `ChangeMethods`, `NamingMethods`, `CountMethods` and `DocumentMethods` (in
`needle.client`); `Client` and `RaftCluster` have `BatchMethods`, too.
"""

STUB_HEAD = '''"""Made by `python -m needle.cli.api_reference` from the table in `__init__.py`. Do not edit."""

'''

SHARED: tuple[type, ...] = (
    DocumentMethods,
    SearchMethods,
    FeedMethods,
    ChangeMethods,
    NamingMethods,
    CountMethods,
    BatchMethods,
)
"""Bases whose methods are described once."""


RESULTS: tuple[type, ...] = (
    *(
        Topology,
        ClusterSettings,
        NodeInfo,
        NodeState,
        ShardInfo,
        CollectionInfo,
        AliasInfo,
        ShardMap,
        MoveInfo,
        MoveState,
    ),
    *(ReplicaStatus, WhoAnswer, DiskRoom, DigestAnswer, LoadAnswer, Facts),
    *(Diagnosis, Finding, NodeFound, LinkFound),
    *(Activity, NodeNow, ShardNow, CallsNow, MoveNow, Condition),
    *(RebalanceStats, ShardSize, NodeLoad, HotRange),
    *(Plan, Balance, MoveRange, MoveReplicas, PreferLeader, FoundShard, GiveUpShard, Progress, JobState, Phase),
    *(Restart, FieldIndex, ValueCount, Scan, CollectionBackup, IndexFile, PieceRef, Stat),
)
"""What public methods return, and what that holds, without a public name of its own."""


RECORDS: tuple[object, ...] = (*RESULTS, *(getattr(backup, name) for name in backup.__all__))
"""Of those that are structs only what they hold is described: what else they can do is for Needle itself."""

SHOWN_MAX = 100
"""Characters of a default value."""
UNTOLD = ("self", "cls", "around")
"""Parameters; the last one is for tests."""
STARS: dict[object, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def first_paragraph(thing: object) -> str:
    """The first paragraph of its docstring on one line; "" without one of its own."""
    text = thing.__doc__ if isinstance(thing, type) else inspect.getdoc(thing)
    if not text or (isinstance(thing, type) and text.startswith(f"{thing.__name__}(")):  # dataclass makes one
        return ""
    return " ".join(text.strip().split("\n\n")[0].split())


def description(thing: object) -> str:
    """Its docstring, each paragraph on one line. Of settings only the first paragraph: docs/operations.md has them."""
    first = first_paragraph(thing)
    notes = vars(thing).get("__annotations__", {}) if isinstance(thing, type) else {}
    if not first or any("Annotated[" in str(note) for note in notes.values()):
        return first
    text = thing.__doc__ if isinstance(thing, type) else inspect.getdoc(thing)
    return "\n\n".join(" ".join(each.split()) for each in (text or "").strip().split("\n\n"))


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """A class's own public methods and properties in their order, and those of bases that have no entry themselves."""
    public = {getattr(needle, name) for name in needle.__all__} | {getattr(distributed, n) for n in distributed.__all__}
    seen: set[str] = set()
    for base in kind.__mro__:
        if base is not kind and (base in public or base in SHARED or not base.__module__.startswith("needle")):
            continue
        for name, member in vars(base).items():
            plain = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            described = inspect.isfunction(plain) or isinstance(plain, property)
            if described and not name.startswith("_") and name not in seen:
                seen.add(name)
                yield name, plain


def _shown(value: object) -> str:
    if inspect.isfunction(value):
        return "..."
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, float) and value == int(value):
        return f"{value:.1f}"
    text = re.sub(r"<(\w+\.\w+): [^>]*>", r"\1", repr(value))
    return text if len(text) <= SHOWN_MAX else f"{type(value).__name__}(...)"


class _Plain(ast.NodeTransformer):
    """Takes the types out of `Annotated`: what is allowed of a setting is in docs/operations.md."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        annotated = isinstance(node.value, ast.Name) and node.value.id == "Annotated"
        return node.slice.elts[0] if annotated and isinstance(node.slice, ast.Tuple) else node


def _annotation(note: object) -> str:
    text = note if isinstance(note, str) else inspect.formatannotation(note)
    return ast.unparse(_Plain().visit(ast.parse(text, mode="eval"))) if "Annotated[" in text else text


def signature(name: str, thing: Any) -> str:
    """As it is called: `name(parameter: type = default, ...) -> type`."""
    made = inspect.signature(thing)
    shown, named_only = [], False
    for parameter in made.parameters.values():
        if parameter.name in UNTOLD:
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not named_only:
            shown.append("*")
        named_only |= parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        text = STARS.get(parameter.kind, "") + parameter.name
        if parameter.annotation is not parameter.empty:
            text += f": {_annotation(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            text += f" = {_shown(parameter.default)}"
        shown.append(text)
    returns = (
        "" if made.return_annotation in (made.empty, None, "None") else f" -> {_annotation(made.return_annotation)}"
    )
    awaited = "await " if inspect.iscoroutinefunction(thing) else ""
    return f"{awaited}{name}({', '.join(shown)}){returns}"


def _indented(member: object) -> str:
    return description(member).replace("\n\n", "\n\n  ")


def _method(name: str, member: Any) -> str:
    if isinstance(member, property):
        returns = _annotation(inspect.signature(member.fget).return_annotation) if member.fget else ""
        return f"- `{name}: {returns}`  \n  {_indented(member)}"
    return f"- `{signature(name, member)}`  \n  {_indented(member)}"


def _fields(kind: type) -> list[str]:
    """What a plain record holds, and the defaults."""
    defaults = inspect.signature(kind).parameters
    lines = []
    for base in reversed(kind.__mro__):
        for name, note in vars(base).get("__annotations__", {}).items():
            if name not in defaults:
                continue
            default = defaults[name].default
            lines.append(
                f"{name}: {_annotation(note)}" + ("" if default is inspect.Parameter.empty else f" = {_shown(default)}")
            )
    return lines


def _class(name: str, kind: type) -> str:
    parts = [f"### {name}", description(kind)]
    if kind in RESULTS:
        parts.insert(1, f"In `{kind.__module__}`.")
    if issubclass(kind, enum.Enum):
        parts.append("One of " + ", ".join(f"`{one.name}` (`{one.value!r}`)" for one in kind) + ".")
        return "\n\n".join(parts)
    if hasattr(kind, "__dataclass_fields__") or hasattr(kind, "__struct_fields__"):
        parts.append("```python\n" + "\n".join(_fields(kind)) + "\n```")
    elif kind not in SHARED and kind not in RESULTS and not re.search(r"Made by|Build it with", parts[1]):
        parts.append(f"`{signature(name, kind).removesuffix(' -> None')}`")
    if issubclass(kind, SyncClient):
        parts.append("It has the methods of `Client`, called without `await`.")
        return "\n\n".join(parts)
    record = kind in RECORDS and hasattr(kind, "__struct_fields__")
    lines = [
        _method(each, one)
        for each, one in members(kind)
        if not record or isinstance(one, property) or each == "in_words"
    ]
    return "\n\n".join([*parts, *(["\n".join(lines)] if lines else [])])


def _errors() -> str:
    rows = ["| name | is a | code | retry is safe | meaning |", "|---|---|---|---|---|"]
    for name in sorted(needle.__all__):
        kind = getattr(needle, name)
        if isinstance(kind, type) and issubclass(kind, NeedleError):
            retry = "yes" if kind.retryable else ""
            rows.append(
                f"| `{name}` | {kind.__mro__[1].__name__} | `{kind.code}` | {retry} | {first_paragraph(kind)} |"
            )
    return "\n".join(rows)


def entries() -> list[tuple[str, str, Any]]:
    """(module, name, what it is) of everything that is described, errors too; a name of two modules once."""
    described = [("needle", name, getattr(needle, name)) for name in sorted(needle.__all__)]
    described += [("needle", kind.__name__, kind) for kind in SHARED]
    again = set(needle.__all__)
    described += [
        ("needle.distributed", name, getattr(distributed, name))
        for name in sorted(distributed.__all__)
        if name not in again
    ]
    described += [("needle.backup", name, getattr(backup, name)) for name in sorted(backup.__all__)]
    return described + [("results", kind.__name__, kind) for kind in RESULTS]


def render() -> str:
    """The page as Markdown."""
    parts = [HEAD]
    for module in ("needle", "needle.distributed", "needle.backup", "results"):
        parts.append(f"## {module.capitalize() if module == 'results' else module}\n")
        mine = [(name, thing) for home, name, thing in entries() if home == module]
        for name, thing in mine:
            if not isinstance(thing, type):
                parts.append(f"### {name}\n\n`{signature(name, thing)}`\n\n{description(thing)}\n")
        for name, thing in mine:
            if isinstance(thing, type) and not issubclass(thing, NeedleError):
                parts.append(_class(name, thing) + "\n")
    parts.append(
        f"## Errors\n\nAll from `needle`. Each has `code`, `message`, `details` and `retryable`.\n\n{_errors()}\n"
    )
    return "\n".join(parts)


def stub() -> str:
    """needle/__init__.pyi: what type checkers read in place of names that are loaded when first used."""
    lines = [f"from {home} import {name} as {name}" for home, names in needle._PUBLIC.items() for name in names.split()]
    return STUB_HEAD + "\n".join(lines) + "\n\n__version__: str\n__all__: list[str]\n_PUBLIC: dict[str, str]\n"


def write() -> None:
    """Write both files."""
    PAGE.write_text(render(), encoding="utf-8")
    STUB.write_text(stub(), encoding="utf-8")


if __name__ == "__main__":
    write()
