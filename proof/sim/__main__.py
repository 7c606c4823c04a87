"""`python -m proof.sim`: run seeds, tell the story of a failure, say how to replay it. See docs/proof.md."""

from __future__ import annotations

import argparse
import logging
import sys
import time

from proof.sim.report import Report
from proof.sim.runner import run, run_all, shrink, summary
from proof.sim.spec import Spec

STORY_LINES = 60


def main(arguments: list[str] | None = None) -> int:
    """0 if every seed held, 1 if one failed."""
    options = _parser().parse_args(arguments)
    logging.getLogger("needle").setLevel(logging.INFO if options.trace else logging.CRITICAL + 1)
    specs = [_spec(options, seed) for seed in range(options.seed, options.seed + options.seeds)]
    began = time.perf_counter()
    if options.trace:
        return _traced(specs[0])
    reports, failures = [], 0
    for report in run_all(specs, options.jobs):
        reports.append(report)
        if options.progress and len(reports) % options.progress == 0:
            _say(f"{len(reports)} seeds, {failures} failed, {time.perf_counter() - began:.0f} s")
        if report.failure is not None:
            failures += 1
            _say(_line(report))
            if failures <= options.stories:
                _tell(report, options.shrink)
        elif options.seeds <= 20:
            _say(_line(report))
    _say(f"{summary(reports)}; {time.perf_counter() - began:.0f} s")
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m proof.sim", description="Deterministic simulation of a cluster.")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, counting up")
    parser.add_argument("--nodes", type=int, choices=(1, 3, 4, 5, 7), help="default: from the seed")
    parser.add_argument("--sharded", action="store_true", help="several shards, whose ranges and replicas move")
    parser.add_argument("--plain", action="store_true", help="without the kinds of fault that came later (spec.py)")
    parser.add_argument("--backups", action="store_true", help="in every run somebody makes backups and archives logs")
    parser.add_argument("--minutes", type=float, default=2.0, help="virtual minutes with faults and load")
    parser.add_argument("--faults", help="only the faults with these numbers, as in 3,7,9 or none")
    parser.add_argument("--operations", type=int, default=1_000_000, help="stop the load after so many operations")
    parser.add_argument("--progress", type=int, default=0, help="print a line after so many seeds")
    parser.add_argument("--jobs", type=int, default=1, help="processes to use")
    parser.add_argument("--trace", action="store_true", help="print every event of the first seed")
    parser.add_argument("--shrink", type=int, default=40, help="runs to spend on making a failure small; 0 for none")
    parser.add_argument("--stories", type=int, default=1, help="failures to shrink and tell in full")
    return parser


def _spec(options: argparse.Namespace, seed: int) -> Spec:
    faults = None
    if options.faults is not None:
        faults = () if options.faults == "none" else tuple(int(number) for number in options.faults.split(","))
    nodes = options.nodes or (3 + seed % 3 if options.sharded else 5 if seed % 4 == 0 else 3)
    return Spec(
        seed=seed,
        nodes=nodes,
        seconds=options.minutes * 60,
        faults=faults,
        operations_max=options.operations,
        sharded=options.sharded,
        plain=options.plain,
        backups=options.backups,
    )


def _traced(spec: Spec) -> int:
    report, lines = run(spec, keep_trace=True)
    for line in lines:
        _say(line)
    _say(_line(report))
    return 1 if report.failure else 0


def _line(report: Report) -> str:
    counts = report.counts
    verdict = "ok" if report.failure is None else f"FAILED {report.failure}"
    if report.given_up:  # of these nobody knows whether their history is legal
        verdict += f", but {report.given_up} keys not judged, for too many orders"
    return (
        f"seed {report.spec.seed}, {report.spec.nodes} nodes: {verdict}; "
        f"{counts.virtual_seconds / 3600:.3f} virtual hours, "
        f"{counts.operations} operations ({counts.unknown} unknown), {counts.searches} searches, {counts.elections} "
        f"elections, {counts.snapshots} snapshots, {counts.restarts} restarts, faults {sum(report.faults.values())}, "
        f"trace {report.trace_hash}"
    )


def _tell(report: Report, tries: int) -> None:
    if tries > 0:
        _say(f"making it small, at most {tries} runs:")
        report = shrink(report, tries, _say)
    _say("the story:")
    for line in report.story[-STORY_LINES:]:
        _say(f"  {line}")
    for line in report.history:
        _say(f"  {line}")
    _say(f"replay: {report.spec.replay_command()}")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
