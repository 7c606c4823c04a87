"""`python -m proof.mutants [NAME...]`: plant every bug, one at a time, and show who sees it. See docs/proof.md."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from proof.mutants.catalog import MUTANTS
from proof.mutants.catchers import CatcherFailed, Verdict, judge
from proof.mutants.planting import Mutant


def main(arguments: list[str] | None = None) -> int:
    """0 if every bug was seen by every catcher that is expected to see it."""
    options = _parser().parse_args(arguments)
    unknown = [name for name in options.names if name not in MUTANTS]
    if unknown:
        _say(f"no such bug: {', '.join(unknown)}; there are {', '.join(MUTANTS)}")
        return 2
    chosen = [MUTANTS[name] for name in options.names or MUTANTS]
    if options.list:
        for mutant in chosen:
            _say(f"{mutant.name}: {mutant.breaks}")
        return 0
    return _run(chosen, options)


def _run(chosen: list[Mutant], options: argparse.Namespace) -> int:
    began = time.perf_counter()
    with_sim, with_tests = options.only != "tests", options.only != "sim"

    def one(mutant: Mutant) -> Verdict | CatcherFailed:
        try:
            return judge(mutant, options.seeds_max, with_sim=with_sim, with_tests=with_tests)
        except CatcherFailed as failure:
            return failure

    holes = 0
    _say("| planted bug | what it breaks | the simulation | tests |\n|---|---|---|---|")
    with ThreadPoolExecutor(options.jobs) as pool:
        for verdict in pool.map(one, chosen):
            if isinstance(verdict, CatcherFailed):
                holes += 1
                _say(f"FAILED {verdict}")
                continue
            _say(_row(verdict))
            for catcher in verdict.missed:
                holes += 1
                _say(f"NOT CAUGHT: {verdict.mutant.name} by {catcher}")
    seconds = time.perf_counter() - began
    _say(f"\n{len(chosen)} planted bugs, {holes} holes; {seconds:.0f} s")
    return 1 if holes else 0


def _row(verdict: Verdict) -> str:
    sighting = verdict.sighting
    seen = "" if sighting is None else "not seen"
    if sighting is not None and sighting.seeds:
        seen = f"{sighting.seeds}: {sighting.checker}"
    mutant = verdict.mutant
    return f"| {mutant.name} | {mutant.breaks} | {seen} | {_tests(verdict.failed)} |"


def _tests(failed: Iterable[str]) -> str:
    names = dict.fromkeys(name.partition("[")[0].removeprefix("tests/") for name in failed)
    return ", ".join(f"`{name}`" for name in names)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m proof.mutants", description="Who would see a bug?")
    parser.add_argument("names", nargs="*", metavar="NAME", help="bugs to plant; default: all")
    parser.add_argument("--seeds-max", type=int, default=60, help="seeds until the simulation has missed a bug")
    parser.add_argument("--jobs", type=int, default=2, help="bugs at a time")
    parser.add_argument("--only", choices=("sim", "tests"), help="ask these catchers only")
    parser.add_argument("--list", action="store_true", help="only say which bugs there are")
    return parser


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
