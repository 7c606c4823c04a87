"""Asks the catchers of a bug, each in a child process of its own that plants the bug first: simulation and tests.

Invariant: only a violated promise or a failed test counts as caught. A child that could not plant the bug, collect the
tests or run the harness raises CatcherFailed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec

from proof.mutants.planting import Mutant
from proof.mutants.simulated import Sighting

ROOT = Path(__file__).parents[2]
SIM_TIMEOUT, TEST_TIMEOUT = 1800.0, 180.0
TESTS_FAILED = 1
OUTPUT_LINES = 15


class CatcherFailed(Exception):
    """A child did not come to a verdict; the message holds its last lines."""


class Verdict(msgspec.Struct, frozen=True):
    """sighting: of the simulation, None if it was not asked. failed: ids of the tests that failed. missed: catchers
    that were expected to see the bug and did not."""

    mutant: Mutant
    sighting: Sighting | None
    failed: tuple[str, ...]
    missed: tuple[str, ...]


def judge(mutant: Mutant, seeds_max: int, *, with_sim: bool = True, with_tests: bool = True) -> Verdict:
    """Ask every expected catcher of the bug. Raises CatcherFailed."""
    missed: list[str] = []
    sighting: Sighting | None = None
    if with_sim and mutant.sim:
        sighting = _simulate(mutant, seeds_max)
        if not sighting.seeds:
            missed.append(f"the simulation, in {seeds_max} seeds")
    failed = _test(mutant) if with_tests and mutant.tests else ()
    if with_tests:
        missed.extend(test for test in mutant.tests if not any(name.startswith(test) for name in failed))
    return Verdict(mutant, sighting, failed, tuple(missed))


def _simulate(mutant: Mutant, seeds_max: int) -> Sighting:
    command = [sys.executable, "-m", "proof.mutants.simulated", mutant.name, str(seeds_max)]
    done = _child(mutant, command, SIM_TIMEOUT)
    if done.returncode != 0:
        raise CatcherFailed(_tail(mutant, done))
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Sighting)


def _test(mutant: Mutant) -> tuple[str, ...]:
    plugins = ["-p", "proof.mutants.pytest_plugin", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *plugins, "-q", "--tb=no", "-rf", *mutant.tests]
    done = _child(mutant, command, TEST_TIMEOUT)
    if done.returncode not in (0, TESTS_FAILED):
        raise CatcherFailed(_tail(mutant, done))
    return tuple(re.findall(r"^FAILED (\S+)", done.stdout, re.MULTILINE))


def _child(mutant: Mutant, command: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NEEDLE_MUTANT": mutant.name, "PYTHONHASHSEED": "0"}
    try:
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise CatcherFailed(f"{mutant.name}: no verdict within {timeout:g} s") from error


def _tail(mutant: Mutant, done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stdout + done.stderr).splitlines()[-OUTPUT_LINES:]
    return "\n".join([f"{mutant.name}: exit code {done.returncode}", *lines])
