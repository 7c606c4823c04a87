"""Bugs in searches of several shards of a node in one call."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_NODE = "tests/server/test_node_searches.py::"

MUTANTS = (
    Mutant(
        name="a-shard-of-a-node-merged-twice",
        breaks="a node that searches several shards in one call takes the hits of each twice",
        edits=(
            Edit(
                "server.service.node_searches:merged",
                "list(answered), [found[at] for found in answered.values()]",
                "2 * list(answered), 2 * [found[at] for found in answered.values()]",
            ),
        ),
        sim=True,
        sharded=True,
        minutes=1.0,
        tests=(_NODE + "test_answers_are_those_of_each_shard_alone",),
    ),
    Mutant(
        name="a-shard-of-a-node-left-out",
        breaks="a node that searches several shards in one call gives the hits of the first only",
        edits=(
            Edit(
                "server.service.node_searches:merged",
                "list(answered), [found[at] for found in answered.values()]",
                "[*answered][:1], [[*answered.values()][0][at]] if answered else []",
            ),
        ),
        sim=True,
        sharded=True,
        minutes=1.0,
        tests=(_NODE + "test_answers_are_those_of_each_shard_alone",),
    ),
    Mutant(
        name="hits-of-a-shard-that-is-not-named",
        breaks="hits of shards that the node does not say to have searched are taken",
        edits=(Edit("client.router.merge:hits_of", "or not part.seen.keys() >= {*of}", ""),),
        tests=(_NODE + "test_hits_count_only_for_shards_that_were_searched",),
    ),
    Mutant(
        name="a-node-answers-for-other-ranges",
        breaks="the ranges on which a node has searched a shard are not compared with the map",
        edits=(
            Edit(
                "client.router.by_node:_told",
                "elif answer.epoch != owned.epoch or found.fingerprint != owned.fingerprint(shard):",
                "elif False:",
            ),
        ),
        tests=(_NODE + "test_an_answer_for_other_ranges_is_not_used",),
    ),
)
