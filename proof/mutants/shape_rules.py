"""Bugs in what searches ask for beside the nearest: hits unlike each other, hits in the order of a field, and several
searches in one call."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_VARIETY = "tests/client/test_variety.py::"
_STEPS = _VARIETY + "test_each_step_takes_what_is_worth_most_and_the_nearer_of_two"
_ALL_SHARDS = _VARIETY + "test_equal_vectors_are_taken_last_and_in_the_order_of_their_ids_from_all_shards"
_ORDER = _VARIETY + "test_hits_come_in_the_order_of_a_field_and_equal_ones_as_near_as_they_are"
_MANY = "tests/server/test_searches_in_one_call.py::"

MUTANTS = (
    Mutant(
        name="unlike-each-other-but-nearest-first",
        breaks="hits that were chosen to be unlike each other come in the order of their distances",
        edits=(
            Edit(
                "client.router.merge:narrowed",
                "varied(vectors, far, batch.metric, request.diversify, request.take, go_on)",
                "sorted(varied(vectors, far, batch.metric, request.diversify, request.take, go_on))",
            ),
        ),
        sim=True,
        minutes=1.0,
        tests=(_ALL_SHARDS,),
    ),
    Mutant(
        name="unlike-the-last-one-only",
        breaks="a hit is to be unlike the one that was taken before it, and may be like those before that",
        edits=(
            Edit("client.router.variety:varied", "apart = np.minimum(apart, ", "apart = (lambda _, far: far)(apart, "),
        ),
        sim=True,
        minutes=1.0,
        tests=(_STEPS,),
    ),
    Mutant(
        name="a-pool-of-what-is-wanted",
        breaks="hits that are to be unlike each other are chosen of as many as are wanted, not of the whole pool",
        edits=(
            Edit(
                "client.router.merge:narrowed",
                "left = left[: request.k - bool(request.like)]",
                "left = left[: request.take or request.k - bool(request.like)]",
            ),
        ),
        sim=True,
        minutes=1.0,
        tests=(_ALL_SHARDS,),
    ),
    Mutant(
        name="a-pool-of-one-shard",
        breaks="hits that are to be unlike each other are chosen of what the first shard has",
        edits=(
            Edit(
                "client.router.merge:nearest",
                "return [(which, row) for _, _, _, which, row in rows[:k]]",
                "return [(which, row) for _, _, _, which, row in rows[:k] if which == 0 or not batches[0].vectors]",
            ),
        ),
        sim=True,
        sharded=True,
        minutes=1.0,
        tests=(_ALL_SHARDS,),
    ),
    Mutant(
        name="an-order-without-one-shard",
        breaks="hits in the order of a field are those of all answers but the last",
        edits=(
            Edit(
                "client.router.merge:nearest",
                "return [(which, row) for _, _, _, which, row in rows[:k]]",
                "lost = len(batches) - 1 if len(batches) > 1 and any(one.order for one in batches) else -1\n"
                "    return [(which, row) for _, _, _, which, row in rows[:k] if which != lost]",
            ),
        ),
        sim=True,
        sharded=True,
        minutes=1.0,
        tests=(_ORDER,),
    ),
    Mutant(
        name="an-order-without-those-that-have-no-value",
        breaks="of hits in the order of a field those without a value are left out",
        edits=(
            Edit(
                "base.filters.values:in_order",
                "[at for _, at in there] + [at for at, value in enumerate(values) if value is None]",
                "[at for _, at in there]",
            ),
        ),
        sim=True,
        minutes=1.0,
        tests=(_ORDER,),
    ),
    Mutant(
        name="equal-in-an-order-as-they-were-written",
        breaks="hits with the same value come in the order in which they were written",
        edits=(
            Edit("client.router.merge:narrowed", "left.sort()", "left.sort(key=lambda at: (batch.versions[at], at))"),
        ),
        sim=True,
        minutes=1.0,
        tests=(_VARIETY + "test_of_hits_with_the_same_value_the_nearer_comes_first_however_they_were_chosen",),
    ),
    Mutant(
        name="an-order-turned-round-with-its-ties",
        breaks="from the greatest value, those that are equal come farthest first",
        edits=(
            Edit(
                "base.filters.values:in_order",
                "there.sort(key=lambda pair: pair[0], reverse=descending)",
                "there = sorted(there)[::-1] if descending else sorted(there)",
            ),
        ),
        sim=True,
        minutes=1.0,
        tests=(_ORDER,),
    ),
    Mutant(
        name="groups-of-another-vector",
        breaks="of several searches by groups in one call all are answered for the first vector",
        edits=(
            Edit(
                "client.router.searching:search_each",
                "vector=request.vector[at * width : (at + 1) * width]",
                "vector=request.vector[:width]",
            ),
        ),
        sim=True,
        minutes=1.0,
        tests=(_MANY + "test_each_is_answered_as_if_it_were_asked_alone",),
    ),
)
