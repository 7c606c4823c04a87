"""Bugs of what travels, and is written, of the catalog when it changes (docs/adr/0126)."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_CHANGES = "tests/routing/test_topology_changes.py::"
_HEARING = "tests/client/test_hearing.py::"
_ROWS = "tests/catalog/test_catalog_rows.py::"
_UNCOMPARED = Edit("routing.topology_changes:changed", "if made.sum == changes.sum else None", "")

MUTANTS = (
    Mutant(
        name="changes-put-into-another-topology",
        breaks="who knows another topology of that version gets one between the two: a map that nobody ever had",
        edits=(_UNCOMPARED,),
        tests=(
            _CHANGES + "test_what_is_put_into_another_topology_makes_nothing",
            _HEARING + "test_who_knows_another_topology_of_that_version_is_told_the_whole",
        ),
    ),
    Mutant(
        name="the-last-change-told-to-all",
        breaks="who has missed several changes is told the last one, puts it into what it knows, and routes by that",
        edits=(
            Edit(
                "routing.topology_changes:History.since",
                "step.version <= version:\n            break\n        first = step.before",
                "step.version < told.version:\n            break\n        first = version",
            ),
            _UNCOMPARED,
        ),
        sim=True,
        sharded=True,
        tests=(_CHANGES + "test_whoever_is_told_what_changed_has_what_the_sender_has",),
    ),
    Mutant(
        name="changes-told-for-versions-between",
        breaks="who has a version that a node never saw keeps what was so only then, or asks twice each time",
        edits=(Edit("routing.topology_changes:History.since", "first != version", "False"),),
        tests=(_CHANGES + "test_what_changed_and_changed_back_unseen_is_not_passed_over",),
    ),
    Mutant(
        name="keys-told-among-changes",
        breaks="a reader hears the hashes of all API keys when one is made",
        edits=(
            Edit(
                "server.service.catalog:CatalogCalls.shortened",
                "call.version, call.founding, told",
                "call.version, call.founding, self._node.topology",
            ),
        ),
        tests=("tests/server/test_access.py::test_what_changed_is_told_as_the_caller_may_hear_it",),
    ),
    Mutant(
        name="rows-of-dropped-collections-stay",
        breaks="the catalog's file has a row that its state does not count: it is damaged when it is opened next",
        edits=(
            Edit(
                "catalog.machine:CatalogMachine._write_rows",
                "[(info.id,) for info in gone]",
                "[(info.id,) for info in gone if info.fields]",
            ),
        ),
        tests=(_ROWS + "test_whatever_was_applied_is_there_when_the_file_is_opened",),
    ),
    Mutant(
        name="catalog-of-rows-before-all-nodes-know-them",
        breaks="a node that was upgraded first cannot go back: the former release does not read its catalog",
        edits=(
            Edit(
                "catalog.machine:CatalogMachine._write",
                "state.topology.cluster_version >= ROWS_SINCE",
                "state.topology.cluster_version >= ROWS_SINCE - 1",
            ),
        ),
        tests=(_ROWS + "test_until_all_nodes_know_rows_the_release_before_can_open_the_file",),
    ),
    Mutant(
        name="names-that-came-into-a-shard-not-followed",
        breaks="a shard's leader makes again what the shard has, and leaves there what was dropped",
        edits=(
            Edit(
                "server.catalog.shard_names:ShardNames.compare",
                "*came_and_went, *self._of_catalog(topology)",
                "*self._of_catalog(topology),",
            ),
        ),
        tests=("tests/server/test_shard_names.py::test_it_is_what_a_look_at_all_of_them_finds",),
    ),
    Mutant(
        name="names-of-another-state-followed",
        breaks="after a snapshot a shard's leader goes by which names came and went in the state before it",
        edits=(Edit("shard.name_changes:NameChanges.since", "or self.of is not before.of", ""),),
        tests=("tests/server/test_shard_names.py::test_of_another_state_or_of_too_long_ago_nothing_is_known",),
    ),
    Mutant(
        name="steps-of-a-catalog-forget-what-was-there",
        breaks="of several changes that are adopted at once what was altered twice is told as what it never was",
        edits=(
            Edit("routing.topology_changes:_together", "was.setdefault(_name(info), info)", "was[_name(info)] = info"),
        ),
        tests=(_CHANGES + "test_what_several_changes_come_to_is_what_a_look_through_both_ends_finds",),
    ),
    Mutant(
        name="digests-of-what-a-collection-was",
        breaks="replicas are compared by what they held when they were opened: one that differs is never seen",
        edits=(Edit("shard.documents.digest:DigestParts.digest", "and kept[0] is record", ""),),
        tests=("tests/shard/test_many_collections.py::test_a_digest_is_made_of_what_changed_since_the_last_one",),
    ),
    Mutant(
        name="what-expires-first-forgotten",
        breaks="a document whose instant became the earliest later than others' stays until theirs have passed",
        edits=(
            Edit(
                "shard.soonest:Soonest.put", "heapq.heappush(self._heap, (when, id_))", "self._heap.append((when, id_))"
            ),
        ),
        tests=("tests/shard/test_soonest.py::test_it_is_what_a_look_at_all_of_them_would_find",),
    ),
)
