"""Bugs of documents that expire (docs/adr/0044)."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_TESTS = "tests/shard/test_expiry.py::"
_EXPIRE = "shard.apply.expiry:expire"

MUTANTS = (
    Mutant(
        name="a-replica-expires-by-its-own-clock",
        breaks="what an Expire deletes depends on the clock of the replica that applies it",
        edits=(
            Edit(
                _EXPIRE,
                "stored.expiring(record.id, command.before,",
                "stored.expiring(record.id, command.before + __import__('time').monotonic_ns() % 2 * 10**9,",
            ),
        ),
        sim=True,
        tests=(_TESTS + "test_what_has_passed_its_instant_is_deleted_and_nothing_else",),
    ),
    Mutant(
        name="an-expire-looks-at-an-older-state",
        breaks="an Expire finds documents as they were before the batch of entries that it is applied with",
        edits=(
            Edit(
                "shard.apply.execute:runs",
                "type(inner(command)) in ALONE:",
                "type(inner(command)) in ALONE - {Expire}:",
            ),
        ),
        sim=True,
        tests=(_TESTS + "test_replicas_agree_with_each_other_and_with_a_plain_model",),
    ),
    Mutant(
        name="a-later-instant-is-forgotten",
        breaks="a document that was given a later instant, or none, expires at the former one",
        edits=(Edit("shard.apply.batch:Batch.amend", "instant = instant_of(expires, old)", "instant = old.expires"),),
        sim=True,
        sharded=True,
        tests=(_TESTS + "test_who_was_given_a_later_instant_stays",),
    ),
    Mutant(
        name="what-expires-is-forgotten",
        breaks="a leader that knows of nothing that expires does not hear of what is written later",
        edits=(
            Edit("shard.live_collection:LiveCollection.take", "if change.first_expiry and not", "if False and not"),
        ),
        tests=(_TESTS + "test_nothing_is_looked_at_while_nothing_can_expire",),
    ),
    Mutant(
        name="frozen-keys-expire",
        breaks="what disappears between a move's last copy and its release comes back in the other shard",
        edits=(Edit(_EXPIRE, "if fence is not None and fence.freezes:", "if False:"),),
        tests=(_TESTS + "test_frozen_keys_do_not_expire_until_they_are_somebodys_again",),
    ),
    Mutant(
        name="hidden-copies-that-expired-are-counted",
        breaks="a copy that expired before the shard owned it is taken off what is visible ever after",
        edits=(Edit(_EXPIRE, "if ordinals.intersect(gone):", "if False:"),),
        tests=(_TESTS + "test_what_the_target_expires_before_it_owns_it_does_not_come_back_to_sight",),
    ),
    Mutant(
        name="a-move-loses-the-instants",
        breaks="documents that moved to another shard never expire",
        edits=(
            Edit(
                "server.upkeep.range_copy:_command",
                "expires=expiries([row.expires for row in rows])",
                "expires=[]",
            ),
        ),
        sim=True,
        sharded=True,
    ),
)
