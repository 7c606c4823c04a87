"""Bugs of clusters that found themselves (docs/adr/0033)."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_STEPS = "tests/server/test_founding_steps.py::"
_TWO = "tests/cluster/test_two_foundings.py::"
_FOUNDINGS = "tests/rpc/test_founding.py::"
_FOUNDING = "server.catalog.settings_founding:SettingsFounding."

MUTANTS = (
    Mutant(
        name="cluster-begun-by-a-minority",
        breaks="a node that reaches nobody begins a catalog of its own",
        edits=(Edit(_FOUNDING + "_begin", "2 * len(who) <= len(addresses)", "not who"),),
        tests=(_STEPS + "test_who_begins",),
    ),
    Mutant(
        name="cluster-begun-beside-one-that-is-there",
        breaks="nodes with empty directories begin a second catalog although others tell them of the first",
        edits=(Edit(_FOUNDING + "_begin", "answer.version for answer", "answer.version < 0 for answer"),),
        tests=(_STEPS + "test_who_begins",),
    ),
    Mutant(
        name="cluster-made-with-nodes-of-another",
        breaks="nodes with other lists, or of another cluster, get into one",
        edits=(Edit(_FOUNDING + "_check", "answer.uid not in (0, cluster_uid(self._node.config))", "answer.uid < 0"),),
        tests=(_STEPS + "test_who_begins", _STEPS + "test_no_cluster_is_made_with_a_node_of_another_one"),
    ),
    Mutant(
        name="any-list-will-do",
        breaks="a wrong list is written down and cannot be put right",
        edits=(Edit(_FOUNDING + "_check_lists", "answer.uid == 0 and answer.founds != mine", "answer.uid < 0"),),
        tests=(_STEPS + "test_who_begins",),
    ),
    Mutant(
        name="cluster-made-twice",
        breaks="a leader that has just been elected makes the cluster once more, with another founding",
        edits=(Edit(_FOUNDING + "_create", "node.catalog.topology.settings is None", "node.catalog.topology"),),
        tests=(_STEPS + "test_who_does_not_lead_or_finds_it_founded_makes_nothing",),
    ),
    Mutant(
        name="nobody-is-waited-for",
        breaks="a node that starts a moment later than the others is founded without its zone and weight",
        edits=(Edit(_FOUNDING + "_create", "if silent and patient:", "if silent and not patient:"),),
        tests=(_STEPS + "test_a_silent_node_is_waited_for_and_then_is_one_that_may_come_later",),
    ),
    Mutant(
        name="any-directory-may-have-the-name",
        breaks="a node that came back with an empty directory is taken for the one that voted",
        edits=(Edit("catalog.nodes:register", "not in (0, node.incarnation)", "in ()"),),
        tests=("tests/catalog/test_catalog.py::test_a_removed_or_forgetful_node_does_not_come_back",),
    ),
    Mutant(
        name="a-new-list-is-not-looked-at",
        breaks="nodes that all moved, and were told so by their lists, never find each other",
        edits=(Edit("server.catalog.settings_founding:seeds_of", "at != known(node)", "at == known(node)"),),
        tests=(_STEPS + "test_where_a_node_asks_for_its_cluster",),
    ),
    Mutant(
        name="recovered-beside-the-living",
        breaks="a node that answers and does not say who it is counts as dead, and a second cluster is made beside it",
        edits=(Edit("server.recovery.others:alive", "living[at] = error.message", "silent[at] = error.message"),),
        tests=("tests/server/test_recovery.py::test_what_answers_lives_unless_it_is_surely_somebody_else",),
    ),
    Mutant(
        name="former-nodes-stay-members",
        breaks="the nodes that were lost are members of the recovered cluster, and may come back into it",
        edits=(
            Edit(
                "server.recovery.plan:recovered",
                "_replace(info, state=NodeState.REMOVED, maintenance=0)",
                "_replace(info, maintenance=0)",
            ),
        ),
        tests=("tests/server/test_recovery.py::test_it_is_a_cluster_of_one_node_that_nobody_takes_for_the_former",),
    ),
    Mutant(
        name="recovered-without-what-is-not-known",
        breaks="what the survivor does not know to be on a majority is thrown away, acknowledged or not",
        edits=(
            Edit(
                "server.recovery.plan:plan_of",
                "one.last + 1",
                "one.commit + 1",
            ),
        ),
        tests=("tests/server/test_recovery.py::test_it_is_a_cluster_of_one_node_that_nobody_takes_for_the_former",),
    ),
    Mutant(
        name="another-cluster-is-spoken-to",
        breaks="a client goes on with a node that was founded again, and has writes acknowledged there",
        edits=(Edit("rpc.codec:check_hello", "mine.founding and theirs.founding", "False"),),
        tests=(_FOUNDINGS + "test_a_client_is_sent_away_by_a_node_of_another_founding",),
    ),
    Mutant(
        name="who-founds-keeps-strangers",
        breaks="a node that founds a cluster goes on with clients of another one that were connected before",
        edits=(Edit("rpc.server:RpcServer.of_founding", "connection.refuse(error)", "pass"),),
        tests=(_FOUNDINGS + "test_a_node_that_founds_a_cluster_sends_clients_of_another_one_away",),
    ),
    Mutant(
        name="newest-topology-of-any-cluster",
        breaks="a client takes the topology of another cluster with the same cluster_id for a newer one of its own",
        edits=(Edit("client.known_topology:AskedTopology._offer", "self._now.settings is not None", "False"),),
        tests=("tests/client/test_two_clusters.py::test_a_newer_topology_of_another_cluster_is_none",),
    ),
    Mutant(
        name="founders-that-all-keep-the-catalog",
        breaks="a cluster of six founders has six voters of its catalog, in any zones",
        edits=(Edit("server.catalog.settings_founding:SettingsFounding.run", "if begins", "if False"),),
        tests=(
            "tests/server/test_founding_steps.py::test_so_many_of_the_founders_hold_the_catalog_as_the_cluster_needs",
        ),
    ),
    Mutant(
        name="catalog-in-one-zone",
        breaks="a new cluster puts its catalog on the first nodes, though they are in one zone",
        edits=(
            Edit(
                "catalog.planning.catalog_nodes:catalog_voters",
                "PlacementNode(id=one.id, zone=one.zone) for one in infos if one.weight > 0",
                "PlacementNode(id=one.id) for one in infos if one.weight > 0",
            ),
        ),
        tests=("tests/catalog/test_catalog_nodes.py::test_a_new_catalog_is_spread_over_zones",),
    ),
    Mutant(
        name="collection-after-the-cluster",
        breaks="`needle cluster create` that is interrupted leaves a cluster without its first collection",
        edits=(
            Edit(
                "server.catalog.founding:create_cluster", "voters, rng, boundaries, first)", "voters, rng, boundaries)"
            ),
        ),
        tests=(_TWO + "test_the_first_collection_is_made_by_the_command_that_makes_the_cluster",),
    ),
)
