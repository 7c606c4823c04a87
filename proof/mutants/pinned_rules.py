"""Bugs of consistent scans (docs/adr/0060), and of what whoever leads a shard must know (docs/adr/0065)."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_TESTS = "tests/shard/test_pinned_scans.py::"
_LEADERS = "tests/server/test_catalog_known.py::test_a_new_leader_that_has_not_heard_of_it_serves_nothing_by_it"

MUTANTS = (
    Mutant(
        name="a-pinned-scan-sees-later-writes",
        breaks="later pages of a consistent scan show what there is when they are read",
        edits=(Edit("shard.reads:_rows", "if page.pin is not None:", "if False:"),),
        sim=True,
        tests=(_TESTS + "test_a_pin_sees_what_was_there_whatever_happens",),
    ),
    Mutant(
        name="a-purge-does-not-wait-for-scans",
        breaks="versions that died are purged while a consistent scan may see them",
        edits=(
            Edit(
                "shard.documents.purging:unpinned",
                'if not held and not connection.execute("SELECT 1 FROM kept LIMIT 1").fetchone():',
                "if True:",
            ),
        ),
        sim=True,
        tests=(_TESTS + "test_a_purge_takes_nothing_that_a_pin_sees_and_everything_else",),
    ),
    Mutant(
        name="what-died-is-not-kept",
        breaks="a document that was replaced or deleted since is missing in a consistent scan",
        edits=(Edit("shard.apply.changes:CollectionChange.dies", "if old.ordinal < self.pinned:", "if False:"),),
        sim=True,
        tests=(_TESTS + "test_a_pin_sees_what_was_there_whatever_happens",),
    ),
    Mutant(
        name="a-pin-judges-by-todays-holdings",
        breaks="a consistent scan loses the documents of a range that has moved since",
        edits=(
            Edit(
                "shard.documents.scans:pinned",
                "held = pin.holdings or None",
                "held = dict(connection.execute(\"SELECT name, value FROM meta\")).get('holdings')",
            ),
        ),
        sim=True,
        sharded=True,
        tests=(_TESTS + "test_a_pin_sees_a_range_that_has_moved_since",),
    ),
    Mutant(
        name="a-page-ends-between-two-versions",
        breaks="a page of a consistent scan ends behind a version that it does not see, and loses the one that it does",
        edits=(Edit("shard.reads:Reads._scan", "id_ != reached and (", "("),),
        tests=(_TESTS + "test_pins_are_what_a_plain_model_says",),
    ),
    Mutant(
        name="a-pin-ends-on-one-replica",
        breaks="what is kept for a scan is given back before the log ends it",
        edits=(
            Edit(
                "shard.documents.purging:release", "before = oldest if oldest is not None else _EVER", "before = _EVER"
            ),
        ),
        sim=True,
        tests=(_TESTS + "test_a_purge_takes_nothing_that_a_pin_sees_and_everything_else",),
    ),
    Mutant(
        name="a-leader-serves-by-an-older-catalog",
        breaks="who becomes a shard's leader and has not heard that an alias changed serves what it meant before",
        edits=(Edit("server.service.checks:Ownerships.lacks_of", "> 0", "> 1 << 62"),),
        tests=(_LEADERS,),
    ),
    Mutant(
        name="a-reader-is-not-held-to-the-catalog",
        breaks="such a leader refuses writes only, and answers reads by the former meaning",
        edits=(
            Edit("server.service.documents:ShardDocuments.read", "if self._owners.lacks(call.group):", "if False:"),
            Edit(
                "server.service.node_searches:NodeSearches._early",
                "if documents.lacks(waiting[part.first + at].group)",
                "if False",
            ),
        ),
        tests=(_LEADERS,),
    ),
    Mutant(
        name="the-log-says-nothing-of-an-alias",
        breaks="only the leaders of the moment know that an alias changed, and none that comes after them has to",
        edits=(Edit("client.router.collections:_renamed", ", by_log=True", ""),),
        tests=(_LEADERS,),
    ),
)
