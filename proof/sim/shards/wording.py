"""Clients that write texts and search by their words, also by words and a vector at once, while everything changes and
moves.

Invariant checked: what is found, and with which scores, is what the shards' logs say (checkers/word_searches.py): the
weights of words are those of all documents that all shards had when they were asked, none left out and none counted
twice, and every document has a score once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, Final

import numpy as np

from needle.base.errors import (
    ClusterTooOld,
    CollectionNotFound,
    DiskFull,
    NeedleError,
    OutcomeUnknown,
    StorageError,
)
from needle.base.model import ReadMode
from needle.base.text import TextField
from needle.client.client import Client
from needle.client.document_calls import Found
from needle.client.hybrid import RRF
from proof.checkers.scatter import ScatterSeen, check_by_maps
from proof.checkers.violation import Violation
from proof.checkers.word_searches import Round, WordsSeen, check_fused, check_words
from proof.sim.databases import CALL_TIMEOUT, PARTIAL_TIMEOUT, ShardAware
from proof.sim.machine import stream
from proof.sim.shards.profile import metadata_of
from proof.sim.shards.truth import Truth
from proof.sim.stage import Stage
from proof.sim.workload import Keep

NAME = "words"
DOCUMENTS = 40
VOCABULARY = (
    "leader", "leaders", "leading", "term", "entry", "commit", "max_retries", "retry", "getUserId", "E-1042", "Ünï",
)  # fmt: skip
FILTERS: Final[tuple[tuple[dict[str, Any] | None, Keep | None], ...]] = (
    (None, None),
    ({"n": {"$gte": 3}}, lambda metadata: metadata["n"] >= 3),
)
MODES = (ReadMode.STRONG, ReadMode.STRONG, ReadMode.LEASED, ReadMode.EVENTUAL)
REST_SECONDS = 0.7
HYBRID_SHARE, PARTIAL_SHARE, RENEW_SHARE = 0.3, 0.15, 0.05
POOL = 12


class WordSearcher:
    """See the module. broken: the violation it found. answered, hits: searches, and what all of them found."""

    def __init__(
        self,
        stage: Stage,
        writing: Callable[..., Client],
        reading: Callable[..., ShardAware],
        truth: Truth,
    ) -> None:
        """writing, reading: make clients, for a machine's name, what is known of the cluster, and a number."""
        self._stage = stage
        self._truth = truth
        self._reading = reading
        self._client = writing("words", truth.now)
        self._clients = 0
        self._reader = self._another()
        self._rng = stream(stage.spec.seed, "words")
        self._asking = stream(stage.spec.seed, "words that are asked for")
        language = self._rng.choice(["english", "none"])
        self._text = TextField(field="body", language=language)
        self.answered = self.hits = 0
        self.stopping = False
        self.broken: Violation | None = None

    async def run(self) -> None:
        """Write, until `stopping`."""
        made: dict[str, Any] = {
            "dimensions": self._stage.profile.dimensions,
            "metric": self._stage.profile.metric,
            "index": self._stage.profile.index,
            "text": {"field": self._text.field, "language": self._text.language},
        }
        while not self.stopping:
            await self._rest(self._rng)
            if await self._done(self._client.create_collection(NAME, if_absent=True, timeout=CALL_TIMEOUT, **made)):
                break
        while not self.stopping:
            await self._done(self._change())
            await self._rest(self._rng)

    async def read(self) -> None:
        """Search, until `stopping`."""
        while not self.stopping:
            await self._rest(self._asking)
            if self._truth.now.collection(NAME) is not None:
                if self._asking.random() < RENEW_SHARE:
                    self._reader = self._another()
                await self._done(self._search())
        self._stage.trace.tell(f"searches by words: {self.answered} answered, {self.hits} hits")

    async def is_answered(self) -> bool:
        """Once nothing changes any more: whether a search for every word is answered. Raises Violation."""
        if self._truth.now.collection(NAME) is None:
            return True  # some clusters have no version that knows texts for as long as the run lasts
        self._reader = self._another()
        answered = await self._done(self._by_words(" ".join(VOCABULARY), ReadMode.STRONG, 1000, FILTERS[0], False))
        if self.broken is not None:
            raise self.broken
        return answered

    def _another(self) -> ShardAware:
        self._clients += 1
        return self._reading("words-reader", self._truth.now, self._clients)

    async def _rest(self, rng: Random) -> None:
        await asyncio.sleep(rng.expovariate(1 / REST_SECONDS))

    async def _done(self, work: Awaitable[object]) -> bool:
        """Whether it was; what stands against it may pass."""
        try:
            await work
        except NeedleError as error:
            passing = StorageError | DiskFull | CollectionNotFound | ClusterTooOld | OutcomeUnknown
            if not error.retryable and not isinstance(error, passing):
                text = f"{NAME}: {error!r}: {error}"
                self.broken = self.broken or Violation("expected errors", text)
            self._stage.trace.note(f"words: {error.code}")
            return False
        except Violation as violation:
            self.broken = self.broken or violation
        return True

    # --- writes -------------------------------------------------------------------------------------------------------
    def _ids(self, most: int) -> list[str]:
        """Spread over the ranges of every strategy."""
        numbers = self._rng.sample(range(DOCUMENTS), self._rng.randint(1, most))
        return [f"k{number % 5}.w{number}" for number in numbers]

    def _body(self) -> Any:
        words = self._rng.choices(VOCABULARY, k=self._rng.choice([0, 1, 3, 8]))
        return self._rng.choice([" ".join(words), words, " ".join(words), 7])

    def _vector(self, rng: Random) -> Any:
        return np.array([rng.gauss(0, 1) for _ in range(self._stage.profile.dimensions)], np.float32)

    async def _change(self) -> None:
        how: dict[str, Any] = {"collection": NAME, "timeout": CALL_TIMEOUT}
        draw = self._rng.random()
        if draw < 0.55:
            ids = self._ids(8)
            documents = [
                (key, self._vector(self._rng), {"body": self._body(), "n": self._rng.randrange(6)} | metadata_of(key))
                for key in ids
            ]
            await self._client.insert_each(documents, **how)
        elif draw < 0.75:
            await self._client.delete(self._ids(4), **how)
        elif draw < 0.9:
            await self._client.patch(self._ids(1)[0], set={"body": self._body()}, **how)
        elif draw < 0.95:
            await self._client.update_vector(self._ids(1)[0], self._vector(self._rng), **how)
        else:
            await self._client.delete_where({"n": self._rng.randrange(6)}, **how)

    # --- searches -----------------------------------------------------------------------------------------------------
    async def _search(self) -> None:
        rng = self._asking
        keywords = " ".join(rng.choices([*VOCABULARY, "nowhere"], k=rng.choice([1, 2, 5])))
        mode, chosen = rng.choice(MODES), rng.choice(FILTERS)
        if rng.random() < HYBRID_SHARE:
            await self._by_both(keywords, mode, chosen)
        else:
            partial = rng.random() < PARTIAL_SHARE
            await self._by_words(keywords, mode, rng.choice([1, 3, 10, 1000]), chosen, partial)

    def _required(self, mode: ReadMode) -> dict[int, int]:
        return {} if mode is ReadMode.EVENTUAL else self._truth.last()

    async def _by_words(
        self, keywords: str, mode: ReadMode, k: int, chosen: tuple[Any, Keep | None], partial: bool
    ) -> None:
        required, reader = self._required(mode), self._reader
        client, how = reader.client, {"k": k, "filter": chosen[0], "mode": mode, "collection": NAME}
        if partial:
            await client.search_partial(keywords=keywords, timeout=PARTIAL_TIMEOUT, **how)
        else:
            await client.search(keywords=keywords, timeout=CALL_TIMEOUT, **how)
        self._judge_words(keywords, k, chosen[1], required, *reader.last_words(), partial=partial)

    async def _by_both(self, keywords: str, mode: ReadMode, chosen: tuple[Any, Keep | None]) -> None:
        rng, reader = self._asking, self._reader
        vector, required = self._vector(rng), self._required(mode)
        k, fusion = (
            rng.choice([1, 4, POOL]),
            rng.choice([RRF(weights=(1, 1)), RRF(k=1, weights=(1, 0.5)), RRF(weights=(0, 1))]),
        )
        how: dict[str, Any] = {"filter": chosen[0], "mode": mode, "collection": NAME, "timeout": CALL_TIMEOUT}
        hits = await reader.client.hybrid_search(vector, keywords, k, fusion=fusion, pool=POOL, exact=True, **how)
        near, (counted, words) = reader.last_found(), reader.last_words()
        self._judge_near(vector, chosen[1], mode, required, near)
        self._judge_words(keywords, POOL, chosen[1], required, counted, words)
        found = [(hit.id, hit.score, hit.ranks) for hit in hits]
        check_fused(self._label(), (near.batch.ids, words.batch.ids), fusion.k, fusion.weights, found, k)

    def _label(self) -> str:
        return f"search {self.answered} by words"

    def _judge_words(
        self,
        keywords: str,
        k: int,
        keep: Keep | None,
        required: dict[int, int],
        counted: Round,
        found: Found,
        *,
        partial: bool = False,
    ) -> None:
        self.answered += 1
        self.hits += len(found.batch.ids)
        seen = WordsSeen(
            label=self._label(),
            text=self._text,
            keywords=keywords,
            k=k,
            keep=keep,
            counted=counted,
            found=Round(found.applied, found.epoch),
            hits=[
                (name, version, -distance)
                for name, version, distance in zip(
                    found.batch.ids, found.batch.versions, found.batch.distances, strict=True
                )
            ],
            required=required,
            partial=partial,
            missing=sorted(found.missing),
        )
        check_words(self._truth.models(NAME), self._truth.maps(), self._truth.logs.owned, seen)

    def _judge_near(
        self, vector: Any, keep: Keep | None, mode: ReadMode, required: dict[int, int], found: Found
    ) -> None:
        hits = list(zip(found.batch.ids, found.batch.versions, found.batch.distances, strict=True))
        seen = ScatterSeen(
            mode=str(mode),
            vector=vector,
            k=POOL,
            keep=keep,
            exact=True,
            hits=hits,
            applied=found.applied,
            required=required,
            latest=self._truth.last(),
            epoch=found.epoch,
            label=f"the vector of {self._label()}",
        )
        truth = self._truth
        check_by_maps(truth.models(NAME), truth.maps(), truth.logs.owned, truth.key, seen, self._stage.profile.metric)
