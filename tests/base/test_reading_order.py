"""The walks of docs/reading-order.md are true: their files and names are there, and each part goes down the floors."""

from __future__ import annotations

import re
import tomllib
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src" / "needle"
PAGE = (ROOT / "docs" / "reading-order.md").read_text().partition("## Four walks")[2].partition("## From the bottom")[0]
PARTS = [part for part in re.split(r"\n\n", PAGE) if part.startswith("| file")]
FILE = re.compile(r"`([\w/]+\.py)`(?: \(([^)]*)\))?")


def _floors() -> dict[str, int]:
    """The floor of each package, 0 the highest, as the import contract has them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    return {name: floor for floor, layer in enumerate(layers) for name in re.findall(r"needle\.(\w+)", layer)}


def test_there_are_four_walks_of_files_that_exist() -> None:
    assert re.findall(r"^\*\*([\w ]+)\*\*", PAGE, re.MULTILINE) == ["A write", "A search", "A move", "A setting"]
    assert len(PARTS) == 8
    for part in PARTS:
        for row in part.splitlines()[2:]:
            found = FILE.findall(row.split("|")[1])
            assert found, row
            for path, names in found:
                text = (SOURCES / path).read_text()
                for name in re.findall(r"`(\w+)`", names):
                    defined = rf"^\s*(async )?(def|class) {name}\b|^{name}\b.* = "
                    assert re.search(defined, text, re.MULTILINE), (path, name)


def test_no_walk_climbs_back() -> None:
    floors = _floors()
    for part in PARTS:
        files = [path for row in part.splitlines()[2:] for path, _ in FILE.findall(row.split("|")[1])]
        climbs = [
            (above, below)
            for above, below in pairwise(files)
            if floors[above.split("/")[0]] > floors[below.split("/")[0]]
        ]
        assert not climbs, climbs
