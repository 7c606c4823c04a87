"""`python -m bench.scan_memory ADDRESS...`: scan the default collection in a process of its own, and say what it took.

One line: documents, and by how many MB the process grew at most from when it was connected.
"""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import needle

TIMEOUT = 600.0


def _megabytes(field: str) -> float:
    """A field of the process's status, such as VmRSS (now) or VmHWM (at most so far)."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"), re.MULTILINE)
    return int(found[1]) / 1000 if found else 0.0


async def _scan(addresses: list[str]) -> tuple[int, float]:
    async with await needle.connect(addresses) as client:
        await client.scan_page(limit=1, with_vectors=True, timeout=TIMEOUT)
        before, documents = _megabytes("VmRSS"), 0
        async for _ in client.scan(with_vectors=True, timeout=TIMEOUT):
            documents += 1
        return documents, _megabytes("VmHWM") - before


if __name__ == "__main__":
    count, grown = asyncio.run(_scan(sys.argv[1:]))
    sys.stdout.write(f"{count} {grown:.1f}\n")
