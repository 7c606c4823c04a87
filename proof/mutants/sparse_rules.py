"""Bugs of searches by sparse vectors: of what is added up, and of whose it is (docs/adr/0120)."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_SCORES = "tests/shard/test_sparse_scores.py::"
_CLUSTER = "tests/cluster/test_sparse_vectors.py::"
_PLAIN = _SCORES + "test_scores_are_those_of_plain_python"

MUTANTS = (
    Mutant(
        name="products-of-weights-are-rounded",
        breaks="a score is made of products in float32, which differ from those of other replicas and releases",
        edits=(Edit("shard.fields.sparse_scores:SparseScores._score", ".astype(np.float64) * self", " * self"),),
        sim=True,
        sharded=True,
        minutes=1.0,
        tests=(_PLAIN, _SCORES + "test_a_score_is_the_same_bits_wherever_the_document_lies"),
    ),
    Mutant(
        name="weights-of-other-documents-after-a-merge",
        breaks="merged parts of an index have each weight beside another document than its own",
        edits=(
            Edit(
                "shard.fields.weight_columns:_weights",
                "np.concatenate([part.weights for part in parts])[where]",
                "np.concatenate([part.weights for part in parts])",
            ),
        ),
        sim=True,
        sharded=True,
        minutes=1.0,
        tests=(_PLAIN, _SCORES + "test_weights_stay_beside_their_ordinals_when_columns_are_merged"),
    ),
    Mutant(
        name="newest-sparse-vectors-are-not-found",
        breaks="documents that the index does not have yet are no hits, though their write was acknowledged",
        edits=(
            Edit(
                "shard.fields.sparse_scores:SparseScores.scores",
                "(self._runs, self._newer)",
                "(self._runs, self._newer if not self._runs else ())",
            ),
        ),
        sim=True,
        sharded=True,
        minutes=1.0,
        tests=(_PLAIN,),
    ),
    Mutant(
        name="sparse-vectors-of-what-moves-are-found-twice",
        breaks="documents that are copied to a shard, or were given up by it, are hits of it",
        edits=(
            Edit(
                "shard.sparse_search:search_sparse",
                "among = visible_ordinals(collection) if allow is None else allow.bitmap",
                "among = allow.bitmap if allow is not None and request.filter else collection.live.bitmap()",
            ),
        ),
        tests=("tests/shard/test_sparse_search.py::test_of_what_moves_a_document_is_found_in_one_shard",),
        sim=True,
        sharded=True,
        minutes=1.0,
    ),
    Mutant(
        name="any-metadata-is-taken-for-a-sparse-vector",
        breaks="a write whose field is no sparse vector is acknowledged, and its document is never found by it",
        edits=(Edit("base.sparse:wrong_in", "is not None and", "is ... and"),),
        tests=("tests/server/test_sparse_writes.py::test_what_is_written_is_checked",),
    ),
    Mutant(
        name="dropped-sparse-vectors-are-found",
        breaks="clients that have not heard of it yet find documents by sparse vectors that were dropped",
        edits=(Edit("server.service.checks:Ownerships.check_sparse", "or asked.name in info.sparse", "or asked.name"),),
        tests=(_CLUSTER + "test_dropped_ones_are_found_by_nobody_in_one_process",),
        sim=True,
        sharded=True,
        minutes=1.0,
    ),
)
