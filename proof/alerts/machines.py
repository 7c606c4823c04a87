"""Faults of the machines that nodes run on, and of what an operator has to keep up: before a real Prometheus, on real
processes with TLS.

Needs root, for a file system of its own (tmpfs), and Debian's strace and faketime: the one delays a node's syncs, the
other has its clocks run fast.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np

from needle.base.errors import NeedleError
from needle.local.certificates import create_ca, create_node
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.protocol.catalog_commands import FORGET, NoteBackup
from proof.alerts.faults import Trial
from proof.alerts.prometheus import Prometheus, with_holds
from proof.alerts.promtool import RULES

HOSTS = ("127.0.0.1",)
DISK, KEPT = 400 << 20, 64 << 20
DAY = 86_400
CLOCK_SECONDS = 300
DOCUMENTS, BATCH = 2400, 300
LOG_MAX = 24 << 20
"""A file of the log takes 16 MiB from the beginning, which is two thirds of it."""
DELAY = "delay_enter=250000"  # microseconds
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"
FAST = {"LD_PRELOAD": FAKETIME, "FAKETIME": "+0 x1.02"}


class Machines(Trial):
    """See the module. `certified`, `full`, `quick`: the nodes that are done something to."""

    certified, slow, quick = "node-1", "node-1", "node-3"
    full = "node-2"

    async def what_is_kept(self) -> None:
        """A certificate that runs out, backups that are not made any more, nor the log archived, a disk that fills,
        keys that are uneven, and a log that gets less room than it takes."""
        self.certify(5)
        told = int((time.time() - 2 * DAY) * 1e6)
        await self._client.change_catalog(NoteBackup(told, told), timeout=60)
        self.fill(1.5)
        await self._uneven()
        await self._bound_log(LOG_MAX)
        kept = {"NeedleCertificateExpires", "NeedleBackupTooOld", "NeedleArchiveBehind"}
        kept |= {"NeedleDiskNearlyFull", "NeedleShardsUneven", "NeedleLogNearlyFull"}
        await self.fires("what an operator keeps up is not", kept)
        self.fill(0.5)
        await self.fires("the disk is full", {"NeedleDiskFull"})
        self.certify(50)
        await self._client.change_catalog(NoteBackup(FORGET, FORGET), timeout=60)
        self._filler.unlink()
        await self._client.delete_where({}, timeout=60)
        await self._bound_log(None)
        await self.clears("all of it is mended")

    async def what_they_run_on(self) -> None:
        """Syncs that take a quarter of a second, and a clock that is two hundredths too fast: once it was watched for
        as long as the rule wants."""
        await wait_for(self._watched, CLOCK_SECONDS + 60, "five minutes of a clock")
        with self._slow_syncs(), self._writes():
            with self._fast_clock():
                self._cluster.kill(self.quick)
                self._cluster.restart(self.quick)
            await self._cluster.ready(self.quick)
            await self.fires("a disk is slow and a clock fast", {"NeedleFsyncSlow", "NeedleClockRateOff"})
        self._cluster.kill(self.quick)
        self._cluster.restart(self.quick)
        await self._cluster.ready(self.quick)
        with self._writes():
            await self.clears("both are as they should be")

    async def _watched(self) -> bool:
        query = f"needle_clock_monotonic_seconds%20offset%20{CLOCK_SECONDS}s"
        return await asyncio.to_thread(self._prometheus.seen, query) == len(self._cluster.nodes)

    def certify(self, days: int) -> None:
        """Put a certificate that lasts so long in the place of the node's."""
        directory = self._cluster.directory
        fresh = directory / f"fresh-{days}"
        made = create_node(fresh, self.certified, HOSTS, days, directory / "ca")
        tls = self._cluster.nodes[self.certified].settings["tls"]
        os.replace(made.key, tls["key"])
        os.replace(made.certificate, tls["certificate"])

    def fill(self, share: float) -> None:
        """Leave so much room on a node's disk, as a share of what it keeps free."""
        free = shutil.disk_usage(self._filler.parent).free
        with self._filler.open("ab") as file:
            os.posix_fallocate(file.fileno(), file.tell(), max(1, free - int(share * KEPT)))

    @property
    def _filler(self) -> Path:
        return self._cluster.nodes[self.full].data_dir / "of-somebody-else"

    async def _bound_log(self, most: int | None) -> None:
        """Restart a node with so much room for its log; None: with as much as by default."""
        settings = self._cluster.nodes[self.quick].settings
        settings.pop("log_bytes_max", None)
        if most is not None:
            settings["log_bytes_max"] = most
        self._cluster.kill(self.quick)
        self._cluster.restart(self.quick)
        await self._cluster.ready(self.quick)

    async def _uneven(self) -> None:
        rows = np.ones((BATCH, 8), "f4")
        for begin in range(0, DOCUMENTS, BATCH):
            ids = [f"a{n}" for n in range(begin, begin + BATCH)]
            await self._client.insert_batch(ids=ids, vectors=rows, timeout=60)

    @contextlib.contextmanager
    def _slow_syncs(self) -> Iterator[None]:
        calls = "fsync,fdatasync"
        command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}", "-e", f"inject={calls}:{DELAY}"]
        tracer = subprocess.Popen([*command, "-p", str(self._cluster.nodes[self.slow].pid)])
        try:
            yield
        finally:
            tracer.terminate()
            tracer.wait()

    @contextlib.contextmanager
    def _fast_clock(self) -> Iterator[None]:
        """Of nodes that are started within."""
        os.environ.update(FAST)
        try:
            yield
        finally:
            for name in FAST:
                del os.environ[name]

    @contextlib.contextmanager
    def _writes(self) -> Iterator[None]:
        """All the time, one after the other."""

        async def write() -> None:
            while True:
                with contextlib.suppress(NeedleError):  # written again
                    await self._client.insert("again", [1.0] * 8, timeout=20)

        task = asyncio.ensure_future(write())
        try:
            yield
        finally:
            task.cancel()


@contextlib.contextmanager
def _disk(directory: Path) -> Iterator[None]:
    """A small file system at `directory`."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


@contextlib.asynccontextmanager
async def machines(directory: Path, holds: float, say: Callable[[str], None]) -> AsyncIterator[Machines]:
    """holds: by which the rules' `for` are multiplied."""
    rules = with_holds(RULES.read_text(encoding="utf-8"), holds)
    create_ca(directory / "ca", "alerts", 100)
    sharding = {"shards": 2, "strategy": "range", "boundaries": ["n"]}
    cluster = ProcessCluster(directory, 3, disk_reserve_bytes=KEPT, sharding=sharding, election_timeout=2.0)
    for name, node in cluster.nodes.items():
        made = create_node(directory / "certificates", name, HOSTS, 50, directory / "ca")
        files = {"certificate": str(made.certificate), "key": str(made.key), "ca": str(directory / "ca" / "ca.crt")}
        node.settings["tls"] = {"mode": "require", **files}
    cluster.tls = str(directory / "ca" / "ca.crt")
    with _disk(cluster.nodes[Machines.full].data_dir):
        async with cluster:
            targets = [node.http for node in cluster.nodes.values()]
            with Prometheus(directory / "prometheus", [], rules, tls=targets) as prometheus:
                async with cluster.connect() as client:
                    one = Machines(cluster, client, prometheus, holds, say)
                    await one.quiet(len(targets))
                    yield one
