"""Bugs of change feeds (docs/adr/0098)."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_PLACES = "tests/server/http/test_feed_places.py::"
_TESTS = "tests/shard/test_effects.py::"
_MOVED = (_TESTS + "test_what_a_move_brings_and_takes_is_no_change_and_a_page_ends_before_it",)

MUTANTS = (
    Mutant(
        name="a-restarted-replica-claims-to-know-all-changes",
        breaks="a feed that goes to a replica which was opened lately loses the changes that it does not remember",
        edits=(
            Edit(
                "shard.effects:EffectLog.begin",
                "self._clear(applied + 1)",
                "self._clear(1)",
            ),
        ),
        sim=True,
        sharded=True,
        tests=(_TESTS + "test_a_replica_that_was_opened_again_says_that_it_does_not_know",),
    ),
    Mutant(
        name="what-a-move-brings-is-told-again",
        breaks="a feed tells the documents of a range a second time when it moves, and that its source deleted them",
        edits=(
            Edit(
                "shard.apply.execute:_run",
                "batch.telling = 0 if type(command) in _OF_MOVES else index",
                "batch.telling = index",
            ),
        ),
        sim=True,
        sharded=True,
        tests=_MOVED,
    ),
    Mutant(
        name="a-feed-does-not-wait-at-a-move",
        breaks="what the new owner of a range changed is told before what the former one did",
        edits=(
            Edit(
                "shard.feeding:read_changes",
                "if effect.kind == OWNED and effect.first != wanted.past:",
                "if False:",
            ),
        ),
        tests=_MOVED,
    ),
    Mutant(
        name="nobody-hears-at-once-that-ranges-left",
        breaks="a reader that opens its feed again each second stands still after a move, for the answer waits longer",
        edits=(Edit("shard.feeding:read_changes", "effect.kind == RELEASED for effect", "False for effect"),),
        tests=_MOVED,
    ),
    Mutant(
        name="copies-that-expire-are-never-told-of",
        breaks="a document that expired while its range moved stays in a consumer's copy",
        edits=(Edit("shard.effects:EffectLog.doubt", "self._doubtful = True", "pass"),),
        tests=(_TESTS + "test_a_copy_that_expires_before_it_is_owned_makes_a_feed_begin_anew",),
    ),
    Mutant(
        name="a-purge-takes-what-a-feed-may-read",
        breaks="a feed begins again whenever rows are purged",
        edits=(Edit("shard.documents.purging:_is_held", "return ordinals is not None and", "return False and"),),
        tests=(_TESTS + "test_rows_that_a_feed_may_read_are_not_purged_and_others_are",),
    ),
    Mutant(
        name="a-purge-takes-what-left-with-a-range",
        breaks="a feed begins again if ranges moved while its reader was away, and what it missed was written in them",
        edits=(Edit("shard.apply.moves:_forget", "telling=index", "telling=0"),),
        tests=(_TESTS + "test_what_was_written_and_then_moved_away_is_told_to_who_comes_back_later",),
    ),
    Mutant(
        name="a-token-is-ahead-of-what-was-handed-out",
        breaks="who goes on from a token misses the changes that were read, and not handed out",
        edits=(Edit("client.feed:Changes.token", "dict(self._told)", "dict(self._shards.read)"),),
        tests=("tests/cluster/test_change_feeds.py::test_each_change_is_told_once_and_a_token_goes_on",),
    ),
    Mutant(
        name="a-piece-of-a-scan-is-told-as-it-was-read",
        breaks="what changed while a piece of all documents was read is neither in the piece nor told behind it",
        edits=(Edit("client.feed:Changes._took", "if scan.reaches(change.id):", "if False:"),),
        tests=(
            "tests/cluster/test_change_feeds.py::"
            "test_a_reader_comes_to_the_end_of_all_documents_however_much_is_written_meanwhile",
        ),
    ),
    Mutant(
        name="who-moves-away-is-told-as-changed",
        breaks="a watcher takes documents for near that have moved away",
        edits=(Edit("shard.feeding:_told", "if one.old in there:", "if False:"),),
        tests=("tests/client/test_feed_sync.py::test_a_watcher_hears_what_comes_near_and_what_leaves",),
    ),
    Mutant(
        name="a-reader-that-left-keeps-its-place",
        breaks="a node answers 429 to all feeds, once 256 readers have left",
        edits=(Edit("server.http.events:Told.aclose", "self._place.close()", "pass"),),
        tests=(_PLACES + "test_a_reader_that_leaves_gives_its_place_back_also_before_the_answer_began",),
    ),
    Mutant(
        name="pages-of-silent-readers-are-not-counted",
        breaks="feeds that nobody reads hold as much memory as there is",
        edits=(Edit("client.feed_shards:ShardFeed._poll", "self._held.take(size_of(page))", "pass"),),
        tests=("tests/client/test_feed_memory.py::test_what_there_is_no_room_for_is_asked_for_anew",),
    ),
    Mutant(
        name="pieces-of-silent-readers-are-not-counted",
        breaks="feeds that nobody reads hold as many documents as there is memory for",
        edits=(Edit("client.feed:Changes._piece", "self.held.take(size_of(page))", "pass"),),
        tests=("tests/client/test_feed_memory.py::test_a_feed_holds_a_page_at_most_and_nothing_at_its_end",),
    ),
    Mutant(
        name="what-was-read-counts-as-held",
        breaks="a feed ends for want of memory that it does not hold",
        edits=(Edit("client.feed:Changes._hand_out", "self.held.free(step.size)", "pass"),),
        tests=("tests/client/test_feed_memory.py::test_a_feed_holds_a_page_at_most_and_nothing_at_its_end",),
    ),
    Mutant(
        name="an-open-feed-knows-no-new-rates",
        breaks="a key that is limited while its feed is open is not held back",
        edits=(Edit("server.http.events:_told", "(meter := caller.meter) is not None", "(meter := None) is not None"),),
        tests=(_PLACES + "test_a_key_that_is_limited_while_its_feed_is_open_is_held_back",),
    ),
)
