"""`python -m proof.real_s3 SERVER`: backups and the archive in a bucket of a real S3 server, versitygw, on loopback.

The commands of docs/backup.md run against it as processes, as an operator runs them, from a cluster with TLS and keys:
create, archive, list, verify, prune, and restore of a backup and of an instant into other clusters. All of them are
killed at their requests, one after the other (s3_kills.py). Then an object is damaged, and the server stopped: both are
told.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import needle
from needle.base.instants import micros, rfc3339
from needle.connecting import Credentials, check_tls, connected
from needle.local.certificates import create_ca, create_node
from needle.local.free_ports import free_ports
from needle.local.process_cluster import ProcessCluster
from proof.operator import Operator
from proof.s3_kills import ARCHIVE_STEPS, Kills

TARGET = "s3://backups/shop"
KILLED = "s3://backups/killed"
SECRET = "0123456789abcdef" * 4
ACCESS, HIDDEN = "operator", "an-s3-secret-of-this-machine"
BATCH_BYTES = 1 << 20
ROWS = 400
WAIT_SECONDS = 90.0
CALM: dict[str, Any] = {"election_timeout": 0.5, "heartbeat_interval": 0.1}


class Server:
    """The S3 server, with one bucket."""

    def __init__(self, program: str, directory: Path) -> None:
        (port,) = free_ports(1)
        self.root, self._log = directory / "objects", directory / "s3.log"
        (self.root / "backups").mkdir(parents=True)
        (directory / "metadata").mkdir()
        words = [program, "--port", f"127.0.0.1:{port}", "posix", "--sidecar", str(directory / "metadata")]
        environment = {**os.environ, "ROOT_ACCESS_KEY": ACCESS, "ROOT_SECRET_KEY": HIDDEN}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen([*words, str(self.root)], stdout=log, stderr=log, env=environment)
        self.environment = {
            "AWS_ACCESS_KEY_ID": ACCESS,
            "AWS_SECRET_ACCESS_KEY": HIDDEN,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT": f"http://127.0.0.1:{port}",
            "AWS_ALLOW_HTTP": "true",
        }

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(30)


def main(arguments: list[str] | None = None) -> int:
    """0 if all of it went well."""
    (program,) = sys.argv[1:] if arguments is None else arguments
    with tempfile.TemporaryDirectory(prefix="needle-s3-") as directory, closing(Server(program, Path(directory))) as s3:
        asyncio.run(_through(s3, Path(directory)))
    _say("backups, the archive and restores in a bucket of a real S3 server: as the page says")
    return 0


async def _through(server: Server, directory: Path) -> None:
    operator = Operator(server.environment, _say)
    kills = Kills(operator, KILLED, server.root / "backups" / "killed")
    async with _closed_cluster(directory / "first", operator) as client:
        vectors = [[float(n), *[1.0] * 7] for n in range(ROWS)]
        told = [{"text": f"{n}" * 200} for n in range(ROWS)]  # several pieces
        await client.insert_each(ids=[f"d{n}" for n in range(ROWS)], vectors=vectors, metadatas=told)
        await asyncio.to_thread(operator.run, "backup", "create", TARGET)
        archiving = operator.popen("backup", "archive", TARGET, "--every", "1")
        try:
            await _archived(operator, 1)
            instant = int(time.time() * 1e6)
            await asyncio.sleep(0.01)
            await client.delete(["d7"])
            again = await asyncio.to_thread(operator.json, "backup", "create", TARGET)
            assert again["documents"] == ROWS - 1 and 0 < again["written_bytes"] < again["read_bytes"], again
            await _archived(operator, instant)
        finally:
            archiving.send_signal(signal.SIGTERM)
            out, err = await asyncio.to_thread(archiving.communicate, None, 60)
        assert archiving.returncode == 0, f"{out}{err}"
        killed_at = await kills.cluster_side(client, ROWS - 1)
    for line in ("list", "verify", "prune --keep 1", "prune --archive-hours 1", "verify"):
        verb, *options = line.split()
        operator.run("backup", verb, TARGET, *options)
    restores: list[tuple[str, list[str], int]] = [
        ("second", [], ROWS - 1),
        ("third", ["--at", rfc3339(instant)], ROWS),
    ]
    for name, words, documents in restores:
        async with _closed_cluster(directory / name, operator) as client:
            await asyncio.to_thread(operator.run, "restore", TARGET, *words, "--timeout", "60")
            assert await client.count() == documents
    for name, words, documents in (
        ("fourth", [], ROWS - 1),
        ("fifth", ["--at", rfc3339(killed_at)], ROWS - 1 + ARCHIVE_STEPS),
    ):
        async with _closed_cluster(directory / name, operator) as client:
            await kills.restores(client, words, documents)
    assert set(kills.killed) == {"create", "archive", "prune", "restore"}, kills.killed
    _say(f"killed at their steps, and each time all was whole: {kills.killed}")
    piece = next(path for path in (server.root / "backups" / "shop" / "pieces").rglob("*") if path.is_file())
    piece.write_bytes(piece.read_bytes()[:-1] + b"?")
    assert piece.name in operator.run("backup", "verify", TARGET, expect=1)
    server.close()
    operator.environment["AWS_MAX_RETRIES"] = "1"
    assert "storage_error" in operator.run("backup", "list", TARGET, expect=1)


async def _archived(operator: Operator, instant: int) -> None:
    """Until the archive reaches that instant."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        archives = (await asyncio.to_thread(operator.json, "backup", "list", TARGET))["archives"]
        if archives and (micros(archives[0]["until"]) or 0) > instant:
            return
        assert time.monotonic() < deadline, "the archive does not come to it"
        await asyncio.sleep(0.5)


@asynccontextmanager
async def _closed_cluster(directory: Path, operator: Operator) -> AsyncIterator[needle.Client]:
    """One of one node, with TLS and keys; commands show the key of an admin."""
    create_ca(directory / "ca", "drill", 30)
    cluster = ProcessCluster(
        directory, 1, require_keys=True, cluster_secret=SECRET, sharding={"shards": 2, "replicas": 1}, **CALM
    )
    ca = directory / "ca" / "ca.crt"
    for name, node in cluster.nodes.items():
        made = create_node(directory / "own", name, ["127.0.0.1"], 30, directory / "ca")
        node.settings["tls"] = {
            "certificate": str(made.certificate),
            "key": str(made.key),
            "ca": str(ca),
            "mode": "require",
        }
    cluster.tls = str(ca)
    async with cluster:
        shown = Credentials(secrets=(SECRET,), dial=check_tls(str(ca)))
        async with await connected(list(cluster.addresses.values()), "needle", BATCH_BYTES, shown) as inside:
            key = (await inside.create_key("operator", "admin")).key
        operator.environment |= {"NEEDLE_CLUSTER": cluster.cluster, "NEEDLE_API_KEY": key, "NEEDLE_TLS_CA": str(ca)}
        async with cluster.connect(api_key=key) as client:
            yield client


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
