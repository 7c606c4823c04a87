"""A node as a process: event loop, signals, HTTP, exit code.

Exit codes: 0 after SIGTERM or SIGINT, 1 when the node could not start, 2 when its disk or state failed while it ran.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import uvloop

from needle.base.config import RaftConfig
from needle.base.errors import NeedleError
from needle.base.events import NODE_STOPPED, NODE_STOPPING, tell
from needle.multiraft.failpoints import Failpoint, no_failpoint
from needle.server.machine.descriptors import raise_limit
from needle.server.machine.loop_watch import LoopWatch
from needle.server.metrics.observed import NodeMetrics
from needle.server.ports import system_ports
from needle.server.process.logs import write_logs
from needle.server.system_node import Http, http_server, system_node
from needle.system import share_one_heap, warn_if_public

log = logging.getLogger("needle.server")

EXIT_OK, EXIT_START, EXIT_FAILED = 0, 1, 2
STOP_SECONDS = 60.0  # A stop in order needs a few seconds: HTTP requests have 5, a hand-over of leadership less.


async def run_node(
    config: RaftConfig, *, failpoint: Failpoint = no_failpoint, stops: Callable[[str], None] = lambda _: None
) -> int:
    """Run a node until a signal or a failure; its exit code. stops: told the node's name, once, when it is asked to
    stop, which may be while it starts and waits for its disk, or begins to by itself."""
    told = _signalled(lambda: stops(config.node_id))
    metrics = NodeMetrics()
    node = system_node(config, system_ports(config, failpoint=failpoint))
    http: Http | None = None
    watch = LoopWatch()
    try:
        await node.start()
        watch.start()
        metrics.watch(node, watch)
        http = await http_server(node, metrics)
        if http is not None:
            metrics.watch_http(http)
    except NeedleError as error:
        _say(f"node {config.node_id} cannot start: {error}")
        told.stop()
        await node.stop(hand_over=False)
        return EXIT_START
    except Exception as error:  # a bug, or a failure of the system that no adapter knows: still an end in order
        log.exception("the node cannot start")
        _say(f"node {config.node_id} cannot start: {error!r} [internal]")
        told.stop()
        await node.stop(hand_over=False)
        return EXIT_START
    waiting = asyncio.ensure_future(told.asked.wait())
    ends: list[asyncio.Future[Any]] = [waiting, node.failed]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    failure = node.failed.result() if node.failed.done() else None
    why = "a signal asked for it" if failure is None else f"it cannot go on: {failure}"
    tell(NODE_STOPPING, node_name=config.node_id, why=why)
    if failure is not None:
        waiting.cancel()
        _say(f"node {config.node_id} stops: {failure}")
    told.stop()
    if http is not None:
        http.drain()
        if failure is None:  # what is under way needs the node for its answer, and has a bounded time for it
            await http.stop()
    watch.stop()
    await node.stop(hand_over=failure is None)
    if http is not None:
        await http.stop()
    tell(NODE_STOPPED, node_name=config.node_id)
    return EXIT_OK if failure is None else EXIT_FAILED


class _Stop:
    """Whether the node is to stop."""

    def __init__(self, begins: Callable[[], None]) -> None:
        self.asked = asyncio.Event()
        self._begins = begins

    def stop(self) -> None:
        """It is from now on. Idempotent."""
        if not self.asked.is_set():
            self.asked.set()
            self._begins()


def _signalled(begins: Callable[[], None]) -> _Stop:
    """Is asked to stop by signals; `begins` is called once, with the first that asks."""
    told = _Stop(begins)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.stop)
    return told


def _end_by_force(node_id: str) -> None:
    """From now on this process has `STOP_SECONDS` to end. A stop waits for the node's threads, and one of them may wait
    for a disk that never answers. The end that follows is that of `kill -9`, which is safe. Where the system gives no
    thread, as where memory ran out, nobody watches the stop, which goes on all the same."""

    loop = asyncio.get_running_loop()

    def end() -> None:
        text = (
            f"node {node_id} has not stopped within {STOP_SECONDS:g} s: something it waits for, a disk perhaps, hangs"
        )
        with contextlib.suppress(RuntimeError):
            words = threading.Thread(target=_last_words, args=(text, loop), daemon=True)  # the log may lie on that disk
            words.start()
            words.join(timeout=1.0)
        os._exit(EXIT_FAILED)

    timer = threading.Timer(STOP_SECONDS, end)
    timer.daemon = True
    with contextlib.suppress(RuntimeError):
        timer.start()


def _last_words(text: str, loop: asyncio.AbstractEventLoop) -> None:
    """Say what happened, and where each thread and each task stands: without this nobody learns what it waited for."""
    _say(text)
    _say("\n".join(_stacks()))
    with contextlib.suppress(OSError, RuntimeError):  # the loop's tasks may change while another thread reads them
        for task in asyncio.all_tasks(loop):
            sys.stderr.write("".join(f"{line}\n" for line in _awaited(task)))
        sys.stderr.flush()


def _stacks() -> Iterator[str]:
    """Lines that say where each thread stands. Not by faulthandler, which holds the interpreter's lock while it writes:
    where stderr takes no more, nobody could end the process."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, top in sys._current_frames().items():
        yield f"thread {names.get(ident, ident)}:"
        for frame, line in traceback.walk_stack(top):
            yield f'  File "{frame.f_code.co_filename}", line {line} in {frame.f_code.co_name}'


def _awaited(task: asyncio.Task[Any]) -> Iterator[str]:
    """Lines that say where a task stands, down to what it waits for; `Task.print_stack` knows its outermost call."""
    yield f"task {task.get_name()}:"
    one: Any = task.get_coro()
    while (frame := getattr(one, "cr_frame", None)) is not None:
        yield f'  File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_qualname}'
        one = one.cr_await


def serve(config: RaftConfig, *, failpoint: Failpoint = no_failpoint, secret_file: str = "") -> None:
    """Run a node in the foreground and leave the process with its exit code. secret_file: of its settings, if there is
    a secret among them."""
    write_logs(config.node_id, config.log, sys.stderr)
    if secret_file:
        warn_if_public("config", secret_file)
    # A node keeps many small objects for long (log index, ids): the default thresholds walk them over and over, for a
    # quarter of the write path's time. What start-up made is never garbage.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    # So long the loop waits for a thread that computes in Python, each time it comes back from the system: with one
    # such thread an answer took 34 ms in the 99th percentile at the default of 5 ms, and 1.5 ms at this.
    sys.setswitchinterval(0.001)
    share_one_heap()
    raise_limit()
    # Index files are mapped for reading: where the disk cannot deliver a page, the process ends, not without a word.
    faulthandler.enable()
    code = uvloop.run(run_node(config, failpoint=failpoint, stops=_end_by_force))
    sys.exit(code)


def _say(text: str) -> None:
    """The last words of a node. Where they cannot be written (the log is on the disk that failed), the exit code has
    to do."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"needle: {text}\n")
        sys.stderr.flush()
