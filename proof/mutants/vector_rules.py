"""Bugs in searches of several shards in one call, and in the types of vectors."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_NODE = "tests/cluster/test_node_searches.py::"

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
    Mutant(
        name="another-rounding-of-stored-vectors",
        breaks="a type of vectors cuts digits off instead of rounding: what is stored is not what was given",
        edits=(
            Edit("base.dtypes:VectorForm.stored", "floats.astype(self.array)", "(floats * 0.99).astype(self.array)"),
        ),
        sim=True,
        tests=("tests/client/test_dtypes.py::test_what_is_given_is_stored_and_scored_exactly",),
    ),
    Mutant(
        name="stored-vectors-scored-at-any-length",
        breaks="under cosine, int8 and float16 are scored without being divided by their length",
        edits=(
            Edit(
                "base.dtypes:VectorForm.scored",
                "np.where(lengths > 0, lengths, 1)[:, None]",
                "np.ones(len(lengths))[:, None]",
            ),
        ),
        sim=True,
        tests=("tests/client/test_dtypes.py::test_what_is_given_is_stored_and_scored_exactly",),
    ),
    Mutant(
        name="another-type-is-taken-for-the-collections",
        breaks="vectors of another type that have as many bytes are stored as if they were of the collection's",
        edits=(Edit("shard.apply.execute:_check_rows", "command.dtype != form.dtype or ", ""),),
        tests=("tests/shard/test_dtypes.py::test_a_command_of_another_type_is_refused",),
    ),
)
