"""A short slice of `make restore-drill`, and that its judge can find something."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from proof.checkers.violation import Violation
from proof.operator import Operator
from proof.restore_drill import Drill, Writers
from proof.restore_drill.run import SHORT


async def test_what_comes_back_is_what_was_there(tmp_path: Path) -> None:
    drill = Drill(tmp_path, SHORT._replace(seconds=6.0), seed=4)
    told = await drill.run()
    assert "as the model says" in told and "2 restores into 3 shards on 1 nodes" in told
    assert len(drill.backups) > 1 and {"kill", "grow", "backup killed", "archiver killed"} <= set(drill.faults)


def test_the_judge_finds_what_is_wrong() -> None:
    nobody: Any = None
    writers, now = Writers(nobody), time.time()
    writers.asked = {"a": [(now, 1), (now + 2, 2), (now + 4, 3)], "b": [(now + 9, 1)]}
    writers.done = {"a": [(now + 1, 1), (now + 3, 2)]}
    for at, found in ((now + 1.5, {"a": 1}), (now + 2.5, {"a": 1}), (now + 2.5, {"a": 2}), (now + 5, {"a": 3})):
        writers.judge("it", at, at, found)
    for at, wrong in ((now + 1.5, {}), (now + 1.5, {"a": 2}), (now + 3.5, {"a": 1}), (now + 5, {"a": 3, "b": 1})):
        with pytest.raises(Violation):
            writers.judge("it", at, at, wrong)
    with pytest.raises(Violation, match="nobody wrote"):
        writers.judge("it", now + 1.5, now + 1.5, {"a": 1, "c": 1})


async def test_an_archiver_that_ends_by_itself_is_seen(tmp_path: Path) -> None:
    """It was taken for one that had been killed."""
    drill = Drill(tmp_path, SHORT, seed=4)
    async with asyncio.timeout(60):
        with pytest.raises(Violation, match="ended by itself"):
            await drill._archive(Operator({"NEEDLE_CLUSTER": "no address"}))
