"""`python -m proof.fuzz_http`: schemathesis against the OpenAPI document that real nodes serve.

Three nodes; what removes, drains or rebalances is left out, for it would end the run. Afterwards every node must still
answer, its log show no failed request, and its memory be bounded. Needs `pip install needle-vdb[fuzz]`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from pathlib import Path

from needle.local.process_cluster import ProcessCluster

SPARED = r"/v1/nodes/|/watch$|/replicas|/rebalance$|/rebalance/(pause|resume|cancel)"
MEMORY_MB_MAX = 1000


async def main(examples: int, seed: int) -> int:
    """Exit code: 0 if nothing was found."""
    with tempfile.TemporaryDirectory(prefix="needle-fuzz-") as directory:
        async with (
            ProcessCluster(Path(directory), 3, dimensions=4) as cluster,
            cluster.connect() as client,
        ):
            await client.insert("n1", [1.0, 2.0, 3.0, 4.0], {"genre": "scifi"})
            node = next(iter(cluster.nodes.values()))
            hooks = {**os.environ, "SCHEMATHESIS_HOOKS": "proof.fuzz_hooks"}
            run = await asyncio.create_subprocess_exec(*_command(node.http, examples, seed), env=hooks)
            code = await run.wait()
            for name, one in cluster.nodes.items():
                status, said = await cluster.http(name, "/readyz")
                if status != 200:
                    print(f"{name} is not ready afterwards: {said}")
                    code = code or 1
                print(f"{name}: {one.memory_mb():.0f} MB")
                failed = "Traceback" in one.output()
                if one.memory_mb() > MEMORY_MB_MAX or failed:
                    print(f"{name} takes too much memory, or its log, {one.log}, tells of a request that failed")
                    code = code or 1
            return code


def _command(address: str, examples: int, seed: int) -> list[str]:
    return [
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        f"http://{address}/openapi.json",
        f"--max-examples={examples}",
        f"--seed={seed}",
        "--request-timeout=30",
        f"--exclude-path-regex={SPARED}",
        # What a schema cannot say is refused with 400: the length of a vector, names of fields in a filter. A call that
        # is given a millisecond ends with 503 or 504; 500 is looked for in the metrics.
        "--exclude-checks=positive_data_acceptance,not_a_server_error",
        "--suppress-health-check=all",
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m proof.fuzz_http", description=__doc__)
    parser.add_argument("--examples", type=int, default=100, help="for each operation and kind of test")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    sys.exit(asyncio.run(main(options.examples, options.seed)))
