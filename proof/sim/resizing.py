"""The operator lets the cluster grow, shrink and even out, in a share of the runs: rebalances that are started, paused,
cancelled, one after the other, while everything else goes wrong.

Invariant: nothing is started while a disk has lost what it promised and nobody has noticed, for then not every set of
nodes may hold a group.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec

from needle.base.errors import InvalidArgument, Unavailable
from needle.client.client import Client
from needle.protocol.catalog_commands import DrainNode, SetReplication
from needle.routing.jobs import RebalanceConfig
from needle.routing.plans import Wish
from needle.routing.replication import catalog_size
from needle.routing.topology import NodeState
from proof.sim.machine import stream
from proof.sim.shards.profile import Shape
from proof.sim.shards.truth import Truth
from proof.sim.spec import BY_HAND_KINDS
from proof.sim.stage import Stage

ADMIN_SECONDS = 5.0
SHARDS_MORE = 2
"""Above what the run began with."""
CANCELLED_SHARE, PAUSED_SHARE = 0.25, 0.25
HEATS = (*[0.0] * 9, 0.7)
"""How much calls a second count. Who goes by them waits for a map that stands still, which is rare here."""
FOLLOWS_SHARE = 0.6
"""Of rebalances: the catalog follows the nodes that there are; in the others so many hold it as began it."""
CATALOG_SHARE = 0.3
"""Of the moves by hand are of the catalog."""
FACTOR_SHARE, REPLICAS_FEWER, REPLICAS_MORE = 0.2, 1, 2
"""Of what is asked for is the replication factor set: from so many fewer than the run began with to so many more."""
FACTOR_MEANWHILE_SHARE = 0.15
"""So often it is set while a rebalance is under way, which goes on by the new one."""
REDUNDANT = 3
"""With fewer replicas no disk may be lost."""
PAUSE_SECONDS = 3.0
IDLE_TRIES = 30


class Resizing:
    """See the module."""

    def __init__(self, stage: Stage, truth: Truth, shape: Shape, rng: random.Random) -> None:
        self._stage = stage
        self._fleet = stage.fleet
        self._truth = truth
        self._shards, self._replicas, self._batch = shape.shards, shape.replicas, shape.move_rows
        self._least, self._most = max(1, shape.replicas - REPLICAS_FEWER), shape.replicas + REPLICAS_MORE
        self._rng = rng
        self._heat = stream(stage.spec.seed, "calls that count")
        self._catalog = stream(stage.spec.seed, "who holds the catalog")
        self._chance = stream(stage.spec.seed, "the catalog by hand")
        self._factor = stream(stage.spec.seed, "how many replicas")
        self._asked: list[int] = []
        """Replication factors that were asked for, and of which it is not known whether they are set, or will be."""

    @property
    def under_way(self) -> bool:
        """Whether a rebalance is not over, as the catalog says."""
        job = self._truth.now.rebalance
        return job is not None and not job.over

    @property
    def is_lowered(self) -> bool:
        """Whether shards have, or may be given at any moment, too few replicas for one to lose its disk, in a run that
        did not begin so."""
        said = self._truth.now.replicas or self._replicas
        return min([said, *self._asked]) < min(self._replicas, REDUNDANT)

    def _is_hurt(self) -> bool:
        """Whether a disk has lost what it promised: then not every set of nodes may hold a group."""
        fleet = self._fleet
        return bool((fleet.forgetful | fleet.observer.rotten | fleet.spoilt) - fleet.retired)

    def _draining(self) -> list[str]:
        return [info.id for info in self._truth.now.nodes if info.state is NodeState.DRAINING]

    async def ask(self, client: Client, what: str, members: Sequence[str]) -> None:
        """One command of the operator. members: the nodes that may hold something."""
        rng, now = self._rng, self._truth.now
        if what in BY_HAND_KINDS:
            await self._until_idle()
        if self.under_way:
            await self._interfere(client, members)
            return
        if self._is_hurt():
            return
        if what in BY_HAND_KINDS:
            await self._by_hand(client, what, members)
            return
        if self._factor.random() < FACTOR_SHARE:
            await self._set_factor(client, self._number(members))
            return
        serving, wish = [info.shard for info in now.serving], Wish()
        if what == "add-shard" and len(serving) < self._shards + SHARDS_MORE:
            wish = Wish(shards=len(serving) + 1)
        elif what == "retire-shard" and len(serving) > 1:
            wish = Wish(retire=(rng.choice(serving),))
        elif what == "drain":
            for node in self._draining():
                await client.undrain_node(node, timeout=ADMIN_SECONDS)
            await client.change_catalog(DrainNode(rng.choice(list(members)), True), timeout=ADMIN_SECONDS)
            wish = Wish(balance=rng.random() < 0.5)
        await self._start(client, wish)

    def _number(self, members: Sequence[str]) -> int:
        return self._factor.randint(self._least, max(self._replicas, min(len(members), self._most)))

    async def _set_factor(self, client: Client, number: int) -> None:
        """What may be lost is judged by the fewest from the moment on in which it is asked for."""
        with self._asking(number):
            id_ = await client.set_replication_factor(number, self._config(), timeout=ADMIN_SECONDS)
        self._stage.trace.tell(f"each shard is to have {number} replicas: rebalance {id_ or 'not needed'}")

    async def _set_factor_meanwhile(self, client: Client, number: int) -> None:
        """As `needle node add --everywhere` does; what is under way goes on by it."""
        with self._asking(number):
            await client.change_catalog(SetReplication(number), timeout=ADMIN_SECONDS)
        self._stage.trace.tell(f"each shard is to have {number} replicas, while a rebalance is under way")

    @contextmanager
    def _asking(self, number: int) -> Iterator[None]:
        """It stays in doubt if nobody says what became of it."""
        self._asked.append(number)
        try:
            yield
        except (InvalidArgument, Unavailable):
            self._asked.remove(number)
            raise
        self._asked.remove(number)

    async def _until_idle(self) -> None:
        for _ in range(IDLE_TRIES):
            if not self.under_way:
                return
            await asyncio.sleep(0.5)

    async def _by_hand(self, client: Client, what: str, members: Sequence[str]) -> None:
        """A shard is cut in two, or one replica goes to another node; the source may be dead."""
        rng, serving = self._rng, self._truth.now.serving
        info, config = rng.choice(serving), self._config()
        if what == "split-shard" and len(serving) < self._shards + SHARDS_MORE:
            id_ = await client.split_shard(info.shard, config, timeout=ADMIN_SECONDS)
            self._stage.trace.tell(f"rebalance {id_} begins: shard {info.shard} is split")
        spare = sorted(set(members) - {*info.replicas, *self._draining()} - self._fleet.retired)
        if what == "move-by-hand" and self._chance.random() < CATALOG_SHARE:
            await self._catalog_by_hand(client, members, config)
            return
        if what == "move-by-hand" and spare:
            source, target = rng.choice(info.wanted), rng.choice(spare)
            id_ = await client.move_replica(info.shard, source, target, config, timeout=ADMIN_SECONDS)
            self._stage.trace.tell(f"rebalance {id_} begins: shard {info.shard} from {source} to {target}")

    async def _catalog_by_hand(self, client: Client, members: Sequence[str], config: RebalanceConfig) -> None:
        held = self._truth.now.catalog
        spare = sorted(set(members) - {*held, *self._draining()} - self._fleet.retired)
        if spare:
            source, target = self._chance.choice(held), self._chance.choice(spare)
            id_ = await client.move_replica("catalog", source, target, config, timeout=ADMIN_SECONDS)
            self._stage.trace.tell(f"rebalance {id_} begins: the catalog from {source} to {target}")

    def _config(self) -> RebalanceConfig:
        rng = self._rng
        return RebalanceConfig(
            max_concurrent_moves=rng.choice([1, 2, 4]), batch_size=self._batch, throttle_rate=rng.choice([0.0, 0.05])
        )

    async def _start(self, client: Client, wish: Wish) -> None:
        config = self._config()
        said = self._truth.now.replicas
        begun = catalog_size(self._stage.spec.nodes, said or self._replicas)
        nodes = None if self._catalog.random() < FOLLOWS_SHARE else begun
        heat = self._heat.choice(HEATS)
        replicas = None if said else self._replicas
        wish = msgspec.structs.replace(wish, catalog_nodes=nodes, replicas=replicas, heat=heat)
        id_ = await client.start_rebalance(config, wish=wish, timeout=ADMIN_SECONDS)
        self._stage.trace.tell(f"rebalance {id_} begins: {wish}")

    async def _interfere(self, client: Client, members: Sequence[str]) -> None:
        if self._factor.random() < FACTOR_MEANWHILE_SHARE and not self._is_hurt():
            await self._set_factor_meanwhile(client, self._number(members))
            return
        draw = self._rng.random()
        if draw < CANCELLED_SHARE:
            await client.cancel_rebalance(timeout=ADMIN_SECONDS)
        elif draw < CANCELLED_SHARE + PAUSED_SHARE:
            await client.pause_rebalance(timeout=ADMIN_SECONDS)
            await asyncio.sleep(PAUSE_SECONDS * self._rng.random())
            await client.resume_rebalance(timeout=ADMIN_SECONDS)

    async def end(self, client: Client) -> None:
        """Cancel what is under way, and use all nodes again."""
        if self.under_way:
            await client.cancel_rebalance(timeout=ADMIN_SECONDS)
        for node in self._draining():
            await client.undrain_node(node, timeout=ADMIN_SECONDS)

    def ended(self) -> bool:
        """Whether that is so."""
        return not self.under_way and not self._draining()
