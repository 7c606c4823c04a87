"""Who works beside the workload's clients in a run, each by the shape that was drawn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import needle
from needle.routing.topology import Topology
from proof.sim.databases import ShardAware
from proof.sim.shards.altering import Altering
from proof.sim.shards.churn import Churn
from proof.sim.shards.feeds import FeedReader
from proof.sim.shards.lasting import Lasting
from proof.sim.shards.pinned import PinnedReader
from proof.sim.shards.profile import Shape
from proof.sim.shards.several import Several
from proof.sim.shards.sparse import SparseSearcher
from proof.sim.shards.truth import Truth
from proof.sim.shards.wording import WordSearcher
from proof.sim.stage import Stage

Other = Altering | Churn | FeedReader | Lasting | PinnedReader | Several | SparseSearcher | WordSearcher


class Others:
    """all: those that there are. work: what they do. feeds: who reads a change feed. words: who searches
    by words."""

    def __init__(
        self,
        stage: Stage,
        shape: Shape,
        truth: Truth,
        churning: Callable[[Topology], needle.Client],
        aware: Callable[..., ShardAware],
    ) -> None:
        """churning, aware: make a client; the second for a machine's name, what it knows, and a number."""

        def client(*args: Any) -> needle.Client:
            return aware(*args).client

        self._stage = stage
        self.all: list[Other] = []
        self.work: list[asyncio.Task[None]] = []
        self.feeds: FeedReader | None = None
        self.words: WordSearcher | None = None
        self.sparse: SparseSearcher | None = None
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
        if shape.several:
            self._begin("several", Several(stage, client("several", truth.now)))
        if shape.words:
            self.words = WordSearcher(stage, client, aware, truth)
            self._begin("words", self.words)
            self.work.append(stage.ask("words-reader", self.words.read()))
        if shape.sparse:
            self.sparse = SparseSearcher(stage, client, aware, truth)
            self._begin("sparse", self.sparse)
            self.work.append(stage.ask("sparse-reader", self.sparse.read()))

    def _begin(self, name: str, other: Other) -> None:
        self.all.append(other)
        self.work.append(self._stage.ask(name, other.run()))

    async def told_everything(self) -> bool:
        """Whether who reads a feed was told everything, and who searches by words or sparse vectors is answered, now
        that nothing changes any more."""
        if self.words is not None and not await self._stage.ask("words-reader", self.words.is_answered()):
            return False
        if self.sparse is not None and not await self._stage.ask("sparse-reader", self.sparse.is_answered()):
            return False
        return self.feeds is None or await self._stage.ask("feeds", self.feeds.has_everything())
