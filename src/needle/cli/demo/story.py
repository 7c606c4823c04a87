"""What the demo does, step by step, against real processes; every claim it prints is checked first.

A step that does not hold raises Internal with what was expected and what was found. Knows the cluster only through
the client and the supervisor.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import needle
from needle.base.errors import ClusterTooOld, DeadlineExceeded, Internal, NeedleError
from needle.base.model import Hit, RaftStatus, ReadMode
from needle.cli.common import brief
from needle.cli.demo.corpus import Passage, codes
from needle.cli.demo.outcome import Answer, Failover, Known, Outcome, Proof
from needle.cli.demo.write_stream import WRITE_SECONDS, WRITES, WriteStream, missing_of
from needle.cli.document_commands import insert_all
from needle.cli.inputs import Record
from needle.client.embedding import WORDLLAMA
from needle.local.process_cluster import ProcessCluster

COLLECTION = "default"
QUESTIONS = (
    "compress a file",
    "how do I parse a date",
    "split a string into shell words",
    "run a command in another process",
)
HITS = 3
KNOWN, KNOWN_HITS = 20, 10
SEARCHES_EACH = 5
BATCH = 250
WRITES_BEFORE = 300
WRITES_AFTER = 300
READY_SECONDS = 30.0
INDEX_SECONDS = 240.0
"""Builds have a low priority: on a busy machine they take many times as long."""


class Story:
    """One run. `outcome` fills while the steps go on."""

    def __init__(self, cluster: ProcessCluster, client: needle.Client, console: Console) -> None:
        self._cluster = cluster
        self._client = client
        self._console = console
        self.outcome = Outcome(nodes=len(cluster.addresses))

    def say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    async def wait_ready(self) -> None:
        """Until every node answers and one leads."""

        async def ready() -> bool:
            statuses = await self._statuses()
            return len(statuses) == len(self._cluster.addresses) and any(s.state == "Leader" for s in statuses)

        await self._until(ready, READY_SECONDS, "the nodes do not elect a leader")
        leader = next(status for status in await self._statuses() if status.state == "Leader")
        self.say(
            f"[bold]{self.outcome.nodes} nodes[/] run; [green]{leader.node_id}[/] leads in term {leader.current_term}"
        )

    async def load(self, passages: list[Passage], vectors: NDArray[np.float32]) -> None:
        """Insert every passage; each batch is one log entry that a majority has on disk before it is acknowledged."""

        async def made() -> bool:
            with suppress(ClusterTooOld):  # the catalog has not heard of all nodes yet
                await self._client.create_collection(COLLECTION, model=WORDLLAMA.name, text="text", if_absent=True)
                return True
            return False

        await self._until(made, READY_SECONDS, "the collection cannot be made")
        records = [
            Record(passage.id, vector, passage.metadata) for passage, vector in zip(passages, vectors, strict=True)
        ]
        batches = iter([records[start : start + BATCH] for start in range(0, len(records), BATCH)])
        columns = (TextColumn("inserting"), BarColumn(), MofNCompleteColumn(), _rate(), TimeElapsedColumn())
        started = time.perf_counter()
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task("", total=len(records), rate=0.0)

            def done(count: int) -> None:
                elapsed = time.perf_counter() - started
                progress.update(task, advance=count, rate=progress.tasks[task].completed / max(elapsed, 1e-9))

            inserted = await insert_all(self._client, batches, COLLECTION, WRITE_SECONDS, done)
        self.outcome.load_seconds = time.perf_counter() - started
        self.outcome.passages = inserted
        if inserted != len(records):
            raise Internal(f"{inserted} of {len(records)} passages were acknowledged, yet no error was reported")
        self.say(
            f"[bold]{inserted} passages[/] replicated in {self.outcome.load_seconds:.1f} s "
            f"({inserted / self.outcome.load_seconds:,.0f} a second, each on disk on a majority)"
        )

    async def wait_indexed(self, vectors: int) -> None:
        """Until every node has the index over all but the last, incomplete batch of vectors: the same bytes, built
        once. `vectors`: how many wait at the most before they are indexed."""
        if self.outcome.passages < vectors:
            return  # so few are searched exactly, without an index
        nodes, files = list(self._cluster.nodes.values()), list[dict[str, bytes]]()

        async def same() -> bool:
            names = [[path.name for path in node.index_files()] for node in nodes]
            covered = sum(_rows(name) for name in names[0])
            if covered <= self.outcome.passages - vectors or any(found != names[0] for found in names):
                return False
            try:
                files[:] = [{path.name: path.read_bytes() for path in node.index_files()} for node in nodes]
            except FileNotFoundError:
                return False  # one was joined to another one meanwhile
            return all(list(found) == names[0] for found in files)

        started = time.perf_counter()
        await self._until(same, INDEX_SECONDS, "the replicas do not get the same index")
        self.outcome.index_seconds = time.perf_counter() - started
        if any(content != files[0] for content in files):
            raise Internal("index files of one name differ between replicas")
        self.outcome.index_bytes = size = sum(map(len, files[0].values()))
        self.say(
            f"index built once and shipped in {self.outcome.index_seconds:.1f} s: the same "
            f"{size / 1e6:.1f} MB, byte for byte, on all {len(files)} replicas"
        )

    async def ask(self) -> None:
        """A few questions in words, in each read mode; all replicas must give the same hits."""
        await self._settle(len(self._cluster.addresses))
        for question in QUESTIONS:
            vector = WORDLLAMA.embed([question])[0]
            hits = await self._client.search_strong(vector, HITS)
            strong = await self._median_ms(ReadMode.STRONG, vector, hits)
            leased = await self._median_ms(ReadMode.LEASED, vector, hits)
            eventual = await self._median_ms(ReadMode.EVENTUAL, vector, hits)
            self.outcome.answers.append(
                Answer(
                    question=question,
                    ids=[hit.id for hit in hits],
                    strong_ms=strong,
                    leased_ms=leased,
                    eventual_ms=eventual,
                )
            )
            self.say(
                f"  [bold]{question}[/]: strong {strong:.1f} ms, leased {leased:.1f} ms, eventual {eventual:.1f} ms"
            )
            for hit in hits:
                line = f"    {hit.id}: {brief(hit.metadata['text'], 90)}"
                self._console.print(line, markup=False, no_wrap=True, overflow="ellipsis")
        self.say("every replica and every read mode returned the same hits")

    async def ask_for_codes(self, passages: list[Passage]) -> None:
        """Codes and names of which it is known where they stand: a vector says little of them, words say all."""
        asked = codes(passages, KNOWN)
        if not asked:
            return
        vectors = WORDLLAMA.embed([code for code, _ in asked])
        near, words, both = list[int](), list[int](), list[int]()
        for (code, right), vector in zip(asked, vectors, strict=True):
            near.append(_rank(await self._client.search(vector, KNOWN_HITS), right))
            words.append(_rank(await self._client.search(keywords=code, k=KNOWN_HITS), right))
            both.append(_rank(await self._client.hybrid_search(vector, code, KNOWN_HITS), right))
        first, found = [[sum(map(told, one)) for one in (near, words, both)] for told in (_is_first, bool)]
        self.outcome.known = Known(
            asked=len(asked), first_near=first[0], first_by_words=first[1], first_by_both=first[2],
            found_near=found[0], found_by_words=found[1], found_by_both=found[2],
        )  # fmt: skip
        self.say(
            f"of {len(asked)} codes and names such as {asked[0][0]}, the passage that has it is the first hit of "
            f"{first[0]} near ones, {first[1]} [bold]by words, {first[2]} by both[/]; among {KNOWN_HITS} hits of "
            f"{found[0]}, {found[1]}, {found[2]}"
        )

    async def _median_ms(self, mode: ReadMode, vector: NDArray[np.float32], expected: list[Hit]) -> float:
        """The median latency of SEARCHES_EACH searches by turns (eventual reads ask the nodes in turn), which must all
        return `expected`."""
        latencies = []
        for _ in range(SEARCHES_EACH * len(self._cluster.addresses)):
            started = time.perf_counter()
            hits = await self._client.search(vector, HITS, mode=mode)
            latencies.append((time.perf_counter() - started) * 1000)
            if [(hit.id, hit.distance) for hit in hits] != [(hit.id, hit.distance) for hit in expected]:
                found, wanted = [hit.id for hit in hits], [hit.id for hit in expected]
                raise Internal(f"replicas disagree: {found} and {wanted}")
        return statistics.median(latencies)

    async def lose_the_leader(self, vectors: NDArray[np.float32]) -> list[str]:
        """kill -9 the leader in the middle of a stream of writes; returns the ids of all acknowledged writes."""
        await self._client.create_collection(WRITES, dimensions=vectors.shape[1])
        stream = WriteStream(self._client, vectors)
        async with stream.running():
            await self._until(stream.reached(WRITES_BEFORE), WRITE_SECONDS, "the stream of writes does not flow")
            before = await self._leader_status()
            killed_at, acknowledged_before = time.perf_counter(), len(stream.acknowledged)
            self._cluster.kill(before.node_id)
            self.say(
                f"[bold red]kill -9 {before.node_id}[/], the leader, after {acknowledged_before} acknowledged writes"
            )
            goal = acknowledged_before + WRITES_AFTER
            await self._until(stream.reached(goal), READY_SECONDS, "no write is acknowledged after the leader's death")
        first = min(done for sent, done in stream.acknowledged.values() if sent >= killed_at)
        after = await self._leader_status()
        self.outcome.failover = Failover(
            killed=before.node_id,
            new_leader=after.node_id,
            term_before=before.current_term,
            term_after=after.current_term,
            failover_ms=(first - killed_at) * 1000,
            acknowledged_before=acknowledged_before,
            acknowledged_after=len(stream.acknowledged) - acknowledged_before,
            unknown=len(stream.unknown),
        )
        self.say(
            f"[green]{after.node_id}[/] leads in term {after.current_term}; the next write was acknowledged "
            f"[bold]{self.outcome.failover.failover_ms:.0f} ms[/] after the kill"
        )
        return list(stream.acknowledged)

    async def prove(self, acknowledged: list[str]) -> None:
        """Every acknowledged write is there, on every replica, also on the one that was dead."""
        failover = self.outcome.failover
        if failover is None:
            raise Internal("nothing to prove before the leader was lost")
        survivors = await self._settle(len(self._cluster.addresses) - 1)
        missing = await missing_of(self._client, acknowledged)
        if missing:
            raise Internal(f"{len(missing)} acknowledged writes are gone, such as {missing[0]}")
        self.say(
            f"all [bold]{len(acknowledged)} acknowledged writes[/] are there; "
            f"{len(survivors)} survivors hold {survivors[0].documents} documents, digest {survivors[0].digest[:16]}"
        )
        started = time.perf_counter()
        self._cluster.restart(failover.killed)
        replicas = await self._settle(len(self._cluster.addresses))
        seconds = time.perf_counter() - started
        if replicas[0].digest != survivors[0].digest:
            raise Internal("the digest changed although nothing was written")
        expected = self.outcome.passages + len(acknowledged)
        if not expected <= replicas[0].documents <= expected + failover.unknown:
            raise Internal(f"{replicas[0].documents} documents, expected {expected}")
        self.outcome.proof = Proof(
            acknowledged=len(acknowledged),
            missing=0,
            documents=replicas[0].documents,
            digest=replicas[0].digest,
            replicas=len(replicas),
            catch_up_seconds=seconds,
        )
        self.say(
            f"[green]{failover.killed}[/] restarted and caught up in {seconds:.1f} s: all {len(replicas)} replicas at "
            f"index {replicas[0].last_applied} with the same {replicas[0].documents} documents and the same digest"
        )

    async def _settle(self, replicas: int) -> list[RaftStatus]:
        """Wait until `replicas` nodes have applied the same index and hold the same documents; their statuses."""
        settled: list[RaftStatus] = []

        async def equal() -> bool:
            settled[:] = await self._statuses(digest=True)
            return len(settled) == replicas and len({(s.last_applied, s.documents, s.digest) for s in settled}) == 1

        await self._until(equal, READY_SECONDS, f"{replicas} replicas do not become equal")
        return settled

    async def _statuses(self, digest: bool = False) -> list[RaftStatus]:
        """Of the nodes that answer."""
        found = []
        for address in self._cluster.addresses.values():
            with suppress(NeedleError):  # a node that is starting or dead is left out
                found.append(await self._client.node_status(address, digest=digest, timeout=5.0))
        return found

    async def _leader_status(self) -> RaftStatus:
        leaders: list[RaftStatus] = []

        async def one() -> bool:
            leaders[:] = [status for status in await self._statuses() if status.state == "Leader"]
            return len(leaders) == 1

        await self._until(one, READY_SECONDS, "there is no leader")
        return leaders[0]

    async def _until(self, holds: Callable[[], Awaitable[bool]], seconds: float, problem: str) -> None:
        """Poll until `holds`; DeadlineExceeded with `problem` after `seconds`, at once if a node died by itself."""
        deadline = time.monotonic() + seconds
        while not await holds():
            self._cluster.check_alive()
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"{problem} within {seconds:.0f} s")
            await asyncio.sleep(0.02)


def _rank(hits: list[Hit], right: str) -> int:
    """From 1 on; 0 for none."""
    return next((rank for rank, hit in enumerate(hits, 1) if hit.id == right), 0)


def _is_first(rank: int) -> bool:
    return rank == 1


def _rows(name: str) -> int:
    """How many ordinals an index file covers, by its name `<collection>-<first>-<last>-<checksum>.seg`."""
    _, first, last, _ = name.split("-")
    return int(last) - int(first) + 1


def _rate() -> TextColumn:
    return TextColumn("{task.fields[rate]:,.0f}/s")
