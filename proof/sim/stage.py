"""What every simulated world stands on: loop, trace, network, machines, the observer, and how a run ends.

Invariant: a violation anywhere (a checker, an unhandled exception, the workload) ends the run at the end of the step,
and is kept. It must not know what cluster runs, nor the phases of a run (world.py does).
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from needle.base.config import Limits
from needle.client.divergence import differing
from needle.protocol.command_bounds import prepare
from proof.checkers.violation import Violation
from proof.sim.event_loop import SimLoop, SimulationError
from proof.sim.fleet import Fleet, fast_directory
from proof.sim.machine import stream
from proof.sim.network import SimNetwork
from proof.sim.observer import Observer
from proof.sim.process import Process
from proof.sim.spec import Profile, Spec
from proof.sim.stalls import CHECKER, StallMeter
from proof.sim.trace import Trace

T = TypeVar("T")


class Stage:
    """See the module. `broken` is asked after each step for a violation that others found;
    `on_step`, which is told after each step of which node it was, raises one."""

    def __init__(self, spec: Spec, profile: Profile, *, keep_trace: bool = False) -> None:
        self.spec = spec
        self.profile = profile
        self.loop = SimLoop(stream(spec.seed, "schedule"))
        self.trace = Trace(self.loop.time, keep_all=keep_trace)
        self.network = SimNetwork(self.loop, stream(spec.seed, "network"), self.trace)
        self.network.faults.delay = profile.delay
        self._root = tempfile.mkdtemp(prefix="needle-sim-", dir=fast_directory())
        self.fleet = Fleet(spec.seed, self.loop, self.network, self.trace, self._root, profile.clock_error)
        self.fleet.unhandled = self._unhandled
        self._processes: dict[str, Process] = {}
        self._violation: BaseException | None = None
        self.comparisons: set[tuple[int, int]] = set()
        """(group, index) of entries at which a leader compared replicas."""
        self.looks: list[Callable[[], None]] = []
        """What else is looked at now and then. Each raises Violation."""
        self.broken: Callable[[], Violation | None] = lambda: None
        self.on_step: Callable[[str], None] | None = None
        self.loop.after_step = self._after_step
        self.loop.meter = StallMeter(self._stalled)
        self.loop.on_unhandled = self._unhandled
        self.network.tap = self._tap

    @property
    def scratch(self) -> str:
        """A directory for files of clients, which goes with the run."""
        return os.path.join(self._root, "scratch")

    @property
    def observer(self) -> Observer:
        """The continuous checkers."""
        return self.fleet.observer

    # --- the run ------------------------------------------------------------------------------------------------------
    def run(self, main: Coroutine[Any, Any, None], at_end: Callable[[], None]) -> BaseException | None:
        """Run to the end, or to the first violation, which is returned. at_end: called before all is taken down."""
        collecting = gc.isenabled()
        gc.disable()
        failure: BaseException | None = None
        meter = self.loop.meter
        try:
            if meter is not None:
                prepare(Limits().batch_documents_max)  # once in a process, before its node serves: 40 ms, cold
                meter.start()
            self.loop.run_until_complete(main)
            gc.collect()  # a task whose exception nobody retrieved says so when it is collected
        except (Violation, SimulationError) as error:
            failure = error
        finally:
            if meter is not None:
                meter.stop()
            self._tear_down(at_end)
            if collecting:
                gc.enable()
            gc.collect()
        failure = self._violation or failure
        if failure is not None:
            self.trace.tell(f"VIOLATION {failure}")
        return failure

    def client_process(self, name: str) -> Process:
        """The process of a client, on a machine of its own."""
        process = self._processes.get(name)
        if process is None:
            process = self._processes[name] = Process(name, 1)
        return process

    def client_again(self, name: str) -> Process:
        """A new process of a client, in the place of the one before, which ends at once if it still runs."""
        before = self._processes.get(name)
        if before is not None and before.alive:
            self.loop.kill(before)
        process = self._processes[name] = Process(name, before.incarnation + 1 if before is not None else 1)
        return process

    def ask(self, name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run in the process of client `name`."""
        return self.loop.spawn(self._processes[name], work)

    async def until(self, what: str, seconds: float, holds: Callable[[], Awaitable[bool]]) -> None:
        """Wait until `holds()`. Raises Violation when it does not in time."""
        deadline = self.loop.time() + seconds
        while not await holds():
            if self.loop.time() > deadline:
                raise Violation("liveness", f"waited {seconds:g} s without success for {what}")
            await asyncio.sleep(0.25)

    async def watch(self) -> None:
        """Now and then, compare what is costly to compare after each step."""
        tick = 0
        while True:
            await asyncio.sleep(1.0)
            tick += 1
            # By `guard`: of an exception in this task nobody would hear.
            self.guard(self._compared)
            for look in self.looks:
                self.guard(look)
            self.guard(lambda: self.observer.compare_logs(self.fleet.replicas()))
            if tick % 5 == 0:
                self.guard(lambda: self.observer.compare_digests(self.fleet.replicas()))

    def _compared(self) -> None:
        """What the product says of its replicas, which it compares by itself: they never differ. Raises Violation."""
        for name, node in self.fleet.nodes.items():
            for group, comparing in node.comparisons().items():
                self.comparisons.add((group, comparing.index))
                if comparing.diverged:
                    told = differing(comparing.diverged, comparing.index)
                    raise Violation("divergence", f"{name}, which leads group {group}, says: {told}")

    def _tear_down(self, at_end: Callable[[], None]) -> None:
        self.loop.after_step = None
        at_end()
        self.loop.on_unhandled = lambda process, error, message: None
        self.fleet.kill_all()
        for process in self._processes.values():
            self.loop.kill(process)
        self.loop.kill(self.loop.root)
        self.loop.bury()
        self.fleet.discard()
        self.loop.close()
        shutil.rmtree(self._root, ignore_errors=True)

    async def stored_is_whole(self) -> bool:
        """Read all that replicas store: whether none of them finds it damaged. Raises Violation where it is not the
        same on all."""
        damaged = self.observer.compare_stored(self.fleet.replicas())
        for name in damaged:
            self.trace.note(f"{name} finds its data damaged")
        return not damaged

    # --- violations ---------------------------------------------------------------------------------------------------
    def _after_step(self, process: Process) -> None:
        node = self.fleet.nodes.get(process.name)
        if node is not None and process.alive and node.process is process:
            for group, replica in node.groups().items():
                self.observer.look(process.name, process.incarnation, group, replica)
                if replica.raft._s.retired:
                    self.fleet.noticed(process.name)
            if self.on_step is not None:
                self.guard(partial(self.on_step, process.name))
            if process.name in self.fleet.forgetful and node.lost():  # it may have no replica to say so for it
                self.fleet.noticed(process.name)
        self._violation = self._violation or self.broken() or self.observer.broken
        if self._violation is not None:
            raise Violation("run ends", str(self._violation))

    def _tap(self, sender: str, address: str, body: bytes) -> None:
        if sender in self.fleet.machines:
            self.guard(lambda: self.observer.sent(sender, body))

    def guard(self, action: Callable[[], None]) -> None:
        """Run a checker on behalf of a port: a violation is kept, and the process goes on until the step ends."""
        try:
            self.loop.excused(action)
        except Violation as violation:
            self._violation = self._violation or violation

    def _stalled(self, function: str, seconds: float) -> None:
        text = f"{function} held a node's event loop for {1000 * seconds:.0f} ms of CPU time"
        self._violation = self._violation or Violation(CHECKER, text)

    def _unhandled(self, process: Process | None, error: BaseException | None, message: str) -> None:
        if isinstance(error, Violation):
            self._violation = self._violation or error
        else:
            self._violation = self._violation or Violation("no unhandled exception", f"{process}: {message}: {error!r}")
