"""Bugs in the Raft core: elections, replication, commitment, membership. Source: raft.md, sections 1 and 6."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_ANY = "tests/raft/test_any_message.py::"
_ELECTION = "tests/raft/test_election.py::"
_REPLICATION = "tests/raft/test_replication.py::"
_MEMBERS = "tests/raft/test_membership_and_snapshots.py::"
_HOLES = "tests/raft/test_planted_bugs.py::"
_TRACE = "tests/raft/test_traces.py::test_the_core_does_what_the_trace_says"

MUTANTS = (
    Mutant(
        name="vote-before-fsync",
        breaks="a vote is answered before it is durable: after a power cut the node votes again in the same term",
        edits=(Edit("raft.election:on_vote_request", "s.send_after_persist(", "s.send("),),
        sim=True,
        tests=(_ELECTION + "test_a_vote_is_sent_only_after_it_is_durable", _TRACE + "[durable-before-sent]"),
    ),
    Mutant(
        name="ack-before-fsync",
        breaks="a follower acknowledges entries before its disk holds them: an acknowledged write can be lost",
        edits=(Edit("raft.follower:_acknowledge", "waiting.append(\n        Message(", "s.send(\n        Message("),),
        sim=True,
        tests=(_REPLICATION + "test_an_ack_waits_for_the_fsync_and_a_heartbeats_answer_does_not",),
    ),
    Mutant(
        name="leader-counts-itself-early",
        breaks="the leader counts its own copy before its fsync: half of the durable copies commit an entry",
        edits=(
            Edit(
                "raft.replication:maybe_commit",
                "return progress[node].match",
                "return s.log.last_index() if node == s.id else progress[node].match",
            ),
        ),
        tests=(
            _REPLICATION + "test_a_leader_counts_itself_only_after_its_own_fsync",
            _TRACE + "[durable-before-sent]",
        ),
    ),
    Mutant(
        name="vote-twice",
        breaks="a node grants a second candidate its vote in the same term: two leaders in one term",
        edits=(Edit("raft.election:on_vote_request", "free = s.vote == m.frm or", "free = True or"),),
        sim=True,
        tests=(_ELECTION + "test_one_vote_per_term_also_after_a_restart",),
    ),
    Mutant(
        name="maintenance-leaves-a-majority-without-a-leader",
        breaks="a node in maintenance never leads, though the only other live voter lacks what is committed",
        edits=(Edit("raft.election:campaign", "(s.resting and not is_needed(s))", "s.resting"),),
        tests=(_ELECTION + "test_a_node_in_maintenance_leads_only_if_no_other_live_voter_has_what_is_committed[3]",),
    ),
    Mutant(
        name="maintenance-leads-before-others",
        breaks="a node in maintenance leads though another live voter has all that it has",
        edits=(Edit("raft.election:is_needed", "NEEDED_TIMEOUTS * s.config.election_timeout <=", "0 <="),),
        tests=(_ELECTION + "test_a_node_in_maintenance_first_lets_others_try_who_have_what_it_has",),
    ),
    Mutant(
        name="maintenance-leads-by-who-was-refused-before",
        breaks="a node in maintenance campaigns at once, for it refused a vote before the leader that was lost now",
        edits=(Edit("raft.follower:follow", "s.needed_until = NEVER", "s.retired = s.retired"),),
        tests=(_ELECTION + "test_a_node_in_maintenance_does_not_go_by_who_was_refused_before_somebody_led",),
    ),
    Mutant(
        name="refusal-counts-as-vote",
        breaks="any answer counts as a granted vote (openraft#1220): a minority elects a leader",
        edits=(
            Edit("raft.election:on_vote_answer", "s.votes.setdefault(m.frm, not m.reject)", "s.votes[m.frm] = True"),
        ),
        sim=True,
        tests=(_HOLES + "test_a_candidate_that_everybody_refuses_does_not_lead",),
    ),
    Mutant(
        name="log-not-compared",
        breaks="a vote goes to a candidate whose log is behind: a leader without committed entries",
        edits=(
            Edit(
                "raft.election:on_vote_request",
                "has_all = s.log.is_up_to_date(m.index, m.log_term)",
                "has_all = m.index >= 0",
            ),
        ),
        sim=True,
        tests=(_ELECTION + "test_a_vote_goes_only_to_a_log_that_is_as_complete",),
    ),
    Mutant(
        name="pre-vote-changes-term",
        breaks="a pre-vote raises the voter's term: a node that comes back from a partition disturbs the leader",
        edits=(Edit("raft.raft:Raft._step", "hypothetical = kind == _PRE_VOTE or (", "hypothetical = ("),),
        tests=(
            _ELECTION + "test_a_pre_vote_changes_nothing_at_the_voter",
            _TRACE + "[pre-vote]",
        ),
    ),
    Mutant(
        name="terms-without-bound",
        breaks="one frame raises the term to the highest there is: no election is possible ever after",
        edits=(Edit("raft.plausible:why_not", "if m.term - s.term > TERM_JUMP_MAX:", "if False:"),),
        sim=True,
        tests=(_ANY + "test_a_term_out_of_reach_is_refused_and_the_next_election_works",),
    ),
    Mutant(
        name="second-leader-followed",
        breaks="a heartbeat of the leader's own term from another node deposes it",
        edits=(Edit("raft.plausible:_from_leader", "if m.term == s.term:", "if False:"),),
        sim=True,
        tests=(_ANY + "test_a_second_leader_of_a_term_is_refused_by_the_leader_and_by_its_followers",),
    ),
    Mutant(
        name="match-believed",
        breaks="a leader believes whatever index a member names: it counts entries that are nowhere",
        edits=(Edit("raft.replication:_is_vouched", "if own == m.log_term:", "if True:"),),
        tests=(_ANY + "test_a_leader_believes_no_match_that_it_cannot_vouch_for",),
    ),
    Mutant(
        name="commit-acknowledged-unseen",
        breaks="a follower acknowledges its own commit index to a leader that contradicts it: replicas that differ",
        edits=(
            Edit("raft.follower:on_append", "if _contradicts(s, m) or m.index < s.commit:", "if m.index < s.commit:"),
        ),
        tests=(_ANY + "test_a_follower_doubts_a_leader_that_contradicts_what_is_committed_here",),
    ),
    Mutant(
        name="no-check-quorum",
        breaks="a leader that hears no quorum stays: clients wait on it forever",
        edits=(
            Edit(
                "raft.leadership:hears_quorum",
                "return s.now - quorum_value(s.conf, contact) <= s.config.election_timeout",
                "return True",
            ),
        ),
        tests=(_ELECTION + "test_a_leader_without_contact_to_a_quorum_steps_down",),
    ),
    Mutant(
        name="late-tick-campaigns",
        breaks="a node that was kept from running takes its own absence for the leader's: it unseats a living leader",
        edits=(Edit("raft.election:was_away", "return s.now < s.listens_until", "return False"),),
        tests=(
            _ELECTION + "test_a_node_that_was_kept_from_running_hears_its_leader_before_it_campaigns",
            _TRACE + "[late-node]",
        ),
    ),
    Mutant(
        name="stalled-disk-leads",
        breaks="a leader whose disk hangs keeps the others quiet by its heartbeats: no write is ever answered again",
        edits=(
            Edit(
                "raft.election:is_disk_stalled",
                "return s.now - s.disk_idle_at > s.config.disk_stall_timeout",
                "return False",
            ),
        ),
        tests=(_ELECTION + "test_a_leader_whose_disk_stalls_loses_leadership_and_does_not_campaign",),
    ),
    Mutant(
        name="no-election-no-op",
        breaks="a new leader appends nothing: entries of older terms and reads wait for the next write, maybe forever",
        edits=(Edit("raft.state:State.become_leader", 'self.append_entry(EntryKind.NORMAL, b"")', "pass"),),
        sim=True,
        tests=(
            "tests/raft/test_reads_and_transfer.py::test_a_new_leader_answers_reads_only_after_its_no_op_is_committed",
        ),
    ),
    Mutant(
        name="commit-of-an-older-term",
        breaks="entries of older terms are committed by counting copies (paper, figure 8): one is replaced afterwards",
        edits=(
            Edit(
                "raft.replication:maybe_commit",
                "if reached <= s.commit or reached < s.term_start:",
                "if reached <= s.commit:",
            ),
        ),
        tests=(
            _REPLICATION + "test_entries_of_older_terms_are_committed_only_by_one_of_the_own_term",
            _TRACE + "[commit-own-term]",
        ),
    ),
    Mutant(
        name="majority-off-by-one",
        breaks="half of an even number of voters is taken for a majority",
        edits=(
            Edit("raft.quorum:majority_value", "values[(len(values) - 1) // 2]", "values[len(values) // 2]"),
            Edit("raft.quorum:_tally", "needed = len(voters) // 2 + 1", "needed = (len(voters) + 1) // 2"),
        ),
        tests=(
            _ELECTION + "test_half_of_an_even_cluster_commits_nothing",
            _TRACE + "[majorities]",
        ),
    ),
    Mutant(
        name="single-majority-while-joint",
        breaks="a joint configuration is treated as the new one alone: two disjoint majorities decide",
        edits=(
            Edit("raft.quorum:quorum_value", "if conf.voters_outgoing:", "if False:"),
            Edit("raft.quorum:count_votes", "in (conf.voters, conf.voters_outgoing) if", "in (conf.voters,) if"),
        ),
        tests=(
            _MEMBERS + "test_a_joint_configuration_needs_both_majorities",
            _TRACE + "[joint-consensus]",
        ),
    ),
    Mutant(
        name="tail-change-forgotten",
        breaks="a new leader starts a membership change on top of one in its log: two changes at once",
        edits=(
            Edit("raft.state:State.become_leader", "self.pending_conf_index = last", "self.pending_conf_index = 0"),
        ),
        tests=(_MEMBERS + "test_a_new_leader_assumes_that_its_tail_holds_a_change",),
    ),
    Mutant(
        name="campaign-with-unapplied-change",
        breaks="a node campaigns under a configuration that a committed change has replaced",
        edits=(Edit("raft.election:campaign", "or s.has_unapplied_conf_change()", ""),),
        tests=(
            _MEMBERS + "test_no_campaign_with_a_committed_unapplied_change",
            _TRACE + "[one-change-at-a-time]",
        ),
    ),
    Mutant(
        name="truncate-below-commit",
        breaks="a conflict below the commit index truncates: a committed entry is undone, and nobody notices",
        edits=(Edit("raft.log:RaftLog.extend", "if first <= commit:", "if first < 0:"),),
        tests=(_REPLICATION + "test_a_conflict_below_the_commit_index_is_a_bug_not_a_truncation",),
    ),
    Mutant(
        name="truncate-without-conflict",
        breaks="an append that comes late cuts off what follows it: acknowledged entries vanish",
        edits=(Edit("raft.log:RaftLog.extend", "if not self.matches(entry.index, entry.term):", "if entry.index:"),),
        sim=True,
        tests=(
            _REPLICATION + "test_a_follower_takes_over_what_fits",
            _TRACE + "[truncate-at-conflict]",
        ),
    ),
    Mutant(
        name="heartbeat-commit-unbounded",
        breaks="a heartbeat carries the leader's commit index: a follower commits its own, different entries",
        edits=(Edit("raft.replication:_send_heartbeat", "min(progress.match, s.commit)", "s.commit"),),
        tests=(
            _REPLICATION + "test_a_heartbeat_never_carries_a_commit_beyond_the_match",
            _TRACE + "[heartbeat-commit]",
        ),
    ),
    Mutant(
        name="acks-what-it-does-not-hold",
        breaks="a follower acknowledges up to the leader's commit index, although it holds less",
        edits=(Edit("raft.follower:on_append", "_acknowledge(s, m, last)", "_acknowledge(s, m, max(last, m.commit))"),),
        sim=True,
        tests=(_HOLES + "test_an_acknowledgement_covers_what_the_append_showed_to_match_and_no_more",),
    ),
    Mutant(
        name="acks-its-own-tail",
        breaks="a follower acknowledges up to its last entry, which may be another leader's",
        edits=(Edit("raft.follower:on_append", "_acknowledge(s, m, last)", "_acknowledge(s, m, log.last_index())"),),
        # Not for the simulation: our leaders find the exact end of what two logs share, so that the first append that
        # fits already cuts off a foreign tail.
        tests=(_HOLES + "test_an_acknowledgement_covers_what_the_append_showed_to_match_and_no_more",),
    ),
    Mutant(
        name="previous-entry-not-compared",
        breaks="a follower takes entries without looking whether its log agrees before them: logs that do not match",
        edits=(
            Edit(
                "raft.follower:on_append", "if not log.matches(m.index, m.log_term):", "if m.index > log.last_index():"
            ),
        ),
        sim=True,
        minutes=4.0,
        tests=(_REPLICATION + "test_a_follower_takes_over_what_fits",),
    ),
    Mutant(
        name="apply-ahead-of-the-log",
        breaks="entries are applied before they are in the own log (TiKV#4560): the state is ahead after a power cut",
        edits=(Edit("raft.output:_next_page", "last = min(s.commit, s.log.durable_index)", "last = s.commit"),),
        tests=(
            _REPLICATION + "test_apply_never_runs_ahead_of_the_own_log",
            _TRACE + "[apply-after-log]",
        ),
    ),
    Mutant(
        name="overwritten-append-counts",
        breaks="the end of a write counts although a newer leader replaced the entries meanwhile (the ABA race)",
        edits=(
            Edit(
                "raft.log:RaftLog.stable_to",
                "if entry.index >= self.offset and self.matches(entry.index, entry.term):",
                "if entry.index >= self.offset:",
            ),
        ),
        tests=(
            _REPLICATION + "test_the_completion_of_an_overwritten_append_is_not_counted",
            _TRACE + "[append-aba]",
        ),
    ),
    Mutant(
        name="snapshot-below-commit",
        breaks="a late snapshot replaces a log that is ahead of it: the commit index goes back",
        edits=(Edit("raft.follower:on_snapshot", "if meta.index > s.commit:", "if meta.index:"),),
        tests=(_HOLES + "test_an_older_snapshot_does_not_move_the_commit_index_back",),
    ),
    Mutant(
        name="snapshot-keeps-stale-configuration",
        breaks="an installed snapshot leaves the old configuration in force: a removed node counts again",
        edits=(Edit("raft.state:State.installed", "self.conf = snapshot.conf", "pass"),),
        tests=(_MEMBERS + "test_any_other_snapshot_replaces_log_and_configuration",),
    ),
    Mutant(
        name="gap-between-snapshot-and-log",
        breaks="a node starts on a log that begins behind its state: entries in between are never applied",
        edits=(Edit("raft.raft:Raft.__init__", "if not first - 1 <= applied <= last:", "if applied < 0:"),),
        tests=(
            _HOLES + "test_a_state_that_the_log_does_not_continue_is_refused_at_start",
            _TRACE + "[start]",
        ),
    ),
    Mutant(
        name="learner-refuses-its-vote",
        breaks="who takes itself for a learner does not vote: promoted and not told yet, it blocks the election",
        edits=(Edit("raft.election:on_vote_request", "grant = (", "grant = s.id in s.conf.voters and ("),),
        tests=(_ELECTION + "test_a_learner_never_campaigns_but_votes_when_asked", _TRACE + "[learners]"),
    ),
    Mutant(
        name="learner-campaigns",
        breaks="a learner stands for election: a node that is still catching up takes the office from one that serves",
        edits=(Edit("raft.state:State.is_promotable", "membership.is_voter(self.conf, self.id) and", "True and"),),
        tests=(_ELECTION + "test_a_learner_never_campaigns_but_votes_when_asked", _TRACE + "[learners]"),
    ),
    Mutant(
        name="removed-leader-names-no-successor",
        breaks="a leader that is removed leaves without a word: nobody writes for an election timeout",
        edits=(Edit("raft.transfer:hand_over_on_removal", "send_timeout_now(s, target)", "pass"),),
        tests=(_MEMBERS + "test_removing_the_leader_hands_over_at_once", _TRACE + "[removed-leader]"),
    ),
    Mutant(
        name="full-pipe-stays-full",
        breaks="nothing asks for appends that were lost: a follower whose pipe is full, or that has all, hangs",
        edits=(Edit("raft.replication:on_heartbeat_answer", "progress.poke = True", "pass"),),
        tests=(
            _REPLICATION + "test_a_caught_up_or_full_follower_unsticks_when_everything_in_flight_was_lost",
            _TRACE + "[flow-control]",
        ),
    ),
    Mutant(
        name="snapshot-sent-once",
        breaks="a snapshot that was lost is not sent again: its follower stays behind forever",
        edits=(Edit("raft.replication:retry_snapshots", "send_snapshot(s, node, meta)", "pass"),),
        tests=(_MEMBERS + "test_a_lost_snapshot_is_sent_again", _TRACE + "[snapshot-sent]"),
    ),
    Mutant(
        name="waiting-writes-never-let-go",
        breaks="bytes that are committed go on counting as waiting for a quorum: after a while every write is refused",
        edits=(
            Edit(
                "raft.output:_next_page",
                "s.uncommitted_bytes = max(0, s.uncommitted_bytes - sum([len(e.data) for e in page]))",
                "pass",
            ),
        ),
        tests=(_REPLICATION + "test_uncommitted_bytes_are_bounded_and_freed", _TRACE + "[back-pressure]"),
    ),
    Mutant(
        name="commit-alone-is-synced",
        breaks="a commit index alone costs an fsync: each write is synced twice on every replica",
        edits=(
            Edit(
                "raft.state:State.needs_disk",
                "or self.vote != handed.vote",
                "or self.vote != handed.vote or self.commit != handed.commit",
            ),
        ),
        tests=(_TRACE + "[durable-before-sent]",),
    ),
    Mutant(
        name="logs-compared-entry-by-entry",
        breaks="a leader looks for where two logs agree one entry at a time: a message for each of a long tail",
        edits=(
            Edit(
                "raft.replication:_on_rejection",
                "hint, _ = s.log.find_conflict_by_term(m.hint, m.hint_term)",
                "hint = m.index - 1",
            ),
        ),
        tests=(_TRACE + "[catch-up]",),
    ),
    Mutant(
        name="learner-costs-an-election-timeout",
        breaks="a replica that returns to a node stops its shard's writes for an election timeout",
        edits=(Edit("raft.raft:Raft._step", "if goes_on:", "if False:"),),
        tests=(_TRACE + "[learner-of-a-newer-term]",),
    ),
)
