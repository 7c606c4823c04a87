"""Clients that count, scan, change by filters and conditions, and read by an alias, while everything moves.

Invariants checked, of documents that nobody else touches: one that is there all the time is on exactly one page of a
scan, whatever leaders, ranges and cursors do meanwhile; an acknowledged change by a filter has changed each of them
exactly once, one of unknown fate at most once, a refused one none; a write with a condition takes effect only if it
held; a call by an alias is about one collection, and after a switch was acknowledged about the new one; a document
whose instant was taken away in time stays, and one that has expired does not come back; an index of a field is declared
as the last acknowledged call says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from needle.base.errors import (
    ClusterTooOld,
    CollectionNotFound,
    ConditionFailed,
    DiskFull,
    InvalidArgument,
    NeedleError,
    OutcomeUnknown,
    StorageError,
    Unavailable,
)
from needle.base.model import Document, ReadMode, WriteResult
from needle.client.client import Client
from needle.routing.topology import Topology
from proof.checkers.violation import Violation
from proof.sim.databases import CALL_TIMEOUT
from proof.sim.machine import instant_at, stream
from proof.sim.promises import is_of_the_past, surely_without_effect
from proof.sim.shards.held import Held
from proof.sim.shards.profile import metadata_of
from proof.sim.shards.typed import query_of, types_of, vector_of, wrong_hit
from proof.sim.stage import Stage

NAMES, COUNTS = ("lasting-a", "lasting-b"), (14, 21)
ALIAS = "lasting"
REST_SECONDS = 0.5
TRIES = 20
STABLE = {"stable": True}
FRESH = (ReadMode.STRONG, ReadMode.LEASED)
"""Reads that see all that was acknowledged."""
DECLARING_SHARE = 0.1

T = TypeVar("T")
Connect = Callable[[str, Topology], Client]


class Lasting:
    """See the module. broken: the violation it found."""

    def __init__(self, stage: Stage, connect: Connect, now: Callable[[], Topology]) -> None:
        """connect: makes a client with a machine's name and what it knows of the cluster."""
        self._stage = stage
        self._connect = connect
        self._now = now
        self._client = connect("lasting", now())
        self._reader = connect("lasting-reader", now())
        self._rng = stream(stage.spec.seed, "lasting")
        self._declaring = stream(stage.spec.seed, "declared fields")
        self._reading = stream(stage.spec.seed, "modes of counts")
        self._number = 0
        self._held = [Held(name) for name in NAMES]
        self._types, self._width = types_of(stage.spec.seed, NAMES, stage.profile.dimensions)
        self._alias = ALIAS
        self._meanings: list[tuple[str, frozenset[str]]] = []
        """(alias, what it may mean), from each change on."""
        self.rounds = 0
        self.stopping = False
        self.broken: Violation | None = None

    async def run(self) -> None:
        """Until `stopping`."""
        for held, count in zip(self._held, COUNTS, strict=True):
            await self._fill(held, count)
        await self._switch()
        steps = (
            self._scan, self._scan, self._count, self._append, self._append, self._condition, self._passing, self._brief
        )  # fmt: skip
        while not self.stopping:
            if self._rng.random() < 0.2:
                await asyncio.gather(self._switch(), self._append_by_alias())
            else:
                await steps[self._rng.randrange(len(steps))](self._held[self._rng.randrange(2)])
            if self._declaring.random() < DECLARING_SHARE:
                await self._declare(self._held[self._declaring.randrange(2)])
            self.rounds += 1
            await asyncio.sleep(self._rng.expovariate(1 / REST_SECONDS))

    async def read(self) -> None:
        """By the alias, with a client that hears of switches only from those who refuse it. Until `stopping`."""
        while not self.stopping:
            await asyncio.sleep(self._rng.expovariate(1 / REST_SECONDS))
            if not self._meanings:
                continue
            first, alias = len(self._meanings) - 1, self._alias
            query = self._vector()
            how: Any = {"exact": True, "with_vectors": True, "timeout": CALL_TIMEOUT}
            hits = await self._asked(self._reader.search(query, 200, STABLE, collection=alias, **how))
            if hits is None:
                continue
            if wrong := wrong_hit(hits, query, self._types):
                self._break("types of vectors", wrong)
            allowed = {name for of, names in self._meanings[first:] if of == alias for name in names}
            found = {hit.id for hit in hits}
            if not any(held.sure <= found <= held.sure | held.possible for held in self._held if held.name in allowed):
                self._break("aliases", f"{alias} may mean {sorted(allowed)}; a search by it found {sorted(found)}")

    # --- what is there -----------------------------------------------------------------------------------------------
    async def _fill(self, held: Held, count: int) -> None:
        """As many documents as it says are surely there."""
        while not self.stopping:
            how: Any = {"dimensions": self._width, "dtype": self._types[held.name], "timeout": CALL_TIMEOUT}
            made = self._client.create_collection(held.name, if_absent=True, **how)
            if await self._asked(made) is not None:
                break
            await asyncio.sleep(0.3)
        while len(held.sure) < count and not self.stopping:
            keys = [f"{held.name}.{self._next()}" for _ in range(min(5, count - len(held.sure)))]
            await self._insert(held, keys, STABLE | {"log": []}, held.sure, held.possible)
            held.owners.update((key, {None}) for key in held.sure if key not in held.owners)

    async def _insert(
        self, held: Held, keys: list[str], metadata: dict[str, Any], sure: set[str], possible: set[str]
    ) -> None:
        """New documents; those of unknown fate are possible, and nothing else of them is known ever."""
        of = metadata | {"of": held.name}
        documents = [(key, vector_of(key, self._width, self._types), of | metadata_of(key)) for key in keys]
        fates = await self._asked(self._client.insert_each(documents, collection=held.name, timeout=CALL_TIMEOUT))
        for key in keys:
            fate = fates[key] if fates is not None else None
            (sure if isinstance(fate, WriteResult) else possible).add(key)
            if isinstance(fate, NeedleError):
                self._judge(fate)

    def _next(self) -> int:
        self._number += 1
        return self._number

    # --- reads -------------------------------------------------------------------------------------------------------
    async def _scan(self, held: Held) -> None:
        """Pages of any length, with rests between them; a page that fails is asked for again, by any client. Some are
        in the order of a field, up or down, which stays as it is in all documents that are sure to be there."""
        by, down = "of" if self._number % 2 else None, self._number % 4 == 3
        cursor: str | None = None
        seen: list[Document] = []
        tries, client = 0, self._client
        while not self.stopping:
            limit = self._rng.randint(1, 9)
            page = await self._asked(
                client.scan_page(
                    cursor=cursor, limit=limit, order_by=by, descending=down, collection=held.name, timeout=CALL_TIMEOUT
                )
            )
            if page is None:
                tries += 1
                if tries > TRIES:
                    return
                client = self._connect("lasting", self._now())
                continue
            seen += page.documents
            cursor = page.cursor
            if cursor is None:
                self._check_scan(held, seen, by)
                return
            if self._rng.random() < 0.3:
                await asyncio.sleep(self._rng.expovariate(1 / REST_SECONDS))

    def _check_scan(self, held: Held, seen: list[Document], by: str | None) -> None:
        ids = [(by is not None and by not in document.metadata, document.id) for document in seen]
        if sorted(set(ids)) != ids:
            self._break("scans", f"{held.name}: {ids} are not in order, or one is there twice")
        stable = {document.id for document in seen if document.metadata.get("stable")}
        if not held.sure <= stable <= held.sure | held.possible:
            lost = sorted(held.sure - stable)
            self._break("scans", f"{held.name}: lost {lost}, invented {sorted(stable - held.sure - held.possible)}")
        for document in seen:
            if document.id in held.sure:
                self._check_document(held, document)

    def _check_document(self, held: Held, document: Document) -> None:
        log = document.metadata["log"]
        if [number for number in log if number not in held.open] != held.done or len(set(log)) != len(log):
            self._break(
                "changes by a filter",
                f"{document.id} has {log}; surely done are {held.done}, perhaps {sorted(held.open)}",
            )
        owner, possible = document.metadata.get("owner"), held.owners[document.id]
        if owner not in possible:
            self._break("conditions", f"{document.id} has owner {owner}; possible are {sorted(map(str, possible))}")

    async def _count(self, held: Held) -> None:
        how: Any = {"collection": held.name, "timeout": CALL_TIMEOUT, "mode": self._reading.choice(FRESH)}
        found = await self._asked(self._client.count(STABLE, **how))
        if found is not None and not len(held.sure) <= found <= len(held.sure | held.possible):
            self._break("counts", f"{held.name}: {found} of {len(held.sure)}, or {len(held.possible)} more")
        told = await self._asked(self._client.facet("of", STABLE, **how))
        if told is not None:
            counts = [(one.value, one.count) for one in told.values]
            fits = len(held.sure) <= told.documents <= len(held.sure | held.possible)
            if counts != [(held.name, told.documents)] or told.without or not fits:
                self._break("counts", f"{held.name}: {counts} of {told.documents}, {told.without} without, by value")
        await self._get(held)

    async def _get(self, held: Held) -> None:
        """Several by their ids, of which all but one are there: each once, in that order, as it is."""
        sure = sorted(held.sure)
        ids = self._reading.sample(sure, min(len(sure), self._reading.randint(2, 9)))
        ids.insert(self._reading.randint(0, len(ids)), f"{held.name}.none")
        how: Any = {"collection": held.name, "timeout": CALL_TIMEOUT, "mode": self._reading.choice(FRESH)}
        found = await self._asked(self._client.get_many(ids, **how))
        if found is None:
            return
        wanted = [name for name in ids if name in held.sure]
        if [document.id for document in found] != wanted:
            self._break("gets", f"{held.name}: asked for {ids}, got {[document.id for document in found]}")
        for document in found:
            if document.id in held.sure:
                self._check_document(held, document)

    async def _declare(self, held: Held) -> None:
        """Have an index of a field kept, or not any more; nobody else does. What the catalog says is looked at then."""
        path = self._declaring.choice(sorted(held.declared))
        possible, wanted = held.declared[path], self._declaring.random() < 0.7
        call = self._client.create_field_index if wanted else self._client.drop_field_index
        try:
            await call(held.name, path, timeout=CALL_TIMEOUT)
            held.declared[path] = {wanted}
        except InvalidArgument as error:
            if wanted or False not in possible:
                self._break(
                    "declared fields", f"{held.name}: {path} may be {possible}, and {wanted} is refused: {error}"
                )
            held.declared[path] = {False}
        except NeedleError as error:
            self._judge(error)
            if not surely_without_effect(error):
                held.declared[path] = possible | {wanted}
        found = await self._asked(self._client.describe_collection(held.name, timeout=CALL_TIMEOUT))
        if found is not None:
            wrong = [path for path, may in held.declared.items() if (path in found.fields) not in may]
            if wrong:
                self._break("declared fields", f"{held.name}: {wrong} of {held.declared}, described {found.fields}")

    # --- changes -----------------------------------------------------------------------------------------------------
    async def _append(self, held: Held) -> None:
        """A change by a filter, of all that is there all the time."""
        number = self._next()
        held.open.add(number)  # until it is known
        try:
            done = await self._client.patch_where(
                STABLE, append={"log": [number]}, collection=held.name, timeout=CALL_TIMEOUT
            )
        except NeedleError as error:
            self._judge(error)
            if surely_without_effect(error):
                held.open.discard(number)
            return
        held.open.discard(number)
        held.done.append(number)
        if not len(held.sure) <= done.count <= len(held.sure | held.possible):
            self._break("changes by a filter", f"{held.name}: {done.count} of {len(held.sure)} were changed")

    async def _append_by_alias(self) -> None:
        """The same by an alias, while that changes: in one of its collections, in all of it, or it says that it may not
        be so. Nothing else is changed meanwhile."""
        number, alias = self._next(), self._alias
        for held in self._held:
            held.open.add(number)
        try:
            done = await self._client.patch_where(
                STABLE, append={"log": [number]}, collection=alias, timeout=CALL_TIMEOUT
            )
        except NeedleError as error:
            self._judge(error)
            if surely_without_effect(error):
                for held in self._held:
                    held.open.discard(number)
            return
        changed = {"log": {"$in": [number]}}
        counts = [
            await self._asked(self._client.count(changed, collection=held.name, timeout=CALL_TIMEOUT))
            for held in self._held
        ]
        if None in counts:
            return
        touched = [held for held, count in zip(self._held, counts, strict=True) if count]
        if len(touched) != 1 or done.count not in counts or done.count < len(touched[0].sure):
            self._break("changes by a filter", f"{alias}: {done.count} were changed; {number} is in {counts}")
        for held in self._held:
            held.open.discard(number)
        for held in touched:
            held.done.append(number)

    async def _condition(self, held: Held) -> None:
        """A write with a condition, of one of them."""
        key = sorted(held.sure)[self._rng.randrange(len(held.sure))]
        possible, new = held.owners[key], f"o{self._next()}"
        wanted = sorted(possible, key=str)[self._rng.randrange(len(possible))]
        if self._rng.random() < 0.2:
            wanted = f"o{self._rng.randrange(self._number)}"
        possible.add(new)
        try:
            await self._client.patch(
                key, set={"owner": new}, if_matches={"owner": wanted}, collection=held.name, timeout=CALL_TIMEOUT
            )
        except ConditionFailed:
            possible.discard(new)
            possible.discard(wanted)
            if not possible:
                self._break("conditions", f"{key}: refused, though its owner was {wanted}")
        except NeedleError as error:
            self._judge(error)
            if surely_without_effect(error):
                possible.discard(new)
        else:
            if wanted not in possible:
                self._break("conditions", f"{key}: its owner was taken for {wanted}, possible were {possible}")
            held.owners[key] = {new}

    async def _passing(self, held: Held) -> None:
        """Documents that come, and go by a filter."""
        number = self._next()
        keys = [f"{held.name}.t{number}.{n}" for n in range(self._rng.randint(1, 6))]
        sure, possible = set[str](), set[str]()
        await self._insert(held, keys, {"passing": number}, sure, possible)
        wanted = {"passing": number}
        gone = await self._asked(self._client.delete_where(wanted, collection=held.name, timeout=CALL_TIMEOUT))
        if gone is None:
            return
        if not len(sure) <= gone.count <= len(sure | possible):
            self._break("changes by a filter", f"{held.name}: {gone.count} of {len(sure)} were deleted")
        left = await self._asked(self._client.count(wanted, collection=held.name, timeout=CALL_TIMEOUT))
        if left is not None and left > len(possible):
            self._break("changes by a filter", f"{held.name}: {left} are left of what was deleted")

    async def _brief(self, held: Held) -> None:
        """A document that expires soon, unless that is taken back before: which of both it was, the patch says."""
        number = self._next()
        key, wanted = f"{held.name}.x{number}", {"brief": number}
        at = instant_at(self._stage.loop.time() + self._rng.uniform(0.3, 4))
        metadata, vector = wanted | metadata_of(key), vector_of(key, self._width, self._types)
        try:
            await self._client.insert(key, vector, metadata, expires_at=at, collection=held.name, timeout=CALL_TIMEOUT)
        except NeedleError as error:
            if not is_of_the_past(error):  # a node's clock may be ahead by a day
                self._judge(error)
            return
        await asyncio.sleep(self._rng.uniform(0, 5))
        saved = await self._asked(
            self._client.patch(key, expires_at="never", collection=held.name, timeout=CALL_TIMEOUT)
        )
        for _ in range(3 if saved is not None else 0):
            await asyncio.sleep(self._rng.expovariate(1 / REST_SECONDS))
            found = await self._asked(self._client.count(wanted, collection=held.name, timeout=CALL_TIMEOUT))
            if saved is not None and found not in (None, saved.count):
                self._break("expiry", f"{key} is there {found} times; when its instant was taken away, {saved.count}")
        await self._asked(self._client.delete(key, collection=held.name, timeout=CALL_TIMEOUT))

    async def _switch(self) -> None:
        """Let the alias lead to the other collection. One of unknown fate is done with: another one is used then."""
        before = self._meanings[-1][1] if self._meanings and self._meanings[-1][0] == self._alias else frozenset()
        name = NAMES[1] if NAMES[0] in before else NAMES[0]
        self._meanings.append((self._alias, before | {name}))
        try:
            await self._client.set_alias(self._alias, name, timeout=CALL_TIMEOUT)
        except NeedleError as error:
            self._judge(error)
            self._alias = f"{ALIAS}-{self._next()}"
            self._meanings.append((self._alias, frozenset()))
        else:
            self._meanings.append((self._alias, frozenset({name})))

    # --- what went wrong ---------------------------------------------------------------------------------------------
    async def _asked(self, work: Awaitable[T]) -> T | None:
        """None if it failed for a reason that may pass."""
        try:
            return await work
        except NeedleError as error:
            self._judge(error)
            return None

    def _judge(self, error: NeedleError) -> None:
        passing = isinstance(
            error, Unavailable | OutcomeUnknown | StorageError | DiskFull | CollectionNotFound | ClusterTooOld
        )
        if not passing or isinstance(error, InvalidArgument):
            self._break("expected errors", f"{ALIAS}: {error!r}: {error}")
        self._stage.trace.note(f"lasting: {error.code}")

    def _break(self, checker: str, why: str) -> None:
        self.broken = self.broken or Violation(checker, why)

    def _vector(self) -> Any:
        return query_of([self._rng.gauss(0, 1) for _ in range(self._width)], self._types)
