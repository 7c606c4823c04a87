"""Bugs in leases, strong reads and leadership transfer. Source: raft.md, sections 1, 2 and 6."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_LEASE = "tests/raft/test_lease.py::"
_EARLY_HOLDS = "server.service.early:EarlySearch._holds"
_READS = "tests/raft/test_reads_and_transfer.py::"
_TRACE = "tests/raft/test_traces.py::test_the_core_does_what_the_trace_says"

MUTANTS = (
    Mutant(
        name="lease-kept-in-transfer",
        breaks="the lease stays after leadership was handed over: two leaders answer reads (etcd's lease mode)",
        edits=(Edit("raft.transfer:send_timeout_now", "lease.suspend(s)", "pass"),),
        sim=True,
        tests=(
            _LEASE + "test_a_transferred_away_leader_gives_its_lease_up_before_timeout_now_leaves",
            _TRACE + "[transfer]",
        ),
    ),
    Mutant(
        name="leased-reads-without-lease",
        breaks="leased reads look at the role, not at the lease: a leader that was replaced serves stale reads",
        edits=(Edit("raft.raft:Raft.read_lease", "lease.remaining(self._s) > 0", "self._s.role is LEADER"),),
        sim=True,
        tests=(
            _LEASE + "test_an_isolated_leader_stops_leased_reads_before_another_can_be_elected",
            _TRACE + "[read-of-a-deposed-leader]",
        ),
    ),
    Mutant(
        name="promise-forgotten",
        breaks="voters forget that they promised the leader not to vote: another is elected under its lease",
        edits=(
            Edit(
                "raft.election:is_promised",
                "return s.now < s.promise_until and candidate != s.leader",
                "return False",
            ),
        ),
        tests=(_LEASE + "test_votes_and_pre_votes_are_refused_for_an_election_timeout_after_a_leaders_message",),
    ),
    Mutant(
        name="promise-lost-at-restart",
        breaks="a node votes just after its start (TiKV#15035): the promise it gave before is broken",
        edits=(
            Edit(
                "raft.state:State.__init__",
                "self.promise_until = now + self.binding",
                "self.promise_until = NEVER",
            ),
        ),
        tests=(
            _LEASE + "test_votes_are_refused_for_an_election_timeout_after_a_restart",
            _TRACE + "[lease]",
        ),
    ),
    Mutant(
        name="promise-ends-with-the-connection",
        breaks="a voter whose leader's connection ended takes back all of its promise: leases count on a part of it",
        edits=(
            Edit(
                "raft.election:on_disconnect",
                "s.promise_until = min(s.promise_until, s.bound_until)",
                "s.promise_until = s.now",
            ),
        ),
        tests=(_LEASE + "test_the_end_of_the_connection_leaves_of_a_promise_what_leases_count_on",),
    ),
    Mutant(
        name="lease-of-an-election-timeout",
        breaks="leases last as long as the election timeout, beyond what binds voters whose connection ended",
        edits=(Edit("raft.lease:end", "s.config.lease_duration", "s.config.election_timeout - s.config.lease_margin"),),
        tests=(_LEASE + "test_the_lease_is_as_long_as_what_binds_the_voters",),
    ),
    Mutant(
        name="own-promise-broken-by-force",
        breaks="a forced election disregards the node's own promise: it votes for itself under another's lease",
        edits=(Edit("raft.election:campaign", "if s.now < s.promise_until and not alone:", "if alone and False:"),),
        tests=(
            _LEASE + "test_a_forced_election_happens_as_soon_as_the_promise_has_ended",
            _TRACE + "[forced-election]",
        ),
    ),
    Mutant(
        name="lease-from-the-answer",
        breaks="the lease runs from when the answers arrive, not from before the round: it outlives the promises",
        edits=(
            Edit(
                "raft.rounds:confirm",
                "lease.extend(s, times.popleft()[1])",
                "lease.extend(s, times.popleft()[1] * 0 + s.now)",
            ),
        ),
        tests=(
            _LEASE + "test_the_lease_runs_from_the_send_time_of_the_round_that_a_quorum_answered",
            _TRACE + "[lease]",
        ),
    ),
    Mutant(
        name="lease-before-no-op",
        breaks="a new leader serves reads before an entry of its term is committed: its commit index may be behind",
        edits=(Edit("raft.state:State.has_committed_in_term", "return self.commit >= self.term_start", "return True"),),
        sim=True,
        tests=(
            _LEASE + "test_there_is_no_lease_before_an_entry_of_the_term_is_committed",
            _READS + "test_a_new_leader_answers_reads_only_after_its_no_op_is_committed",
        ),
    ),
    Mutant(
        name="lease-survives-membership-change",
        breaks="the old quorum's answers go on counting for the new configuration's lease",
        edits=(Edit("raft.conf_changes:apply", "lease.on_conf_change(s)", "pass"),),
        tests=(
            _LEASE + "test_a_membership_change_starts_the_lease_anew_and_blocks_the_next_until_it_covers_the_old_one",
            _TRACE + "[lease-and-membership]",
        ),
    ),
    Mutant(
        name="read-index-without-a-round",
        breaks="strong reads are answered without asking anybody: a leader that was replaced serves stale reads",
        edits=(
            Edit(
                "raft.rounds:begin",
                "s.reads_waiting.append((s.round, s.commit, s.reads_new))",
                "s.reads.extend([ReadState(context, s.commit) for context in s.reads_new])",
            ),
        ),
        sim=True,
        tests=(
            _READS + "test_an_old_leader_that_was_replaced_answers_no_read",
            _TRACE + "[read-of-a-deposed-leader]",
        ),
    ),
    Mutant(
        name="read-index-of-an-old-round",
        breaks="a read is confirmed by a round that began before it arrived",
        edits=(
            Edit(
                "raft.rounds:begin",
                "s.reads_waiting.append((s.round,",
                "s.reads_waiting.append((s.confirmed_round + 1,",
            ),
        ),
        sim=True,
        minutes=4.0,
        tests=(
            _READS + "test_a_round_counts_only_if_it_began_after_the_read_and_was_acked_by_voters",
            _TRACE + "[read-index]",
        ),
    ),
    Mutant(
        name="read-index-acked-by-a-learner",
        breaks="answers of learners count for a round: a quorum that decides nothing confirms reads",
        edits=(
            Edit(
                "raft.rounds:confirm",
                "confirmed = quorum_value(s.conf, acked)",
                "confirmed = sorted(map(acked, progress), reverse=True)[len(s.conf.voters) // 2]",
            ),
        ),
        tests=(_READS + "test_a_round_counts_only_if_it_began_after_the_read_and_was_acked_by_voters",),
    ),
    Mutant(
        name="early-search-counts-anyway",
        breaks="a search that ran during its round is answered although it saw less than the round asks for",
        edits=(Edit("server.service.reads:Reads._search_early", "found.applied_index >= index", "found is not None"),),
        tests=("tests/server/test_early_search.py::test_what_was_seen_too_early_is_searched_again",),
    ),
    Mutant(
        name="a-search-without-a-task-counts-anyway",
        breaks="a search that ran during its round, without a task, is answered although it saw less than it asks for",
        edits=(Edit(_EARLY_HOLDS, "batch.applied_index >= index and", ""),),
        tests=("tests/server/test_early.py::test_what_was_seen_too_early_goes_the_long_way",),
    ),
    Mutant(
        name="a-search-without-a-task-answers-for-any-map",
        breaks="a search that was begun without a task is answered though the map changed while it ran",
        edits=(Edit(_EARLY_HOLDS, "self._of.node.ownership is self._owned and", ""),),
        tests=("tests/server/test_early.py::test_what_is_otherwise_when_it_was_searched_goes_the_long_way[map]",),
    ),
    Mutant(
        name="a-search-without-a-task-forgets-the-catalog",
        breaks="a search without a task is answered by a node that must know a newer catalog first",
        edits=(Edit(_EARLY_HOLDS, " and not documents.lacks(group)", ""),),
        tests=("tests/server/test_early.py::test_what_is_otherwise_when_it_was_searched_goes_the_long_way[catalog]",),
    ),
    Mutant(
        name="a-search-without-a-task-answers-before-its-round",
        breaks="a strong search without a task is answered before its round has confirmed the leader",
        edits=(
            Edit(
                "server.service.early:EarlySearch._judge",
                "if not confirmed.done():\n            return",
                "if not confirmed.done():\n            self._answer(found.result())",
            ),
        ),
        tests=("tests/server/test_early.py::test_a_strong_answer_waits_for_its_round",),
    ),
    Mutant(
        name="leased-search-of-a-node-looks-at-what-is-applied",
        breaks="of a leased call for several shards, one whose lease is over is searched as if it still led",
        edits=(
            Edit(
                "server.service.early:confirming",
                "host.leased_index(group) if",
                "(host.leased_index(group) or host.applied_index(group)) if",
            ),
        ),
        tests=("tests/server/test_early_node_search.py::test_without_a_lease_a_leased_search_is_confirmed_by_a_round",),
    ),
    Mutant(
        name="writes-during-transfer",
        breaks="writes are accepted while leadership is handed over (hashicorp#581): the target never catches up",
        edits=(
            Edit("raft.transfer:check_none", "if s.transfer_target != NO_LEADER:", "if s.transfer_target is None:"),
        ),
        tests=(
            _READS + "test_a_transfer_waits_until_the_target_has_caught_up_and_blocks_proposals",
            _TRACE + "[transfer]",
        ),
    ),
    Mutant(
        name="transfer-before-caught-up",
        breaks="the target is told to campaign before it holds everything: it cannot win, and nobody leads",
        edits=(
            Edit(
                "raft.transfer:on_progress",
                "if node == s.transfer_target and progress.match == s.log.last_index():",
                "if node == s.transfer_target:",
            ),
        ),
        tests=(_READS + "test_a_transfer_waits_until_the_target_has_caught_up_and_blocks_proposals",),
    ),
    Mutant(
        name="transfer-without-end",
        breaks="a transfer whose target does not take over never ends: the leader takes no writes any more",
        edits=(Edit("raft.transfer:on_tick", "abort(s)", "pass"),),
        tests=(_READS + "test_a_transfer_ends_by_timeout_and_by_step_down", _TRACE + "[transfer-ends]"),
    ),
)
