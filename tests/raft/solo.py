"""One core by itself, fed by hand: for tables of single steps."""

from __future__ import annotations

from needle.raft.config import CoreConfig
from needle.raft.messages import ConfState, Entry, HardState, Message, MessageType, Ready
from needle.raft.raft import Raft
from needle.raft.state import FAR
from raft.harness import HEARTBEAT, MemoryStorage, T


def entries(*terms: int, start: int = 1) -> tuple[Entry, ...]:
    """Entries with these terms, from index `start` on."""
    return tuple(Entry(start + i, term, 0, b"d%d" % (start + i)) for i, term in enumerate(terms))


class Solo:
    """A replica "a" of a, b, c whose host writes everything at once, unless told otherwise."""

    def __init__(
        self,
        *terms: int,
        term: int = 0,
        vote: str = "",
        commit: int = 0,
        voters: tuple[str, ...] = ("a", "b", "c"),
        learners: tuple[str, ...] = (),
        now: float = 100.0,
        **settings: float,
    ) -> None:
        self.storage = MemoryStorage()
        self.storage.write(entries(*terms))
        config = CoreConfig(node_id="a", election_timeout=T, heartbeat_interval=HEARTBEAT, **settings)  # type: ignore[arg-type]
        self.now, self.disk_waits_since = now, FAR
        self.raft = Raft(
            config,
            self.storage,
            hard_state=HardState(term, vote, commit),
            conf=ConfState(voters=voters, learners=learners),
            applied=0,
            now=now,
            random_timeout=lambda: 0.5,
            disk_waits_since=lambda: self.disk_waits_since,
        )
        self.out: list[Message] = []

    def receive(self, kind: MessageType, frm: str, term: int, **fields: object) -> None:
        self.raft.step(Message(kind, to="a", frm=frm, term=term, **fields), self.now)  # type: ignore[arg-type]

    def ready(self) -> Ready:
        """One Ready, nothing done about it."""
        return self.raft.ready()

    def write(self, ready: Ready) -> None:
        """What a host does with it, except for sending and applying."""
        if ready.snapshot is not None:
            self.storage.reset(ready.snapshot.index, ready.snapshot.term)
        self.storage.write(ready.entries)
        self.raft.advance(ready)

    def settle(self) -> list[Message]:
        """Do all that is to be done; what was sent meanwhile."""
        sent: list[Message] = []
        while self.raft.has_ready():
            ready = self.raft.ready()
            self.write(ready)
            sent += [*ready.messages, *ready.messages_after_persist]
            for entry in ready.committed:
                if entry.kind == 1:
                    self.raft.apply_conf_change(entry)
                self.raft.applied_to(entry.index)
        self.out += sent
        return sent

    def pass_time(self, seconds: float) -> list[Message]:
        self.now += seconds
        self.raft.tick(self.now)
        return self.settle()

    def become_leader(self, *granted_by: str) -> None:
        """Win an election by these votes; the no-op is committed by their acks."""
        self.pass_time(self.raft.next_deadline() - self.now + 0.001)
        term = self.raft.term + 1
        for voter in granted_by:
            self.receive(MessageType.PRE_VOTE_RESP, voter, term)
        self.settle()
        for voter in granted_by:
            self.receive(MessageType.VOTE_RESP, voter, term)
        self.settle()
        for voter in granted_by:
            self.ack(voter, self.raft.last_index)
        self.settle()

    def ack(self, frm: str, index: int, round_id: int = 0) -> None:
        """A member acknowledges entry `index`, as this node has it."""
        term = self.raft.term_at(index) or 0
        self.receive(MessageType.APPEND_RESP, frm, self.raft.term, index=index, log_term=term, round=round_id)
