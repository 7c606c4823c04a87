"""An index file that cannot be mapped for want of memory is not damaged: it stays, and is mapped later."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from needle.base.errors import OutOfMemory
from needle.base.file_errors import SHORTAGES

# In a process of its own: a limit once set is also that of all tests that follow.
SCRIPT = """
import resource, sys
from needle.base.errors import NeedleError
from needle.shard.segments.opened import map_index
size = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
if sys.argv[2] == "limited":
    resource.setrlimit(resource.RLIMIT_AS, (size + (256 << 20), resource.RLIM_INFINITY))
try:
    map_index(sys.argv[1], 4)
except NeedleError as error:
    print(error.code)
"""


def mapped(path: Path, how: str) -> str:
    command = [sys.executable, "-c", SCRIPT, str(path), how]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    return done.stdout.strip() or done.stderr


def test_no_memory_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "large.seg"
    with path.open("wb") as file:
        file.truncate(1 << 30)  # nothing is written: zeros, which are no index
    assert mapped(path, "limited") == "out_of_memory"
    assert mapped(path, "free") == "corrupt_segment"
    assert OutOfMemory in SHORTAGES
