"""`python -m proof.typescript`: generate a client from a running node, type check a program with it, and run that.

Needs npm, which installs what package-lock.json names (openapi-typescript, openapi-fetch, the compiler), and nothing of
Needle. Nothing is left behind.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
import time
from pathlib import Path

from needle.local.process_cluster import ProcessCluster

HERE = Path(__file__).parent
GENERATE = ["npx", "openapi-typescript", "--default-non-nullable=false"]
"""What has a default may be left out: of requests, and in answers it is."""
FILES = ("package.json", "package-lock.json", "tsconfig.json", "program.ts")


async def main() -> int:
    """Exit code: 0 if the program was compiled and did what it says."""
    with tempfile.TemporaryDirectory(prefix="needle-typescript-") as directory:
        place = Path(directory)
        (place / "nodes").mkdir()
        for name in FILES:
            shutil.copy(HERE / name, place)
        async with ProcessCluster(place / "nodes", 3, dimensions=4) as cluster:
            node = next(iter(cluster.nodes.values()))
            address = f"http://{node.http}"
            for what, command in (
                ("npm ci", ["npm", "ci", "--no-audit", "--no-fund", "--silent"]),
                ("the client is generated", [*GENERATE, f"{address}/openapi.json", "-o", "schema.ts"]),
                ("the program is compiled", ["npx", "tsc"]),
                ("the program runs", ["node", "made/program.js", address]),
            ):
                began = time.monotonic()
                run = await asyncio.create_subprocess_exec(*command, cwd=place)
                code = await run.wait()
                print(f"{what}: {time.monotonic() - began:.1f} s{'' if code == 0 else f', exit code {code}'}")
                if code:
                    return code
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
