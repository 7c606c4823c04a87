"""python -m proof.alerts [--short]: promtool on the rules, then faults of real processes before a real Prometheus."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from proof.alerts.faults import trial
from proof.alerts.holdings import holdings
from proof.alerts.machines import machines
from proof.alerts.promtool import check
from proof.alerts.releases import releases
from proof.alerts.walk import walk

SHORT_HOLDS = 0.1


async def briefly(directory: Path) -> None:
    """One fault, and the rules' `for` a tenth of what they are."""
    async with trial(directory, SHORT_HOLDS, print) as one:
        await one.node_killed()


async def nodes(directory: Path) -> None:
    async with trial(directory, 1.0, print) as one:
        await one.node_killed()
        await one.leader_killed()
        await one.follower_paused()
        await one.majority_killed()
        await one.all_killed()


async def data(directory: Path) -> None:
    async with holdings(directory, 1.0, print) as one:
        await one.what_is_decided()
        await one.what_is_held()
        await one.what_is_short()
        await one.what_is_found()


async def knowledge(directory: Path) -> None:
    async with releases(directory, 1.0, print) as one:
        await one.what_is_known()
        await one.what_the_catalog_holds()
        await one.what_does_not_end()


async def computers(directory: Path) -> None:
    async with machines(directory, 1.0, print) as one:
        await one.what_is_kept()
        await one.what_they_run_on()


async def faults(directory: Path, short: bool) -> None:
    """What waits for most of its time goes side by side: the tutorial, too. Slow syncs and clocks come alone."""
    for name in ("nodes", "data", "knowledge", "computers"):
        (directory / name).mkdir()
    tutorial = asyncio.to_thread(walk, directory / "walk", short, print)
    if short:
        await asyncio.gather(briefly(directory / "nodes"), tutorial)
        return
    held = asyncio.gather(data(directory / "data"), knowledge(directory / "knowledge"))
    await asyncio.gather(nodes(directory / "nodes"), held, tutorial)
    await computers(directory / "computers")


def main() -> None:
    """Exit code 0 if all is as the table says; an exception with the reason otherwise."""
    parser = argparse.ArgumentParser(prog="python -m proof.alerts")
    parser.add_argument("--short", action="store_true", help="one fault, with shorter waits: for each change")
    short = parser.parse_args().short
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="needle-alerts-") as directory:
        print(check(Path(directory)).strip())
        asyncio.run(faults(Path(directory), short))
    print(f"done in {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
