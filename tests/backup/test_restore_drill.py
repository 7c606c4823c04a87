"""A short slice of `make restore-drill`, and that its judge can find something."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

import needle
from needle import backup as backups
from proof.checkers.violation import Violation
from proof.operator import Operator
from proof.restore_drill import Drill, Writers
from proof.restore_drill.model import STILL, Found, Key, Kind, held, served, vector_of
from proof.restore_drill.run import SHORT


@pytest.mark.campaign
async def test_what_comes_back_is_what_was_there(tmp_path: Path) -> None:
    drill = Drill(tmp_path, SHORT._replace(seconds=6.0), seed=4)
    told = await drill.run()
    assert "as the model says" in told and "2 restores into 3 shards on 1 nodes" in told
    assert len(drill.backups) > 1 and {"kill", "grow", "move", "backup killed", "archiver killed"} <= set(drill.faults)


A, B, C = (Key("default", name) for name in "abc")


def judged() -> tuple[Writers, float]:
    """A document that was inserted, patched, deleted and inserted again, and one that came late."""
    nobody: Any = None
    writers, now = Writers(nobody), time.time()
    writers.asked = {A: [(now, 1), (now + 2, 2), (now + 4, 3), (now + 6, 4)], B: [(now + 9, 1)]}
    writers.done = {A: [(now + 1, 1), (now + 3, 2), (now + 5, 3), (now + 7, 4)]}
    kinds = (Kind.INSERT, Kind.PATCH, Kind.DELETE, Kind.INSERT)
    writers.kinds = {(A, number): kind for number, kind in enumerate(kinds, 1)} | {(B, 1): Kind.INSERT}
    return writers, now


def of(key: Key, number: int, made: int | None = None) -> Found:
    """With the vector of that insert."""
    return Found(number, vector_of(key, number if made is None else made))


@pytest.mark.parametrize(
    ("after", "found"),
    [
        (1.5, {A: of(A, 1)}),
        (2.5, {A: of(A, 1)}),
        (2.5, {A: of(A, 2, 1)}),
        (4.5, {A: of(A, 2, 1)}),
        (4.5, {}),
        (5.5, {}),
        (8.0, {A: of(A, 4)}),
    ],
)
def test_the_judge_takes_what_is_right(after: float, found: dict[Key, Found]) -> None:
    writers, now = judged()
    writers.judge("it", now + after, now + after, found)


@pytest.mark.parametrize(
    ("after", "wrong", "why"),
    [
        (1.5, {}, "missing"),
        (3.5, {}, "missing"),
        (8.0, {}, "missing"),
        (1.5, {A: of(A, 2, 1)}, "not one of"),
        (3.5, {A: of(A, 1)}, "not one of"),
        (5.5, {A: of(A, 3)}, "not one of"),
        (8.0, {A: of(A, 4), B: of(B, 1)}, "not one of"),
        (1.5, {A: of(A, 1, 2)}, "not the one of an insert"),
        (1.5, {A: of(B, 1)}, "not the one of an insert"),
        (3.5, {A: of(A, 2)}, "not the one of an insert"),
        (8.0, {A: of(A, 4, 1)}, "not the one of an insert"),
        (1.5, {A: of(A, 1), C: of(C, 1)}, "nobody wrote"),
    ],
)
def test_the_judge_finds_what_is_wrong(after: float, wrong: dict[Key, Found], why: str) -> None:
    writers, now = judged()
    with pytest.raises(Violation, match=why):
        writers.judge("it", now + after, now + after, wrong)


async def test_vectors_and_collections_are_read(tmp_path: Path) -> None:
    """Only the number in the metadata was looked at, of one collection: a backup with vectors of other documents
    passed."""
    store = backups.open_store(str(tmp_path / "target"))
    async with needle.open(":memory:") as client:
        writers, before = Writers(client), time.time()
        await writers.begin()
        made = await backups.create(client, store)
        found = held(store, made.manifest.id)
        assert len(found) == STILL and found == await served(client)
        writers.judge("it", before, time.time(), found)
        await client.update_vectors(["still-7"], [vector_of(Key("second", "still-8"), 1)], collection="second")
        for wrong in (held(store, (await backups.create(client, store)).manifest.id), await served(client)):
            with pytest.raises(Violation, match=r"still-7.* not the one of an insert"):
                writers.judge("it", before, time.time(), wrong)


async def test_an_archiver_that_ends_by_itself_is_seen(tmp_path: Path) -> None:
    """It was taken for one that had been killed."""
    drill = Drill(tmp_path, SHORT, seed=4)
    async with asyncio.timeout(60):
        with pytest.raises(Violation, match="ended by itself"):
            await drill._archive(Operator({"NEEDLE_CLUSTER": "no address"}))
