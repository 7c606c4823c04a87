"""The leader's side of replication: what to send to whom, and what the answers mean (paper, 5.3 and 5.4.2).

Invariant: only entries of the leader's own term are counted for commitment; a member's match is an entry of this
leader's log, of the term that the member named; a heartbeat never carries a commit index beyond what the member is
known to hold; every state of a Progress has a way out that a heartbeat answer opens. With every append and heartbeat
a leader says which entries it has on its own disk, for it counts itself: who hears it can hold it to that.
"""

from __future__ import annotations

from needle.base.ids import NodeId
from needle.raft import rounds, transfer
from needle.raft.messages import ENTRIES_MAX, Doubt, DoubtKind, Entry, Message, MessageType, SnapshotMeta
from needle.raft.progress import PROBE, REPLICATE, SNAPSHOT, Progress
from needle.raft.quorum import quorum_value
from needle.raft.state import FAR, State

_Cache = dict[int, tuple[tuple[Entry, ...], int]]


# --- sending ------------------------------------------------------------------------------------------------------
def wants_to_send(s: State) -> bool:
    """Leader: whether `emit` has something to do."""
    return s.append_wanted or s.heartbeat_wanted or rounds.reads_can_start(s)


def emit(s: State) -> None:
    """Leader: turn everything that is wanted into messages, all of one round. Appends stand in for heartbeats."""
    to_all = s.heartbeat_wanted or rounds.reads_can_start(s)
    rounds.begin(s)
    cache: _Cache = {}
    uninformed = False
    for node, progress in s.progress.items():
        if node == s.id:
            continue
        if not _send_appends(s, node, progress, cache) and to_all:
            _send_heartbeat(s, node, progress)
        uninformed |= progress.sent_commit < min(s.commit, progress.match)
    if s.heartbeat_wanted:
        s.heartbeat_due = s.now + s.config.heartbeat_interval
    if not uninformed:
        s.commit_notice_at = FAR
    s.append_wanted = s.heartbeat_wanted = False
    rounds.confirm(s)


def _send_heartbeat(s: State, node: NodeId, progress: Progress) -> None:
    commit = min(progress.match, s.commit)
    progress.sent_commit = max(progress.sent_commit, commit)
    durable = s.log.durable_index
    s.send(Message(MessageType.HEARTBEAT, to=node, frm=s.id, term=s.term, commit=commit, hint=durable, round=s.round))


def _send_appends(s: State, node: NodeId, progress: Progress, cache: _Cache) -> bool:
    """Everything the member lacks, within its bounds: one append, more only for more than append_bytes_max. Of what is
    read from the disk, one a turn: the answer to it asks for the next."""
    config = s.config
    sent = False
    last = s.log.last_index()
    while progress.may_send(config.inflight_messages_max, config.inflight_bytes_max):
        behind = progress.match if progress.state is PROBE and not sent else progress.next - 1
        if sent and not s.log.is_in_memory(progress.next):
            break
        if behind >= last or not _send_append(s, node, progress, cache):
            break
        sent = True
    if progress.poke and not sent and progress.state is REPLICATE:
        # Everything is sent, yet not acknowledged: an empty append makes the member say so if something was lost.
        sent = _send_append(s, node, progress, cache, with_entries=False)
    progress.poke = False
    return sent


def _send_append(s: State, node: NodeId, progress: Progress, cache: _Cache, *, with_entries: bool = True) -> bool:
    log = s.log
    low = progress.next
    previous_term = log.term(low - 1) if low >= log.first_index() else None
    if previous_term is None:
        _request_snapshot(s, node, progress)
        return False
    entries: tuple[Entry, ...] = ()
    size = 0
    if with_entries:
        found = cache.get(low)
        if found is None:
            stop = min(low + ENTRIES_MAX, log.last_index() + 1)
            entries = tuple(log.slice(low, stop, s.config.append_bytes_max))
            found = cache[low] = (entries, sum([len(e.data) for e in entries]))
        entries, size = found
    last = low - 1 + len(entries)
    s.send(
        Message(
            MessageType.APPEND,
            to=node,
            frm=s.id,
            term=s.term,
            index=low - 1,
            log_term=previous_term,
            commit=s.commit,
            entries=entries,
            hint=log.durable_index,
            round=s.round,
        )
    )
    progress.sent_commit = max(progress.sent_commit, min(s.commit, last))
    progress.sent(last, size)
    return True


# --- commitment ---------------------------------------------------------------------------------------------------
def maybe_commit(s: State) -> bool:
    """Commit what a quorum of every active voter set holds, if the last of it is of this term (paper, 5.4.2)."""
    progress = s.progress

    def match(node: NodeId) -> int:
        return progress[node].match

    reached = quorum_value(s.conf, match)
    if reached <= s.commit or reached < s.term_start:
        return False
    if reached - s.commit >= s.config.commit_notice_entries:
        # Applying many takes a while: the members begin now, as the leader does, and not behind the next append.
        s.heartbeat_wanted = True
    s.commit = reached
    s.commit_notice_at = min(s.commit_notice_at, s.now + s.config.commit_notice_delay)
    return True


def on_durable(s: State) -> None:
    """The leader's own entries are on disk: only now it counts itself."""
    own = s.progress.get(s.id)
    if own is not None and own.acked(s.log.durable_index):
        maybe_commit(s)


# --- answers ------------------------------------------------------------------------------------------------------
def _heard_from(s: State, m: Message) -> Progress | None:
    progress = s.progress.get(m.frm)
    if progress is None:
        return None
    progress.contact = s.now
    progress.recent_active = True
    if m.round > progress.acked_round:
        progress.acked_round = m.round
        rounds.confirm(s)
    return progress


def _is_vouched(s: State, m: Message) -> bool:
    """Whether the entry that a member acknowledges is this leader's. If it is not, the member holds as committed what
    this leader, which was elected to have all that is committed, does not have."""
    own = s.log.term(m.index)
    if own == m.log_term:
        return True
    if own is not None or m.index > s.log.last_index():
        s.doubt = Doubt(DoubtKind.UNKNOWN_MATCH, m.frm, m.index, m.log_term)
    return False  # compacted away: of no use for commitment, and appends cannot go on from there


def _on_rejection(s: State, m: Message, progress: Progress) -> None:
    if progress.state is SNAPSHOT:
        return
    hint, held = m.hint, progress.match
    if m.hint_term > 0:
        hint, _ = s.log.find_conflict_by_term(m.hint, m.hint_term)
    if progress.rejected(m.index, hint, m.round):
        s.append_wanted = True
        if progress.match < held:
            s.doubt = Doubt(DoubtKind.LOST_MATCH, m.frm, held)


def on_append_answer(s: State, m: Message) -> None:
    """APPEND_RESP: the answer to an append or a snapshot of this term."""
    vouched = m.reject or _is_vouched(s, m)
    if not vouched and s.doubt is not None:
        return
    progress = _heard_from(s, m)
    if progress is None:
        return
    if m.reject:
        _on_rejection(s, m, progress)
        return
    if not vouched:
        return
    progress.match_round = max(progress.match_round, m.round)
    news = progress.acked(m.index)
    if progress.state is PROBE:
        if m.index >= progress.next - 1:
            progress.become_replicate()
    elif progress.state is SNAPSHOT and progress.match + 1 >= s.log.first_index():
        progress.become_replicate()
    if news:
        if not maybe_commit(s) and progress.sent_commit < min(s.commit, progress.match):
            s.commit_notice_at = min(s.commit_notice_at, s.now + s.config.commit_notice_delay)
        transfer.on_progress(s, m.frm, progress)
    if progress.next <= s.log.last_index():
        s.append_wanted = True


def on_heartbeat_answer(s: State, m: Message) -> None:
    """HEARTBEAT_RESP: the member lives; if it lags, whatever it waits for may have been lost, so try again."""
    progress = _heard_from(s, m)
    if progress is None:
        return
    progress.paused = False
    if progress.match < s.log.last_index():
        progress.poke = True
        s.append_wanted = True


# --- snapshots and members out of reach ---------------------------------------------------------------------------
def _is_active(s: State, progress: Progress) -> bool:
    return progress.recent_active and s.now - progress.contact <= s.config.election_timeout


def _request_snapshot(s: State, node: NodeId, progress: Progress) -> None:
    if not _is_active(s, progress):
        # No export for a member that is away: its first heartbeat answer opens the probe again.
        progress.become_probe()
        progress.paused = True
        return
    progress.become_snapshot(s.now + s.config.snapshot_retry)
    s.snapshot_requests.append(node)


def retry_snapshots(s: State) -> None:
    """Members whose snapshot was not answered in time get it again, or a new one if the log has moved on."""
    for node, progress in s.progress.items():
        if progress.state is not SNAPSHOT or s.now < progress.retry_at:
            continue
        meta = progress.snapshot
        progress.retry_at = s.now + s.config.snapshot_retry
        if not _is_active(s, progress):
            progress.become_probe()
            progress.paused = True
        elif meta is not None and meta.index + 1 >= s.log.first_index():
            send_snapshot(s, node, meta)
        else:
            s.snapshot_requests.append(node)


def send_snapshot(s: State, node: NodeId, meta: SnapshotMeta) -> None:
    """The host has made the snapshot that was asked for."""
    progress = s.progress.get(node)
    if progress is None or progress.state is not SNAPSHOT:
        return
    progress.snapshot = meta
    progress.retry_at = s.now + s.config.snapshot_retry
    s.send(Message(MessageType.SNAPSHOT, to=node, frm=s.id, term=s.term, snapshot=meta))


def snapshot_failed(s: State, node: NodeId) -> None:
    """Making or fetching the snapshot failed: ask for another one after snapshot_retry."""
    progress = s.progress.get(node)
    if progress is not None and progress.state is SNAPSHOT:
        progress.snapshot = None
        progress.retry_at = s.now + s.config.snapshot_retry


def unreachable(s: State, node: NodeId) -> None:
    """The transport lost messages to the member: stop pipelining, probe where it is."""
    progress = s.progress.get(node)
    if progress is not None and progress.state is REPLICATE:
        progress.become_probe()
        progress.paused = True
