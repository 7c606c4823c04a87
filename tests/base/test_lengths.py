"""Files that one can read at a sitting, functions that fit a screen."""

from __future__ import annotations

import ast
from pathlib import Path

import needle
from harness.statements import statements

PRODUCT = Path(needle.__file__).parent
PROOF = Path(__file__).resolve().parents[2] / "proof"
FILE_LINES, FUNCTION_LINES = 400, 60
LISTS = {"state.py: __init__"}
"""A Raft core's state: one attribute after the other, each with what it means."""


def test_no_file_and_no_function_is_longer() -> None:
    files = [*PRODUCT.rglob("*.py"), *PROOF.rglob("*.py")]
    assert len(files) > 300
    long_files, long_functions = [], set()
    for path in files:
        text = path.read_text()
        if text.count("\n") > FILE_LINES:
            long_files.append(str(path))
        for node in statements(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if node.end_lineno - node.lineno >= FUNCTION_LINES:
                    long_functions.add(f"{path.name}: {node.name}")
    assert long_files == []
    assert long_functions == LISTS
