"""Bugs of requests with idempotency keys: what is executed twice, or told to somebody else (docs/adr/0063)."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_ONCE = "tests/shard/test_once.py::"
_FAST = "tests/server/test_fast_writes.py::"
_AT_ONCE = "server.service.documents:ShardDocuments.at_once"
_MOVER = "tests/server/test_mover.py::"

MUTANTS = (
    Mutant(
        name="requests-twice",
        breaks="a request that is sent again, for its answer was lost, is executed again",
        edits=(Edit("shard.apply.once:OnceTable.find", "if not known:", "if True:"),),
        sim=True,
        sharded=True,
        minutes=1.0,
        tests=(_ONCE + "test_a_request_that_comes_again_under_another_session_is_not_executed_again",),
    ),
    Mutant(
        name="requests-stay-behind",
        breaks="a request is executed again by the shard that its documents have moved to",
        edits=(
            Edit("server.upkeep.range_copy:RangeCopier.copy", "await self._copy_requests(info, copy)", "pass"),
            Edit("server.upkeep.range_copy:_of_rest", "if rows:", "if False:"),
        ),
        tests=(_MOVER + "test_a_move_copies_all_whatever_happens_meanwhile",),
    ),
    Mutant(
        name="requests-of-the-last-minute-stay-behind",
        breaks="what was executed between the copy and the freeze is executed again where it has moved to",
        edits=(
            Edit(
                "server.upkeep.range_copy:_of_rest",
                "if rows:",
                "if False:",
            ),
        ),
        tests=(_MOVER + "test_a_move_copies_all_whatever_happens_meanwhile",),
    ),
    Mutant(
        name="requests-by-key-alone",
        breaks="another request with the same key gets the answer of the first one",
        edits=(Edit("shard.apply.once:OnceTable.find", "if record.asked == asked]", "]"),),
        tests=(_ONCE + "test_another_request_with_the_same_key_is_refused",),
    ),
    Mutant(
        name="requests-cut-anew",
        breaks="a part of a batch is written again when the batch is cut in another way",
        edits=(
            Edit("shard.apply.once:OnceTable.find", "if not wanted.isdisjoint(_units(record.units))]", "if False]"),
        ),
        tests=(_ONCE + "test_parts_of_a_batch_that_is_cut_in_another_way",),
    ),
    Mutant(
        name="requests-forgotten-by-a-restart",
        breaks="a replica that was opened again executes a request again, and the others do not",
        edits=(Edit("shard.apply.once:OnceTable._keep", "self._changed[SESSION, number] =", "_ ="),),
        tests=(
            _ONCE + "test_a_request_that_comes_again_under_another_session_is_not_executed_again",
            _ONCE + "test_any_order_of_requests_leaves_replicas_equal",
        ),
    ),
    Mutant(
        name="requests-for-ever",
        breaks="what is remembered of requests grows without end",
        edits=(Edit("shard.apply.once:OnceTable._keep", "> self._records_max", "> 1 << 40"),),
        tests=(_ONCE + "test_records_are_bounded_in_number_bytes_and_time",),
    ),
    Mutant(
        name="no-write-at-once",
        breaks="every routed write gets a task of its own: the fast road of docs/adr/0009 is never taken",
        edits=(Edit(_AT_ONCE, "owned is None or owned.epoch != call.epoch", "owned is None or owned.epoch"),),
        tests=(_FAST + "test_a_small_write_is_proposed_at_once",),
    ),
    Mutant(
        name="writes-that-cost-nothing",
        breaks="a key with a rate of documents writes as many as it likes, one by one",
        edits=(Edit("server.service.dispatch:Service._write", "caller.name, caller.meter)", "caller.name, None)"),),
        tests=(_FAST + "test_a_limited_key_pays_for_what_it_wrote",),
    ),
    Mutant(
        name="refused-writes-untold",
        breaks="a bound key may try all ids, and the audit log has none of it",
        edits=(Edit("server.service.audited:Audited._heard", "isinstance(error, NeedleError)", "False"),),
        tests=(_FAST + "test_what_the_log_refuses_a_bound_key_is_refused_and_written_down",),
    ),
    Mutant(
        name="bound-writes-unbound",
        breaks="a key that is bound to a filter writes any document, where a shard is asked directly",
        edits=(Edit("server.service.dispatch:Service._judged", "caller.filter or", "False and"),),
        tests=(_FAST + "test_what_the_log_refuses_a_bound_key_is_refused_and_written_down",),
    ),
)
