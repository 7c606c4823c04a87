"""Bugs of API keys that are bound to a filter, and of their rates (docs/adr/0061, 0062)."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_ACCESS = "tests/server/test_access.py::"
_VISIBLE = "tests/shard/test_visible.py::"
_RATES = "tests/base/test_rates.py::"

MUTANTS = (
    Mutant(
        name="bound-as-the-caller-says",
        breaks="a key that is bound to a filter searches by the one that its call names",
        edits=(Edit("protocol.bounds:_in_request", "bound=bound.filter", "bound=call.request.bound or bound.filter"),),
        tests=(_ACCESS + "test_what_a_caller_says_of_its_bound_counts_for_nothing",),
    ),
    Mutant(
        name="bound-of-counts-dropped",
        breaks="a count by a key that is bound to a filter counts what its own filter matches",
        edits=(Edit("shard.query:both", "(bound, filter_json) if one", "(filter_json or bound,) if one"),),
        tests=(_VISIBLE + "test_reads_show_what_matches",),
    ),
    Mutant(
        name="tenant-replaces-anothers-document",
        breaks="an insert takes the place of a document that its key does not see",
        edits=(Edit("shard.apply.visible:check_insert", "change.refs[id_] is not None", "False"),),
        tests=(_VISIBLE + "test_no_insert_takes_anothers_place_or_leaves_what_the_key_cannot_see",),
    ),
    Mutant(
        name="tenant-writes-for-another",
        breaks="an insert leaves a document that its key does not see",
        edits=(
            Edit("shard.apply.visible:check_written", "not evaluate(node, decode_metadata(metadata), id_)", "False"),
        ),
        tests=(
            _VISIBLE + "test_no_insert_takes_anothers_place_or_leaves_what_the_key_cannot_see",
            _VISIBLE + "test_no_change_moves_a_document_out_of_the_filter",
        ),
    ),
    Mutant(
        name="tenant-changes-by-id-unseen",
        breaks="changes and deletes by id reach documents that their key does not see",
        edits=(Edit("shard.apply.visible:seen", "None if id_ in hidden else change.refs[id_]", "change.refs[id_]"),),
        tests=(_VISIBLE + "test_what_is_not_visible_is_as_if_it_were_not_there",),
    ),
    Mutant(
        name="tenant-changes-by-filter-unseen",
        breaks="a change by a filter reaches documents that its key does not see",
        edits=(Edit("shard.apply.where:change_where", "And((parsed(bound.filter), node))", "node"),),
        tests=(_VISIBLE + "test_what_is_not_visible_is_as_if_it_were_not_there",),
    ),
    Mutant(
        name="sessions-of-all",
        breaks="a key that guesses the session of another one reads its answers and takes its numbers",
        edits=(
            Edit(
                "shard.apply.sessions:SessionTable.find",
                'self._nonces[session.id][8:] != owner.to_bytes(8, "little")',
                "False",
            ),
        ),
        tests=(_VISIBLE + "test_a_session_is_its_owners",),
    ),
    Mutant(
        name="pages-end-at-others-ids",
        breaks="a page of a scan tells the id of a document that its key does not see",
        edits=(Edit("shard.reads:Reads._scan", "reached = found[-1].id", "pass"),),
        tests=(_VISIBLE + "test_a_page_tells_no_id_of_others",),
    ),
    Mutant(
        name="rates-count-nothing",
        breaks="a key asks for as many requests as it likes",
        edits=(Edit("base.rates:Meter.admit", "left[0] -= 1", "pass"),),
        tests=(_RATES + "test_requests_pass_by_the_rate_with_one_second_at_once",),
    ),
    Mutant(
        name="rates-without-debts",
        breaks="what a request is beyond a second's worth is given to it",
        edits=(Edit("base.rates:Meter.pay", "-= max(0, documents)", "-= min(max(0, documents), self._left[1])"),),
        tests=(_RATES + "test_what_is_larger_than_a_second_passes_and_is_waited_for",),
    ),
    Mutant(
        name="rates-of-the-first-day",
        breaks="other rates of a key are not heard of by nodes that know it",
        edits=(Edit("server.access:Access.follow", "before.rates != key.rates", "False"),),
        tests=(_ACCESS + "test_rates_change_for_connections_that_are_open",),
    ),
)
