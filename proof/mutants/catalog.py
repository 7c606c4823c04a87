"""Every bug there is to plant, by name."""

from __future__ import annotations

from proof.mutants import (
    access_rules,
    backup_rules,
    bulk_rules,
    client_rules,
    cluster_rules,
    dtype_rules,
    expiry_rules,
    feed_rules,
    filter_rules,
    founding_rules,
    host_rules,
    http_rules,
    leases_and_reads,
    move_rules,
    named_rules,
    node_search_rules,
    pinned_rules,
    planner_rules,
    raft_rules,
    rebalance_rules,
    replica_rules,
    request_rules,
    search_rules,
    shard_rules,
    share_rules,
    snapshot_rules,
    sparse_rules,
    tenant_rules,
    version_rules,
    word_rules,
)
from proof.mutants.planting import Mutant

MUTANTS: dict[str, Mutant] = {
    mutant.name: mutant
    for rules in (
        raft_rules,
        leases_and_reads,
        host_rules,
        http_rules,
        snapshot_rules,
        shard_rules,
        search_rules,
        bulk_rules,
        cluster_rules,
        dtype_rules,
        expiry_rules,
        feed_rules,
        filter_rules,
        move_rules,
        named_rules,
        founding_rules,
        replica_rules,
        pinned_rules,
        planner_rules,
        rebalance_rules,
        request_rules,
        client_rules,
        access_rules,
        backup_rules,
        tenant_rules,
        node_search_rules,
        version_rules,
        word_rules,
        sparse_rules,
        share_rules,
    )
    for mutant in rules.MUTANTS
}
