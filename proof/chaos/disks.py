"""A small disk for each node: a tmpfs mount, so that it can be filled without harm. Needs root.

Invariant: what was mounted is unmounted, however the run ends. It must not know nodes.
"""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

DISK_BYTES = 192 << 20
FILLER = "filler"


def may_mount() -> bool:
    """Whether this process can give nodes a disk of their own."""
    return os.geteuid() == 0 and Path("/proc/filesystems").exists()


class SmallDisk:
    """One mounted directory."""

    def __init__(self, directory: Path, size: int = DISK_BYTES) -> None:
        self.directory = directory
        self._size = size
        self.mounted = False

    def mount(self) -> bool:
        """Mount it; False if this machine does not let us."""
        self.directory.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={self._size}", "needle-chaos", str(self.directory)]
        self.mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
        return self.mounted

    def fill(self) -> None:
        """Leave not one free block."""
        with (self.directory / FILLER).open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                while True:
                    try:
                        file.write(bytes(size))
                    except OSError as error:
                        if error.errno != errno.ENOSPC:
                            raise
                        break

    def free(self) -> None:
        """Give the space back."""
        (self.directory / FILLER).unlink(missing_ok=True)

    def unmount(self) -> None:
        """Unmount it; what it held is gone."""
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.directory)], capture_output=True, check=True)
            self.mounted = False
