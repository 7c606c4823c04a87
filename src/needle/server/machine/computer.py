"""What the operating system says of this process and its machine, and how long its disk takes for a durable write.

Invariant: a figure that the system does not tell is 0, never an error. Only these functions read /proc for a node.
"""

from __future__ import annotations

import asyncio
import os
import platform
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import msgspec

from needle.protocol.probe_calls import Facts
from needle.server.machine.descriptors import limit
from needle.server.machine.memory_space import MemoryUse

FILE_NAME = "probe"
WRITE_BYTES = 4096
FILE_BYTES = 256 * WRITE_BYTES
FEATURES = frozenset({
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"),
    *("avx512_bf16", "asimd", "asimdhp", "asimddp", "sve", "sve2", "bf16"),
})  # fmt: skip
"""Of processors, those that decide how vectors are compared."""
OWN_CGROUPS = "/proc/self/cgroup"
CGROUPS = "/sys/fs/cgroup"
TOLD_BYTES = 16384
"""More than /proc tells of a process in one file that is read here."""
V2 = ("memory.max", "memory.current")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")
"""Of a cgroup: what it may have, and has."""


class SystemComputer:
    """This machine."""

    def facts(self, brief: bool = False) -> Facts:
        """brief: without files, maps and processor; those take some microseconds for each file and map. Blocking."""
        total, available = memory()
        known = Facts(
            memory=total,
            memory_available=available,
            resident=resident_bytes(),
            cpus=os.cpu_count() or 0,
            cpu_seconds=sum(resource.getrusage(resource.RUSAGE_SELF)[:2]),
        )
        if brief:
            return known
        return msgspec.structs.replace(
            known,
            files=_count("/proc/self/fd"),
            files_max=limit(),
            maps=_read("/proc/self/maps").count("\n"),
            maps_max=_number("/proc/sys/vm/max_map_count"),
            machine=platform.machine(),
            features=features(),
        )

    async def fsyncs(self, directory: str, count: int, seconds: float) -> list[float]:
        """In a thread of its own, for the node's have other work. Raises OSError."""
        return await asyncio.to_thread(timed_writes, directory, count, seconds)


def timed_writes(directory: str, count: int, seconds: float) -> list[float]:
    """Seconds of each of up to `count` durable writes as the log makes them: to blocks that are there already. Ends
    when `seconds` are over. Raises OSError."""
    path = os.path.join(directory, FILE_NAME)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.pwrite(handle, bytes(FILE_BYTES), 0)
        os.fsync(handle)
        found: list[float] = []
        end = time.monotonic() + seconds
        while len(found) < count and (start := time.monotonic()) < end:
            os.pwrite(handle, len(found).to_bytes(8, "little") * (WRITE_BYTES // 8), len(found) % 256 * WRITE_BYTES)
            getattr(os, "fdatasync", os.fsync)(handle)
            found.append(time.monotonic() - start)
        return sorted(found)
    finally:
        os.close(handle)
        with suppress(OSError):
            os.unlink(path)


def resident_bytes() -> int:
    """What of this process is in RAM."""
    with suppress(ValueError, IndexError):
        return int(_read("/proc/self/statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def memory() -> tuple[int, int]:
    """Bytes that there are and that can still be taken: of the machine, or of the cgroup, or one of those around it,
    that has the fewest."""
    told = {line.partition(":")[0]: line.partition(":")[2] for line in _read("/proc/meminfo").splitlines()}
    total, available = (_kib(told.get(name, "")) for name in ("MemTotal", "MemAvailable"))
    for bound, used in _cgroups():
        if bound and (not total or bound < total):
            total, available = bound, max(0, min(bound - used, available or bound))
    return total, available


def process_memory() -> Callable[[], MemoryUse]:
    """Tells what this process takes. What it may have is read once, here: that is for as long as it runs."""
    total = memory()[0]
    return lambda: MemoryUse(own_bytes(), total)


def own_bytes() -> int:
    """Anonymous memory of this process, in RAM or swapped out: who swaps is short of memory, not rid of it. Without
    files that are mapped, whose pages the system can take back."""
    with suppress(ValueError, IndexError):
        resident, shared = map(int, _told("/proc/self/statm").split()[1:3])
        _, _, swapped = _told("/proc/self/status").partition(b"\nVmSwap:")
        return max(0, resident - shared) * os.sysconf("SC_PAGE_SIZE") + _kib(swapped)
    return 0


def _cgroups() -> Iterator[tuple[int, int]]:
    """Bytes that each cgroup of this process may have, and has, from its own outwards; 0 where there is no bound. In a
    container its own one is the root of what is seen."""
    for line in _read(OWN_CGROUPS).splitlines() or ["0::/"]:
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" or "memory" in controllers.split(","):
            root, names = (CGROUPS, V2) if number == "0" else (os.path.join(CGROUPS, "memory"), V1)
            parts = [part for part in path.split("/") if part not in ("", "..")]
            for depth in range(len(parts), -1, -1):
                bound, used = (_number(os.path.join(root, *parts[:depth], name)) for name in names)
                yield bound, used


def features() -> str:
    """Those of FEATURES that this processor has, in order."""
    for line in _read("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return " ".join(sorted(FEATURES & set(value.split())))
    return ""


def _kib(text: str | bytes) -> int:
    with suppress(ValueError, IndexError):
        return int(text.split()[0]) * 1024
    return 0


def _number(path: str) -> int:
    """0 if it holds none, such as "max"."""
    with suppress(ValueError):
        return int(_read(path))
    return 0


def _count(path: str) -> int:
    with suppress(OSError):
        return len(os.listdir(path))
    return 0


def _told(path: str) -> bytes:
    """What is read several times a second, by a third of the work."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            return os.read(handle, TOLD_BYTES)
        finally:
            os.close(handle)
    return b""


def _read(path: str) -> str:
    with suppress(OSError), open(path, encoding="ascii", errors="replace") as told:
        return told.read()
    return ""
