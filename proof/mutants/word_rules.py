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
        tests=(_PLAIN,),
    ),
    Mutant(
        name="words-of-before-a-merge-count-twice",
        breaks="a run of an index is scored twice",
        edits=(
            Edit("shard.fields.word_search:WordSearch._scored", "for run in self._runs:", "for run in self._runs * 2:"),
        ),
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
        tests=("tests/client/test_hybrid.py::test_statistics_of_shards_are_added",),
    ),
)
