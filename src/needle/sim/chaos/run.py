"""One chaos run: real nodes, links and disks of their own; clients; faults by the schedule; then heal and judge.

Invariant: every operation is in the file before the run ends, whatever happens, and nothing that was started or mounted
outlives it. The judgement is `check`'s, from the file alone.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

import needle
from needle.base.model import ReadMode
from needle.rpc.transport import RpcClient
from needle.server.runtime import SystemClock
from needle.sim.chaos import check
from needle.sim.chaos.disks import SmallDisk, may_mount
from needle.sim.chaos.history_file import Recorder, Replica, read
from needle.sim.chaos.injector import Injector, Injured, has_quorum, make_links
from needle.sim.chaos.process_cluster import ProcessCluster, free_ports, wait_for
from needle.sim.chaos.recovery import Probes, Recovery
from needle.sim.chaos.schedule import Fault, Round, schedule
from needle.sim.databases import connect
from needle.sim.machine import stream
from needle.sim.spec import Profile
from needle.sim.trace import Trace
from needle.sim.violation import Violation
from needle.sim.workload import Budget, Client, Workload

CLUSTER_ID = "needle"
CLIENTS, PROBES = 4, 5
START_SECONDS = 60.0
FINAL_SECONDS = 60.0
LOOK_SECONDS = 0.2
Say = Callable[[str], None]


class ChaosSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A run. seconds: of faults and load. election_timeout, heartbeat_interval: seconds, for every node."""

    seed: int
    nodes: int = 3
    seconds: float = 300.0
    election_timeout: float = 0.5
    heartbeat_interval: float = 0.1
    think_seconds: float = 0.05


class Outcome(msgspec.Struct):
    """What a run showed."""

    spec: ChaosSpec
    faults: dict[str, int]
    recoveries: list[Recovery]
    full_disks_met: int = 0
    elections: int = 0
    verdict: check.Verdict | None = None
    failure: Violation | None = None
    story: list[str] = []


class ChaosRun:
    """One run. `await run()`."""

    def __init__(self, spec: ChaosSpec, directory: Path, say: Say = lambda line: None) -> None:
        self.spec, self._directory, self._say = spec, directory, say
        self.file = directory / "history.jsonl"
        self.profile = _profile(spec)
        self._rng = stream(spec.seed, "chaos", "choices")
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._trace = Trace(lambda: self._loop.time() - self._began)
        self._callers: list[RpcClient] = []
        self.outcome = Outcome(spec, {}, [])

    async def run(self) -> Outcome:
        """Raises only what is no verdict on the product (a machine on which processes do not start)."""
        outcome = self.outcome
        with self.file.open("w") as file:
            facts = {"metric": self.profile.metric, "dimensions": self.profile.dimensions}
            history = Recorder(file, **msgspec.structs.asdict(self.spec), **facts)
            try:
                await self._processes(history)
                history.note("end")
            except Violation as violation:
                outcome.failure = violation
                self._trace.tell(f"violation: {violation}")
        recorded = read(self.file.read_text().splitlines())
        try:
            outcome.verdict = check.check(recorded)
        except Violation as violation:
            outcome.failure = outcome.failure or violation
        if outcome.failure is not None:
            outcome.story = [*self._trace.story[-30:], *check.story(recorded, outcome.failure)]
        return outcome

    # --- processes ---------------------------------------------------------------------------------------------------
    async def _processes(self, history: Recorder) -> None:
        spec = self.spec
        ports = free_ports(2 * spec.nodes)
        names = [f"node-{n + 1}" for n in range(spec.nodes)]
        links = make_links({name: f"127.0.0.1:{ports[n]}" for n, name in enumerate(names)})
        disks = self._mount(names)
        cluster: ProcessCluster | None = None
        try:
            through = {link: await proxy.start() for link, proxy in links.items()}
            cluster = ProcessCluster(
                self._directory, spec.nodes, peers_through=through, ports=ports, **_settings(spec, self.profile)
            )
            for node in cluster.nodes.values():
                node.start()
            await cluster.ready(deadline=START_SECONDS)
            async with cluster.connect() as operator:
                injector = Injector(cluster, links, disks, operator, self._rng, spec.election_timeout)
                await self._load(history, injector)
        finally:
            if cluster is not None:
                cluster.stop()
            for caller in self._callers:
                await caller.close()
            for proxy in links.values():
                await proxy.stop()
            for disk in disks.values():
                disk.unmount()

    def _mount(self, names: list[str]) -> dict[str, SmallDisk]:
        disks = {name: SmallDisk(self._directory / name) for name in names} if may_mount() else {}
        if not all(disk.mount() for disk in disks.values()):
            for disk in disks.values():
                disk.unmount()
            disks = {}
        return disks

    # --- load --------------------------------------------------------------------------------------------------------
    async def _load(self, history: Recorder, injector: Injector) -> None:
        work = Workload(self._loop, history, self._trace, self.profile, self.spec.seed, Budget(1 << 60))
        work.lulls = False
        work.latest = lambda _: history.acknowledged_index
        addresses = injector.cluster.addresses
        probes = Probes(
            [self._client(f"p{n}", work, addresses) for n in range(PROBES)],
            history,
            injector.operator,
            self.spec.election_timeout,
        )
        await probes.measure(self._loop.time(), len(history.operations))
        first = await probes.term(list(injector.cluster.nodes))
        tasks = [asyncio.create_task(self._client(f"c{n}", work, addresses).run()) for n in range(CLIENTS)]
        faults = asyncio.create_task(self._faults(history, injector, probes))
        watch = asyncio.create_task(self._watch(injector, work, tasks))
        try:
            await asyncio.wait((faults, watch), return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                watch.result()
            await faults
            work.stopping = True
            await asyncio.gather(*tasks)
            await probes.finish()
            self._say("faults are over; waiting for equal replicas, then reading everything")
            await self._final(history, injector, self._client(check.FINAL, work, addresses))
            if work.broken is not None:
                raise work.broken
            self.outcome.full_disks_met = injector.full_disks_met
            self.outcome.elections = await probes.term(list(injector.cluster.nodes)) - first
        finally:
            work.stopping = True
            for task in (faults, watch):
                task.cancel()
            await asyncio.gather(faults, watch, *tasks, return_exceptions=True)
            await probes.finish()

    def _client(self, name: str, work: Workload, addresses: list[str]) -> Client:
        caller = RpcClient(cluster_id=CLUSTER_ID, rng=stream(self.spec.seed, "rpc", name), clock=SystemClock())
        self._callers.append(caller)
        rng: random.Random = stream(self.spec.seed, "session", name)
        return Client(name, lambda: connect(caller, addresses, rng), work)

    async def _watch(self, injector: Injector, work: Workload, clients: list[asyncio.Task[None]]) -> None:
        """Until something is wrong."""
        while True:
            injector.check_processes()
            if work.broken is not None:
                raise work.broken
            for task in clients:
                if task.done():
                    task.result()
            await asyncio.sleep(LOOK_SECONDS)

    # --- faults ------------------------------------------------------------------------------------------------------
    async def _faults(self, history: Recorder, injector: Injector, probes: Probes) -> None:
        end = self._loop.time() + self.spec.seconds
        for one in schedule(self.spec.seed):
            await asyncio.sleep(min(one.calm, max(0.0, end - self._loop.time())))
            if self._loop.time() >= end:
                return
            await self._round(one, history, injector, probes)

    async def _round(self, one: Round, history: Recorder, injector: Injector, probes: Probes) -> None:
        names = list(injector.cluster.nodes)
        targets = [await injector.target(fault) for fault in one.faults]
        leader, term = await injector.leader(), await probes.term(names)
        since, seen = self._loop.time(), len(history.operations)
        hurt: list[Injured] = []
        for fault, name in zip(one.faults, targets, strict=True):
            injured = await injector.begin(fault, name)
            hurt.append(injured)
            self._tell(history, "fault", fault, f"{name}{' (leads)' if name == leader else ''}: {injured.note}")
        lasting = asyncio.create_task(asyncio.sleep(max(f.timeouts for f in one.faults) * self.spec.election_timeout))
        what = "+".join(fault.kind for fault in one.faults) + (" of the leader" if leader in targets else "")
        quorum = has_quorum(names, hurt)
        if quorum:
            seconds = await probes.measure(since, seen)
            self._note(history, probes, "begin", what, seconds, await probes.term(names) - term)
        await lasting
        healed, seen = self._loop.time(), len(history.operations)
        heals = [asyncio.ensure_future(injured.heal()) for injured in hurt]
        measuring = asyncio.ensure_future(probes.measure(healed, seen))
        try:
            await asyncio.gather(*heals)
        except (TimeoutError, AssertionError) as error:
            raise Violation("liveness", f"after {what}: {error}") from error
        up, lived = self._loop.time() - healed, max(0.0, injector.lived_at - healed)
        for fault, name in zip(one.faults, targets, strict=True):
            self._tell(history, "heal", fault, f"{name}; all its processes serve after {up:.2f} s")
        elections = await probes.term(names) - term
        self._note(history, probes, "heal", what, await measuring, elections, lived=lived, quorum=quorum)

    def _tell(self, history: Recorder, kind: str, fault: Fault, text: str) -> None:
        if kind == "fault":
            self.outcome.faults[fault.kind] = self.outcome.faults.get(fault.kind, 0) + 1
        at = self._loop.time()
        history.note(kind, number=fault.number, fault=fault.kind, timeouts=fault.timeouts, text=text, time=at)
        self._trace.tell(f"{kind} {fault}: {text}")
        self._say(self._trace.story[-1])

    def _note(
        self,
        history: Recorder,
        probes: Probes,
        after: str,
        what: str,
        seconds: float,
        elections: int,
        *,
        lived: float = 0.0,
        quorum: bool = True,
    ) -> None:
        found = Recovery(after, what, seconds, probes.bound, max(0, elections))
        if seconds > probes.bound:
            found.reason = _reason(found, lived, quorum)
        self.outcome.recoveries.append(found)
        history.note("recovery", **msgspec.structs.asdict(found))
        self._trace.tell(f"recovered {seconds:.2f} s after the {after} of {what} {found.reason}")
        self._say(self._trace.story[-1])

    # --- the end -----------------------------------------------------------------------------------------------------
    async def _final(self, history: Recorder, injector: Injector, reader: Client) -> None:
        """Every node equal, every key read once more by a strong read, every node's own documents noted."""
        injector.heal_links()
        cluster, keys = injector.cluster, sorted(history.by_key())
        try:
            await cluster.ready(deadline=FINAL_SECONDS)
            while True:
                digest = await cluster.equal_digests(FINAL_SECONDS)
                for key in keys:
                    await wait_for(partial(reader.get, key, ReadMode.STRONG), FINAL_SECONDS, f"a read of {key}")
                replicas = [await self._replica(cluster, name, keys) for name in cluster.nodes]
                if {replica.digest for replica in replicas} == {digest}:
                    break  # nothing moved meanwhile
        except (TimeoutError, AssertionError) as error:
            raise Violation("equal replicas at the end", str(error)) from error
        for replica in replicas:
            history.note("replica", **msgspec.structs.asdict(replica))

    async def _replica(self, cluster: ProcessCluster, name: str, keys: list[str]) -> Replica:
        caller = RpcClient(cluster_id=CLUSTER_ID, rng=self._rng, clock=SystemClock())
        # Asked directly, so that the answers are this node's.
        async with needle.Client(caller, [cluster.nodes[name].address], rng=self._rng) as client:
            status = await client.node_status(cluster.nodes[name].address, digest=True)
            caller_only = _OneAddress(caller, cluster.nodes[name].address)
            own = needle.Client(caller_only, [cluster.nodes[name].address], rng=self._rng)
            found = await own.get(keys, mode=ReadMode.EVENTUAL, with_vectors=False)
        return Replica(name, status.last_applied, status.digest, {doc.id: doc.version for doc in found})


class _OneAddress:
    """A network on which there is one node."""

    def __init__(self, caller: RpcClient, address: str) -> None:
        self._caller, self._address = caller, address

    async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
        return await self._caller.call(self._address, method, body, timeout)

    def connected(self, address: str) -> bool:
        return self._caller.connected(self._address)

    async def connect(self, address: str, timeout: float) -> None:
        await self._caller.connect(self._address, timeout)

    async def close(self) -> None:
        await self._caller.close()


def _profile(spec: ChaosSpec) -> Profile:
    rng = stream(spec.seed, "chaos", "profile")
    return Profile(
        dimensions=8,
        metric=rng.choice(["cosine", "l2", "dot"]),
        snapshot_threshold=rng.choice([50, 200]),
        seal_rows=30,
        rows_max=480,
        think_seconds=spec.think_seconds,
        delay=0.0,
        clock_error=0.0,
        key_slots=12,
        operations_per_key=30,
    )


def _settings(spec: ChaosSpec, profile: Profile) -> dict[str, Any]:
    return {
        "election_timeout": spec.election_timeout,
        "heartbeat_interval": spec.heartbeat_interval,
        "snapshot_threshold": profile.snapshot_threshold,
        "dimensions": profile.dimensions,
        "metric": profile.metric,
        "segments": {"seal_rows": profile.seal_rows, "rows_max": profile.rows_max, "ship_timeout": 3.0},
    }


def _reason(found: Recovery, lived: float, quorum: bool) -> str:
    """Why it took longer than the bound, as far as can be told from outside."""
    if not quorum:
        return f"no quorum ran: its processes needed {lived:.2f} s to start and open their files, the rest is Raft's"
    if found.elections > 1:
        return f"{found.elections} terms: more than one election was needed"
    if found.elections == 1:
        return "one election, and clients give a silent leader 1 s before they ask others"
    return "no election: a leader waited for answers, or the machine was busy"
