"""Clients that write texts and search by their words, also by words and a vector at once, while everything changes and
moves.

Invariant checked: what is found, and with which scores, is what the shards' logs say (checkers/word_searches.py): the
weights of words are those of all documents that all shards had when they were asked, none left out and none counted
twice, and every document has a score once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from needle.base.model import ReadMode
from needle.base.text import TextField
from needle.client.client import Client
from needle.client.document_calls import Found
from needle.client.hybrid import RRF
from proof.checkers.scatter import ScatterSeen, check_by_maps
from proof.checkers.word_searches import Round, WordsSeen, check_fused, check_words
from proof.sim.databases import CALL_TIMEOUT, PARTIAL_TIMEOUT, ShardAware
from proof.sim.shards.profile import metadata_of
from proof.sim.shards.searching import FILTERS, MODES, NUMBERS, PARTIAL_SHARE, Searcher, numbered
from proof.sim.shards.truth import Truth
from proof.sim.stage import Stage
from proof.sim.workload import Keep

NAME = "words"
VOCABULARY = (
    "leader", "leaders", "leading", "term", "entry", "commit", "max_retries", "retry", "getUserId", "E-1042", "Ünï",
)  # fmt: skip
HYBRID_SHARE = 0.3
POOL = 12


class WordSearcher(Searcher):
    """See the module."""

    name, what = NAME, "words"

    def __init__(
        self, stage: Stage, writing: Callable[..., Client], reading: Callable[..., ShardAware], truth: Truth
    ) -> None:
        """As Searcher."""
        super().__init__(stage, writing, reading, truth)
        self._text = TextField(field="body", language=self.rng.choice(["english", "none"]))

    def settings(self) -> dict[str, Any]:
        """See Searcher."""
        return {"text": {"field": self._text.field, "language": self._text.language}}

    # --- writes -------------------------------------------------------------------------------------------------------
    def _body(self) -> Any:
        words = self.rng.choices(VOCABULARY, k=self.rng.choice([0, 1, 3, 8]))
        return self.rng.choice([" ".join(words), words, " ".join(words), 7])

    async def change(self) -> None:
        """See Searcher."""
        how: dict[str, Any] = {"collection": NAME, "timeout": CALL_TIMEOUT}
        draw = self.rng.random()
        if draw < 0.55:
            ids = self.ids(8)
            documents = [
                (
                    key,
                    self.vector(self.rng),
                    {"body": self._body()} | numbered(self.rng.randrange(NUMBERS)) | metadata_of(key),
                )
                for key in ids
            ]
            await self.client.insert_each(documents, **how)
        elif draw < 0.75:
            await self.client.delete(self.ids(4), **how)
        elif draw < 0.9:
            await self.client.patch(self.ids(1)[0], set={"body": self._body()}, **how)
        elif draw < 0.95:
            await self.client.update_vector(self.ids(1)[0], self.vector(self.rng), **how)
        else:
            await self.client.delete_where({"n": self.rng.randrange(NUMBERS)}, **how)

    # --- searches -----------------------------------------------------------------------------------------------------
    async def search(self) -> None:
        """See Searcher."""
        rng = self.asking
        keywords = " ".join(rng.choices([*VOCABULARY, "nowhere"], k=rng.choice([1, 2, 5])))
        mode, chosen = rng.choice(MODES), rng.choice(FILTERS)
        if rng.random() < HYBRID_SHARE:
            await self._by_both(keywords, mode, chosen)
        else:
            partial = rng.random() < PARTIAL_SHARE
            await self._by_words(keywords, mode, rng.choice([1, 3, 10, 1000]), chosen, partial)

    async def search_all(self) -> None:
        """See Searcher."""
        await self._by_words(" ".join(VOCABULARY), ReadMode.STRONG, 1000, FILTERS[0], False)

    async def _by_words(
        self, keywords: str, mode: ReadMode, k: int, chosen: tuple[Any, Keep | None], partial: bool
    ) -> None:
        required, reader = self.required(mode), self.reader
        client, how = reader.client, {"k": k, "filter": chosen[0], "mode": mode, "collection": NAME}
        if partial:
            await client.search_partial(keywords=keywords, timeout=PARTIAL_TIMEOUT, **how)
        else:
            await client.search(keywords=keywords, timeout=CALL_TIMEOUT, **how)
        self._judge_words(keywords, k, chosen[1], required, *reader.last_words(), partial=partial)

    async def _by_both(self, keywords: str, mode: ReadMode, chosen: tuple[Any, Keep | None]) -> None:
        rng, reader = self.asking, self.reader
        vector, required = self.vector(rng), self.required(mode)
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
        check_words(self.truth.models(NAME), self.truth.maps(), self.truth.logs.owned, seen)

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
            latest=self.truth.last(),
            epoch=found.epoch,
            label=f"the vector of {self._label()}",
        )
        truth = self.truth
        check_by_maps(truth.models(NAME), truth.maps(), truth.logs.owned, truth.key, seen, self.stage.profile.metric)
