"""The machines of a run and the nodes on them: booted, crashed, restarted, held down, killed at a failpoint.

Invariant: a machine runs at most one process; whatever ends it (a fault, a failpoint, its own error) passes `crash`.
It must not know how a node is put together (`make`), nor who leads or what clients do.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Protocol

from needle.base.errors import CorruptLog, InvalidArgument, NeedleError
from needle.base.ids import GroupId
from needle.multiraft.log.log_records import IDENTITY_KEY, PEER_PREFIX, Identity, Life, decode_record, entry_key
from needle.server.chores.comparing import Comparing
from proof.checkers.violation import Violation
from proof.sim.event_loop import SimLoop
from proof.sim.machines import SimMachine
from proof.sim.network import SimNetwork
from proof.sim.observer import DurableLog, Observer
from proof.sim.process import Killed, Process
from proof.sim.trace import Trace

RESTART_SECONDS = 1.0
LOST_SECONDS = 3.0
HEARD_SECONDS = 0.3
Unhandled = Callable[[Process | None, BaseException | None, str], None]


class RunningNode(Protocol):
    """One incarnation of a node."""

    process: Process

    async def start(self) -> None:
        """Raises NeedleError when the node refuses."""
        ...

    def groups(self) -> dict[GroupId, Any]:
        """The running replicas, with their Raft core, log and state machine."""
        ...

    def greeting(self) -> tuple[int, int] | None:
        """What its frames to other nodes begin with."""
        ...

    def lost(self) -> str:
        """Why none of its replicas goes on; "" if they do, or are not open yet."""
        ...

    def failure(self) -> NeedleError | None:
        """Why it ends, if it does."""
        ...

    def comparisons(self) -> Mapping[GroupId, Comparing]:
        """What its leaders found when they compared replicas."""
        ...

    def discard(self) -> None:
        """Close what a dead incarnation holds open."""
        ...


class Fleet:
    """See the module. `make` builds the node of a process; `unhandled` is told of bugs while a node starts."""

    def __init__(self, seed: int, loop: SimLoop, network: SimNetwork, trace: Trace, root: str, clock_error: float):
        self._seed = seed
        self._loop = loop
        self._network = network
        self._trace = trace
        self._root = root
        self._clock_error = clock_error
        self.machines: dict[str, SimMachine] = {}
        self.nodes: dict[str, RunningNode] = {}
        self.retired: set[str] = set()
        self.forgetful: set[str] = set()
        """Machines whose disks were replaced by empty or older ones."""
        self.spoilt: set[str] = set()
        """Nodes whose documents may be damaged until they were read once more; what they promised they keep."""
        self.turned_away: set[str] = set()
        """Those of them that ended because the catalog knows another directory under their name."""
        self.down_since: dict[str, float] = {}
        """Since when machines that ran a node run none."""
        self.lost_seconds = LOST_SECONDS
        self.observer = Observer(self.machines, trace, self.replicas)
        self.make: Callable[[SimMachine, Process], RunningNode]
        self.unhandled: Unhandled
        self._hearers: dict[str, set[str]] = {}
        self._armed: dict[str, tuple[str, int, bool]] = {}
        self._held_down: Counter[str] = Counter()
        self._graves: list[RunningNode] = []

    def add(self) -> str:
        """A new machine; its name."""
        name = f"n{len(self.machines) + 1}"
        self.machines[name] = SimMachine(name, f"{name}:7000", self._root, self._loop, self._seed, self._clock_error)
        return name

    def addresses(self) -> list[str]:
        """Where the nodes listen."""
        return [machine.address for machine in self.machines.values()]

    def replicas(self) -> dict[GroupId, dict[str, Any]]:
        """Every running replica, by group and node."""
        found: dict[GroupId, dict[str, Any]] = {}
        for name in sorted(self.nodes):
            for group, replica in self.nodes[name].groups().items():
                found.setdefault(group, {})[name] = replica
        return found

    def behind(self, name: str) -> list[GroupId]:
        """The groups that a node takes itself to lead while others have applied more than it knows to be committed."""
        node, last = self.nodes.get(name), self.observer.committed.last
        groups = node.groups() if node is not None else {}
        leads = {group: replica.raft for group, replica in groups.items() if replica.raft.role.name == "LEADER"}
        return [group for group, raft in leads.items() if raft.commit < last(group)]

    def hands_over(self, name: str) -> bool:
        """Whether a node hands over the leadership of some group."""
        node = self.nodes.get(name)
        return node is not None and any(replica.raft.is_transferring for replica in node.groups().values())

    def leader(self, group: GroupId) -> str | None:
        """The node that leads a group in the highest term."""
        best: tuple[int, str] | None = None
        for name, node in self.nodes.items():
            replica = node.groups().get(group)
            if replica is not None and replica.raft.role.name == "LEADER":
                best = max(best or (0, ""), (replica.raft.term, name))
        return best[1] if best else None

    # --- up and down --------------------------------------------------------------------------------------------------
    def start(self, name: str) -> None:
        """Boot the node, unless it runs, is held down or gone for good."""
        machine = self.machines[name]
        if machine.process is not None or self._held_down[name] or name in self.retired:
            return
        self.observer.booted(name)
        self.down_since.pop(name, None)
        process = machine.boot()
        node = self.nodes[name] = self.make(machine, process)
        self._trace.note(f"{name} boots, incarnation {machine.incarnation}")
        self._loop.spawn(process, self._boot(name, node, process))

    async def _boot(self, name: str, node: RunningNode, process: Process) -> None:
        try:
            await node.start()
        except NeedleError as error:
            self._loop.call_soon(self._exited, name, process, error, context=self._loop.root.context)
        except Exception as error:  # noqa: BLE001  # a bug of the product: it ends the run
            self.unhandled(process, error, "start")
        else:
            self._trace.tell(f"{name} is up, incarnation {process.incarnation}")

    def crash(self, name: str, *, power_cut: bool, why: str) -> None:
        """End the node's process at once."""
        machine = self.machines[name]
        process = machine.process
        if process is None:
            return
        self._trace.tell(f"{name} dies ({why}{', power cut' if power_cut else ''})")
        machine.crash(power_cut=power_cut)
        self.down_since[name] = self._loop.time()
        if machine.unsynced.broken:
            lost = Violation("index files are whole", f"{name} had not synced {machine.unsynced.broken}")
            self.unhandled(process, lost, why)
        self._network.process_died(process, power_cut=power_cut)
        self._graves.append(self.nodes.pop(name))
        for forgetful, hearers in self._hearers.items():
            hearers.discard(name)
            if not hearers and forgetful not in self.retired:
                self._trace.tell(f"whoever could tell that {forgetful} has older disks than before was restarted")
                self.forgetful.discard(forgetful)
                self.observer.replaced.discard(forgetful)

    def hold(self, name: str) -> None:
        """Keep the node down until `release`."""
        self._held_down[name] += 1

    def release(self, name: str) -> None:
        self._held_down[name] -= 1
        self.start(name)

    def fatal(self, name: str, process: Process, error: NeedleError) -> None:
        """The node says that it cannot go on; `needle serve` would exit now."""
        self._loop.call_soon(self._exited, name, process, error, context=self._loop.root.context)

    def _exited(self, name: str, process: Process, error: NeedleError) -> None:
        if self.machines[name].process is not process:
            return
        self._trace.tell(f"{name} stops: {error}")
        self.crash(name, power_cut=False, why=error.code)
        if isinstance(error, InvalidArgument) and name in self.forgetful:
            self.turned_away.add(name)
            self.retired.add(name)
        elif isinstance(error, CorruptLog) and name in self.observer.rotten:
            self.retired.add(name)
            self._trace.tell(f"{name} is out for good: its disk lost what it promised")
        else:
            self._loop.call_in(self._loop.root, RESTART_SECONDS, self.start, name)

    def rotted(self, name: str) -> None:
        """Bits of the node's log are damaged from now on: it need not hold what it once did."""
        self.observer.rotten.add(name)

    def is_remembered(self, name: str, others: Collection[str]) -> bool:
        """Whether each of the others that is not gone for good knows this node's present life durably."""
        mine, disk = self.nodes.get(name), self.machines[name].log_disk
        identity = decode_record(IDENTITY_KEY, disk.durable.values.get(IDENTITY_KEY, b""), Identity)
        if mine is None or identity is None:
            return False
        key = PEER_PREFIX + name.encode()
        for other in sorted(set(others) - self.retired):
            machine = self.machines[other]
            if decode_record(key, machine.log_disk.durable.values.get(key, b""), Life) != identity.life:
                return False
        return True

    def hearers(self, name: str) -> dict[str, int]:
        """Who has just heard from this node as its leader, with incarnations: all others of a group of which the copy
        of its disks that was set aside lacks something. They can know it, and nothing else gives it away."""
        for group, replicas in self.replicas().items():
            raft = replicas[name].raft if name in replicas else None
            if raft is None or raft.role.name != "LEADER":
                continue
            last = DurableLog(self.machines[name].log_disk, group).last()
            others = sorted({*raft.conf.voters, *raft.conf.learners} - {name})
            if self.machines[name].kept_lacks(entry_key(group, last)) and all(
                other in replicas and self._follows(other, replicas[other].raft, name, raft.term) for other in others
            ):
                return {other: self.machines[other].incarnation for other in others}
        return {}

    def _follows(self, name: str, raft: Any, leader: str, term: int) -> bool:
        s = raft._s
        heard = s.promise_until - s.config.election_timeout
        recently = self.machines[name].clock.monotonic() - heard < HEARD_SECONDS
        return bool(s.leader == leader and s.term == term and recently)

    def forget(self, name: str, hearers: Collection[str] = ()) -> None:
        """Replace the disks of a machine that is down by what was set aside, or by empty ones. hearers: who alone can
        notice it, if there is need of any, as long as they run."""
        self.forgetful.add(name)
        if hearers:
            self._hearers[name] = set(hearers)
        self.rotted(name)
        self.machines[name].put_back()
        self.observer.replaced.add(name)
        if self.machines[name].is_empty():
            self.observer.emptied.add(name)
        self.observer.monotone.replaced(name)

    def noticed(self, name: str) -> None:
        """The node says that it is lost: it stays up for a while, then an operator stops it for good."""
        if name in self.forgetful and name not in self.retired:
            self.retired.add(name)
            self._trace.tell(f"{name} says that it lost what others count on")
            stop = partial(self.crash, name, power_cut=False, why="lost for good")
            self._loop.call_in(self._loop.root, self.lost_seconds, stop)

    def start_lost(self, name: str) -> None:
        """Start a node once more that an operator has stopped for good."""
        self.retired.discard(name)
        self.start(name)
        self.retired.add(name)

    # --- failpoints ---------------------------------------------------------------------------------------------------
    def arm(self, name: str, failpoint: str, hits: int, *, power_cut: bool) -> None:
        """Kill the node when it passes `failpoint` for the hits-th time."""
        self._armed[name] = (failpoint, hits, power_cut)

    def disarm(self, name: str) -> None:
        self._armed.pop(name, None)
        self.start(name)

    def disarm_all(self) -> None:
        """No failpoint kills any more."""
        self._armed.clear()

    def failpoint(self, name: str, process: Process, place: str) -> None:
        """The node passes a failpoint."""
        armed = self._armed.get(name)
        if armed is None or armed[0] != place or not process.alive:
            return
        if armed[1] > 1:
            self._armed[name] = (place, armed[1] - 1, armed[2])
            return
        del self._armed[name]
        self.crash(name, power_cut=armed[2], why=f"at {place}")
        self._loop.call_in(self._loop.root, 3 * RESTART_SECONDS, self.start, name)
        raise Killed(f"{name} at {place}")

    # --- the end ------------------------------------------------------------------------------------------------------
    def kill_all(self) -> None:
        """End every process, without a crash of its machine."""
        for name in sorted(self.nodes):
            process = self.machines[name].process
            if process is not None:
                self._loop.kill(process)
        self._graves.extend(self.nodes.values())

    def discard(self) -> None:
        """Close the files of all that ever ran."""
        for node in self._graves:
            node.discard()
        self._graves.clear()

    def restarts(self) -> int:
        """How often machines were booted again."""
        return sum(machine.incarnation - 1 for machine in self.machines.values())


def fast_directory() -> str | None:
    """Memory, where the system has a directory for it: SQLite syncs there for nothing."""
    return "/dev/shm" if os.path.isdir("/dev/shm") else None
