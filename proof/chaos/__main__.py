"""`python -m proof.chaos [--minutes 5] [--nodes 3] [--shards 4] [--seed n]`, `... check FILE`: docs/proof.md."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from needle.base.errors import NeedleError
from proof.chaos.check import Verdict, check, story
from proof.chaos.grow_run import GrowRun
from proof.chaos.grow_run import table as grow_table
from proof.chaos.history_file import read
from proof.chaos.http_site import HttpSite
from proof.chaos.recovery import Recovery
from proof.chaos.run import ChaosRun, Outcome
from proof.chaos.site import Site
from proof.chaos.spec import ChaosSpec
from proof.checkers.violation import Violation

T = TypeVar("T")


def main(arguments: list[str] | None = None) -> int:
    """0 if every promise held, 1 if one was broken, 2 for a file or directory that cannot be used."""
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.getLogger("needle").setLevel(logging.CRITICAL + 1)
    if arguments[:1] == ["check"]:
        return _check(arguments[1:])
    options = _parser().parse_args(arguments)
    spec = ChaosSpec(
        seed=options.seed,
        nodes=options.nodes or (6 if options.shards > 1 else 3),
        shards=options.shards,
        seconds=options.minutes * 60,
        election_timeout=options.election_timeout,
        heartbeat_interval=options.election_timeout / 5,
    )
    directory = Path(options.directory or tempfile.mkdtemp(prefix="needle-chaos-"))
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        _say(f"{directory} is not empty: what an earlier run left there would be taken for this one's")
        return 2
    size = f"{spec.nodes} nodes" + (f" and {spec.shards} shards" if spec.shards > 1 else "")
    size = "a cluster that grows and shrinks" if options.growing else size
    _say(f"chaos on {size} for {options.minutes:g} minutes, seed {spec.seed}; history in {directory}")
    began = time.monotonic()
    told = _say if options.verbose else lambda line: None
    if options.growing:
        grown = asyncio.run(_until_terminated(lambda: GrowRun(spec, directory, told, options.steps).run()))
        for line in grow_table(grown, time.monotonic() - began):
            _say(line)
        return 1 if grown.failure is not None else 0
    site = HttpSite if options.http else Site
    outcome = asyncio.run(_until_terminated(lambda: ChaosRun(spec, directory, told, site).run()))
    for line in table(outcome, time.monotonic() - began):
        _say(line)
    return 1 if outcome.failure is not None else 0


async def _until_terminated(run: Callable[[], Awaitable[T]]) -> T:
    """A run that ends with SIGTERM, too: processes and mounts must not outlive us."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    if task is not None:
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
    return await run()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m proof.chaos",
        description="Faults on real processes; or: check FILE, to judge a recorded history again.",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the faults and the operations")
    parser.add_argument("--nodes", type=int, choices=(3, 4, 5, 6, 7), help="default: 3, with several shards 6")
    parser.add_argument(
        "--shards", type=int, default=1, help="of three replicas each; default: one, with a replica on every node"
    )
    parser.add_argument(
        "--growing", action="store_true", help="shards and nodes come and go, and every fault is a kill -9"
    )
    parser.add_argument("--http", action="store_true", help="all clients speak HTTP")
    parser.add_argument("--steps", type=int, default=0, help="with --growing: at least so many changes of the cluster")
    parser.add_argument("--minutes", type=float, default=5.0, help="of faults and load")
    parser.add_argument("--election-timeout", type=float, default=0.5, help="seconds")
    parser.add_argument("--directory", help="for the nodes' files and the history; default: a new one")
    parser.add_argument("--verbose", action="store_true", help="print faults and recoveries as they happen")
    return parser


def _check(arguments: list[str]) -> int:
    if len(arguments) != 1:
        _say("usage: python -m proof.chaos check FILE")
        return 2
    try:
        recorded = read(Path(arguments[0]).read_text().splitlines())
    except (OSError, NeedleError) as error:
        _say(f"{arguments[0]}: {error}")
        return 2
    try:
        verdict = check(recorded)
    except Violation as violation:
        _say(f"FAILED {violation}")
        for line in story(recorded, violation):
            _say(f"  {line}")
        return 1
    for line in _judged(verdict):
        _say(line)
    if not recorded.complete:
        _say("the run did not come to its end: replicas at the end were not compared")
    return 0


def table(outcome: Outcome, seconds: float) -> list[str]:
    """The summary, line by line."""
    spec = outcome.spec
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(outcome.faults.items()))
    shards = f"{spec.shards} shards, " if spec.shards > 1 else ""
    lines = [
        f"nodes            {spec.nodes}, {shards}seed {spec.seed}, {seconds:.0f} s, "
        f"election timeout {spec.election_timeout:g} s",
        f"faults           {sum(outcome.faults.values())} ({kinds})",
        f"full disks       {outcome.full_disks_met} nodes went on, and took writes again",
        f"elections        {outcome.elections}",
    ]
    groups = {
        "a fault": [one for one in outcome.recoveries if one.after == "begin"],
        "of these with an election": [one for one in outcome.recoveries if one.after == "begin" and one.elections],
        "its end": [one for one in outcome.recoveries if one.after == "heal"],
    }
    lines += [line for what, found in groups.items() for line in _times(what, found)]
    lines.extend(
        f"  {one.seconds:6.2f} s after the {one.after} of {one.what}: {one.reason}"
        for one in sorted(outcome.recoveries, key=lambda one: -one.seconds)
        if one.reason
    )
    lines += outcome.beside
    if outcome.verdict is not None:
        lines += _judged(outcome.verdict)
    if outcome.failure is None:
        lines.append("verdict          every promise held")
    else:
        lines += [f"verdict          FAILED {outcome.failure}", *(f"  {line}" for line in outcome.story)]
    return lines


def _times(what: str, recoveries: list[Recovery]) -> list[str]:
    if not recoveries:
        return []
    times = sorted(one.seconds for one in recoveries)
    slow = sum(1 for one in recoveries if one.reason)
    return [
        f"recovery from {what}: {len(times)}, median {statistics.median(times):.2f} s, "
        f"p90 {times[int(len(times) * 0.9)]:.2f} s, max {times[-1]:.2f} s; "
        f"{slow} above 3 election timeouts ({recoveries[0].bound:g} s)"
    ]


def _judged(verdict: Verdict) -> list[str]:
    counts = ", ".join(f"{count} {outcome}" for outcome, count in verdict.operations.items())
    reads = verdict.reads
    return [
        f"operations       {sum(verdict.operations.values())} ({counts})",
        f"linearizable     {verdict.keys} keys, {verdict.given_up} given up as too many orders",
        f"searches         {reads.searches} replayed, {reads.exact} of them exact; {reads.undetermined} may have "
        f"met a write of unknown fate; {reads.partial} partial; {reads.eventual_gets} eventual gets; "
        f"{reads.shaped} by groups, unlike each other or in an order",
        f"replicas         {verdict.replicas} equal, each with every acknowledged write",
    ]


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
