"""Cores whose network, disks, state machines and time obey a script, and which write down all that they do.

It knows no commands; those are in trace_commands.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from needle.raft.config import CoreConfig
from needle.raft.messages import ConfState, DoubtKind, Entry, EntryKind, Message, Ready
from needle.raft.raft import Raft, Role
from raft.harness import Disk
from raft.trace_words import conf_words, entry_words, kind_of, message_words


class Peer:
    """A host around one core."""

    def __init__(self, config: CoreConfig, conf: ConfState) -> None:
        self.id = config.node_id
        self.config = config
        self.disk = Disk(conf=conf)
        self.raft: Raft | None = None
        self.is_paused = self.has_slow_disk = self.has_slow_apply = False
        self.writing: Ready | None = None
        self.page: tuple[Entry, ...] = ()
        self.shown: dict[str, str] = {}

    @property
    def core(self) -> Raft:
        assert self.raft is not None, f"{self.id} is down"
        return self.raft

    def runs(self) -> bool:
        return self.raft is not None and not self.is_paused

    def start(self, now: float) -> None:
        disk, factor = self.disk, int(self.id) / 10
        self.writing, self.page = None, ()
        self.raft = Raft(
            self.config,
            disk.storage,
            hard_state=disk.hard_state,
            conf=disk.conf,
            applied=disk.applied,
            now=now,
            random_timeout=lambda: factor,
        )
        self.news()

    def news(self) -> list[str]:
        """What has changed since the last call."""
        core = self.core
        of = f" of {core.leader}" if core.leader and core.role is Role.FOLLOWER else ""
        state = {
            "conf": f"members {conf_words(core.conf)}",
            "role": f"{core.role.value.replace('_', '-')} t{core.term}{of}",
            "commit": f"commit {core.commit}",
        }
        found = [words for key, words in state.items() if self.shown.get(key) != words]
        self.shown = state
        doubt = core.take_doubt()
        if doubt is not None:
            at = f"{doubt.index}/t{doubt.term}" if doubt.term else f"{doubt.index}"
            found.append(f"doubts {doubt.peer}: {DoubtKind(doubt.kind).name.lower().replace('_', ' ')} {at}")
        return [f"{self.id} {words}" for words in found]

    def write_words(self, ready: Ready) -> str:
        """What the write changes on the disk."""
        words, last, before = [], self.disk.storage.last_index(), self.disk.hard_state
        if ready.snapshot is not None:
            words.append(f"snapshot {ready.snapshot.index}/t{ready.snapshot.term}")
        hard = ready.hard_state
        if hard is not None and (hard.term, hard.vote) != (before.term, before.vote):
            words.append(f"term {hard.term} vote {hard.vote or 'none'}")
        if hard is not None and hard.commit != before.commit:
            words.append(f"commit {hard.commit}")
        if ready.entries:
            cut = f" (in place of {ready.entries[0].index}..{last})" if ready.entries[0].index <= last else ""
            words.append(f"log {', '.join(map(entry_words, ready.entries))}{cut}")
        return "; ".join(words)


class World:
    """Nodes, the messages between them, and time in ticks. Everything that happens is a line, indented by `depth`."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.depth = 0
        self.reset()

    def reset(self) -> None:
        """No nodes, at time 0."""
        self.now = 0.0
        self.peers: dict[str, Peer] = {}
        self.wire: list[Message] = []
        self.arrived: dict[str, Message] = {}
        self.isolated: set[str] = set()

    def say(self, text: str) -> None:
        self.lines.append("  " * self.depth + text)

    @contextmanager
    def below(self, text: str) -> Iterator[None]:
        """What happens inside is because of this line."""
        self.say(text)
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def send(self, messages: tuple[Message, ...]) -> None:
        for m in messages:
            lost = m.frm in self.isolated or m.to in self.isolated
            self.say(message_words(m) + (" (lost)" if lost else ""))
            if not lost:
                self.wire.append(m)

    def show(self, n: Peer) -> None:
        for line in n.news():
            self.say(line)

    def pump(self, n: Peer) -> None:
        """Do what every Ready says, in the order that it says."""
        self.show(n)
        while n.core.has_ready(persist=n.writing is None, apply=not n.page):
            ready = n.core.ready(persist=n.writing is None, apply=not n.page)
            self.send(ready.messages)
            for read in ready.reads:
                self.say(f"{n.id} answers read {read.context} once it has applied {read.index}")
            for context in ready.dropped_reads:
                self.say(f"{n.id} gives read {context} up")
            for peer in ready.snapshot_requests:
                self.say(f"{n.id} wants a snapshot for {peer}")
            if not ready.must_sync:
                self.send(ready.messages_after_persist)
            elif n.has_slow_disk:
                n.writing = ready
                with self.below(f"{n.id} begins fsync {n.write_words(ready)}"):
                    for m in ready.messages_after_persist:
                        self.say(f"holds back {message_words(m)}")
            else:
                self.finish_write(n, ready)
            if ready.committed:
                n.page = ready.committed
                if n.has_slow_apply:
                    self.say(f"{n.id} begins to apply {', '.join(map(entry_words, n.page))}")
                else:
                    self.finish_apply(n)
            self.show(n)

    def finish_write(self, n: Peer, ready: Ready) -> None:
        words = n.write_words(ready)
        n.writing = None
        n.disk.write(ready)
        with self.below(f"{n.id} fsync {words}"):
            self.send(ready.messages_after_persist)
        n.core.advance(ready)
        self.show(n)

    def finish_apply(self, n: Peer) -> None:
        page, n.page = n.page, ()
        self.say(f"{n.id} applies {', '.join(map(entry_words, page))}")
        for entry in page:
            if entry.kind == EntryKind.CONF_CHANGE:
                n.core.apply_conf_change(entry)
        n.core.applied_to(page[-1].index)
        n.disk.applied, n.disk.conf = n.core.applied, n.core.conf

    def receive(self, m: Message) -> None:
        n = self.peers[m.to]
        self.arrived[f"{m.frm}->{m.to}"] = m
        if n.raft is None:
            self.say(f"{m.to} is down: {kind_of(m)} of {m.frm} is lost")
            return
        before = len(self.lines) + 1
        with self.below(f"{m.to} gets {kind_of(m)}{f' r{m.round}' if m.round else ''} of {m.frm}"):
            refusal = n.raft.step(m, self.now)
            if refusal:
                self.say(f"refuses it: {refusal}")
            self.pump(n)
        if len(self.lines) == before:
            self.lines[-1] += ": no reaction"

    def waiting(self, link: str = "", kind: str = "") -> list[Message]:
        return [
            m
            for m in self.wire
            if link in ("", f"{m.frm}->{m.to}") and kind in ("", kind_of(m)) and not self.peers[m.to].is_paused
        ]
