"""Runs seeds, on several processes if asked, and makes a failing one small."""

from __future__ import annotations

import logging
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor

import msgspec

from proof.sim.report import Report
from proof.sim.shrink import fewest, smallest
from proof.sim.spec import Spec
from proof.sim.world import World

RUNS_PER_WORKER = 50
COUNTED = (
    "operations", "searches", "moves", "elections", "snapshots", "repaired", "restarts", "entries", "unknown"
)  # fmt: skip
"""What a summary adds up, of Report.counts."""


def run(spec: Spec, *, keep_trace: bool = False) -> tuple[Report, list[str]]:
    """One run: its report, and the trace if kept."""
    world = World(spec, keep_trace=keep_trace)
    report = world.run()
    return report, world.trace.lines


def _run(spec: Spec) -> Report:
    logging.getLogger("needle").setLevel(logging.CRITICAL + 1)
    return run(spec)[0]


def run_all(specs: Iterable[Spec], jobs: int) -> Iterator[Report]:
    """Reports in the order of the specs."""
    if jobs <= 1:
        yield from map(_run, specs)
        return
    # New workers now and then, so that memory stays bounded. (max_tasks_per_child can hang: CPython issue 115634.)
    context, rest = multiprocessing.get_context("spawn"), list(specs)
    while rest:
        batch, rest = rest[: RUNS_PER_WORKER * jobs], rest[RUNS_PER_WORKER * jobs :]
        with ProcessPoolExecutor(jobs, mp_context=context) as pool:
            yield from pool.map(_run, batch)


def shrink(failed: Report, tries_max: int, say: Callable[[str], None]) -> Report:
    """A smaller run that breaks the same promise: fewer faults, then less time, then fewer operations."""
    best = failed

    def fails(spec: Spec) -> bool:
        nonlocal best
        report = _run(spec)
        same = report.failure is not None and report.checker == failed.checker
        if same:
            best = report
            say(f"  still fails with {len(spec.schedule())} faults: {spec.replay_command()}")
        return same

    spec = failed.spec
    numbers = list(dict.fromkeys(fault.number for fault in spec.schedule()))  # some kinds share their numbers
    kept = fewest(numbers, lambda some: fails(msgspec.structs.replace(spec, faults=some)), tries_max)
    spec = msgspec.structs.replace(spec, faults=kept)
    operations = smallest(
        best.counts.operations, lambda n: fails(msgspec.structs.replace(spec, operations_max=n)), tries_max // 3
    )
    last = msgspec.structs.replace(spec, operations_max=operations)
    if best.spec != last:
        fails(last)
    return best


def summary(reports: list[Report]) -> str:
    """Many runs in one line."""
    faults: Counter[str] = Counter()
    for report in reports:
        faults.update(report.faults)
    total = {name: sum(getattr(report.counts, name) for report in reports) for name in COUNTED}
    hours = sum(report.counts.virtual_seconds for report in reports) / 3600
    failed = sum(report.failure is not None for report in reports)
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(faults.items()))
    rest = ", ".join(f"{count} {name}" for name, count in total.items())
    unjudged = sum(report.given_up for report in reports)
    return (
        f"{len(reports)} seeds, {failed} failed, {unjudged} keys not judged, {hours:.2f} virtual hours, {rest}; "
        f"{faults.total()} faults ({kinds})"
    )
