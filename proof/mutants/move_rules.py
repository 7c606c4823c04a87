"""Bugs of the way back of a key range that moves: attempts, thawing, giving up (docs/adr/0010)."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_MOVING = "tests/shard/test_moving.py::"
_MOVER = "tests/server/test_mover.py::"
_MOVES = "tests/catalog/planning/test_moves.py::"
_DRIVER = "server.upkeep.mover:Mover."
_THAWS = _MOVING + "test_a_frozen_range_thaws_and_what_is_late_of_that_attempt_is_refused"
_GIVEN_UP = _MOVING + "test_a_move_that_is_given_up_leaves_the_source_as_it_was_and_the_target_empty"
_WHOLE = _MOVER + "test_a_cancelled_move_stays_or_arrives_as_a_whole"
_BOUND = _MOVER + "test_writes_wait_for_a_silent_target_no_longer_than_the_bound"

MUTANTS = (
    Mutant(
        name="requests-are-copied-as-long-as-there-are-new-ones",
        breaks="a move ends only when no request with a key came during a step, which on slow cores is never",
        edits=(Edit("server.upkeep.range_copy:RangeCopier._copy_requests", "or copy.requests >= end", ""),),
        tests=(_MOVER + "test_requests_with_keys_that_go_on_coming_hold_up_neither_a_move_nor_its_cancel",),
    ),
    Mutant(
        name="collections-of-before-the-freeze",
        breaks="a collection that the driver heard of too late is not copied: its documents are lost",
        edits=(Edit(_DRIVER + "_confirmed", "newest.version != known.version and", "False and"),),
        tests=(_MOVER + "test_a_collection_of_which_the_driver_hears_after_the_freeze_is_copied",),
    ),
    Mutant(
        name="the-catalog-is-not-asked-after-the-freeze",
        breaks="a move that was cancelled goes on to its end as long as its driver has not heard of it",
        edits=(Edit(_DRIVER + "_confirmed", "newest.move(info.id) != info", "False"),),
        tests=(_MOVER + "test_a_cancel_of_which_the_driver_has_not_heard_is_heard_after_the_freeze",),
    ),
    Mutant(
        name="a-copy-that-failed-goes-on",
        breaks="after a rest that failed, another driver's import is taken for one's own: what that lacks is lost",
        edits=(Edit("server.upkeep.range_copy:RangeCopier.rest", "self.copies.pop(info.id, None)", "pass"),),
        tests=(_MOVER + "test_another_drivers_import_is_not_taken_for_one_that_failed",),
    ),
    Mutant(
        name="a-page-grows",
        breaks="a move reads more documents at a time than it may, so its driver's memory grows with its batch",
        edits=(
            Edit(
                "server.upkeep.range_copy:RangeCopier._copy_collection",
                "min(left or rows_max, rows_max)",
                "left or 4 * rows_max",
            ),
        ),
        tests=("tests/server/test_move_memory.py::test_a_move_holds_a_page_at_a_time",),
    ),
    Mutant(
        name="deletes-of-the-rest-are-forgotten",
        breaks="what was deleted between the copy and the freeze comes back in the target",
        edits=(
            Edit(
                "server.upkeep.range_copy:_of_rest",
                "zip_longest(_parts(one.rows), gone)",
                "zip_longest(_parts(one.rows), [])",
            ),
        ),
        tests=(_MOVER + "test_a_move_copies_all_whatever_happens_meanwhile",),
    ),
    Mutant(
        name="unchanged-collections-by-their-size",
        breaks="a collection that has as many documents as when it was copied is taken for unchanged",
        edits=(
            Edit(
                "shard.copying:rest",
                "copied.get(name) == held.record",
                "name in copied and copied[name].documents == held.record.documents",
            ),
        ),
        tests=(_MOVER + "test_a_move_copies_all_whatever_happens_meanwhile",),
    ),
    Mutant(
        name="an-attempt-begins-under-the-number-of-the-one-before",
        breaks="what is late of an attempt that was thawed is taken for the next one's",
        edits=(Edit("catalog.range_moves:restarted", "attempt=info.attempt + 1", "attempt=info.attempt"),),
        tests=(_MOVES + "test_a_thawed_move_begins_anew_and_late_commands_of_the_attempt_are_refused",),
    ),
    Mutant(
        name="late-freeze-of-a-thawed-attempt",
        breaks="a freeze that is late holds writes of ranges that nobody thaws",
        edits=(Edit("shard.apply.moves:_freeze", "command.attempt < transfer.attempt", "False"),),
        tests=(_THAWS,),
    ),
    Mutant(
        name="late-release-of-a-thawed-attempt",
        breaks="a release of an attempt that was thawed gives ranges up whose target has confirmed something older",
        edits=(
            Edit(
                "shard.apply.moves:_release",
                "if transfer.phase == GIVEN_UP or command.attempt < transfer.attempt:",
                "command = Release(command.move, transfer.attempt)\n    if transfer.phase == GIVEN_UP:",
            ),
        ),
        tests=(_THAWS,),
    ),
    Mutant(
        name="late-own-of-a-thawed-attempt",
        breaks="the target owns what it confirmed in an attempt that was thawed since: the source has written more",
        edits=(Edit("shard.apply.moves:_own", "command.attempt + 1 != transfer.attempt", "False"),),
        tests=(_THAWS,),
    ),
    Mutant(
        name="late-advance-of-a-thawed-attempt",
        breaks="the catalog takes the end of an attempt that was thawed for that of the next one",
        edits=(Edit("catalog.range_moves:advanced", "info.attempt != command.attempt", "False"),),
        tests=(_MOVES + "test_a_thawed_move_begins_anew_and_late_commands_of_the_attempt_are_refused",),
    ),
    Mutant(
        name="thaw-after-release",
        breaks="the source takes writes again for ranges that the target owns, or is about to",
        edits=(Edit("shard.apply.moves:_thaw", "transfer.phase != FROZEN", "transfer.phase == OPEN"),),
        tests=(_MOVING + "test_what_was_released_is_neither_thawed_nor_given_up",),
    ),
    Mutant(
        name="given-up-after-release",
        breaks="the source keeps ranges that it has released: two shards own them",
        edits=(
            Edit("shard.apply.moves:_give_up", "transfer.phase not in (OPEN, FROZEN)", "transfer.phase == GIVEN_UP"),
        ),
        sim=True,
        sharded=True,
        tests=(_MOVING + "test_what_was_released_is_neither_thawed_nor_given_up",),
    ),
    Mutant(
        name="released-without-confirmation",
        breaks="the source gives ranges up when the bound is over, whether or not the target has everything",
        edits=(
            Edit(
                _DRIVER + "_confirmed",
                "raise DeadlineExceeded(",
                "return self._copier.copies[info.id]; raise DeadlineExceeded(",
            ),
        ),
        sim=True,
        sharded=True,
        tests=(_BOUND,),
    ),
    Mutant(
        name="restarted-without-thaw",
        breaks="the catalog says that the next attempt begins, and the source still refuses writes",
        edits=(Edit(_DRIVER + "_hand_over", "await self._steps.propose(info, Thaw(info.id, info.attempt))", "pass"),),
        sim=True,
        sharded=True,
        tests=(_BOUND,),
    ),
    Mutant(
        name="cancelled-whatever-the-source-says",
        breaks="a cancel comes after the release: the catalog gives the ranges up, which then nobody owns",
        edits=(Edit(_DRIVER + "_give_up", "source is not None and source.phase == GIVEN_UP", "source is not None"),),
        sim=True,
        sharded=True,
        tests=(_WHOLE,),
    ),
    Mutant(
        name="catch-up-skipped",
        breaks="the target confirms what was copied before the freeze, and what was written since is lost",
        edits=(
            Edit(
                _DRIVER + "_confirmed",
                "self._copy_rest(info, copy, known)",
                "self._steps.tell_target(info, Confirm(info.id, copy.step, info.attempt))",
            ),
        ),
        sim=True,
        sharded=True,
        minutes=1.0,
        tests=(_MOVER + "test_a_move_copies_all_whatever_happens_meanwhile",),
    ),
    Mutant(
        name="switch-skipped",
        breaks="the map names a target that never took the ranges: the source has given them up, and nobody owns them",
        edits=(
            Edit(
                _DRIVER + "_switch",
                "Own(info.id, copy.step, source.floor, info.attempt)",
                "self._steps.prepare(info, info.target)",
            ),
        ),
        sim=True,
        sharded=True,
        minutes=1.0,
        tests=(_MOVER + "test_a_move_copies_all_whatever_happens_meanwhile",),
    ),
    Mutant(
        name="switch-not-told",
        breaks="the catalog never hears that a range has switched: the map names the source forever",
        edits=(
            Edit(
                _DRIVER + "_switch",
                "await self._steps.tell_catalog(\n        AdvanceMove",
                "str(\n        AdvanceMove",
            ),
        ),
        sim=True,
        sharded=True,
        minutes=1.0,
    ),
    Mutant(
        name="cleaning-up-skipped",
        breaks="the source keeps what it has left behind forever",
        edits=(
            Edit(
                _DRIVER + "_advance",
                "while not await self._forgotten(info):",
                "while False:",
            ),
        ),
        tests=(_MOVER + "test_a_move_copies_all_whatever_happens_meanwhile",),
    ),
    Mutant(
        name="frozen-until-the-target-is-back",
        breaks="writes of a range wait as long as the target has no majority",
        edits=(Edit(_DRIVER + "_confirmed", "loop.time() + self._freeze_seconds", "loop.time() + 3600"),),
        tests=(_BOUND,),
    ),
    Mutant(
        name="copy-kept-after-a-cancel",
        breaks="what was copied of a move that is given up stays at its target, and comes to light with the next one",
        edits=(Edit("shard.apply.moves:_discard", "DISCARDING if gone else GIVEN_UP", "GIVEN_UP"),),
        tests=(_GIVEN_UP,),
    ),
    Mutant(
        name="copied-after-a-cancel",
        breaks="a late page of a move that is given up is imported while its copy is deleted, and stays",
        edits=(Edit("shard.apply.moves:_discard", "DISCARDING if gone else GIVEN_UP", "OPEN if gone else GIVEN_UP"),),
        tests=(_GIVEN_UP,),
    ),
)
