"""Carries out the faults of a schedule, and undoes each when its time is over.

Invariant: when `finish` returned, no fault is left on the machines and links of the majority it was given. A node that
lost its data is never joined by another in that state: at every time a quorum of good disks remains.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Protocol, TypeVar

from proof.sim.event_loop import SimLoop
from proof.sim.fleet import Fleet
from proof.sim.machine import stream
from proof.sim.network import SimNetwork
from proof.sim.spec import Fault
from proof.sim.strangers import Strangers
from proof.sim.trace import Trace

T = TypeVar("T")
LATE_SECONDS = 0.4
"""How late the answers to a leader are in one kind of fault: less than an election timeout, so that it stays leader."""
HANDOVER_STEPS = 200
"""So many quarters of a link's delay a fault waits for the leader to hand over."""
REPLACEABLE_TRIES = 20
"""So many seconds a fault waits that needs a group which can do without a machine's data."""
RUNNING_SHARE = 0.5
"""Of the copies that come back: how many are of a leader that runs."""
HEARD_FOR_SECONDS = 2.0
"""So long all hear a leader before it is replaced: what came late is of after the copy, too."""
Handler = Callable[[Fault, str], Awaitable[None]]
"""Carries out a fault on a node, and undoes it; it is cancelled when faults end."""


class Controls(Protocol):
    """What faults need to know of the cluster, and the commands of its operator."""

    def leader(self, hint: int = 0) -> str | None:
        """A node that leads. hint: picks the group, where there are several."""
        ...

    def may_lose(self, name: str) -> bool:
        """Whether a good quorum remains without this node's data."""
        ...

    def sharing(self, name: str) -> set[str]:
        """The nodes with which this one shares a group."""
        ...

    def finds_others(self, name: str) -> bool:
        """Whether this node, with nothing but its configuration, knows where one is that is still there."""
        ...

    async def admin(self, name: str, what: str) -> None:
        """An operator's command; it may be refused or time out."""
        ...


class Injector:
    """Runs each fault as a task of the world."""

    def __init__(
        self, seed: int, loop: SimLoop, network: SimNetwork, fleet: Fleet, controls: Controls, trace: Trace
    ) -> None:
        self._seed = seed
        self._loop = loop
        self._network = network
        self._fleet = fleet
        self._controls = controls
        self._strangers = Strangers(seed, loop, network, fleet, trace)
        self._trace = trace
        self._tasks: list[asyncio.Task[None]] = []
        self._rotten: set[str] = set()
        self.spoilt = fleet.spoilt
        self.counts: Counter[str] = Counter()
        self.over = False
        self.more: Mapping[str, Handler] = {}
        """Faults of other kinds."""

    def begin(self, schedule: list[Fault]) -> None:
        """Schedule all faults, relative to now."""
        start = self._loop.time()
        for fault in schedule:
            self._tasks.append(self._loop.create_task(self._later(start + fault.at - self._loop.time(), fault)))

    async def stop(self) -> None:
        """Stop injecting; every fault under way is undone."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            try:
                await task
            except asyncio.CancelledError:
                continue

    async def _later(self, delay: float, fault: Fault) -> None:
        await asyncio.sleep(delay)
        name = self._resolve(fault)
        if name is None:
            return
        self.counts[fault.kind] += 1
        self._trace.tell(f"{name}: {fault}")
        if fault.kind in self.more:
            await self.more[fault.kind](fault, name)
        else:
            await _HANDLERS.get(fault.kind, Injector._network_fault)(self, fault, name)
        self._trace.note(f"fault {fault.number} is over")

    def _resolve(self, fault: Fault) -> str | None:
        names = sorted(self._fleet.machines)
        leader = self._controls.leader(fault.number)
        rng = stream(self._seed, "target", fault.number)
        if fault.target == "leader" and leader is not None:
            return leader
        if fault.target == "follower":
            names = [name for name in names if name != leader]
        return names[rng.randrange(len(names))] if names else None

    async def _hold(self, seconds: float, undo: Callable[[], None]) -> None:
        try:
            await asyncio.sleep(seconds)
        finally:
            undo()

    # --- processes ----------------------------------------------------------------------------------------------------
    async def _crash(self, fault: Fault, name: str) -> None:
        names = sorted(self._fleet.machines) if fault.kind == "power-cut-all" else [name]
        for one in names:
            self._fleet.crash(one, power_cut=fault.kind != "kill", why=fault.kind)
        await self._hold(fault.seconds, lambda: each(self._fleet.start, names))

    async def _failpoint(self, fault: Fault, name: str) -> None:
        self._fleet.arm(name, fault.name, 1 + int(fault.amount * 10) % 5, power_cut=fault.amount < 0.5)
        await self._hold(fault.seconds + 5.0, lambda: self._fleet.disarm(name))

    async def _pause(self, fault: Fault, name: str) -> None:
        process = self._fleet.machines[name].process
        if process is not None:
            self._loop.pause(process)
            await self._hold(fault.seconds, lambda: self._loop.resume(process))

    async def _pause_cut(self, fault: Fault, name: str) -> None:
        """The leader is paused and cut off; when it goes on, clients reach it before it hears of its successor."""
        name = self._controls.leader(fault.number) or name
        process = self._fleet.machines[name].process
        links = both(name, [node for node in sorted(self._fleet.machines) if node != name])
        for link in links:
            self._network.block(*link)
        if process is not None:
            self._loop.pause(process)
        try:
            await asyncio.sleep(fault.seconds)
            if process is not None:
                self._loop.resume(process)
            await asyncio.sleep(0.5)
        finally:
            if process is not None:
                self._loop.resume(process)
            each(lambda link: self._network.unblock(*link), links)

    async def _admin(self, fault: Fault, name: str) -> None:
        await self._controls.admin(name, fault.kind)
        after = {"maintenance": "end-maintenance", "demote": "restore", "remove": "restore", "replace": "restore"}.get(
            fault.kind
        )
        if after is not None:
            try:
                await asyncio.sleep(fault.seconds)
            finally:
                if not self.over:
                    self._loop.create_task(self._controls.admin(name, after))

    async def _step_down_cut(self, fault: Fault, name: str) -> None:
        """The leader hands over, and hears nobody from then on: it must not serve reads from its lease any more."""
        name = self._controls.leader(fault.number) or name
        others = [node for node in sorted(self._fleet.machines) if node != name]
        if fault.number % 3:
            await self._step_down_deaf(fault, name, others)
            return
        await self._controls.admin(name, "step-down")
        for _ in range(HANDOVER_STEPS):
            if self._fleet.hands_over(name):
                break
            await asyncio.sleep(self._network.faults.delay / 4)
        links = [(other, name) for other in others]
        for link in links:
            self._network.block(*link)
        await self._hold(fault.seconds, lambda: each(lambda link: self._network.unblock(*link), links))

    async def _step_down_deaf(self, fault: Fault, name: str, others: list[str]) -> None:
        """The leader hands over while what it is sent is late: after its successor's first writes come the answers that
        the others gave before they had a successor. They prove nothing for the reads that it was asked meanwhile."""
        step = self._network.faults.delay / 4
        for other in others:
            self._network.slow(other, name, LATE_SECONDS / self._network.faults.delay)
        try:
            await asyncio.sleep(2 * LATE_SECONDS)
            await self._controls.admin(name, "step-down")
            for _ in range(int(3 * LATE_SECONDS / step)):
                if self._fleet.behind(name):
                    await self._controls.admin(name, "read-there")
                    break
                await asyncio.sleep(step)
            await asyncio.sleep(2 * LATE_SECONDS)
        finally:
            for other in others:
                self._network.slow(other, name, 1.0)

    async def _force_cut(self, fault: Fault, name: str) -> None:
        """The leader is cut off, and another node is told to campaign while the leader's lease still lasts."""
        name = self._controls.leader(fault.number) or name
        others = [node for node in sorted(self._fleet.machines) if node != name]
        links = both(name, others)
        for link in links:
            self._network.block(*link)
        for other in others:
            await self._controls.admin(other, "force-election")
        await self._hold(fault.seconds, lambda: each(lambda link: self._network.unblock(*link), links))

    # --- disks --------------------------------------------------------------------------------------------------------
    async def _slow_disk(self, fault: Fault, name: str) -> None:
        device = self._fleet.machines[name].device
        device.slow = 10 + 200 * fault.amount
        await self._hold(fault.seconds, lambda: setattr(device, "slow", 1.0))

    async def _stalled_disk(self, fault: Fault, name: str) -> None:
        device = self._fleet.machines[name].device
        device.stalled = True
        await self._hold(fault.seconds, device.release)

    async def _disk_error(self, fault: Fault, name: str) -> None:
        disk = self._fleet.machines[name].log_disk
        disk.fail_commits = "ENOSPC" if fault.kind == "disk-full" else "EIO"
        await self._hold(fault.seconds, lambda: setattr(disk, "fail_commits", ""))

    async def _rot(self, fault: Fault, name: str) -> None:
        """Bits rot while the machine is down; never on two machines of a run, so that good copies remain."""
        if (self._rotten and name not in self._rotten) or not self._controls.may_lose(name):
            return
        self._rotten.add(name)
        self._fleet.rotted(name)
        self._fleet.crash(name, power_cut=False, why=fault.kind)
        bit = self._fleet.machines[name].log_disk.rot()
        self._trace.tell(f"{name}: {bit or 'no bit'} of the log is flipped")
        await self._hold(fault.seconds, lambda: self._fleet.start(name))

    async def _replace_disks(self, fault: Fault, name: str) -> None:
        """The machine comes back with empty disks, or with an older copy of them. Only where others have heard of its
        last life: a rollback that nobody can know of cannot be noticed."""
        fleet = self._fleet
        self.counts[fault.kind] -= 1  # until it is done
        if fault.kind == "rollback" and stream(self._seed, "copied", fault.number).random() < RUNNING_SHARE:
            await self._roll_back_leader(fault, self._controls.leader(fault.number) or name)
            return
        if fault.kind == "rollback" and await self._until_replaceable(name):
            fleet.crash(name, power_cut=False, why="copied")
            fleet.machines[name].keep()
            fleet.start(name)
            await asyncio.sleep(fault.seconds + 4.0)
        if await self._until_replaceable(name):
            self._replace(fault, name, "an older copy" if fault.kind == "rollback" else "empty")
            await self._hold(min(fault.seconds, 3.0), lambda: fleet.start(name))

    async def _roll_back_leader(self, fault: Fault, name: str) -> None:
        """A leader comes back as a copy of itself that was made while it led, of its present life. Only if the others
        have heard it since then, and for long enough that they know what it has on disk."""
        fleet = self._fleet
        if not await self._until_replaceable(name):
            return
        fleet.machines[name].keep()
        await asyncio.sleep(fault.seconds + 1.0)
        for _ in range(REPLACEABLE_TRIES):
            before = fleet.hearers(name)
            await asyncio.sleep(HEARD_FOR_SECONDS)
            hearers = fleet.hearers(name)
            if hearers and before == hearers and self._is_replaceable(name):
                self._replace(fault, name, "a copy of when it led", hearers)
                await self._hold(min(fault.seconds, 1.0), lambda: fleet.start(name))
                return

    def _replace(self, fault: Fault, name: str, by: str, hearers: Collection[str] = ()) -> None:
        self.counts[fault.kind] += 1
        self._rotten.add(name)
        self._fleet.crash(name, power_cut=fault.amount < 0.5, why=fault.kind)
        self._fleet.forget(name, hearers)
        self._trace.tell(f"{name}: its disks are {by}")

    async def _until_replaceable(self, name: str) -> bool:
        """Wait until the disks of a machine may be replaced; False if that is not to be soon."""
        for _ in range(REPLACEABLE_TRIES):
            if self._rotten or name in self._fleet.retired:
                return False
            if self._is_replaceable(name):
                return True
            await asyncio.sleep(1.0)
        return False

    def _is_replaceable(self, name: str) -> bool:
        fleet, controls = self._fleet, self._controls
        if self._rotten or name in fleet.retired or fleet.machines[name].process is None:
            return False
        if not controls.may_lose(name) or not controls.finds_others(name):
            return False
        others = controls.sharing(name)  # a node that holds nothing has told nobody anything
        return bool(others) and fleet.is_remembered(name, others)

    async def _rot_segment(self, fault: Fault, name: str) -> None:
        """One bit of an index file rots while the machine is down. No promise depends on such a file."""
        self._fleet.crash(name, power_cut=False, why=fault.kind)
        path = self._fleet.machines[name].rot_segment()
        self._trace.tell(f"{name}: one bit of {path or 'no index file'} is flipped")
        await self._hold(fault.seconds, lambda: self._fleet.start(name))

    async def _rot_documents(self, fault: Fault, name: str) -> None:
        """One bit of an SQLite file flips, while the node runs or while it is down; on one node of a run, so that the
        others have what it may lose."""
        fleet = self._fleet
        if self._rotten | {name} != {name} or name in fleet.retired or not self._controls.may_lose(name):
            return
        self._rotten.add(name)
        self.spoilt.add(name)
        down = fault.amount < 0.6
        if down:
            fleet.crash(name, power_cut=fault.amount < 0.2, why=fault.kind)
        flipped = fleet.machines[name].rot_database(stream(self._seed, "rot-documents", fault.number))
        self._trace.tell(f"{name}: flipped is {flipped or 'no bit of its documents'}")
        if down:
            await self._hold(fault.seconds, lambda: fleet.start(name))

    # --- clocks -------------------------------------------------------------------------------------------------------
    async def _clock_rate(self, fault: Fault, name: str) -> None:
        """Stays within the bound that leased reads are promised for."""
        self._fleet.machines[name].clock.set_rate((2 * fault.amount - 1) * 0.0009)
        await asyncio.sleep(0)

    async def _wall_jump(self, fault: Fault, name: str) -> None:
        self._fleet.machines[name].clock.wall_offset += (2 * fault.amount - 1) * 86400
        await asyncio.sleep(0)

    # --- links --------------------------------------------------------------------------------------------------------
    async def _weather(self, fault: Fault, name: str) -> None:
        faults = self._network.faults
        loss = stream(self._seed, "weather", fault.number)
        faults.loss, faults.duplicate, faults.reorder = 0.3 * loss.random(), 0.2 * loss.random(), 0.3 * loss.random()
        await self._hold(fault.seconds, self._network.clear_weather)

    async def _network_fault(self, fault: Fault, name: str) -> None:
        links = self._links(fault, name)
        if fault.kind == "clog":
            for link in links:
                self._network.clog(*link, self._loop.time() + fault.seconds)
            return
        if fault.kind == "slow-link":
            for link in links:
                self._network.slow(*link, 5 + 100 * fault.amount)
            await self._hold(fault.seconds, lambda: each(lambda link: self._network.slow(*link, 1.0), links))
            return
        for link in links:
            self._network.block(*link)
        await self._hold(fault.seconds, lambda: each(lambda link: self._network.unblock(*link), links))

    async def _stranger(self, fault: Fault, name: str) -> None:
        """Somebody who is no node of the cluster, or knows the names of those who are, speaks Raft to this one."""
        await self._strangers.call_on(fault, name)

    def _links(self, fault: Fault, name: str) -> list[tuple[str, str]]:
        """The directed links a fault is about. Clients are cut off together with the side they happen to be on."""
        nodes = sorted(self._fleet.machines)
        rng = stream(self._seed, "links", fault.number)
        others = [node for node in nodes if node != name]
        if fault.kind in ("isolate", "isolate-leader"):
            if fault.kind == "isolate-leader":
                name = self._controls.leader(fault.number) or name
                others = [node for node in nodes if node != name]
            return both(name, others)
        if fault.kind == "one-way":
            return [(name, other) for other in others] if fault.amount < 0.5 else [(other, name) for other in others]
        if fault.kind == "bridge":
            rng.shuffle(others)
            half = len(others) // 2
            return [link for left in others[:half] for link in both(left, others[half:])]
        if fault.kind == "split":
            side = {name, *rng.sample(others, (len(nodes) - 1) // 2)} if len(nodes) > 3 else {name}
            return [link for left in sorted(side) for link in both(left, [n for n in nodes if n not in side])]
        other = others[rng.randrange(len(others))] if others else name
        return [(name, other)] if fault.amount < 0.5 else both(name, [other])


def each(action: Callable[[T], None], items: list[T]) -> None:
    """Do it to all."""
    for item in items:
        action(item)


def both(name: str, others: list[str]) -> list[tuple[str, str]]:
    """The links between a machine and others, in both directions."""
    return [link for other in others for link in ((name, other), (other, name))]


_HANDLERS: dict[str, Callable[[Injector, Fault, str], Awaitable[None]]] = {
    "kill": Injector._crash,
    "power-cut": Injector._crash,
    "power-cut-all": Injector._crash,
    "failpoint": Injector._failpoint,
    "log-cut": Injector._failpoint,
    "pause": Injector._pause,
    "pause-cut": Injector._pause_cut,
    "step-down": Injector._admin,
    "step-down-cut": Injector._step_down_cut,
    "force-election": Injector._admin,
    "force-cut": Injector._force_cut,
    "maintenance": Injector._admin,
    "demote": Injector._admin,
    "remove": Injector._admin,
    "replace": Injector._admin,
    "slow-disk": Injector._slow_disk,
    "stalled-disk": Injector._stalled_disk,
    "disk-error": Injector._disk_error,
    "disk-full": Injector._disk_error,
    "rot": Injector._rot,
    "rot-segment": Injector._rot_segment,
    "rot-documents": Injector._rot_documents,
    "wipe": Injector._replace_disks,
    "rollback": Injector._replace_disks,
    "clock-rate": Injector._clock_rate,
    "wall-jump": Injector._wall_jump,
    "weather": Injector._weather,
    "stranger": Injector._stranger,
}
