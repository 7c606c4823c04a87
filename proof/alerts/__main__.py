"""python -m proof.alerts [--short]: promtool on the rules, then faults of real processes before a real Prometheus."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from proof.alerts.faults import trial
from proof.alerts.machines import machines
from proof.alerts.promtool import check
from proof.alerts.walk import walk

SHORT_HOLDS = 0.1


async def faults(directory: Path, short: bool) -> None:
    """short: one fault, and the rules' `for` a tenth of what they are."""
    (directory / "machines").mkdir()
    async with trial(directory, SHORT_HOLDS if short else 1.0, print) as one:
        await one.node_killed()
        if not short:
            await one.leader_killed()
            await one.follower_paused()
            await one.majority_killed()
            await one.all_killed()
    if not short:
        async with machines(directory / "machines", 1.0, print) as two:
            await two.what_is_kept()
            await two.what_they_run_on()


async def both(directory: Path, short: bool) -> None:
    """The faults, and beside them the tutorial: both wait for most of their time."""
    tutorial = asyncio.to_thread(walk, directory / "walk", short, print)
    await asyncio.gather(faults(directory, short), tutorial)


def main() -> None:
    """Exit code 0 if all is as the table says; an exception with the reason otherwise."""
    parser = argparse.ArgumentParser(prog="python -m proof.alerts")
    parser.add_argument("--short", action="store_true", help="one fault, with shorter waits: for each change")
    short = parser.parse_args().short
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="needle-alerts-") as directory:
        print(check(Path(directory)).strip())
        asyncio.run(both(Path(directory), short))
    print(f"done in {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
