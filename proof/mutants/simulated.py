"""`python -m proof.mutants.simulated NAME SEEDS`: plant a bug and run that many seeds, 1, 2, ... until one fails.

Prints one JSON object, `Sighting`. Another exit code than 0 says that the bug could not be planted, or that the harness
itself failed: that is no sighting.
"""

from __future__ import annotations

import logging
import sys
from itertools import count, islice

import msgspec

from proof.mutants.catalog import MUTANTS
from proof.mutants.planting import Mutant, plant
from proof.sim.runner import run
from proof.sim.shards.profile import shape_of
from proof.sim.shards.typed import has_bits
from proof.sim.spec import Spec
from proof.sim.stalls import CHECKER


class Sighting(msgspec.Struct):
    """seeds: how many runs it took, 0 if none of them saw the bug. checker, failure: what was broken in the last."""

    seeds: int = 0
    checker: str = ""
    failure: str = ""


def hunt(mutant: Mutant, seeds_max: int) -> Sighting:
    """Run seeds until one fails. The bug must be planted."""
    specs = (spec for seed in count(1) if shows(mutant, spec := spec_of(mutant, seed)))
    for tried, spec in enumerate(islice(specs, seeds_max), 1):
        report, _ = run(spec)
        if report.failure is not None and (mutant.stalls or report.checker != CHECKER):
            return Sighting(tried, report.checker, report.failure)
    return Sighting()


def shows(mutant: Mutant, spec: Spec) -> bool:
    """Whether a run can show the bug at all, by what is drawn before it begins."""
    if mutant.bits and not (shape_of(spec).lasting and has_bits(spec.seed)):
        return False
    return spec.resizes or not mutant.growing


def spec_of(mutant: Mutant, seed: int) -> Spec:
    """The run of one seed."""
    sharded = mutant.sharded or mutant.growing or mutant.bits
    nodes = mutant.nodes or (3 + seed % 3 if sharded else 5 if seed % 4 == 0 else 3)
    return Spec(seed=seed, nodes=nodes, seconds=mutant.minutes * 60, sharded=sharded, backups=mutant.backups)


def main(arguments: list[str]) -> int:
    """0: the sighting is printed, whatever it says."""
    name, seeds_max = arguments
    logging.getLogger("needle").setLevel(logging.CRITICAL + 1)
    plant(MUTANTS[name])
    sys.stdout.write(msgspec.json.encode(hunt(MUTANTS[name], int(seeds_max))).decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
