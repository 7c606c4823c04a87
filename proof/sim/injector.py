"""Carries out the faults of a schedule, and undoes each when its time is over.

Invariant: when `stop` returned, no fault is left on the machines and links. What happens to disks is disk_faults.py's.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

from proof.sim.disk_faults import DiskFaults
from proof.sim.event_loop import SimLoop
from proof.sim.faults import Controls, both, each, hold
from proof.sim.fleet import Fleet
from proof.sim.machine import stream
from proof.sim.memory_faults import MemoryFaults
from proof.sim.network import SimNetwork
from proof.sim.spec import Fault
from proof.sim.strangers import Strangers
from proof.sim.trace import Trace

LATE_SECONDS = 0.4
"""How late the answers to a leader are in one kind of fault: less than an election timeout, so that it stays leader."""
HANDOVER_STEPS = 200
"""So many quarters of a link's delay a fault waits for the leader to hand over."""


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
        self.spoilt = fleet.spoilt
        self.counts: Counter[str] = Counter()
        self.over = False
        self.more = DiskFaults(seed, fleet, controls, trace, self.counts).handlers()
        self.more |= MemoryFaults(fleet).handlers()
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

    # --- processes ----------------------------------------------------------------------------------------------------
    async def _crash(self, fault: Fault, name: str) -> None:
        names = sorted(self._fleet.machines) if fault.kind == "power-cut-all" else [name]
        for one in names:
            self._fleet.crash(one, power_cut=fault.kind != "kill", why=fault.kind)
        await hold(fault.seconds, lambda: each(self._fleet.start, names))

    async def _failpoint(self, fault: Fault, name: str) -> None:
        self._fleet.arm(name, fault.name, 1 + int(fault.amount * 10) % 5, power_cut=fault.amount < 0.5)
        await hold(fault.seconds + 5.0, lambda: self._fleet.disarm(name))

    async def _pause(self, fault: Fault, name: str) -> None:
        process = self._fleet.machines[name].process
        if process is not None:
            self._loop.pause(process)
            await hold(fault.seconds, lambda: self._loop.resume(process))

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
        await hold(fault.seconds, lambda: each(lambda link: self._network.unblock(*link), links))

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
        await hold(fault.seconds, lambda: each(lambda link: self._network.unblock(*link), links))

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
        await hold(fault.seconds, self._network.clear_weather)

    async def _network_fault(self, fault: Fault, name: str) -> None:
        links = self._links(fault, name)
        if fault.kind == "clog":
            for link in links:
                self._network.clog(*link, self._loop.time() + fault.seconds)
            return
        if fault.kind == "slow-link":
            for link in links:
                self._network.slow(*link, 5 + 100 * fault.amount)
            await hold(fault.seconds, lambda: each(lambda link: self._network.slow(*link, 1.0), links))
            return
        for link in links:
            self._network.block(*link)
        await hold(fault.seconds, lambda: each(lambda link: self._network.unblock(*link), links))

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
    "clock-rate": Injector._clock_rate,
    "wall-jump": Injector._wall_jump,
    "weather": Injector._weather,
    "stranger": Injector._stranger,
}
