"""A node that is told to stop ends, also where something it waits for never does."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from pathlib import Path

from needle.local.free_ports import free_ports
from needle.server.machine.loop_watch import LoopWatch

# What closes the node waits for a thread that waits forever, on the event loop, as for a disk that does not answer.
STUCK = """
import sys, threading
from needle.base.config import RaftConfig
from needle.server.node import Node
from needle.server.process import main

async def stop(self, **options):
    threading.Event().wait()

Node.stop = stop
main.STOP_SECONDS = 0.5
main.serve(RaftConfig(node_id="a", cluster_nodes=["a=" + sys.argv[1]], data_dir=sys.argv[2], dimensions=2))
"""

# The disk does not answer while the node starts.
STUCK_AT_START = """
import asyncio, sys
from needle.base.config import RaftConfig
from needle.server.node import Node
from needle.server.process import main

async def start(self):
    print("listens on nothing yet", file=sys.stderr)
    await asyncio.Event().wait()

Node.start = start
main.STOP_SECONDS = 0.5
main.serve(RaftConfig(node_id="a", cluster_nodes=["a=" + sys.argv[1]], data_dir=sys.argv[2], dimensions=2))
"""

# As STUCK, and stderr takes no more of what it says: nobody reads the pipe, or it is a file on that disk.
UNHEARD = STUCK.replace(
    "main.serve(",
    """
import os

def say(text):
    os.set_blocking(2, False)
    try:
        while True:
            os.write(2, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(2, True)

main._say = say
main.serve(""",
)

# The system gives no more threads, as where memory ran out.
WITHOUT_THREADS = """
import sys, threading
from needle.base.config import RaftConfig
from needle.server.process import main

def start(timer):
    raise RuntimeError("can't start new thread")

threading.Timer.start = start
main.serve(RaftConfig(node_id="a", cluster_nodes=["a=" + sys.argv[1]], data_dir=sys.argv[2], dimensions=2))
"""


def ended(script: str, directory: Path) -> tuple[int, str]:
    """The exit code of a node that is told to stop, and what it said since."""
    command = [sys.executable, "-c", script, f"127.0.0.1:{free_ports(1)[0]}", str(directory)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as node:
        try:
            assert node.stderr is not None
            assert any("listens on" in line for line in iter(node.stderr.readline, ""))
            node.send_signal(signal.SIGTERM)
            _, said = node.communicate(timeout=60)
        finally:
            node.kill()
    return node.returncode, said


def test_a_node_whose_disk_never_answers_ends_by_force(tmp_path: Path) -> None:
    code, said = ended(STUCK, tmp_path / "a")
    assert code == 2
    assert "node a has not stopped within 0.5 s" in said
    assert ", line 8 in stop" in said  # what it waits for is told, or nobody ever learns it


def test_a_node_whose_disk_never_answers_as_it_starts_ends_by_force(tmp_path: Path) -> None:
    """It had to have started before it was told that it has to stop."""
    code, said = ended(STUCK_AT_START, tmp_path / "a")
    assert code == 2
    assert "node a has not stopped within 0.5 s" in said and "in start" in said


def test_it_ends_though_nobody_can_hear_where_it_stands(tmp_path: Path) -> None:
    """What told where its threads stand held the interpreter's lock while stderr took nothing: it ran forever."""
    command = [sys.executable, "-c", UNHEARD, f"127.0.0.1:{free_ports(1)[0]}", str(tmp_path / "a")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as node:
        try:
            assert node.stderr is not None
            assert any("listens on" in line for line in iter(node.stderr.readline, ""))
            node.send_signal(signal.SIGTERM)
            assert node.wait(timeout=30) == 2
        finally:
            node.kill()


def test_a_node_that_gets_no_thread_for_it_stops_in_order(tmp_path: Path) -> None:
    code, said = ended(WITHOUT_THREADS, tmp_path / "a")
    assert code == 0, said


def test_a_watch_of_the_loop_that_is_about_to_look_does_not_hold_its_end_up() -> None:
    """The thread had just begun a look when it was stopped: it waited for a loop that waited for it, and the node was
    ended by force after a minute, without having handed over."""

    class Late(threading.Event):
        """Its `clear` comes right behind what `stop` sets."""

        def clear(self) -> None:
            looks.set()
            stopped.wait(10)
            super().clear()

    looks, stopped = threading.Event(), threading.Event()

    async def run() -> None:
        watch = LoopWatch(interval=0.001)
        watch._called = Late()
        ended = watch._ended.set
        watch._ended.set = lambda: (ended(), watch._called.set(), stopped.set())[0]  # type: ignore[method-assign]
        watch.start()
        await asyncio.to_thread(looks.wait, 10)
        watch.stop()

    loop = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    loop.start()
    loop.join(timeout=20)
    assert not loop.is_alive()
