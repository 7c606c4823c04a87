"""Bugs of the checks of who calls: keys, roles, the secret of nodes (docs/adr/0045)."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_ACCESS = "tests/server/test_access.py::"
_ROLES = "tests/server/http/test_roles.py::"
_SECRET = "tests/rpc/test_secret.py::"
_CATALOG = "tests/catalog/test_keys.py::"

MUTANTS = (
    Mutant(
        name="revoked-key-stays-inside",
        breaks="a key that was revoked still works on connections that are open",
        edits=(Edit("server.access:Access.follow", "identity.rank = NOBODY", "pass"),),
        tests=(_ACCESS + "test_a_revoked_key_opens_nothing_more_also_where_it_came_in_before",),
    ),
    Mutant(
        name="revoked-key-comes-in",
        breaks="a node goes on taking a key that it has heard is revoked",
        edits=(Edit("server.access:Access.follow", "self._keys, self._known = keys, known", "self._keys = keys"),),
        tests=(_ACCESS + "test_a_revoked_key_opens_nothing_more_also_where_it_came_in_before",),
    ),
    Mutant(
        name="keys-alike-by-prefix",
        breaks="a key is taken for another one whose hash begins alike",
        edits=(Edit("server.access:Access.of_key", "or not hmac.compare_digest(found[0], digest)", ""),),
        tests=(_ACCESS + "test_a_key_whose_hash_begins_alike_is_another_key",),
    ),
    Mutant(
        name="method-without-a-role",
        breaks="a method that the table does not have is answered to everybody",
        edits=(
            Edit(
                "server.service.dispatch:Service._begin",
                "if needs is None:\n        raise unknown_method(method)\n    if caller.rank < needs.rank:",
                "if needs is not None and caller.rank < needs.rank:",
            ),
        ),
        tests=(_ACCESS + "test_a_method_without_a_row_is_answered_to_nobody",),
    ),
    Mutant(
        name="roles-not-compared",
        breaks="the binary protocol lets a reader do everything",
        edits=(Edit("server.service.dispatch:Service._begin", "caller.rank < needs.rank", "caller.rank == NODE + 1"),),
        tests=(_ACCESS + "test_each_role_reaches_the_methods_that_it_may_call",),
    ),
    Mutant(
        name="routes-not-compared",
        breaks="HTTP lets a reader do everything",
        edits=(Edit("server.http.app:_Endpoint._admitted", "caller.rank < self._rank", "not caller.rank"),),
        tests=(_ROLES + "test_each_role_reaches_the_routes_that_it_may_call",),
    ),
    Mutant(
        name="metrics-for-nobody-else",
        breaks="a key of the role monitor may not read what it is for",
        edits=(Edit("server.http.app:Door.check_metrics", "caller.rank < MONITOR", "caller.rank <= MONITOR"),),
        tests=(_ROLES + "test_probes_ask_for_no_key_and_metrics_for_a_monitor_or_a_reader_of_all",),
    ),
    Mutant(
        name="routes-of-all-collections",
        breaks="a key for some collections may ask about the whole cluster",
        edits=(
            Edit(
                "server.http.app:_Endpoint._admitted",
                "and not self._route.filtered",
                "and 'collection' in scope['path_params']",
            ),
        ),
        tests=(_ROLES + "test_a_key_for_some_collections_reaches_their_routes_only",),
    ),
    Mutant(
        name="alias-judged-and-called-apart",
        breaks="an alias that leads elsewhere while a slow body arrives lets a key into a collection that is not its",
        edits=(
            Edit(
                "server.http.app:_Endpoint._admitted",
                'name = scope["path_params"]["collection"] = name if',
                "name = name if",
            ),
        ),
        tests=(_ROLES + "test_an_alias_is_what_it_was_when_it_was_judged",),
    ),
    Mutant(
        name="collection-by-its-stored-name",
        breaks="a key for one collection reaches another whose name it puts before a number",
        edits=(
            Edit(
                "server.service.methods:judge_call",
                "name = public_name(name)",
                "name = name.partition('@')[2] and name.rpartition('@')[0].rpartition('@')[2]",
            ),
        ),
        tests=(_ACCESS + "test_a_key_for_some_collections_reaches_no_others",),
    ),
    Mutant(
        name="writer-drops-collections",
        breaks="a writer drops a collection by a write that names no map",
        edits=(
            Edit(
                "server.service.methods:judge_call",
                "isinstance(command, commands.CreateCollection | commands.DropCollection)",
                "False",
            ),
        ),
        tests=(_ACCESS + "test_a_writer_makes_and_drops_no_collections",),
    ),
    Mutant(
        name="keys-told-to-readers",
        breaks="the names and hashes of all keys are told to every client",
        edits=(Edit("routing.topology:Topology.told_to", "tuple(own) if caller.filter else ()", "self.keys"),),
        tests=(_ACCESS + "test_keys_are_told_to_admins_and_nodes_and_collections_to_those_whose_key_is_for_them",),
    ),
    Mutant(
        name="raft-from-anybody",
        breaks="Raft messages are taken from a caller who only says a node's name",
        edits=(Edit("server.service.dispatch:Service.on_oneway", "and peer.identity.rank == NODE", ""),),
        tests=(_ACCESS + "test_raft_messages_are_taken_from_nodes_only",),
    ),
    Mutant(
        name="proof-of-another-connection",
        breaks="what proves a secret on one connection proves it on any",
        edits=(Edit("rpc.proof:Exchange.proof", "side, self)", "side, self.cluster_id)"),),
        tests=(_SECRET + "test_a_proof_is_good_for_its_connection_and_its_side_only",),
    ),
    Mutant(
        name="proof-said-back",
        breaks="a caller proves the secret by saying back what the node has said",
        edits=(Edit("rpc.proof:Exchange.proof", "side, self)", "'', self)"),),
        tests=(_SECRET + "test_a_proof_is_good_for_its_connection_and_its_side_only",),
    ),
    Mutant(
        name="unproven-node-let-in",
        breaks="a node without the secret is let in where keys are required",
        edits=(Edit("server.access:Access.admit", "if self.required:", "if self.required and not node_id:"),),
        tests=(_ACCESS + "test_who_is_admitted_with_and_without_keys_required",),
    ),
    Mutant(
        name="key-under-two-names",
        breaks="one key is there under two names: revoking one does not end it",
        edits=(Edit("catalog.keys:created", "any(key.digest == command.digest for key in keys)", "False"),),
        tests=(_CATALOG + "test_a_name_and_a_key_are_there_once",),
    ),
    Mutant(
        name="listens-to-everybody",
        breaks="a node listens beyond its machine without keys or TLS, and nobody said that it may",
        edits=(Edit("base.exposure:check_exposed", "not _is_loopback(host)", "False"),),
        tests=(
            "tests/base/test_exposed.py"
            "::test_who_listens_beyond_this_machine_has_keys_and_tls_or_says_that_it_does_not_mind",
        ),
    ),
)
