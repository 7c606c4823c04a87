"""Elections: pre-vote, votes, and the promise not to vote that leases are built on (paper, 5.2 and 5.4; thesis, 9.6).

Invariant: a node grants one vote per term; for the lease timeout after a leader's message, and after its own start, it
neither votes nor campaigns, unless the leader itself asked for it (`force`), having given up its lease before. It does
neither for a whole election timeout unless the leader's connection ended: on a busy machine a leader is late, not dead.
"""

from __future__ import annotations

from typing import Final

from needle.base.ids import NodeId
from needle.raft.causes import Cause
from needle.raft.messages import NO_LEADER, Message, MessageType
from needle.raft.quorum import Verdict, count_votes
from needle.raft.state import LEADER, NEVER, Role, State

DEAD_LEADER_JITTER = 0.5
"""Of a lease timeout, beyond the promise: how far those campaign apart who saw their leader's connection end."""
NEEDED_TIMEOUTS: Final = 2.0
"""Of an election timeout, the longest that a follower waits before it campaigns: see `is_needed`."""


def is_promised(s: State, candidate: str) -> bool:
    """Whether this node must not help `candidate` now. Its promise was made to the leader, so the leader is exempt."""
    if s.role is LEADER:
        return True
    return s.now < s.promise_until and candidate != s.leader


def is_disk_stalled(s: State) -> bool:
    """Whether a write has been outstanding for so long that this node is of no use as a leader."""
    return s.now - s.disk_idle_at > s.config.disk_stall_timeout


def was_away(s: State, due: float) -> bool:
    """Whether the tick that was due then comes so late that it tells of this node, which was kept from running and has
    not read what waits in its sockets, and not of others. Once in a silence, they get the time to be heard."""
    if s.listens_until == NEVER and s.now - due > s.config.heartbeat_interval:
        s.listens_until = s.now + s.config.absence
    return s.now < s.listens_until


def on_timeout(s: State) -> None:
    """The election deadline has passed: campaign, unless it was this node that was away."""
    if was_away(s, s.election_deadline):
        s.election_deadline = s.listens_until
    elif s.role is not Role.FOLLOWER:
        campaign(s, s.causes.last)  # once more
    else:
        campaign(s, Cause.LEADER_GONE if s.leader_is_gone else Cause.LEADER_SILENT)


def campaign(s: State, cause: Cause) -> None:
    """Ask whether the others would vote, if this node may lead at all. Changes no term yet."""
    if (
        s.quiesced
        or (s.resting and not is_needed(s))
        or not s.is_promotable()
        or s.has_unapplied_conf_change()
        or is_disk_stalled(s)
    ):
        s.reset_election_deadline()
        return
    alone = s.conf.voters == (s.id,) and not s.conf.voters_outgoing
    if s.now < s.promise_until and not alone:
        # To vote for oneself breaks the promise like any other vote. A lone voter has promised to nobody else.
        s.election_deadline = s.promise_until
        return
    s.become_pre_candidate()
    s.causes.last = cause
    s.retry_soon()  # to ask costs no term, and a voter that has not seen the leader's connection end yet says nothing
    s.votes[s.id] = True
    if not _decide(s):
        _ask(s, MessageType.PRE_VOTE, s.term + 1, force=False)


def is_needed(s: State) -> bool:
    """Whether a node that is to lead nothing has to, all the same: it has what candidates lack, so it could not vote
    for them, for so long, with nobody leading, that whoever else has that, too, would have led by now."""
    return s.needed_since + NEEDED_TIMEOUTS * s.config.election_timeout <= s.now < s.needed_until


def _refuse_who_lacks(s: State) -> None:
    """A candidate's log is behind that of this node, which rests."""
    if s.now >= s.needed_until:
        s.needed_since = s.now
    s.needed_until = s.now + 2 * NEEDED_TIMEOUTS * s.config.election_timeout


def on_disconnect(s: State, node: NodeId) -> None:
    """The leader ended its connection, as a process that was killed does: be ready to campaign soon after the promise
    to it no longer binds, not up to an election timeout later. Any message of it takes that back: `follower.follow`."""
    if s.role is Role.FOLLOWER and node == s.leader:
        s.leader_is_gone = True
        s.promise_until = min(s.promise_until, s.bound_until)
        pause = s.config.binding * DEAD_LEADER_JITTER * s.random_timeout()
        s.election_deadline = min(s.election_deadline, max(s.now, s.promise_until) + pause)


def campaign_by_force(s: State) -> None:
    """The leader asked this node to take over: no pre-vote, and voters disregard their promise to that leader."""
    if s.quiesced or s.resting or not s.is_promotable() or is_disk_stalled(s):
        return
    if s.has_unapplied_conf_change():
        s.deferred_timeout_now = s.term
        return
    s.causes.last = Cause.HANDED_OVER
    _become_candidate(s, force=True)


def _become_candidate(s: State, *, force: bool) -> None:
    # The own vote counts once it is durable: see on_durable.
    s.become_candidate()
    _ask(s, MessageType.VOTE, s.term, force=force)


def _ask(s: State, kind: MessageType, term: int, *, force: bool) -> None:
    index, log_term = s.log.last_index(), s.log.last_term()
    commit_term = s.log.term(s.commit) or 0
    for node in sorted({*s.conf.voters, *s.conf.voters_outgoing}):
        if node != s.id:
            s.send_after_persist(
                Message(
                    kind,
                    to=node,
                    frm=s.id,
                    term=term,
                    index=index,
                    log_term=log_term,
                    hint=s.commit,
                    hint_term=commit_term,
                    force=force,
                )
            )


def _decide(s: State) -> bool:
    """Act on the votes counted so far. True if the phase is over."""
    verdict = count_votes(s.conf, s.votes)
    if verdict is Verdict.PENDING:
        return False
    if verdict is Verdict.LOST:
        s.become_follower(s.term, NO_LEADER)
        s.retry_soon()
    elif s.role is Role.PRE_CANDIDATE:
        _become_candidate(s, force=False)
    else:
        s.become_leader()
    return True


def on_durable(s: State) -> None:
    """The disk has caught up: a candidate counts its own vote now."""
    durable = s.durable_hard_state
    if s.role is Role.CANDIDATE and durable.term == s.term and durable.vote == s.id:
        s.votes[s.id] = True
        _decide(s)


def _learn_commit(s: State, m: Message) -> None:
    """Candidates and voters tell each other what is committed. Without it a removed leader, who alone knows that its
    removal is committed and whose log is the longest, would block the election of the others forever (raft-rs)."""
    if m.hint > s.commit and s.role is not LEADER and s.log.matches(m.hint, m.hint_term):
        s.commit = m.hint
        if s.role is not Role.FOLLOWER and s.has_unapplied_conf_change():
            s.become_follower(s.term, NO_LEADER)


def on_vote_request(s: State, m: Message) -> None:
    """VOTE or PRE_VOTE, of this term or (PRE_VOTE only) a later one. Learners answer too: they may be voters by now.

    The promise was checked before.
    """
    _learn_commit(s, m)
    free = s.vote == m.frm or (s.vote == NO_LEADER and s.leader == NO_LEADER)
    is_pre = m.type == MessageType.PRE_VOTE
    has_all = s.log.is_up_to_date(m.index, m.log_term)
    if s.resting and not has_all:
        _refuse_who_lacks(s)
    grant = (free or (is_pre and m.term > s.term)) and has_all
    if grant and not is_pre:
        s.vote = m.frm
        s.reset_election_deadline()
    s.send_after_persist(
        Message(
            MessageType.PRE_VOTE_RESP if is_pre else MessageType.VOTE_RESP,
            to=m.frm,
            frm=s.id,
            term=m.term if grant else s.term,
            reject=not grant,
            hint=s.commit,
            hint_term=s.log.term(s.commit) or 0,
        )
    )


def refuse_stale_pre_vote(s: State, m: Message) -> None:
    """Tell a candidate that is behind which term it is."""
    s.send_after_persist(Message(MessageType.PRE_VOTE_RESP, to=m.frm, frm=s.id, term=s.term, reject=True))


def on_vote_answer(s: State, m: Message) -> None:
    """VOTE_RESP or PRE_VOTE_RESP. An answer counts only for the phase and the term that asked."""
    _learn_commit(s, m)
    if m.type == MessageType.VOTE_RESP:
        expected = s.role is Role.CANDIDATE and m.term == s.term
    else:
        expected = s.role is Role.PRE_CANDIDATE and m.term == (s.term if m.reject else s.term + 1)
    if expected and m.frm != s.id:
        s.votes.setdefault(m.frm, not m.reject)
        if not _decide(s) and m.reject:
            s.retry_soon()  # two candidates have shared the votes, and who is dead does not answer


def on_timeout_now(s: State, m: Message) -> None:
    """The leader of this very term hands over."""
    if s.role is Role.FOLLOWER and m.frm == s.leader:
        campaign_by_force(s)


def on_applied(s: State) -> None:
    """A TIMEOUT_NOW that had to wait for a configuration change to be applied is honoured now, if still current."""
    if s.deferred_timeout_now and not s.has_unapplied_conf_change():
        due = s.deferred_timeout_now == s.term and s.role is Role.FOLLOWER
        s.deferred_timeout_now = 0
        if due:
            campaign_by_force(s)
