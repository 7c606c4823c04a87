"""Bugs of filters by ids, of the versions of operators, and of scans in the order of a field."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_ORDERED = "tests/shard/test_ordered_scans.py::"

MUTANTS = (
    Mutant(
        name="an-ordered-page-repeats-a-document",
        breaks="a page in the order of a field begins with the document that ended the one before",
        edits=(
            Edit("shard.ordered_scan:Ordered._read", "(key, document.id) <= self._behind", "key < self._behind[0]"),
        ),
        tests=(_ORDERED + "test_every_kind_of_value_has_its_place",),
    ),
    Mutant(
        name="an-ordered-page-forgets-what-no-column-holds",
        breaks="documents whose value no column of an index can hold are not where the order has them",
        edits=(
            Edit(
                "shard.fields.ordered:undecided",
                "return (odd | universe - BitMap(range(state.end))) & universe",
                "return BitMap()",
            ),
        ),
        tests=(_ORDERED + "test_every_kind_of_value_has_its_place",),
    ),
    Mutant(
        name="a-page-from-the-greatest-goes-by-the-least",
        breaks="from the greatest value on, a document with several stands where its least one has it",
        edits=(
            Edit(
                "base.filters.ordering:key_of",
                "max(keys, default=LAST) if descending else min(keys, default=LAST)",
                "min(keys, default=LAST)",
            ),
        ),
        tests=(_ORDERED + "test_every_kind_of_value_has_its_place",),
    ),
    Mutant(
        name="shards-pages-merged-upwards",
        breaks="pages of several shards, from the greatest value on, are put together from the least",
        edits=(Edit("client.router.merge:merge_pages", "turned(key) if descending else key), name", "key), name"),),
        tests=("tests/client/test_scans.py::test_pages_in_the_order_of_a_field_lose_and_repeat_nothing",),
    ),
    Mutant(
        name="a-filter-by-ids-sees-another-moment",
        breaks="a search by ids misses a document that was replaced while it ran",
        edits=(
            Edit(
                "shard.documents.scans:placed",
                "dead = died().to_array()",
                "dead = []",
            ),
        ),
        tests=("tests/shard/test_filters_by_id.py::test_a_search_of_an_earlier_moment_finds_what_was_there_then",),
    ),
    Mutant(
        name="an-operator-is-written-too-early",
        breaks="a change by a filter gets into a log although nodes that apply it do not know the filter's operator",
        edits=(Edit("protocol.versioned:Versioned.needs", "if written := _at(self, path):", "if False:"),),
        tests=(
            "tests/catalog/test_versions.py"
            "::test_a_filter_that_is_judged_at_apply_is_proposed_only_where_all_know_its_operators",
        ),
    ),
    Mutant(
        name="places-beyond-the-line-of-180-degrees-are-lost",
        breaks="a box or a circle over the line of 180 degrees has only the places to the west of it",
        edits=(Edit("base.geo:Box.spans", "[(self.west, 180.0), (-180.0, self.east)]", "[(self.west, 180.0)]"),),
        tests=("tests/base/test_geo.py::test_the_line_of_180_degrees_and_the_poles",),
        sim=True,
        sharded=True,
        minutes=1.0,
    ),
)
