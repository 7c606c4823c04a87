"""Disks that are slow, full or broken, bits that rot, and machines that come back with other disks than before.

Invariant: a node that lost its data is never joined by another in that state: at every time a quorum of good disks
remains.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection

from proof.sim.faults import Controls, Handler, hold
from proof.sim.fleet import Fleet
from proof.sim.machine import stream
from proof.sim.spec import LOSS_NUMBER, Fault
from proof.sim.trace import Trace

REPLACEABLE_TRIES = 20
"""So many seconds a fault waits that needs a group which can do without a machine's data."""
RUNNING_SHARE = 0.5
"""Of the copies that come back: how many are of a leader that runs."""
HEARD_FOR_SECONDS = 2.0
"""So long all hear a leader before it is replaced: what came late is of after the copy, too."""


class DiskFaults:
    """See the module. counts: how often each kind of fault came; those of directories count once they are done."""

    def __init__(self, seed: int, fleet: Fleet, controls: Controls, trace: Trace, counts: Counter[str]) -> None:
        self._seed = seed
        self._fleet = fleet
        self._controls = controls
        self._trace = trace
        self._counts = counts
        self._rotten: set[str] = set()

    def handlers(self) -> dict[str, Handler]:
        """By kind of fault."""
        return {
            "slow-disk": self._slow_disk,
            "stalled-disk": self._stalled_disk,
            "disk-error": self._disk_error,
            "disk-full": self._disk_error,
            "rot": self._rot,
            "rot-segment": self._rot_segment,
            "rot-fields": self._rot_fields,
            "rot-documents": self._rot_documents,
            "wipe": self._replace_disks,
            "rollback": self._replace_disks,
            "die": self._die,
        }

    async def _slow_disk(self, fault: Fault, name: str) -> None:
        device = self._fleet.machines[name].device
        device.slow = 10 + 200 * fault.amount
        await hold(fault.seconds, lambda: setattr(device, "slow", 1.0))

    async def _stalled_disk(self, fault: Fault, name: str) -> None:
        device = self._fleet.machines[name].device
        device.stalled = True
        await hold(fault.seconds, device.release)

    async def _disk_error(self, fault: Fault, name: str) -> None:
        disk = self._fleet.machines[name].log_disk
        disk.fail_commits = "ENOSPC" if fault.kind == "disk-full" else "EIO"
        await hold(fault.seconds, lambda: setattr(disk, "fail_commits", ""))

    async def _rot(self, fault: Fault, name: str) -> None:
        """Bits rot while the machine is down; never on two machines of a run, so that good copies remain."""
        if (self._rotten and name not in self._rotten) or not self._controls.may_lose(name):
            return
        self._rotten.add(name)
        self._fleet.rotted(name)
        self._fleet.crash(name, power_cut=False, why=fault.kind)
        bit = self._fleet.machines[name].log_disk.rot()
        self._trace.tell(f"{name}: {bit or 'no bit'} of the log is flipped")
        await hold(fault.seconds, lambda: self._fleet.start(name))

    async def _die(self, fault: Fault, name: str) -> None:
        """The machine is gone for good, with all that is on it."""
        self._counts[fault.kind] -= 1  # until it is done
        await self._until_moving()
        for _ in range(REPLACEABLE_TRIES):
            if self._rotten or name in self._fleet.retired:
                return
            if self._controls.may_lose(name):
                break
            await asyncio.sleep(1.0)
        else:
            return
        self._counts[fault.kind] += 1
        self._rotten.add(name)
        self._fleet.retired.add(name)
        self._fleet.crash(name, power_cut=True, why="gone for good")
        self._trace.tell(f"{name} is gone for good{self._meanwhile()}")

    async def _until_moving(self) -> None:
        """Wait a while for a rebalance that is under way."""
        for _ in range(REPLACEABLE_TRIES):
            if self._controls.is_moving():
                return
            await asyncio.sleep(1.0)

    async def _replace_disks(self, fault: Fault, name: str) -> None:
        """The machine comes back with empty disks, or with an older copy of them. Only where others have heard of its
        last life: a rollback that nobody can know of cannot be noticed."""
        fleet = self._fleet
        self._counts[fault.kind] -= 1  # until it is done
        if fault.number == LOSS_NUMBER:
            await self._until_moving()
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
            await hold(min(fault.seconds, 3.0), lambda: fleet.start(name))

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
                await hold(min(fault.seconds, 1.0), lambda: fleet.start(name))
                return

    def _replace(self, fault: Fault, name: str, by: str, hearers: Collection[str] = ()) -> None:
        self._counts[fault.kind] += 1
        self._rotten.add(name)
        self._fleet.crash(name, power_cut=fault.amount < 0.5, why=fault.kind)
        self._fleet.forget(name, hearers)
        self._trace.tell(f"{name}: its disks are {by}{self._meanwhile()}")

    def _meanwhile(self) -> str:
        return ", while a rebalance is under way" if self._controls.is_moving() else ""

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
        await hold(fault.seconds, lambda: self._fleet.start(name))

    async def _rot_fields(self, fault: Fault, name: str) -> None:
        """A file of a field index rots or is gone while the machine is down. No promise depends on such a file."""
        self._fleet.crash(name, power_cut=fault.amount < 0.5, why=fault.kind)
        done = self._fleet.machines[name].spoil_fields(stream(self._seed, "rot-fields", fault.number))
        self._trace.tell(f"{name}: {done or 'no field index is there to be spoilt'}")
        await hold(fault.seconds, lambda: self._fleet.start(name))

    async def _rot_documents(self, fault: Fault, name: str) -> None:
        """One bit of an SQLite file flips, while the node runs or while it is down; on one node of a run, so that the
        others have what it may lose."""
        fleet = self._fleet
        if self._rotten | {name} != {name} or name in fleet.retired or not self._controls.may_lose(name):
            return
        self._rotten.add(name)
        fleet.spoilt.add(name)
        down = fault.amount < 0.6
        if down:
            fleet.crash(name, power_cut=fault.amount < 0.2, why=fault.kind)
        flipped = fleet.machines[name].rot_database(stream(self._seed, "rot-documents", fault.number))
        self._trace.tell(f"{name}: flipped is {flipped or 'no bit of its documents'}")
        if down:
            await hold(fault.seconds, lambda: fleet.start(name))
