"""A deterministic cluster of cores on simulated time: network, disks that lose what was not synced, crooked clocks.

One `Cluster` runs scripted tests (no chance at all) and random schedules (one seeded generator). Every event is
followed by the checks of `checkers.Checkers`. It must not reach into the core beyond its public interface.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from needle.raft.config import CoreConfig
from needle.raft.messages import (
    ConfState,
    DoubtKind,
    Entry,
    EntryKind,
    HardState,
    Message,
    MessageType,
    Ready,
    SnapshotMeta,
)
from needle.raft.raft import Raft, Role
from raft.checkers import Checkers

T = 0.150
HEARTBEAT = 0.050


class MemoryStorage:
    """The durable part of a log, as LogStorage: what survives a crash."""

    def __init__(self) -> None:
        self.base_index = 0
        self.base_term = 0
        self.log: list[Entry] = []

    def first_index(self) -> int:
        return self.base_index + 1

    def last_index(self) -> int:
        return self.base_index + len(self.log)

    def term(self, index: int) -> int:
        if index == self.base_index:
            return self.base_term
        if not self.base_index < index <= self.last_index():
            raise KeyError(index)
        return self.log[index - self.base_index - 1].term

    def entries(self, low: int, high: int, bytes_max: int) -> list[Entry]:
        assert self.first_index() <= low <= high <= self.last_index() + 1, (low, high)
        found: list[Entry] = []
        size = 0
        for entry in self.log[low - self.base_index - 1 : high - self.base_index - 1]:
            size += len(entry.data)
            if found and size > bytes_max:
                break
            found.append(entry)
        return found

    def in_memory_from(self) -> int:
        return self.first_index()

    def has_conf_change(self, low: int, high: int) -> bool:
        return any(low <= e.index < high and e.kind == EntryKind.CONF_CHANGE for e in self.log)

    def write(self, entries: tuple[Entry, ...]) -> None:
        if entries:
            first = entries[0].index
            assert self.first_index() <= first <= self.last_index() + 1, "a hole in the log on disk"
            del self.log[first - self.base_index - 1 :]
            self.log.extend(entries)

    def reset(self, index: int, term: int) -> None:
        self.base_index, self.base_term, self.log = index, term, []

    def compact(self, index: int) -> None:
        if index > self.base_index:
            term = self.term(index)
            del self.log[: index - self.base_index]
            self.base_index, self.base_term = index, term


@dataclass
class Disk:
    """All that survives a crash. confs: configuration in force from an index on, as the state machine keeps it."""

    storage: MemoryStorage = field(default_factory=MemoryStorage)
    hard_state: HardState = field(default_factory=HardState)
    applied: int = 0
    conf: ConfState = field(default_factory=ConfState)

    def write(self, ready: Ready) -> None:
        """The one transaction of a Ready."""
        if ready.snapshot is not None:
            self.storage.reset(ready.snapshot.index, ready.snapshot.term)
            self.applied, self.conf = ready.snapshot.index, ready.snapshot.conf
        self.storage.write(ready.entries)
        if ready.hard_state is not None:
            self.hard_state = ready.hard_state


@dataclass
class Weather:
    """What goes wrong, as probabilities, and how long things take in seconds (low, high)."""

    loss: float = 0.0
    duplication: float = 0.0
    delay: tuple[float, float] = (0.001, 0.001)
    fsync: tuple[float, float] = (0.0005, 0.0005)
    apply: tuple[float, float] = (0.0002, 0.0002)
    snapshot_failure: float = 0.0
    checkpoint: float = 1.0  # chance that an apply is durable at once


class Node:
    """A host around one core: does what every Ready says, in the order that it says."""

    def __init__(self, cluster: Cluster, node_id: str, config: CoreConfig, conf: ConfState, rate: float) -> None:
        self.cluster = cluster
        self.id = node_id
        self.config = config
        self.rate = rate
        self.clock_offset = cluster.rng.uniform(0, 1000)
        self.disk = Disk(conf=conf)
        self.incarnation = 0
        self.raft: Raft | None = None
        self.writing: Ready | None = None
        self.disk_stalled = False
        self.next_tick = float("inf")
        self.downloading: set[int] = set()
        self.read_results: dict[int, int] = {}
        self.reads_dropped: set[int] = set()
        self.applied: list[Entry] = []
        self.sent: list[Message] = []

    # --- life ---------------------------------------------------------------------------------------------------
    def now(self) -> float:
        return self.clock_offset + self.cluster.time * self.rate

    def core(self) -> Raft:
        assert self.raft is not None, f"{self.id} is down"
        return self.raft

    def start(self) -> None:
        self.incarnation += 1
        self.writing = None
        self.disk_stalled = False
        self.next_tick = float("inf")
        self.downloading = set()
        factor = self.cluster.rng.random
        self.raft = Raft(
            self.config,
            self.disk.storage,
            hard_state=self.disk.hard_state,
            conf=self.disk.conf,
            applied=self.disk.applied,
            now=self.now(),
            random_timeout=factor,
        )
        self.cluster.checkers.started(self)
        self.pump()

    def crash(self, *, write_survives: bool = False) -> None:
        """Lose everything that was not synced; `write_survives`: the write under way reached the disk, unanswered."""
        if self.writing is not None and write_survives:
            self.disk.write(self.writing)
            self.cluster.checkers.wrote(self, self.writing)
        self.raft = None
        self.writing = None
        self.incarnation += 1

    # --- the Ready loop -----------------------------------------------------------------------------------------
    def later(self, span: tuple[float, float], action: Callable[[], None]) -> None:
        incarnation = self.incarnation

        def run() -> None:
            if self.incarnation == incarnation:
                action()

        self.cluster.at(self.cluster.rng.uniform(*span), run, self)

    def pump(self) -> None:
        raft = self.core()
        self.cluster.checkers.check_commit(self)
        doubt = raft.take_doubt()
        # A rejection that overtakes the acknowledgement before it is the one doubt that good disks can give rise to.
        assert doubt is None or doubt.kind == DoubtKind.LOST_MATCH, doubt
        while raft.has_ready(persist=self.writing is None):
            ready = raft.ready(persist=self.writing is None)
            self._send(ready.messages)
            if ready.must_sync:
                self.writing = ready
                self._schedule_write(ready)
            else:
                assert not ready.entries and ready.hard_state is None and ready.snapshot is None
                self._send(ready.messages_after_persist)
            if ready.committed:
                self.cluster.checkers.handed_for_apply(self, ready.committed)
                self.later(self.cluster.weather.apply, lambda page=ready.committed: self._apply(page))
            for read in ready.reads:
                self.read_results[read.context] = read.index
                self.cluster.checkers.read_answered(self, read.context, read.index)
            self.reads_dropped.update(ready.dropped_reads)
            for peer in ready.snapshot_requests:
                self.later((0.001, 0.02), lambda peer=peer: self._make_snapshot(peer))
        self._schedule_tick()

    def _schedule_write(self, ready: Ready) -> None:
        def done() -> None:
            if self.disk_stalled:
                self.later((0.01, 0.01), done)
                return
            self.disk.write(ready)
            self.writing = None
            self.cluster.checkers.wrote(self, ready)
            self.core().advance(ready)
            self._send(ready.messages_after_persist)
            self.pump()

        self.later(self.cluster.weather.fsync, done)

    def _apply(self, page: tuple[Entry, ...]) -> None:
        raft = self.core()
        for entry in page:
            if entry.kind == EntryKind.CONF_CHANGE:
                raft.apply_conf_change(entry)
        self.applied.extend(page)
        raft.applied_to(page[-1].index)
        if self.cluster.rng.random() < self.cluster.weather.checkpoint:
            self.checkpoint()
        self.pump()

    def checkpoint(self) -> None:
        """Make what is applied durable."""
        self.disk.applied, self.disk.conf = self.core().applied, self.core().conf

    def compact(self, keep: int = 0) -> None:
        self.disk.storage.compact(max(self.disk.storage.base_index, self.disk.applied - keep))

    def _make_snapshot(self, peer: str) -> None:
        raft = self.core()
        if self.cluster.rng.random() < self.cluster.weather.snapshot_failure:
            raft.report_snapshot_failed(peer, self.now())
        elif raft.applied > 0 and self.disk.storage.base_index <= raft.applied:
            term = self.disk.storage.term(raft.applied)
            raft.send_snapshot(peer, SnapshotMeta(raft.applied, term, raft.conf, b"files"), self.now())
        self.pump()

    def _schedule_tick(self) -> None:
        due = max(self.cluster.time, (self.core().next_deadline() - self.clock_offset) / self.rate)
        if due < self.next_tick - 1e-9:
            self.next_tick = due
            self.later((due - self.cluster.time, due - self.cluster.time), self._tick)

    def _tick(self) -> None:
        self.next_tick = float("inf")
        self.core().tick(self.now() + 1e-9)
        self.pump()

    # --- the network --------------------------------------------------------------------------------------------
    def _send(self, messages: tuple[Message, ...]) -> None:
        for message in messages:
            self.cluster.checkers.sent(self, message)
            self.sent.append(message)
            self.cluster.transmit(message)

    def receive(self, message: Message) -> None:
        if self.raft is None:
            return
        if message.type == MessageType.SNAPSHOT:
            assert message.snapshot is not None
            if message.snapshot.index in self.downloading:
                return
            self.downloading.add(message.snapshot.index)
            self.later((0.001, 0.05), lambda: self._downloaded(message))
            return
        assert not self.raft.step(message, self.now()), message
        self.pump()

    def _downloaded(self, message: Message) -> None:
        assert message.snapshot is not None
        self.downloading.discard(message.snapshot.index)
        assert not self.core().step(message, self.now()), message
        self.pump()

    # --- requests -----------------------------------------------------------------------------------------------
    def propose(self, data: bytes) -> tuple[int, int]:
        result = self.core().propose(data, self.now())
        self.pump()
        return result

    def read_index(self) -> int:
        """Start a read; its context."""
        context = self.cluster.checkers.read_invoked(self)
        self.core().read_index(context, self.now())
        self.pump()
        return context


class Cluster:
    """Nodes, the network between them, and true time."""

    def __init__(
        self,
        voters: int = 3,
        *,
        spares: int = 0,
        seed: int = 0,
        weather: Weather | None = None,
        max_rate_error: float = 0.0,
        start: bool = True,
        **settings: float,
    ) -> None:
        self.rng = random.Random(seed)
        self.time = 0.0
        self.weather = weather or Weather()
        self.checkers = Checkers(self)
        self._events: list[tuple[float, int, Callable[[], None], Node | None]] = []
        self._sequence = 0
        self.cut: set[tuple[str, str]] = set()
        self.drop: Callable[[Message], bool] = lambda m: False
        ids = [f"n{i + 1}" for i in range(voters + spares)]
        conf = ConfState(voters=tuple(ids[:voters]))
        self.nodes: dict[str, Node] = {}
        for i, node_id in enumerate(ids):
            values: dict[str, float] = {"election_timeout": T, "heartbeat_interval": HEARTBEAT, **settings}
            config = CoreConfig(node_id=node_id, clock_error_max=max_rate_error or 0.001, **values)  # type: ignore[arg-type]
            rate = 1 + self.rng.uniform(-max_rate_error, max_rate_error)
            self.nodes[node_id] = Node(self, node_id, config, conf if i < voters else ConfState(), rate)
        if start:
            for node in self.nodes.values():
                node.start()

    def __getitem__(self, node_id: str) -> Node:
        return self.nodes[node_id]

    # --- time ---------------------------------------------------------------------------------------------------
    def at(self, delay: float, action: Callable[[], None], node: Node | None = None) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (self.time + delay, self._sequence, action, node))

    def step(self) -> bool:
        """Run the next event and all checks. False if there is none."""
        if not self._events:
            return False
        when, _, action, node = heapq.heappop(self._events)
        self.time = max(self.time, when)
        action()
        self.checkers.after_event(node)
        return True

    def run(self, seconds: float) -> None:
        """Let `seconds` of true time pass."""
        end = self.time + seconds
        while self._events and self._events[0][0] <= end:
            self.step()
        self.time = end

    def run_until(self, condition: Callable[[], bool], seconds: float = 5.0) -> None:
        """Run until `condition` holds; fails after `seconds` of true time."""
        end = self.time + seconds
        while not condition():
            assert self._events and self._events[0][0] <= end, "the condition did not come true in time"
            self.step()

    # --- network ------------------------------------------------------------------------------------------------
    def transmit(self, message: Message) -> None:
        weather, rng = self.weather, self.rng
        copies = 2 if weather.duplication and rng.random() < weather.duplication else 1
        for _ in range(copies):
            if (message.frm, message.to) in self.cut or self.drop(message):
                continue
            if weather.loss and rng.random() < weather.loss:
                continue
            target = self.nodes[message.to]
            self.at(rng.uniform(*weather.delay), lambda target=target: target.receive(message), target)

    def isolate(self, *group: str) -> None:
        """Cut every link between `group` and the others, both ways."""
        for a in self.nodes:
            for b in self.nodes:
                if (a in group) != (b in group):
                    self.cut.add((a, b))

    def heal(self) -> None:
        self.cut.clear()
        self.drop = lambda m: False

    # --- questions ----------------------------------------------------------------------------------------------
    def leaders(self) -> list[Node]:
        return [n for n in self.nodes.values() if n.raft is not None and n.raft.role is Role.LEADER]

    def leader(self, seconds: float = 5.0) -> Node:
        """The leader of the highest term, once one has committed in its term."""

        def found() -> list[Node]:
            return [n for n in self.leaders() if n.core().term == max(m.core().term for m in self.leaders())]

        def ready() -> bool:
            return any(self.checkers.committed_term() == n.core().term for n in found())

        self.run_until(ready, seconds)
        return found()[0]

    def elect(self, node_id: str) -> Node:
        """Make `node_id` the leader, by way of a transfer if need be."""
        leader = self.leader()
        if leader.id != node_id:
            leader.core().transfer_leadership(node_id, leader.now())
            leader.pump()
            self.run_until(lambda: self[node_id].core().role is Role.LEADER)
        assert self.leader().id == node_id
        return self[node_id]

    def put(self, data: bytes) -> int:
        """Write through the leader; returns the index once it is applied there."""
        leader = self.leader()
        index, _ = leader.propose(data)
        self.run_until(lambda: leader.core().applied >= index)
        return index

    def converge(self, seconds: float = 5.0) -> None:
        """Run until every running member of the leader's configuration has applied all that is committed."""
        leader = self.leader(seconds)

        def same() -> bool:
            conf = leader.core().conf
            members = [self[v] for v in (*conf.voters, *conf.learners) if self[v].raft is not None]
            return all(m.core().applied == leader.core().last_index for m in members)

        self.run_until(same, seconds)
