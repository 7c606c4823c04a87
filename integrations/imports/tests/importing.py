"""What the tests of all sources share: what is imported, and how."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from needle.cli.app import main

COUNT, DIMENSIONS = 1200, 16
DOCS = (Path(__file__).resolve().parents[3] / "docs" / "importing.md").read_text()
VECTORS = np.random.default_rng(7).normal(size=(COUNT, DIMENSIONS)).astype(np.float32)
METADATA = [{"n": n, "half": n / 2, "odd": n % 2 == 1, "name": f"é{n}"} for n in range(COUNT)]
IDS = [f"d{n}" for n in range(COUNT)]


def documented(start: str) -> list[str]:
    """The words behind `needle import` of the only example of docs/importing.md that begins so."""
    (found,) = re.findall(rf"`needle import ({re.escape(start)}[^`]*)`", DOCS)
    return shlex.split(found)


class Importing:
    """Runs `needle import` in this process, which has loaded the databases' libraries."""

    def __init__(self, cluster: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.cluster = cluster
        self._capsys = capsys

    def _run(self, words: tuple[str, ...], expect: int) -> tuple[str, str]:
        self._capsys.readouterr()
        code = main(["import", *words, "--cluster", self.cluster, "--json"])
        out, err = self._capsys.readouterr()
        assert code == expect, out + err
        return out, err

    def __call__(self, *words: str, expect: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._run(words, expect)[0])
        return found

    def refused(self, *words: str) -> str:
        return " ".join(self._run(words, 1)[1].split())


def check(found: dict[str, Any], metric: str, count: int = COUNT) -> None:
    assert (found["metric"], found["dimensions"], found["written"]) == (metric, DIMENSIONS, count)
    verified = found["verified"]
    assert verified["source"] == verified["target"] == count and verified["differences"] == []
    assert verified["source_digest"] == verified["target_digest"] and verified["sample"] == 16
    assert verified["neighbours"] > 0.9
