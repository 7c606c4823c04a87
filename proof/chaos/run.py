"""One chaos run: real nodes, links and disks of their own; clients; faults by the schedule; then heal and judge.

Invariant: every operation is in the file before the run ends, whatever happens, and nothing that was started or mounted
outlives it. The judgement is `check`'s, from the file alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from proof.chaos import check
from proof.chaos.clients import ShardRecorder
from proof.chaos.injector import Injured
from proof.chaos.recovery import BOUND_TIMEOUTS, Recovery
from proof.chaos.schedule import Fault, Round, schedule
from proof.chaos.site import FINAL_SECONDS, Site
from proof.chaos.spec import BLOCKED_EVERY, BLOCKED_SECONDS, ChaosSpec, profile
from proof.checkers.violation import Violation
from proof.sim.machine import stream
from proof.sim.trace import Trace
from proof.sim.workload import Budget, Workload

LOOK_SECONDS = 0.2
STALL_SECONDS = 0.25
Say = Callable[[str], None]


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
    beside: list[str] = []


class ChaosRun:
    """One run. `await run()`."""

    def __init__(self, spec: ChaosSpec, directory: Path, say: Say = lambda line: None, site: type[Site] = Site) -> None:
        self.spec, self._say = spec, say
        self.file = directory / "history.jsonl"
        self.profile = profile(spec)
        self._site = site(spec, self.profile, directory)
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._trace = Trace(lambda: self._loop.time() - self._began)
        self.outcome = Outcome(spec, {}, [])
        self._stalls: list[tuple[float, float]] = []

    async def run(self) -> Outcome:
        """Raises only what is no verdict on the product (a machine on which processes do not start)."""
        outcome = self.outcome
        with self.file.open("w") as file:
            facts = {"metric": self.profile.metric, "dimensions": self.profile.dimensions}
            history = ShardRecorder(file, **msgspec.structs.asdict(self.spec), **facts)
            try:
                await self._on_site(history)
                history.note("end")
            except Violation as violation:
                outcome.failure = violation
                self._trace.tell(f"violation: {violation}")
        outcome.beside = self._site.told()
        check.judge(outcome, self.file, self._trace.story)
        return outcome

    async def _on_site(self, history: ShardRecorder) -> None:
        try:
            await self._site.open(history)
            await self._load(history)
        finally:
            await self._site.close()

    # --- load --------------------------------------------------------------------------------------------------------
    async def _load(self, history: ShardRecorder) -> None:
        site = self._site
        budget = Budget(1 << 60)
        work = Workload(self._loop, history, self._trace, self.profile, self.spec.seed, budget, history, wide=False)
        site.prepare(work)
        await site.measure(self._loop.time(), len(history.operations), site.groups)
        first = await site.terms()
        tasks = [asyncio.create_task(client.run()) for client in site.clients]
        faults = asyncio.create_task(self._faults(history))
        watch = asyncio.create_task(self._watch(work, tasks))
        busy = asyncio.create_task(self._block())
        try:
            await asyncio.wait((faults, watch), return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                watch.result()
            await faults
            work.stopping = True
            busy.cancel()
            await asyncio.gather(*tasks)
            await site.finish()
            self._say("faults are over; waiting for equal replicas, then reading everything")
            await self._final(history)
            if work.broken is not None:
                raise work.broken
            self.outcome.full_disks_met = site.injector.full_disks_met
            self.outcome.elections = sum((await self._elections(first)).values())
        finally:
            work.stopping = True
            for task in (faults, watch, busy):
                task.cancel()
            await asyncio.gather(faults, watch, busy, *tasks, return_exceptions=True)
            await site.finish()

    async def _final(self, history: ShardRecorder) -> None:
        self._site.injector.heal_links()
        try:
            await self._site.cluster.ready(deadline=FINAL_SECONDS)
            await self._site.final(history)
        except (TimeoutError, AssertionError) as error:
            raise Violation("equal replicas at the end", str(error)) from error

    async def _block(self) -> None:
        """Keep the event loop of all clients from running now and then, as a program does that computes in it: answers
        wait, deadlines pass unseen, and the timeouts of several attempts come at once."""
        rng = stream(self.spec.seed, "chaos", "blocked")
        while True:
            await asyncio.sleep(rng.expovariate(1 / BLOCKED_EVERY))
            time.sleep(rng.uniform(*BLOCKED_SECONDS))  # noqa: ASYNC251 - this is the fault

    async def _watch(self, work: Workload, clients: list[asyncio.Task[None]]) -> None:
        """Until something is wrong. Notes how long this process was kept from running."""
        looked = self._loop.time()
        while True:
            late = self._loop.time() - looked - LOOK_SECONDS
            looked = self._loop.time()
            if late > STALL_SECONDS:
                self._stalls.append((looked, late))
            self._site.injector.check_processes()
            self._site.check()
            if work.broken is not None:
                raise work.broken
            for task in clients:
                if task.done():
                    task.result()
            await asyncio.sleep(LOOK_SECONDS)

    # --- faults ------------------------------------------------------------------------------------------------------
    async def _faults(self, history: ShardRecorder) -> None:
        end = self._loop.time() + self.spec.seconds
        for done, one in enumerate(schedule(self.spec.seed)):
            owed = done < self.spec.rounds
            await asyncio.sleep(one.calm if owed else min(one.calm, max(0.0, end - self._loop.time())))
            if self._loop.time() >= end and not owed:
                return
            await self._round(one, history)

    async def _round(self, one: Round, history: ShardRecorder) -> None:
        site, injector = self._site, self._site.injector
        targets = [await injector.target(fault) for fault in one.faults]
        leading, terms = await site.leading(), await site.terms()
        since, seen = self._loop.time(), len(history.operations)
        hurt: list[Injured] = []
        for fault, name in zip(one.faults, targets, strict=True):
            injured = await injector.begin(fault, name)
            hurt.append(injured)
            leads = f" (leads {leading[name]}".rstrip() + ")" if name in leading else ""
            self._tell(history, "fault", fault, f"{name}{leads}: {injured.note}")
        lasting = asyncio.create_task(asyncio.sleep(max(f.timeouts for f in one.faults) * self.spec.election_timeout))
        of_leader = any(name in leading for name in targets)
        what = "+".join(fault.kind for fault in one.faults) + (" of the leader" if of_leader else "")
        since = max(since, *(injured.since for injured in hurt))
        serving = site.serving(hurt)
        if serving:
            seconds = await site.measure(since, seen, serving)
            self._note(history, "begin", what, since, seconds, await self._elections(terms))
        await lasting
        healed, seen = self._loop.time(), len(history.operations)
        heals = [asyncio.ensure_future(injured.heal()) for injured in hurt]
        measuring = asyncio.ensure_future(site.measure(healed, seen, site.groups))
        try:
            await asyncio.gather(*heals)
        except (TimeoutError, AssertionError) as error:
            raise Violation("liveness", f"after {what}: {error}") from error
        up, lived = self._loop.time() - healed, max(0.0, injector.lived_at - healed)
        for fault, name in zip(one.faults, targets, strict=True):
            self._tell(history, "heal", fault, f"{name}; all its processes serve after {up:.2f} s")
        elections = await self._elections(terms)
        quorum = serving == site.groups
        self._note(history, "heal", what, healed, await measuring, elections, lived=lived, quorum=quorum)

    async def _elections(self, before: dict[int, int]) -> dict[int, int]:
        """By group, how many terms have begun since."""
        return {group: max(0, term - before[group]) for group, term in (await self._site.terms()).items()}

    def _tell(self, history: ShardRecorder, kind: str, fault: Fault, text: str) -> None:
        if kind == "fault":
            self.outcome.faults[fault.kind] = self.outcome.faults.get(fault.kind, 0) + 1
        at = self._loop.time()
        history.note(kind, number=fault.number, fault=fault.kind, timeouts=fault.timeouts, text=text, time=at)
        self._trace.tell(f"{kind} {fault}: {text}")
        self._say(self._trace.story[-1])

    def _note(
        self,
        history: ShardRecorder,
        after: str,
        what: str,
        since: float,
        seconds: float,
        elections: dict[int, int],
        *,
        lived: float = 0.0,
        quorum: bool = True,
    ) -> None:
        found = Recovery(after, what, seconds, BOUND_TIMEOUTS * self.spec.election_timeout, max(elections.values()))
        if seconds > found.bound:
            found.reason = _reason(found, lived, quorum)
            stalled = sum(late for ended, late in self._stalls if ended >= since)
            if stalled:
                found.reason += f"; this machine kept the run itself from running for {stalled:.2f} s"
        self.outcome.recoveries.append(found)
        history.note("recovery", **msgspec.structs.asdict(found))
        self._trace.tell(f"recovered {seconds:.2f} s after the {after} of {what} {found.reason}")
        self._say(self._trace.story[-1])


def _reason(found: Recovery, lived: float, quorum: bool) -> str:
    """Why it took longer than the bound, as far as can be told from outside."""
    if not quorum:
        return f"no quorum ran: its processes needed {lived:.2f} s to start and open their files, the rest is Raft's"
    if found.elections > 1:
        return f"{found.elections} terms: more than one election was needed"
    if found.elections == 1:
        return "one election, and clients give a silent leader 1 s before they ask others"
    return "no election: a leader waited for answers, or the machine was busy"
