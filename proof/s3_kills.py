"""Kills backups, the archive, prune and restores at their first requests to an S3 server, before one is sent and after
it was answered; what they leave must be whole, or be finished by the next command (proof/real_s3.py)."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path

import needle
from needle import backup as backups
from needle.backup.archive_reading import clusters
from needle.backup.keeping import MAKING, PRUNING, backup_ids
from needle.base.instants import micros
from proof.operator import Operator

KILLED = -signal.SIGKILL
STEPS_MAX = 12
ARCHIVE_STEPS = 6
"""An archiver does not end by itself: it is killed at so many."""
WAIT_SECONDS = 90.0
TIMES = ("before", "after")
BACKUP = ("backup", "create")


class Kills:
    """root: the directory in which the server keeps the objects of the target."""

    def __init__(self, operator: Operator, target: str, root: Path) -> None:
        self._operator, self._target, self._root = operator, target, root
        self.killed: dict[str, int] = {}

    async def cluster_side(self, client: needle.Client, documents: int) -> int:
        """Backups, the archive and prune of a cluster that has so many documents; an instant of the archive at which it
        had them (microseconds since 1970)."""
        for step, when in self._steps("create"):
            if await self._at(step, when, "changes", *BACKUP, self._target, "--begin") != KILLED:
                break
            await self._all_is_whole()
        for step in range(1, ARCHIVE_STEPS + 1):
            await client.insert(f"e{step}", [float(step), *[1.0] * 7])
            if await self._at(step, TIMES[step % 2], "changes", *self._archive()) == KILLED:
                self._count("archive")
        archiving = self._operator.popen(*self._archive())
        try:
            instant = await self._archived()
        finally:
            archiving.send_signal(signal.SIGTERM)
            out, err = await asyncio.to_thread(archiving.communicate, None, 60)
        assert archiving.returncode == 0, f"{out}{err}"
        assert await client.count() == documents + ARCHIVE_STEPS
        await self._all_is_whole()
        refused = await asyncio.to_thread(self._operator.run, "backup", "prune", self._target, "--keep", "1", expect=1)
        assert "was killed within the last hour" in refused, refused
        for step, when in self._steps("prune"):
            self._nobody_is_at_work()
            words = ("backup", "prune", self._target, "--keep", "1", "--archive-hours", "1")
            if await self._at(step, when, "changes", *words) != KILLED:
                break
            await self._all_is_whole()
        self._nobody_is_at_work()
        await self._all_is_whole()
        return instant

    async def restores(self, client: needle.Client, words: list[str], documents: int) -> None:
        """A restore, killed and run again until it ends."""
        for step, when in self._steps("restore", every=3):
            if await self._at(step, when, "reads", "restore", self._target, *words) != KILLED:
                break
        assert await client.count() == documents

    def _steps(self, what: str, every: int = 1) -> list[tuple[int, str]]:
        """Each once before, and once after; and one that no command comes to."""
        self._what = what
        return [(step, when) for step in range(1, STEPS_MAX + 1, every) for when in TIMES] + [(10_000, "before")]

    async def _at(self, step: int, when: str, what: str, *words: str) -> int:
        command = [sys.executable, "-m", "proof.killed_at_step", str(step), when, what, *words]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, env=self._operator.environment, timeout=300
        )
        assert done.returncode in (0, KILLED), f"{' '.join(words)}, step {step}: {done.stdout}{done.stderr}"
        if done.returncode == KILLED and words[:2] != ("backup", "archive"):
            self._count(self._what)
        return done.returncode

    def _count(self, what: str) -> None:
        self.killed[what] = self.killed.get(what, 0) + 1

    def _archive(self) -> tuple[str, ...]:
        return "backup", "archive", self._target, "--every", "0.5", "--begin"

    async def _all_is_whole(self) -> None:
        """As the server has it on its disk; or there is nothing yet."""
        store = backups.open_store(str(self._root))
        if not backup_ids(store) and not clusters(store):
            return
        found = await asyncio.to_thread(backups.verify, store)
        assert found.problems == [], found

    async def _archived(self) -> int:
        instant, deadline = int(time.time() * 1e6), time.monotonic() + WAIT_SECONDS
        while True:
            archives = (await asyncio.to_thread(self._operator.json, "backup", "list", self._target))["archives"]
            if archives and (micros(archives[0]["until"]) or 0) > instant:
                return instant
            assert time.monotonic() < deadline, "the archive does not come to it"
            await asyncio.sleep(0.5)

    def _nobody_is_at_work(self) -> None:
        """Delete the marks of those who were killed, as their error says."""
        for marks in (MAKING, PRUNING):
            for mark in (self._root / marks).glob("*"):
                mark.unlink()
