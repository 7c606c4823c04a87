"""Ports for nodes that this machine starts itself."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from needle.local.free_ports import HELD_MAX, free_ports

LOOK = """
import sys
from needle.local import free_ports
free_ports.TRIES = 1
free_ports.random.Random.randrange = lambda *_: int(sys.argv[1])
try:
    free_ports.free_ports(1)
    print("given")
except free_ports.StorageError:
    print("none")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a port cannot be both held and listened on")
async def test_a_port_that_was_given_out_is_given_to_no_other_process_and_can_be_listened_on() -> None:
    """Two clusters that started at the same time were given the same port, and a node of one did not start."""

    def other() -> str:
        return subprocess.check_output([sys.executable, "-c", LOOK, str(port)], text=True).strip()

    (port,) = free_ports(1)
    assert await asyncio.to_thread(other) == "none"
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", port)
    server.close()
    await server.wait_closed()
    free_ports(HELD_MAX)  # only so many are held
    assert await asyncio.to_thread(other) == "given"
