"""Who works beside the workload's clients in a run, each by the shape that was drawn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import needle
from needle.routing.topology import Topology
from proof.sim.shards.altering import Altering
from proof.sim.shards.churn import Churn
from proof.sim.shards.feeds import FeedReader
from proof.sim.shards.lasting import Lasting
from proof.sim.shards.pinned import PinnedReader
from proof.sim.shards.profile import Shape
from proof.sim.shards.truth import Truth
from proof.sim.stage import Stage

Other = Altering | Churn | FeedReader | Lasting | PinnedReader


class Others:
    """all: those that there are. work: what they do. feeds: who reads a change feed."""

    def __init__(
        self,
        stage: Stage,
        shape: Shape,
        truth: Truth,
        churning: Callable[[Topology], needle.Client],
        client: Callable[..., needle.Client],
    ) -> None:
        """churning, client: make a client; the second for a machine's name, what it knows, and a number."""
        self._stage = stage
        self.all: list[Other] = []
        self.work: list[asyncio.Task[None]] = []
        self.feeds: FeedReader | None = None
        if shape.churn:
            self._begin("churn", Churn(stage, churning, truth.now))
        if shape.lasting:
            lasting = Lasting(stage, client, lambda: truth.now)
            self._begin("lasting", lasting)
            self.work.append(stage.ask("lasting-reader", lasting.read()))
        if shape.altering:
            self._begin("altering", Altering(stage, client("altering", truth.now)))
        if shape.pinned:
            self._begin("pinned", PinnedReader(stage, partial(client, "pinned"), truth))
        if shape.feeds:
            self.feeds = FeedReader(stage, partial(client, "feeds"), truth)
            self._begin("feeds", self.feeds)

    def _begin(self, name: str, other: Other) -> None:
        self.all.append(other)
        self.work.append(self._stage.ask(name, other.run()))

    async def told_everything(self) -> bool:
        """Whether who reads a feed was told everything, now that nothing changes any more."""
        return self.feeds is None or await self._stage.ask("feeds", self.feeds.has_everything())
