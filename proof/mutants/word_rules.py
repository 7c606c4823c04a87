"""Bugs of searches by words: of their statistics, and of what is added up."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_PLAIN = "tests/shard/test_word_search.py::test_scores_are_those_of_plain_python"

MUTANTS = (
    Mutant(
        name="words-of-dead-documents-count",
        breaks="documents that were deleted, or that the caller may not see, weigh in the statistics of a word",
        edits=(
            Edit(
                "shard.fields.word_search:WordSearch.statistics",
                "bitmap(found.ordinals, ascending=True).intersection_cardinality(self._among)",
                "len(found.ordinals)",
            ),
        ),
        sim=True,
        minutes=1.0,
        tests=(_PLAIN,),
    ),
    Mutant(
        name="words-of-before-a-merge-count-twice",
        breaks="a run of an index is scored twice",
        edits=(
            Edit("shard.fields.word_search:WordSearch._scored", "for run in self._runs:", "for run in self._runs * 2:"),
        ),
        sim=True,
        minutes=1.0,
        tests=(_PLAIN,),
    ),
    Mutant(
        name="newest-words-have-no-length",
        breaks="documents that the index of words does not have yet are missing in the average length",
        edits=(Edit("shard.fields.word_search:_Read.add", "self.length += len(found)", "pass"),),
        tests=(_PLAIN,),
    ),
    Mutant(
        name="one-shards-statistics-for-all",
        breaks="scores go by the statistics of one shard, so that they depend on how documents are spread",
        edits=(Edit("base.text:added", "part.having for part in parts)", "part.having for part in parts[:1])"),),
        sim=True,
        sharded=True,
        minutes=1.0,
        tests=("tests/client/test_hybrid.py::test_statistics_of_shards_are_added",),
    ),
    Mutant(
        name="statistics-of-words-as-of-before",
        breaks="a strong search weighs its words by statistics that any replica has, however old",
        edits=(
            Edit(
                "client.router.by_words:search_words",
                "lambda owned: owned.owners,\n        fresh,",
                "lambda owned: owned.owners,\n        lambda shard: Freshness(type(fresh(shard).mode)('eventual')),",
            ),
        ),
        sim=True,
        sharded=True,
        minutes=1.0,
    ),
    Mutant(
        name="a-shard-left-out-of-the-statistics",
        breaks="words are weighed without the documents of one shard, where there are several",
        edits=(
            Edit(
                "client.router.by_words:_sums",
                "in answers.by_shard.items():",
                "in [*answers.by_shard.items()][len(answers.by_shard) > 1 :]:",
            ),
        ),
        sim=True,
        sharded=True,
        minutes=1.0,
    ),
    Mutant(
        name="words-of-what-moves-count-twice",
        breaks="documents that are copied to a shard, or were given up by it, count in its statistics",
        edits=(
            Edit(
                "shard.text_search:search_words",
                "among = visible_ordinals(collection) if allow is None",
                "among = collection.live.bitmap() if counts else visible_ordinals(collection) if allow is None",
            ),
        ),
        sim=True,
        sharded=True,
        minutes=1.0,
    ),
    Mutant(
        name="ranks-of-the-other-list",
        breaks="a hybrid search weighs the ranks of the vector as those of the words",
        edits=(
            Edit(
                "client.hybrid:fused",
                "in zip(ranks, weights, strict=True):",
                "in zip(ranks[::-1], weights, strict=True):",
            ),
        ),
        sim=True,
        minutes=1.0,
        tests=("tests/client/test_hybrid.py::test_weights_k_and_offset",),
    ),
    Mutant(
        name="tied-documents-by-age",
        breaks="of documents with one score the oldest are hits, not those with the first ids",
        edits=(Edit("shard.text_search:best", "[: max(count, TIED_MAX)]", "[:count]"),),
        tests=("tests/shard/test_text_search.py::test_of_a_few_that_are_tied_those_with_the_first_ids_are_hits",),
    ),
    Mutant(
        name="all-tied-documents-are-read",
        breaks="a search reads all documents that are tied with its last hit, however many",
        edits=(Edit("shard.text_search:best", "[: max(count, TIED_MAX)]", ""),),
        tests=(
            "tests/shard/test_text_search.py::"
            "test_of_very_many_the_oldest_count_on_all_pages_and_the_others_are_not_read",
        ),
    ),
)
