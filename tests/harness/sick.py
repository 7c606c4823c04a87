"""What to have node processes fall ill with (proof.sick_nodes): what the system tells them is changed."""

from __future__ import annotations

FILES = """
import builtins, io
_open = builtins.open
_told = {told!r}
def _opened(path, *a, **k):
    return io.StringIO(_told[path]) if path in _told else _open(path, *a, **k)
builtins.open = _opened
"""
DESCRIPTORS = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))"
MAPS = FILES.format(told={"/proc/sys/vm/max_map_count": "20000\n"})
MEMORY = FILES.format(told={"/proc/meminfo": "MemTotal: 1000000 kB\nMemAvailable: 50000 kB\n"})
PROCESSOR = FILES.format(told={"/proc/cpuinfo": "flags\t\t: fpu sse4_2 avx f16c\n"})
FAST_CLOCK = """
import time
_gettime = time.clock_gettime
_start = _gettime(time.CLOCK_BOOTTIME)
time.clock_gettime = lambda clock: _start + (_gettime(clock) - _start) * 1.02
"""
AHEAD = "import time; _time = time.time; time.time = lambda: _time() + 5"
SLOW_DISK = """
import os, time
_sync = os.fdatasync
os.fdatasync = lambda handle: (time.sleep(0.03), _sync(handle))[1]
"""
NEARLY_FULL = """
import os
_statvfs = os.statvfs
def _told(path):
    found = list(_statvfs(path))
    found[4] = 3 * (64 << 20) // 2 // found[1]
    found[2] = (1 << 30) // found[1]
    return os.statvfs_result(found)
os.statvfs = _told
"""
SLOWER_DISK = SLOW_DISK.replace("0.03", "0.15")
"""Slower than what an alert wants."""
OTHER_RELEASE = "import needle; needle.__version__ = '9.9.9'"
FORMER_VERSION = "import needle.base.versions as versions; versions.KNOWN -= 1"
"""Knows the commands and formats of the release before."""
