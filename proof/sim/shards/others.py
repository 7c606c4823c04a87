"""Who works beside the workload's clients in a run, each by the shape that was drawn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import needle
from needle.backup.log_asking import AWAIT_SECONDS
from needle.routing.topology import Topology
from proof.checkers.history import History
from proof.sim.databases import ShardAware
from proof.sim.machine import stream
from proof.sim.shards.altering import Altering
from proof.sim.shards.backing import NAME as BACKING
from proof.sim.shards.backing import BackingUp
from proof.sim.shards.bringing_back import Judge
from proof.sim.shards.careful import Careful
from proof.sim.shards.churn import Churn
from proof.sim.shards.feeds import FeedReader
from proof.sim.shards.lasting import Lasting
from proof.sim.shards.loading import Loading
from proof.sim.shards.losing import NAME as LOSING
from proof.sim.shards.losing import Losing
from proof.sim.shards.named_feeds import NamedFeedReader
from proof.sim.shards.pinned import PinnedReader
from proof.sim.shards.profile import Shape
from proof.sim.shards.several import Several
from proof.sim.shards.sparse import SparseSearcher
from proof.sim.shards.truth import Truth
from proof.sim.shards.wording import WordSearcher
from proof.sim.stage import Stage

MIRRORED_SHARE: Final = 0.5
"""Of runs with documents of two vectors."""
RESTORE_SECONDS: Final = 120.0
"""Of which commands that are killed take some."""
Other = (
    Altering
    | BackingUp
    | Careful
    | Churn
    | FeedReader
    | Lasting
    | Loading
    | Losing
    | PinnedReader
    | Several
    | SparseSearcher
    | WordSearcher
)


class Others:
    """all: those that there are. work: what they do. feeds: who read change feeds, by name. words: who searches
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
        self.feeds: dict[str, FeedReader] = {}
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
            self._mirror("feeds", FeedReader(stage, partial(client, "feeds"), truth))
        if shape.several:
            several = Several(stage, client("several", truth.now))
            self._begin("several", several)
            if stream(stage.spec.seed, "who mirrors several vectors").random() < MIRRORED_SHARE:
                name = "several-feeds"
                self._mirror(name, NamedFeedReader(stage, partial(client, name), truth, several))
        if shape.loading:
            self._begin("loading", Loading(stage, client("loading", truth.now), truth))
        if shape.words:
            self.words = WordSearcher(stage, client, aware, truth)
            self._begin("words", self.words)
            self.work.append(stage.ask("words-reader", self.words.read()))
        if shape.sparse:
            self.sparse = SparseSearcher(stage, client, aware, truth)
            self._begin("sparse", self.sparse)
            self.work.append(stage.ask("sparse-reader", self.sparse.read()))
        if shape.careful:
            self._begin("careful", Careful(stage, client("careful", truth.now), truth))
        self._truth = truth
        self._losing: Losing | None = None
        if shape.losing:
            self._losing = Losing(stage, truth)
            self._begin(LOSING, self._losing)
        self.backing: BackingUp | None = None
        if shape.backing:
            self.backing = BackingUp(stage, client, truth)
            self._begin(BACKING, self.backing)

    def _begin(self, name: str, other: Other) -> None:
        self.all.append(other)
        self.work.append(self._stage.ask(name, other.run()))

    def _mirror(self, name: str, reader: FeedReader) -> None:
        self.feeds[name] = reader
        self._begin(name, reader)

    async def end(self, history: History, seconds: float) -> None:
        """Now that nothing changes any more: all of them hear what they have to, in so many seconds, and what backups
        and archives have is right. Raises Violation."""
        await self._stage.until("the last answers to feeds and words", seconds, self.told_everything)
        if self._losing is not None:
            self._losing.judge(history)
        if (backing := self.backing) is not None:
            asked = partial(self._archived, backing)
            # Who is gone for good may have had what no other one has.
            await self._stage.until("the archive to have all of it", AWAIT_SECONDS + seconds, asked)
            judge = Judge(self._stage, self._truth, history, backing.target)
            judge.judge(backing.made, backing.since)
            await self._stage.until("a backup to be restored", RESTORE_SECONDS, partial(self._restored, backing))
            judge.restored(backing.made)

    async def _archived(self, backing: BackingUp) -> bool:
        return await self._stage.ask(BACKING, backing.is_archived())

    async def _restored(self, backing: BackingUp) -> bool:
        return await self._stage.ask(BACKING, backing.is_restored())

    async def told_everything(self) -> bool:
        """Whether who reads a feed was told everything, and who searches by words or sparse vectors is answered, now
        that nothing changes any more."""
        if self.words is not None and not await self._stage.ask("words-reader", self.words.is_answered()):
            return False
        if self.sparse is not None and not await self._stage.ask("sparse-reader", self.sparse.is_answered()):
            return False
        for name, reader in self.feeds.items():
            if not await self._stage.ask(name, reader.has_everything()):
                return False
        return True
