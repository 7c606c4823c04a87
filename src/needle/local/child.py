"""Runs a module so that it dies with the process that started it: `python -m needle.local.child PID MODULE ARGS...`.

Who is killed with SIGKILL cannot clean up behind itself; the kernel does it for us (prctl(2), PR_SET_PDEATHSIG, on
Linux). PID is the parent's, to notice that it died before we asked. PID 0: stay alive.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent thread ends; at once if it already has."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    if parent_pid := int(sys.argv[1]):
        die_with(parent_pid)
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
