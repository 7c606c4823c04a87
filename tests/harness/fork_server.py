"""`python fork_server.py SOCKET PARENT`: has loaded a node, and becomes one whenever it is asked to, by a fork.

A node process takes some 0.9 s of a core to load, and the tests start a thousand of them: that was most of what they
cost. What a node then makes of what it has loaded, whatever its settings are, is made beforehand, too. A fork has a
process of its own, which is killed, stopped and measured like any other. One thread only, so that no lock is held by a
thread that a fork does not have. Requests and answers are JSON, one a message; see forks.py.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
from typing import Any

import msgspec

from needle.base.config import Limits
from needle.local.child import die_with
from needle.protocol.command_bounds import prepare
from needle.server.http import pages
from needle.server.http.app import Door
from needle.server.http.routes import ROUTES

LOADED = (
    "needle.cli.app",
    "needle.cli.serve_command",
    "needle.server.process.main",
    "needle.server.node",
    "needle.server.http.listener",
    "encodings.idna",
    "sqlite3",
    "uvicorn",
    "uvicorn.lifespan.off",
    "uvloop",
)


def make_ready() -> None:
    """Make what each node makes of its code alone: how it decodes, and HTTP's routes with their patterns. 0.15 s of the
    0.4 s of a core that a node takes until it serves."""
    prepare(Limits().batch_documents_max)
    nobody: Any = None
    Door(nobody, ROUTES, pages.routes(), nobody)
    structs = [msgspec.Struct]
    for kind in structs:
        structs += kind.__subclasses__()
    for kind in structs[1:]:
        if kind.__module__.startswith("needle."):
            with contextlib.suppress(TypeError, NameError):  # what is on no wire need not be readable
                msgspec.msgpack.Decoder(kind)


def become(asked: dict[str, Any], log: int, parent: int) -> list[str]:
    """In the child: be as a process that was started by itself. Returns its arguments."""
    os.setsid()
    die_with(parent)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["cwd"])
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(null)
    os.close(log)
    arguments: list[str] = asked["arguments"]
    return arguments


def serve(channel: socket.socket) -> list[str] | None:
    """Start children until nobody asks any more. Returns in each child, with its arguments; None at the end."""
    me = os.getpid()
    while True:
        message, logs, _, _ = socket.recv_fds(channel, 1 << 20, 1)
        if not message:
            return None
        asked = json.loads(message)
        if "ended" in asked:
            _, status = os.waitpid(asked["ended"], 0)
            channel.send(json.dumps(os.waitstatus_to_exitcode(status)).encode())
            continue
        if (pid := os.fork()) == 0:
            channel.close()
            return become(asked, logs[0], me)
        os.close(logs[0])
        channel.send(json.dumps(pid).encode())


def main() -> None:
    """Entry point."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which end their nodes
    die_with(int(sys.argv[2]))
    for name in LOADED:
        importlib.import_module(name)
    make_ready()
    gc.collect()
    gc.freeze()
    arguments = serve(socket.socket(fileno=int(sys.argv[1])))
    if arguments is not None:
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
