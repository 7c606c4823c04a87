"""The invariants of Raft, one function each, checked while a `harness.Cluster` runs.

They see what a node writes, sends, applies and answers, never how the core decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from needle.raft.messages import ConfState, Entry, Message, MessageType, Ready
from needle.raft.raft import Role

if TYPE_CHECKING:
    from raft.harness import Cluster, Node


class InvariantBroken(AssertionError):
    """The message says which invariant, and where."""


def _quorum_of(voters: Sequence[str], holders: set[str]) -> bool:
    return len([v for v in voters if v in holders]) > len(voters) // 2


class Checkers:
    """All history that the invariants speak about."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.leader_of_term: dict[int, str] = {}
        self.vote_of: dict[tuple[str, int], str] = {}
        self.entries: dict[tuple[int, int], tuple[Entry, int]] = {}
        self.committed: list[Entry] = []
        self.seen: dict[str, tuple[int, int, int]] = {}
        self.reads: dict[int, int] = {}
        self.leased_reads = 0
        self.events = 0

    # --- events -------------------------------------------------------------------------------------------------
    def after_event(self, node: Node | None) -> None:
        self.events += 1
        for n in [node] if node is not None else self.cluster.nodes.values():
            if n.raft is not None:
                self.check_one_leader_per_term(n)
                self.check_indices_are_monotone(n)
                self.check_commit(n)
        if self.events % 4 == 0:
            for n in self.cluster.nodes.values():
                if n.raft is not None and n.raft.role is Role.LEADER:
                    self.check_leased_read(n)

    def started(self, node: Node) -> None:
        self.seen.pop(node.id, None)

    def committed_term(self) -> int:
        return self.committed[-1].term if self.committed else 0

    # --- invariants ---------------------------------------------------------------------------------------------
    def check_one_leader_per_term(self, node: Node) -> None:
        raft = node.core()
        if raft.role is not Role.LEADER:
            return
        known = self.leader_of_term.get(raft.term)
        if known is None:
            self.leader_of_term[raft.term] = node.id
            self.check_leader_completeness(node)
        elif known != node.id:
            raise InvariantBroken(f"one leader per term: {known} and {node.id} lead term {raft.term}")

    def check_leader_completeness(self, node: Node) -> None:
        """A new leader holds every committed entry; by log matching the last one is enough."""
        if not self.committed:
            return
        last = self.committed[-1]
        if last.term >= node.core().term:
            raise InvariantBroken(f"leader completeness: term {last.term} committed before {node.core().term} began")
        if self._term_at(node, last.index) != last.term:
            raise InvariantBroken(f"leader completeness: {node.id} leads without committed entry {last.index}")

    def _term_at(self, node: Node, index: int) -> int | None:
        """The term of a durable entry; for what is compacted, the committed term. New leaders have synced logs, for
        their vote was persisted together with everything before it."""
        storage = node.disk.storage
        if index < storage.base_index:
            return self.committed[index - 1].term
        return storage.term(index) if index <= storage.last_index() else None

    def check_indices_are_monotone(self, node: Node) -> None:
        raft = node.core()
        term, commit, applied = self.seen.get(node.id, (0, 0, 0))
        if raft.term < term or raft.commit < commit or raft.applied < applied:
            raise InvariantBroken(f"monotone indices: {node.id} went back from {(term, commit, applied)}")
        snapshot = node.disk.storage.base_index
        if not (snapshot <= raft.applied <= raft.commit <= raft.last_index) and node.writing is None:
            raise InvariantBroken(f"snapshot <= applied <= commit <= last: {node.id}")

    def check_commit(self, node: Node) -> None:
        """Committed prefixes agree, and an entry is committed only when it is durable on a quorum."""
        raft = node.core()
        _, before, _ = self.seen.get(node.id, (0, 0, 0))
        self.seen[node.id] = (raft.term, raft.commit, raft.applied)
        if raft.commit <= before or raft.commit <= len(self.committed):
            return
        if raft.role is not Role.LEADER:
            raise InvariantBroken(f"commit: {node.id} knows of commit {raft.commit} before any leader")
        self._check_quorum_durable(node, raft.conf, raft.commit)
        while len(self.committed) < raft.commit:
            index = len(self.committed) + 1
            holder = next(n for n in self._holders(node, raft.commit) if n.disk.storage.base_index < index)
            self.committed.append(holder.disk.storage.log[index - holder.disk.storage.base_index - 1])

    def _holders(self, leader: Node, index: int) -> list[Node]:
        """Nodes that hold, durably, the leader's entry at `index`."""
        leader_term = leader.core().term
        return [
            n
            for n in self.cluster.nodes.values()
            if n.disk.storage.base_index < index <= n.disk.storage.last_index()
            and n.disk.storage.term(index) == leader_term
        ]

    def _check_quorum_durable(self, node: Node, conf: ConfState, index: int) -> None:
        holders = {n.id for n in self._holders(node, index)}
        for voters in (conf.voters, conf.voters_outgoing):
            if voters and not _quorum_of(voters, holders):
                raise InvariantBroken(f"commit durable on a quorum: {index} of {node.id} is only on {sorted(holders)}")

    def handed_for_apply(self, node: Node, page: tuple[Entry, ...]) -> None:
        """Applied entries are the committed ones, and durable here."""
        for entry in page:
            if entry.index > len(self.committed):
                self.check_commit(node)
            if self.committed[entry.index - 1] != entry:
                raise InvariantBroken(f"committed prefixes: {node.id} applies another entry {entry.index}")
        if page[-1].index > node.disk.storage.last_index():
            raise InvariantBroken(f"apply ahead of the log: {node.id} at {page[-1].index}")

    def wrote(self, node: Node, ready: Ready) -> None:
        """Log matching: equal (index, term) means equal entry and equal predecessor; and no committed entry is
        overwritten on a disk."""
        storage = node.disk.storage
        for entry in ready.entries:
            previous = storage.term(entry.index - 1)
            known = self.entries.setdefault((entry.index, entry.term), (entry, previous))
            if known != (entry, previous):
                raise InvariantBroken(f"log matching: two entries at {(entry.index, entry.term)}")
        if ready.hard_state is not None and ready.hard_state.vote:
            self.check_one_vote(node, ready.hard_state.term, ready.hard_state.vote)

    def check_one_vote(self, node: Node, term: int, candidate: str) -> None:
        known = self.vote_of.setdefault((node.id, term), candidate)
        if known != candidate:
            raise InvariantBroken(f"one vote per term: {node.id} voted for {known} and {candidate} in {term}")

    def sent(self, node: Node, message: Message) -> None:
        """No acknowledgement precedes its fsync."""
        hard_state = node.disk.hard_state
        kind = message.type
        if kind == MessageType.VOTE or (kind == MessageType.VOTE_RESP and not message.reject):
            candidate = message.frm if kind == MessageType.VOTE else message.to
            self.check_one_vote(node, message.term, candidate)
            if (hard_state.term, hard_state.vote) != (message.term, candidate) and hard_state.term <= message.term:
                # A lone candidate's request may ask before its own vote is durable; nobody else's may be told.
                raise InvariantBroken(f"vote before fsync: {node.id} in term {message.term}")
        elif kind in (MessageType.APPEND_RESP, MessageType.HEARTBEAT_RESP):
            if hard_state.term < message.term:
                raise InvariantBroken(f"answer before fsync: {node.id} answers in unsynced term {message.term}")
            if (
                kind == MessageType.APPEND_RESP
                and message.index > node.disk.storage.last_index()
                and not message.reject
            ):
                raise InvariantBroken(f"ack before fsync: {node.id} acknowledges {message.index}")
        elif kind == MessageType.HEARTBEAT and message.commit > len(self.committed):
            raise InvariantBroken(f"heartbeat of {node.id} carries commit {message.commit} that nobody reached")

    # --- reads --------------------------------------------------------------------------------------------------
    def acknowledged(self) -> int:
        """The highest index that any client may have seen: applied anywhere."""
        return max((n.core().applied for n in self.cluster.nodes.values() if n.raft is not None), default=0)

    def read_invoked(self, node: Node) -> int:
        context = len(self.reads) + 1
        self.reads[context] = self.acknowledged()
        return context

    def read_answered(self, node: Node, context: int, index: int) -> None:
        if index < self.reads[context]:
            raise InvariantBroken(f"read freshness: {node.id} answers {index}, {self.reads[context]} was acknowledged")

    def check_leased_read(self, node: Node) -> None:
        """In true time: no leased read once a higher term has committed, and none behind what is acknowledged."""
        index = node.core().read_lease(node.now())
        if index is None:
            return
        self.leased_reads += 1
        if self.committed_term() > node.core().term:
            raise InvariantBroken(
                f"stale lease: {node.id} of term {node.core().term} reads after {self.committed_term()}"
            )
        if index < self.acknowledged():
            raise InvariantBroken(f"stale lease: {node.id} reads at {index}, {self.acknowledged()} was acknowledged")
