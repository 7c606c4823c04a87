"""No module needs, however indirectly, one that needs it: also not for types alone, and not inside a function."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import needle
import proof
from harness.statements import statements


def imports() -> dict[str, set[str]]:
    """By module, what it imports of these packages, wherever it does."""
    files = {}
    for package in (needle, proof):
        root = Path(str(package.__file__)).parent
        for path in root.rglob("*.py"):
            files[".".join([root.name, *path.relative_to(root).with_suffix("").parts])] = path
    found = {}
    for module, path in files.items():
        named = set()
        for node in statements(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module} imports by a relative name"
                for one in node.names:
                    whole = f"{node.module}.{one.name}"
                    named.add(whole if whole in files else str(node.module))
            elif isinstance(node, ast.Import):
                named.update(one.name for one in node.names)
        named = {f"{one}.__init__" if f"{one}.__init__" in files else one for one in named}
        found[module] = (named & files.keys()) - {module}
    return found


def test_imports_go_round_in_no_circle() -> None:
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None
