"""How much processor time of processes that are started here is spent with Python's lock (GIL) held.

A library that is compiled when it is needed (gil_samples.c) is loaded into them. It needs a C compiler and Linux.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

_COUNTS = struct.Struct("4Q")


class Shares(NamedTuple):
    """Milliseconds of processor time, of the main thread, which has the event loop, and of all other threads: with the
    lock held, and without."""

    loop_held: float
    loop_free: float
    threads_held: float
    threads_free: float

    def since(self, before: Shares) -> Shares:
        """What was spent meanwhile."""
        return Shares(*(now - then for now, then in zip(self, before, strict=True)))


@contextmanager
def sampled(directory: Path) -> Iterator[None]:
    """Processes that are started within it count. directory: for the library and the counts. Raises RuntimeError where
    there is no compiler, or what it makes cannot be loaded."""
    library, compiler = directory / "gil_samples.so", shutil.which("cc")
    if compiler is None:
        raise RuntimeError("to tell time with the lock from time without needs a C compiler (cc): there is none")
    source = Path(__file__).with_name("gil_samples.c")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl", "-lrt"], check=True)
    before = {name: os.environ.get(name) for name in ("LD_PRELOAD", "GIL_SAMPLES")}
    os.environ.update(LD_PRELOAD=str(library), GIL_SAMPLES=str(directory))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def counted(directory: Path, pid: int) -> Shares:
    """Of a process so far."""
    return Shares(*_COUNTS.unpack((directory / str(pid)).read_bytes()))
