"""Every bug there is to plant, by name."""

from __future__ import annotations

from needle.sim.mutants import host_rules, leases_and_reads, raft_rules, shard_rules
from needle.sim.mutants.planting import Mutant

MUTANTS: dict[str, Mutant] = {
    mutant.name: mutant
    for mutant in (*raft_rules.MUTANTS, *leases_and_reads.MUTANTS, *host_rules.MUTANTS, *shard_rules.MUTANTS)
}
