"""Clients that write sparse vectors, declare them while they do, and search by them, while all changes and moves.

Invariant checked: what is found, and with which scores, is what the shards' logs say (checkers/sparse_searches.py): no
document that has one of the indices is passed over, none counts twice, and every score is the same bits on any replica.
And once they were dropped, nobody finds by them, whatever who asks has heard, until somebody declares them again.
"""

from __future__ import annotations

from random import Random
from typing import Any

from needle.base.errors import (
    InvalidArgument,
    NeedleError,
)
from needle.base.model import ReadMode
from needle.client.client import Client
from proof.checkers.sparse_searches import SparseSeen, check_dropped, check_sparse
from proof.checkers.word_searches import Round
from proof.sim.databases import CALL_TIMEOUT, PARTIAL_TIMEOUT
from proof.sim.shards.profile import metadata_of
from proof.sim.shards.searching import FILTERS, MODES, NUMBERS, PARTIAL_SHARE, Searcher, numbered
from proof.sim.workload import Keep

NAME, FIELD = "sparse", "splade"
INDICES = 30
DROP_SHARE, STAY_SHARE = 0.04, 0.6
"""How often they are dropped, and stay so for one more step."""


class SparseSearcher(Searcher):
    """See the module."""

    name, what = NAME, "sparse vectors"
    _declared = False
    _drops = _dropped = 0
    """How many were begun; and the number of the one since which they are gone, 0 for none: its caller was told so, and
    nobody has begun to declare them again."""

    def settings(self) -> dict[str, Any]:
        """See Searcher."""
        return {}

    def is_there(self) -> bool:
        """See Searcher."""
        found = self.truth.now.collection(NAME)
        return found is not None and bool(found.sparse)

    def may_pass(self, error: NeedleError) -> bool:
        """See Searcher; where nobody has declared them, or somebody drops them, a search is refused."""
        undeclared = isinstance(error, InvalidArgument) and error.details.get("field") == "sparse"
        return super().may_pass(error) or (undeclared and (self._drops > 0 or not self._declared))

    async def step(self) -> None:
        """See Searcher."""
        if self._declared:
            if self.rng.random() < DROP_SHARE:
                await self._drop(self.client)
        elif not self._dropped or self.rng.random() > STAY_SHARE:
            self._dropped = 0
            self._declared = await self.done(self.client.add_sparse(NAME, FIELD, timeout=CALL_TIMEOUT))
        await super().step()

    async def is_answered(self) -> bool:
        """See Searcher; then somebody else drops them, and who searches has not heard of it."""
        if not await super().is_answered():
            return False
        if self.is_there():
            await self._drop(self._another().client)
            if self._dropped != self._drops:
                return False
            await self.done(self.search_all())
        if self.broken is not None:
            raise self.broken
        return True

    async def _drop(self, client: Client) -> None:
        self._declared = False
        self._drops += 1
        if await self.done(client.drop_sparse(NAME, FIELD, timeout=CALL_TIMEOUT)):
            self._dropped = self._drops

    # --- writes -------------------------------------------------------------------------------------------------------
    def _sparse(self, rng: Random) -> dict[str, Any]:
        indices = rng.sample(range(INDICES), rng.choice([1, 2, 5, 12]))
        return {"indices": indices, "values": [rng.choice([rng.gauss(0, 1), 1.0]) for _ in indices]}

    def _metadata(self, key: str) -> dict[str, Any]:
        field = {FIELD: self._sparse(self.rng)} if self.rng.random() < 0.8 else {}
        return numbered(self.rng.randrange(NUMBERS)) | field | metadata_of(key)

    async def change(self) -> None:
        """See Searcher."""
        how: dict[str, Any] = {"collection": NAME, "timeout": CALL_TIMEOUT}
        draw = self.rng.random()
        if draw < 0.55:
            await self.client.insert_each(
                [(key, self.vector(self.rng), self._metadata(key)) for key in self.ids(8)], **how
            )
        elif draw < 0.75:
            await self.client.delete(self.ids(4), **how)
        elif draw < 0.9:
            await self.client.patch(self.ids(1)[0], set={FIELD: self._sparse(self.rng)}, **how)
        elif draw < 0.95:
            await self.client.update_vector(self.ids(1)[0], self.vector(self.rng), **how)
        else:
            await self.client.delete_where({"n": self.rng.randrange(NUMBERS)}, **how)

    # --- searches -----------------------------------------------------------------------------------------------------
    async def search(self) -> None:
        """See Searcher."""
        rng = self.asking
        mode, chosen, partial = rng.choice(MODES), rng.choice(FILTERS), rng.random() < PARTIAL_SHARE
        await self._asked(self._sparse(rng), mode, rng.choice([1, 3, 10, 1000]), chosen, partial=partial)

    async def search_all(self) -> None:
        """See Searcher."""
        query = {"indices": list(range(INDICES)), "values": [1.0] * INDICES}
        await self._asked(query, ReadMode.STRONG, 1000, FILTERS[0], partial=False)

    async def _asked(
        self, query: dict[str, Any], mode: ReadMode, k: int, chosen: tuple[Any, Keep | None], *, partial: bool
    ) -> None:
        required, reader = self.required(mode), self.reader
        dropped, known = self._dropped, len(self.truth.topologies) - 1
        how: dict[str, Any] = {"k": k, "filter": chosen[0], "mode": mode, "collection": NAME, "sparse": {FIELD: query}}
        if partial:
            await reader.client.search_partial(timeout=PARTIAL_TIMEOUT, **how)
        else:
            await reader.client.search(timeout=CALL_TIMEOUT, **how)
        found = reader.last_found()
        self.answered, self.hits, batch = self.answered + 1, self.hits + len(found.batch.ids), found.batch
        seen = SparseSeen(
            label=f"search {self.answered} by a sparse vector",
            field=FIELD,
            query=query,
            k=k,
            keep=chosen[1],
            found=Round(found.applied, found.epoch),
            hits=[(id_, v, -far) for id_, v, far in zip(batch.ids, batch.versions, batch.distances, strict=True)],
            required=required,
            partial=partial,
            missing=sorted(found.missing),
        )
        if dropped and dropped == self._dropped and mode is not ReadMode.EVENTUAL:
            check_dropped(self.truth.topologies[known:], NAME, seen)
        check_sparse(self.truth.models(NAME), self.truth.maps(), self.truth.logs.owned, seen)
