"""Faults of the machines that nodes run on, and of what an operator has to keep up: before a real Prometheus, on real
processes with TLS.

Needs root, for a file system of its own (tmpfs), and Debian's strace and faketime: the one delays a node's syncs, and
refuses what it writes for want of room, the other has its clocks run fast.
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
LOG_MAX = 4 << 20
ROWS, ROW_BYTES = 16, 4 << 10
ENTRIES_MAX, ENTRIES_MORE = LOG_MAX // (ROWS * ROW_BYTES), 6
WRITES = "pwrite64,pwritev,write"
DELAY = "delay_enter=250000"  # microseconds
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"
FAST = {"LD_PRELOAD": FAKETIME, "FAKETIME": "+0 x1.02"}


class Machines(Trial):
    """See the module. `certified`, `slow`, `full`, `quick`: the nodes that are done something to. `quick` has little
    room for its log."""

    certified, slow, quick = "node-1", "node-1", "node-3"
    full = "node-2"

    async def what_is_kept(self) -> None:
        """A certificate that runs out, one that is changed for another node's, backups that are not made any more, nor
        the log archived, a disk that fills, keys that are uneven, and a log that is not cut, since nothing that it
        holds can be saved."""
        self.certify(5)
        right = self._misplace_certificate()
        told = int((time.time() - 2 * DAY) * 1e6)
        await self._client.change_catalog(NoteBackup(told, told), timeout=60)
        await self._uneven()
        with self._no_room_to_save():
            await self._fill_log()
            self.fill(1.5)
            kept = {"NeedleCertificateExpires", "NeedleCertificateRefused", "NeedleBackupTooOld", "NeedleArchiveBehind"}
            kept |= {"NeedleDiskNearlyFull", "NeedleShardsUneven", "NeedleLogNearlyFull"}
            await self.fires("what an operator keeps up is not", kept)
            self.fill(0.5)
            await self.fires("the disk is full", {"NeedleDiskFull"})
        self.certify(50)
        self._put_certificate(right)
        await self._client.change_catalog(NoteBackup(FORGET, FORGET), timeout=60)
        self._filler.unlink()
        await self._client.delete_where({}, timeout=60)
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

    def _misplace_certificate(self) -> bytes:
        """Put another node's certificate in the place of one's own; what was there."""
        right = Path(self._cluster.nodes[self.quick].settings["tls"]["certificate"]).read_bytes()
        others = self._cluster.nodes[self.full].settings["tls"]["certificate"]
        self._put_certificate(Path(others).read_bytes())
        return right

    def _put_certificate(self, content: bytes) -> None:
        place = Path(self._cluster.nodes[self.quick].settings["tls"]["certificate"])
        new = place.with_suffix(".new")
        new.write_bytes(content)
        os.replace(new, place)

    async def _fill_log(self) -> None:
        """Until it is told, and a little more: well before as much was written as it may take."""
        for _ in range(ENTRIES_MAX):
            conditions = (await self._client.health_check(timeout=10)).conditions
            await self._write_much(1)
            if any(one.alert == "NeedleLogNearlyFull" for one in conditions):
                break
        await self._write_much(ENTRIES_MORE)
        assert "the log is not cut now: no space left for" in self._cluster.nodes[self.quick].output()

    async def _write_much(self, entries: int) -> None:
        """The same documents again, 64 KiB of them in each entry of a log."""
        for _ in range(entries):
            rows = [{"text": os.urandom(ROW_BYTES // 2).hex()} for _ in range(ROWS)]
            ids = [f"a-log-{n}" for n in range(ROWS)]
            await self._client.insert_batch(ids=ids, vectors=np.ones((ROWS, 8), "f4"), metadatas=rows, timeout=60)

    async def _uneven(self) -> None:
        rows = np.ones((BATCH, 8), "f4")
        for begin in range(0, DOCUMENTS, BATCH):
            ids = [f"a{n}" for n in range(begin, begin + BATCH)]
            await self._client.insert_batch(ids=ids, vectors=rows, timeout=60)

    @contextlib.contextmanager
    def _no_room_to_save(self) -> Iterator[None]:
        """For the files that a node's documents are in at last; for what it writes ahead of them there is."""
        node = self._cluster.nodes[self.quick]
        paths = [word for path in node.data_dir.glob("shards/*/state-*/documents.db") for word in ("-P", str(path))]
        assert paths, f"{node.data_dir} holds no documents"
        with _traced(node.pid, *paths, "-e", f"trace={WRITES}", "-e", f"inject={WRITES}:error=ENOSPC"):
            yield

    @contextlib.contextmanager
    def _slow_syncs(self) -> Iterator[None]:
        calls = "fsync,fdatasync"
        with _traced(self._cluster.nodes[self.slow].pid, "-e", f"trace={calls}", "-e", f"inject={calls}:{DELAY}"):
            yield

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
def _traced(pid: int, *how: str) -> Iterator[None]:
    """With what strace does to its calls of the system."""
    tracer = subprocess.Popen(["strace", "-f", "-qq", "-o", "/dev/null", *how, "-p", str(pid)])
    try:
        yield
    finally:
        tracer.terminate()
        tracer.wait()


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
    cluster.nodes[Machines.quick].settings["log_bytes_max"] = LOG_MAX
    cluster.tls = str(directory / "ca" / "ca.crt")
    with _disk(cluster.nodes[Machines.full].data_dir):
        async with cluster:
            targets = [node.http for node in cluster.nodes.values()]
            with Prometheus(directory / "prometheus", [], rules, tls=targets) as prometheus:
                async with cluster.connect() as client:
                    one = Machines(cluster, client, prometheus, holds, say)
                    await one.quiet(len(targets))
                    yield one
