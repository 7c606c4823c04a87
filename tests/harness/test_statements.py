"""The walk of statements leaves none out: all modules of the product have the same by a walk of everything."""

from __future__ import annotations

import ast
from pathlib import Path

import needle
from harness.statements import statements

EVERYWHERE = """
import a
async def f():
    try:
        with b as c:
            x = 1
    except E:
        import d
    else:
        y: int = 2
    finally:
        for z in q:
            def g(): return lambda: 3
        else:
            while r:
                class D: v = 4
            else:
                pass
    match s:
        case [1]:
            del t
    try:
        pass
    except* F:
        if u:
            pass
        elif w:
            raise
        else:
            async with b:
                async for k in q:
                    yield k
"""


def test_no_statement_is_left_out() -> None:
    product = [path.read_text("utf-8") for path in (Path(needle.__file__).parent / "shard").glob("*.py")]
    assert len(product) > 10
    for text in [EVERYWHERE, *product]:
        tree = ast.parse(text)
        everything = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
        found = list(statements(tree))
        assert len(found) == len(everything) and set(map(id, found)) == set(map(id, everything))
