"""A cluster of real processes that grows, shrinks and evens out, back and forth, while its processes are killed.

Shards come, go and are split, replicas move, nodes are emptied, replaced and restarted in turn; rebalances are paused
and cancelled; all the while kill -9 ends the catalog's leader, leaders of shards, and any node, or the links of such
nodes are cut. Invariants: whatever is killed is started again, and whatever is cut is healed, at most two nodes at a
time; nothing that was started outlives the run.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from needle.base.errors import InvalidArgument, NeedleError
from needle.client.client import Client
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.routing.jobs import JobState, RebalanceConfig
from needle.routing.topology import NodeState, Topology
from proof.checkers.violation import Violation

ADMIN_SECONDS = 5.0
READY_SECONDS = 90.0
END_SECONDS = 240.0
"""So long a rebalance may take while its nodes are killed."""
REPLACE_SECONDS, RESTART_SECONDS = 120.0, 60.0
KILLS_EVERY = 2.5
DOWN_SECONDS = 1.5
CUT_SHARE, CUT_SECONDS = 0.3, 6.0
"""Of the faults, how many are of links; so long they last at most."""
SHARDS_MAX = 4
CANCEL_SHARE, PAUSE_SHARE = 0.2, 0.2
LOOK_SECONDS = 0.2
T = TypeVar("T")
Say = Callable[[str], None]


class Lives:
    """Kills processes and starts them again, and cuts links for a while. names: those that are nodes of the cluster."""

    def __init__(self, cluster: ProcessCluster, operator: Client, rng: random.Random, say: Say) -> None:
        self.cluster = cluster
        self.names = list(cluster.nodes)
        self.operator = operator
        self._rng = rng
        self._say = say
        self._one = asyncio.Lock()
        self.kills: Counter[str] = Counter()
        self.cuts: Counter[str] = Counter()
        self.ending = False

    async def run(self) -> None:
        """Until `ending`. Raises Violation for a process that does not come back, or ends by itself."""
        while not self.ending:
            await asyncio.sleep(self._rng.expovariate(1 / KILLS_EVERY))
            what, names = await self._victims()
            async with self._one:
                self.check()
                here = [name for name in names if name in self.names]
                cuts = sum(self.cuts.values())
                if cuts < CUT_SHARE * (cuts + sum(self.kills.values())):  # both come in a short run, too
                    await self.cut(what, here, CUT_SECONDS * self._rng.random())
                    continue
                self.kills[what] += len(here)
                self._say(f"kill -9 of {what}: {', '.join(here)}")
                await self.anew(here, DOWN_SECONDS * self._rng.random())

    async def cut(self, what: str, names: Sequence[str], seconds: float) -> None:
        """The links of nodes are cut, silent, or silent in one direction for a while; the nodes go on. Of one that came
        lately some of the others may use none."""
        how = self._rng.choice(["cut", "silent", "deaf", "mute"])
        hurt = [(link, proxy) for link, proxy in self.cluster.links.items() if set(link) & set(names)]
        self._say(f"{what} is {how} for {seconds:.1f} s: {', '.join(names)}")
        self.cuts[f"{how}, {what}"] += 1
        for (_, to), proxy in hurt:
            if how == "cut":
                proxy.cut()
            elif how == "silent":
                proxy.silence()
            else:  # forward is from who opened the connection
                proxy.silence("forward" if (to in names) == (how == "deaf") else "back")
        await asyncio.sleep(seconds)
        for _, proxy in hurt:
            proxy.heal()

    async def anew(self, names: Sequence[str], seconds: float) -> None:
        """Kill processes and start them after a while. `_one` must be held, or nobody else kills."""
        self.cluster.kill(*names)
        await asyncio.sleep(seconds)
        for name in names:
            self.cluster.restart(name)
        for name in names:
            await wait_for(lambda name=name: self._lives(name), READY_SECONDS, f"{name} living")  # type: ignore[misc]

    async def restart(self, name: str, address: str) -> None:
        """As an operator's own command does."""
        async with self._one:
            await self.anew([name], 0.0)

    async def gone(self, name: str) -> None:
        """The process of a node that was removed."""
        async with self._one:
            self.names.remove(name)
            self.cluster.kill(name)

    def check(self) -> None:
        """Raises Violation if a process ended that nobody killed."""
        for name in self.names:
            node = self.cluster.nodes[name]
            if not node.running():
                raise Violation("processes live", f"{name} ended with {node.wait()}: {node.output()[-2000:]}")

    async def _lives(self, name: str) -> bool:
        return (await self.cluster.http(name, "/livez"))[0] == 200

    async def _victims(self) -> tuple[str, list[str]]:
        draw, anybody = self._rng.random(), self._rng.choice(self.names)
        with suppress(NeedleError):
            if draw < 0.35 and (leader := await self.operator.catalog_leader()) is not None:
                return "the catalog's leader", [leader]
            if draw < 0.7:
                shard = self._rng.choice(self.operator.topology().serving).shard
                if (leader := await self.operator.leader(shard)) is not None:
                    return "a shard's leader", [leader]
        if draw > 0.9:
            return "two nodes", self._rng.sample(self.names, 2)
        return "any node", [anybody]


class Growth:
    """The operator. done: steps that came to their end, by kind."""

    def __init__(self, lives: Lives, operator: Client, rng: random.Random, say: Say) -> None:
        self._lives = lives
        self.operator = operator
        self._rng = rng
        self._say = say
        self.done: Counter[str] = Counter()
        self.refused = 0
        self.ending = False
        self._steps: dict[str, Callable[[], Awaitable[bool]]] = {
            "add a shard": self._add,
            "remove a shard": self._remove,
            "split a shard": self._split,
            "move a replica": self._move,
            "even out": self._even,
            "empty a node": self._drain,
            "replace a node": self._replace,
            "rolling restart": self._restart,
        }

    async def run(self, steps: int = 0) -> None:
        """Until `ending` and so many steps came to their end; each kind once before any comes twice. Raises
        Violation."""
        left: list[str] = []
        while not self.ending or self.done.total() < steps:
            left = left or self._rng.sample(list(self._steps), len(self._steps))
            name = left.pop()
            try:
                if await self._steps[name]():
                    self.done[name] += 1
                    self._say(f"{name}: done")
            except NeedleError as error:
                if not error.retryable and not isinstance(error, InvalidArgument) and error.code != "outcome_unknown":
                    raise Violation("expected errors", f"{name}: {error!r}: {error}") from error
                self.refused += 1
                self._say(f"{name}: {error}")
                await asyncio.sleep(LOOK_SECONDS)
            await self._idle()

    async def end(self) -> None:
        """No rebalance is under way, and all nodes are used again. Nobody kills any more."""

        async def ended() -> bool:
            now = await self._now()
            if now.rebalance is not None and not now.rebalance.over:
                await self.operator.cancel_rebalance(timeout=ADMIN_SECONDS)
                return False
            for info in now.nodes:
                if info.state is NodeState.DRAINING:
                    await self.operator.undrain_node(info.id, timeout=ADMIN_SECONDS)
                if info.maintenance and info.id in self._lives.names:
                    await self.operator.exit_maintenance_mode(info.id, timeout=ADMIN_SECONDS)
            return True

        await wait_for(ended, READY_SECONDS, "the end of the rebalance")

    async def _now(self) -> Topology:
        return await self.operator.refresh_topology(confirmed=True, timeout=ADMIN_SECONDS)

    def _config(self) -> RebalanceConfig:
        return RebalanceConfig(
            max_concurrent_moves=self._rng.choice([1, 2, 4]),
            batch_size=100,
            throttle_rate=self._rng.choice([0.0, 0.05]),
        )

    # --- steps: whether there was anything to do ----------------------------------------------------------
    async def _add(self) -> bool:
        if len((await self._now()).serving) >= SHARDS_MAX:
            return False
        return await self._over(await self.operator.add_shard(self._config(), timeout=ADMIN_SECONDS))

    async def _remove(self) -> bool:
        serving = (await self._now()).serving
        if len(serving) < 2:
            return False
        shard = self._rng.choice(serving).shard
        return await self._over(await self.operator.remove_shard(shard, self._config(), timeout=ADMIN_SECONDS))

    async def _split(self) -> bool:
        serving = (await self._now()).serving
        if len(serving) >= SHARDS_MAX:
            return False
        shard = self._rng.choice(serving).shard
        return await self._over(await self.operator.split_shard(shard, self._config(), timeout=ADMIN_SECONDS))

    async def _move(self) -> bool:
        info = self._rng.choice((await self._now()).serving)
        spare = [name for name in self._lives.names if name not in info.replicas]
        if not spare:
            return False
        source, target = self._rng.choice(info.wanted), self._rng.choice(spare)
        id_ = await self.operator.move_replica(info.shard, source, target, self._config(), timeout=ADMIN_SECONDS)
        return await self._over(id_)

    async def _even(self) -> bool:
        return await self._over(await self.operator.start_rebalance(self._config(), timeout=ADMIN_SECONDS))

    async def _drain(self) -> bool:
        node = self._rng.choice(self._lives.names)
        try:
            done = await self._over(await self.operator.drain_node(node, self._config(), timeout=ADMIN_SECONDS))
            now = await self._now() if done else None
            if now is not None and (now.hosted_by(node) or node in now.catalog):
                raise Violation("an emptied node holds nothing", f"{node}: {now.hosted_by(node)}, {now.catalog}")
            return done
        finally:
            await self._repeated(lambda: self.operator.undrain_node(node, timeout=ADMIN_SECONDS))

    async def _replace(self) -> bool:
        lives, cluster = self._lives, self._lives.cluster
        old = self._rng.choice(lives.names)
        join = [cluster.nodes[name].address for name in lives.names if name != old]
        fresh = cluster.add(sharding={"join": join})
        await cluster.link(fresh)
        cluster.restart(fresh)
        lives.names.append(fresh)
        await wait_for(lambda: self._knows(fresh), READY_SECONDS, f"{fresh} being a node")
        await self._repeated(lambda: self.operator.replace_node(old, fresh, timeout=REPLACE_SECONDS))
        now = await self._now()
        if now.hosted_by(old) or old in now.catalog:
            raise Violation("a replaced node holds nothing", f"{old}: {now.hosted_by(old)}, {now.catalog}")
        await lives.gone(old)
        return True

    async def _restart(self) -> bool:
        try:
            return bool(await self.operator.rolling_restart(self._lives.restart, timeout=RESTART_SECONDS))
        finally:
            for info in (await self._repeated(self._now)).nodes:
                if info.maintenance:
                    await self._repeated(
                        lambda node=info.id: self.operator.exit_maintenance_mode(node, timeout=ADMIN_SECONDS)  # type: ignore[misc]
                    )

    async def _knows(self, node: str) -> bool:
        return (await self._now()).node(node) is not None

    async def _repeated(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What may be repeated, until it is done. Raises Violation if it never is."""
        loop = asyncio.get_running_loop()
        until = loop.time() + END_SECONDS
        while True:
            try:
                return await ask()
            except InvalidArgument as error:
                if error.details.get("field") != "rebalance":
                    raise
            except NeedleError as error:
                if loop.time() > until:
                    raise Violation("liveness", f"{error!r}: {error}") from error
            await asyncio.sleep(LOOK_SECONDS)

    # --- rebalances ---------------------------------------------------------------------------------------
    async def _over(self, id_: int) -> bool:
        """Wait for the end of a rebalance; now and then it is paused or cancelled. Whether it did what was wished."""
        draw = self._rng.random()
        if draw < CANCEL_SHARE + PAUSE_SHARE:
            await asyncio.sleep(2.0 * self._rng.random())
            with suppress(InvalidArgument):  # it is over already
                if draw < CANCEL_SHARE:
                    await self._repeated(lambda: self.operator.cancel_rebalance(id_, timeout=ADMIN_SECONDS))
                else:
                    await self._repeated(lambda: self.operator.pause_rebalance(id_, timeout=ADMIN_SECONDS))
                    await asyncio.sleep(self._rng.random())
                    await self._repeated(lambda: self.operator.resume_rebalance(id_, timeout=ADMIN_SECONDS))
        return await self._state_at_end(id_) is JobState.DONE

    async def _state_at_end(self, id_: int) -> JobState | None:
        loop = asyncio.get_running_loop()
        until, why = loop.time() + END_SECONDS, ""
        while loop.time() < until:
            with suppress(NeedleError):
                job = (await self._now()).rebalance
                if job is None or job.id != id_:
                    return None
                if job.over:
                    return job.state
                why = job.why
            await asyncio.sleep(LOOK_SECONDS)
        raise Violation("a rebalance comes to its end", f"{id_} is not over after {END_SECONDS:g} s: {why}")

    async def _idle(self) -> None:
        """A start whose answer was lost may be under way."""
        job = (await self._repeated(self._now)).rebalance
        if job is not None and not job.over:
            await self._state_at_end(job.id)
