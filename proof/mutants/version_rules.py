"""Bugs of clusters whose nodes are of two releases (docs/adr/0042)."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_VERSIONS = "tests/catalog/test_versions.py::"
_ROLLED = _VERSIONS + "test_a_cluster_is_upgraded_node_by_node"

MUTANTS = (
    Mutant(
        name="version-rises-before-the-last-node",
        breaks="the cluster uses commands that a node which was not upgraded yet cannot read",
        edits=(Edit("routing.topology:Topology.older_than", "info.knows < version", "info.knows < FIRST"),),
        tests=(_VERSIONS + "test_the_version_rises_when_the_last_node_knows_it_and_never_falls",),
    ),
    Mutant(
        name="silent-nodes-are-taken-for-new-ones",
        breaks="a node that is away, and never said what it knows, does not hold the version back",
        edits=(
            Edit("server.upkeep.version_rise:VersionRise._one", "return FIRST\n    return", "return 9\n    return"),
        ),
        tests=(_VERSIONS + "test_nodes_are_asked_until_the_catalog_keeps_what_they_know",),
    ),
    Mutant(
        name="too-new-command-proposed",
        breaks="a command gets into a log although nodes that apply it cannot read it: they stop",
        edits=(Edit("protocol.versioned:check_known", "needs <= at", "needs > 0"),),
        tests=(_VERSIONS + "test_a_command_is_proposed_only_where_all_can_read_it", _ROLLED),
    ),
    Mutant(
        name="own-needs-not-asked",
        breaks="a key of the role monitor gets into the catalog's log while nodes that do not know the role apply it",
        edits=(Edit("protocol.versioned:check_known", "at >= _newest(type(command))", "at >= 4"),),
        tests=(_VERSIONS + "test_no_value_of_any_command_gets_into_a_log_below_the_version_that_it_needs",),
    ),
    Mutant(
        name="writes-proposed-unchecked",
        breaks="what clients write is proposed without a look at the version that the cluster is at",
        edits=(
            Edit(
                "server.service.documents:judged",
                "commands.entry(command, node.topology, micros_of(node.ports.clock))",
                "commands.encode(command)",
            ),
        ),
        tests=(_ROLLED,),
    ),
    Mutant(
        name="former-release-comes-back",
        breaks="a node of the former release starts in a cluster that uses what it cannot read",
        edits=(Edit("base.versions:check_version", "at > knows", "at < 0"),),
        tests=(_ROLLED, _VERSIONS + "test_a_catalog_of_a_version_that_a_node_does_not_know_is_not_used"),
    ),
    Mutant(
        name="hello-of-the-former-release-accepted",
        breaks="nodes go on talking to one that would leave out the fields it does not know",
        edits=(Edit("rpc.codec:check_hello", "theirs.knows < least", "theirs.knows < 0"),),
        tests=(_ROLLED,),
    ),
    Mutant(
        name="new-commands-sent-to-old-nodes",
        breaks="a node of the former release makes a collection without the text index that was asked for",
        edits=(Edit("client.shards:ClusterShards._check_known", "command.needs() > self", "command.needs() < self"),),
        tests=("tests/client/test_too_new.py::test_it_is_refused_before_it_is_sent",),
    ),
    Mutant(
        name="unreadable-entries-skipped",
        breaks="a replica passes over an entry of a newer release and serves what the others do not have",
        edits=(
            Edit(
                "shard.apply.execute:decode_entry",
                "return decode_logged(data) if data else None",
                "try:\n        return decode_logged(data)\n    except UnsupportedFormat:\n        return None",
            ),
        ),
        tests=("tests/shard/test_state_machine.py::test_an_entry_that_this_release_cannot_read_is_not_passed_over",),
    ),
    Mutant(
        name="snapshots-of-a-newer-format",
        breaks="a node of the former release gets a snapshot that it cannot open: it stops, and does not start again",
        edits=(Edit("shard.documents.sqlite_file:copy_pages", "version < READ_SINCE", "version < 0"),),
        tests=("tests/shard/test_snapshot.py::test_a_snapshot_for_nodes_of_the_release_before_is_in_their_format",),
    ),
    Mutant(
        name="older-formats-leave-out",
        breaks="a snapshot for a node of the former release has documents that no longer expire",
        edits=(Edit("shard.documents.old_formats:back_to_format_4", "!= (0,)", "is None"),),
        tests=("tests/shard/test_snapshot.py::test_what_the_format_before_cannot_hold_is_never_left_out",),
    ),
)
