"""An asyncio event loop on virtual time with a seeded scheduler: time jumps to the next timer when nothing is ready.

Invariants: callbacks of one process run first in, first out, as asyncio promises; which process runs next, and for how
many callbacks, is drawn from the seed. Nothing sleeps, opens a socket or starts a thread. A killed process never runs
again. It must not know the network, the disk or the node.
Source: FoundationDB's simulator (Zhou et al., SIGMOD 2021), section 4.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import random
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from proof.sim.process import CURRENT, Killed, Process
from proof.sim.stalls import StallMeter

T = TypeVar("T")

STEPS_PER_INSTANT_MAX = 100_000
TICK_SECONDS = 1e-6
_PRUNE_MIN = 512
_TASKS_SLACK = 64


class SimulationError(Exception):
    """The simulation cannot go on: a run-away at one instant, or nothing left that could ever happen."""


class SimTask(asyncio.Task[Any]):
    """A task that knows its process, so that an exception nobody retrieved can be laid at the right door."""

    process: Process


class SimLoop(asyncio.BaseEventLoop):
    """Virtual-time loop. `time()` is true virtual time in seconds; a node's own clock may differ (see machine.py)."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng
        self._now = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timer_seq = 0
        self._cancelled_timers = 0
        self._runnable: list[Process] = []
        self._instant_steps = 0
        self._graveyard: list[asyncio.Task[Any]] = []
        self.root = Process("world", 0)
        self.steps = 0
        self.after_step: Callable[[Process], None] | None = None
        self.on_unhandled: Callable[[Process | None, BaseException | None, str], None] | None = None
        self.meter: StallMeter | None = None
        """Measures the callbacks of all processes but the world's own."""
        self.set_task_factory(self._make_task)

    # --- scheduling ---------------------------------------------------------------------------------------------------
    def time(self) -> float:
        return self._now

    def call_soon(  # type: ignore[override]  # asyncio's own signature is generic over TypeVarTuple
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        if context is None:
            context = contextvars.copy_context()
        handle = asyncio.Handle(callback, args, self, context)
        self._enqueue(handle, context)
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        # Code that waits for a clock's next tick must see it tick: a real clock does not stand still meanwhile.
        delay = max(delay, TICK_SECONDS) if delay > 0 else 0.0
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        timer._scheduled = True  # type: ignore[attr-defined]  # makes cancel() report to _timer_handle_cancelled
        self._timer_seq += 1
        heapq.heappush(self._timers, (when, self._timer_seq, timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        self._cancelled_timers += 1
        if self._cancelled_timers > _PRUNE_MIN and self._cancelled_timers * 2 > len(self._timers):
            self._timers = [item for item in self._timers if not item[2].cancelled()]
            heapq.heapify(self._timers)
            self._cancelled_timers = 0

    def _enqueue(self, handle: asyncio.Handle, context: contextvars.Context) -> None:
        process = context.get(CURRENT) or self.root
        if not process.alive:
            return
        if not process.ready and not process.paused:
            self._runnable.append(process)
        process.ready.append(handle)

    def _run_once(self) -> None:
        if not self._runnable:
            self._advance()
        timers, now = self._timers, self._now
        while timers and timers[0][0] <= now:
            timer = heapq.heappop(timers)[2]
            if timer.cancelled():
                self._cancelled_timers -= 1
                continue
            timer._scheduled = False  # type: ignore[attr-defined]
            self._enqueue(timer, timer._context)  # type: ignore[attr-defined]
        runnable = self._runnable
        if not runnable:
            return
        choice = 0 if len(runnable) == 1 else int(self._rng.random() * len(runnable))
        process = runnable[choice]
        waiting = len(process.ready)
        self._run_some(process, waiting if waiting == 1 else 1 + int(self._rng.random() * waiting))
        if not process.ready and process in runnable:
            runnable.remove(process)

    def _run_some(self, process: Process, count: int) -> None:
        ready = process.ready
        meter = self.meter if process.is_node else None
        while count and ready and not process.paused:
            count -= 1
            handle = ready.popleft()
            if handle.cancelled():
                continue
            self.steps += 1
            self._instant_steps += 1
            if meter is None:
                handle._run()
            else:
                meter.run(handle)
        if self._instant_steps > STEPS_PER_INSTANT_MAX:
            raise SimulationError(f"run-away: {self._instant_steps} callbacks at t={self._now:.6f}, last in {process}")
        if self.after_step is not None:
            self.after_step(process)

    def _advance(self) -> None:
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
            self._cancelled_timers -= 1
        if not timers:
            raise SimulationError(f"deadlock at t={self._now:.6f}: no callback is ready and no timer is set")
        if timers[0][0] > self._now:
            self._now = timers[0][0]
            self._instant_steps = 0

    def excused(self, work: Callable[..., T], *args: object) -> T:
        """Run `work` in a callback of a node without counting it as the loop's."""
        return work(*args) if self.meter is None else cast("T", self.meter.excused(work, *args))

    # --- processes ----------------------------------------------------------------------------------------------------
    def _make_task(self, loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> SimTask:
        task = SimTask(coro, loop=loop, **kwargs)
        context: contextvars.Context | None = kwargs.get("context")
        process = (context.get(CURRENT) if context is not None else CURRENT.get()) or self.root
        task.process = process
        if not process.alive:  # it is started by what goes on in the world while the process dies, and never runs
            self._graveyard.append(task)
            return task
        tasks = process.tasks
        tasks.append(task)
        if len(tasks) >= process.tasks_checked_at:
            tasks[:] = [one for one in tasks if not one.done()]
            process.tasks_checked_at = 2 * len(tasks) + _TASKS_SLACK
        return task

    def spawn(self, process: Process, coro: Coroutine[Any, Any, T], name: str | None = None) -> asyncio.Task[T]:
        """Start `coro` as a task of `process`."""
        return cast("asyncio.Task[T]", self.create_task(coro, name=name, context=process.context.copy()))

    def call_in(self, process: Process, delay: float, callback: Callable[..., object], *args: object) -> None:
        """Run `callback(*args)` in `process`, `delay` seconds from now; dropped if the process is dead by then."""
        self.call_at(self._now + delay, callback, *args, context=process.context)

    def kill(self, process: Process) -> None:
        """End a process at once: nothing of it runs again, not even its `finally` blocks, until `bury`."""
        process.alive = False
        process.ready.clear()
        if process in self._runnable:
            self._runnable.remove(process)
        self._graveyard.extend(process.tasks)
        process.tasks.clear()

    def pause(self, process: Process) -> None:
        """SIGSTOP: what becomes ready waits."""
        process.paused = True
        if process in self._runnable:
            self._runnable.remove(process)

    def resume(self, process: Process) -> None:
        """SIGCONT. What arrived meanwhile comes before the timers that went off: asyncio looks at sockets first."""
        if process.paused:
            process.paused = False
            late = [handle for handle in process.ready if isinstance(handle, asyncio.TimerHandle)]
            arrived = [handle for handle in process.ready if not isinstance(handle, asyncio.TimerHandle)]
            process.ready.clear()
            process.ready.extend([*arrived, *late])
            if process.ready:
                self._runnable.append(process)

    def bury(self) -> None:
        """After the run: close what killed processes left behind, in the order they were started, effects fenced."""
        for task in self._graveyard:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            if task.done():
                continue
            coro = cast("Coroutine[Any, Any, Any]", task.get_coro())
            try:
                coro.close()
            except (Killed, RuntimeError, Exception):  # noqa: BLE001  # a dead process has no one left to tell
                continue
        self._graveyard.clear()

    # --- what BaseEventLoop leaves open -------------------------------------------------------------------------------
    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        future = context.get("task") or context.get("future")
        process = getattr(future, "process", None) or CURRENT.get()
        if isinstance(error, Killed) or (process is not None and not process.alive):
            return
        if self.on_unhandled is not None:
            self.on_unhandled(process, error, str(context.get("message")))
        else:
            super().call_exception_handler(context)

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        raise SimulationError(f"a thread was asked for under simulation: {func!r}")

    def _process_events(self, event_list: object) -> None:
        """There is no selector."""

    def _write_to_self(self) -> None:
        """There is no other thread to wake this one."""
