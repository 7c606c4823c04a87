"""A client of the HTTP API in the shape that the workload uses: any node, another one when it does not answer.

Half of its writes have an idempotency key, and are sent again, to another node, while their fate is not known. So what
is executed twice is seen by the checkers of the history.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from needle.base.errors import AlreadyExists, ConnectionLost, Internal, NeedleError, Unavailable, VersionMismatch
from needle.base.model import HitBatch, ReadMode, WriteResult
from needle.routing.shard_map import KeyRange
from needle.server.http import session
from proof.chaos.http_door import Answer, Connections, Documented
from proof.checkers.shaping import Shaping
from proof.sim.promises import surely_without_effect
from proof.sim.workload import Answer as Seen
from proof.sim.workload import Documents

COLLECTION = "/v1/collections/default"
CALL_SECONDS = 5.0
PARTIAL_SECONDS = 0.7
ATTEMPTS = 6
KEYED_SHARE = 0.5
PAUSE_SECONDS = 0.1


class HttpDoor:
    """Requests to whichever node is chosen. addresses: of the nodes' doors now, by name."""

    def __init__(self, addresses: Callable[[], Mapping[str, str]], documented: Documented, rng: random.Random) -> None:
        self._addresses = addresses
        self.documented = documented
        self._rng = rng
        self._connections = Connections()
        self.node = ""
        self.choose()
        self.sent_again = 0
        """Requests with a key."""

    def choose(self) -> None:
        """Another node, perhaps."""
        self.node = self._rng.choice(sorted(self._addresses()))

    async def ask(
        self, method: str, path: str, body: Any, seconds: float, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """The answer of 200. Raises what the node tells; ConnectionLost if no answer came, Unavailable if nothing was
        sent, Violation for what is not documented."""
        data = None if body is None else msgspec.json.encode(body)
        address = self._addresses()[self.node]
        try:
            status, told, answer = await self._connections.ask(
                address, method, path, data, dict(headers or {}), seconds
            )
        except (ConnectionLost, Unavailable):
            self.choose()
            raise
        if status == 200:
            return Answer(told, answer)
        error = self.documented.error(f"{method} {path}", status, told, answer)
        if error.retryable:
            self.choose()
        raise error

    async def once(
        self, method: str, path: str, body: Any, seconds: float, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """As `ask` with an idempotency key, again while it is not known whether the request was executed."""
        key = {"idempotency-key": f"{self._rng.getrandbits(128):032x}"}
        unknown: NeedleError | None = None
        for attempt in range(ATTEMPTS):
            try:
                return await self.ask(method, path, body, seconds, {**(headers or {}), **key})
            except (AlreadyExists, VersionMismatch):
                raise
            except NeedleError as error:
                if surely_without_effect(error):
                    if unknown is None:
                        raise
                else:
                    unknown = error
                    self.choose()
                    self.sent_again += attempt == 0
            await asyncio.sleep(PAUSE_SECONDS)
        raise unknown or Internal("no attempt was made")

    def close(self) -> None:
        """End all connections."""
        self._connections.close()


class HttpDatabase:
    """See the module. owner: the shard of a document; ranges: what a shard owns; founding: of the cluster, which
    session tokens name."""

    by_filter = True
    keyed = False
    """Not by the simulation's way: this has keys of its own."""
    timeout = CALL_SECONDS

    def __init__(
        self,
        door: HttpDoor,
        rng: random.Random,
        owner: Callable[[str], int],
        ranges: Callable[[int], list[KeyRange]],
        founding: int,
    ) -> None:
        self._door = door
        self._rng = rng
        self._owner = owner
        self._ranges = ranges
        self._founding = founding
        self._token = ""
        self._asked = ""

    @property
    def via(self) -> str:
        """The node that routes now."""
        return self._door.node

    def _note(self, answer: Answer) -> Any:
        self._token = answer.headers.get("needle-session", self._token)
        return answer.json

    async def _read(self, path: str, body: Any) -> Any:
        told = {"needle-session": self._token}
        return self._note(await self._door.ask("POST", COLLECTION + path, body, self.timeout, told))

    async def _write(self, method: str, path: str, body: Any) -> Any:
        ask = self._door.once if self._rng.random() < KEYED_SHARE else self._door.ask
        return self._note(await ask(method, COLLECTION + path, body, self.timeout, {"needle-session": self._token}))

    async def _written(self, method: str, path: str, body: Any) -> WriteResult:
        told = await self._write(method, path, body)
        return WriteResult(version=told["version"], index=told["index"], existed=told["existed"], count=told["count"])

    async def _put(self, key: str, vector: Any, metadata: Any, **more: Any) -> WriteResult:
        body = {"vector": vector.tolist(), "metadata": metadata, "timeout": self.timeout, **more}
        return await self._written("PUT", f"/documents/{quote(key)}", body)

    async def put(self, key: str, vector: Any, metadata: Any) -> WriteResult:
        return await self._put(key, vector, metadata)

    async def put_expiring(self, key: str, vector: Any, metadata: Any, expires_at: str) -> WriteResult:
        return await self._put(key, vector, metadata, expires_at=expires_at)

    async def insert_if_absent(self, key: str, vector: Any, metadata: Any) -> WriteResult:
        return await self._put(key, vector, metadata, if_version=0)

    async def compare_and_set(self, key: str, expected: int, vector: Any, metadata: Any) -> WriteResult:
        return await self._put(key, vector, metadata, if_version=expected)

    async def insert_many(self, documents: Documents) -> dict[str, WriteResult | NeedleError]:
        raise NotImplementedError  # the workload of chaos runs writes none, nor what follows here

    async def delete(self, key: str) -> WriteResult:
        return await self._written("DELETE", f"/documents/{quote(key)}?timeout={self.timeout}", None)

    async def delete_many(self, keys: list[str]) -> WriteResult:
        raise NotImplementedError

    async def delete_where(self, filter: dict[str, Any]) -> WriteResult:
        raise NotImplementedError

    async def patch(self, key: str, added: dict[str, Any], expected: int) -> WriteResult:
        raise NotImplementedError

    async def update(self, key: str, vector: Any) -> WriteResult:
        raise NotImplementedError

    def vector(self) -> Any:
        """No update gives a document another vector."""
        return None

    async def get(self, key: str, mode: ReadMode) -> tuple[int, Any, int]:
        self._asked = key
        body = {"ids": [key], "mode": str(mode), "timeout": self.timeout}
        found = (await self._read("/get", body))["documents"]
        applied = self.tokens({self._owner(key): 0})[self._owner(key)]
        return (found[0]["version"], found[0]["metadata"], applied) if found else (0, None, applied)

    async def find(
        self, vector: Any, k: int, filter: Any, mode: ReadMode, exact: bool, partial: bool, shaping: Shaping
    ) -> Seen:
        body = {
            "vector": vector.tolist(),
            **shaping.options(k),
            "filter": filter,
            "mode": str(mode),
            "exact": exact,
            "partial": partial,
            "timeout": PARTIAL_SECONDS if partial else self.timeout,
        }
        told = await self._read("/search", body)
        hits = told["hits"]
        applied = {int(shard): index for shard, index in told["applied_index"].items()}
        batch = HitBatch(
            [hit["id"] for hit in hits],
            [hit["distance"] for hit in hits],
            [hit["version"] for hit in hits],
            [msgspec.json.encode(hit["metadata"]) for hit in hits],
            b"",
            max(applied.values(), default=0),
            groups=[hit["group"] for hit in hits] if shaping.of_each else [],
        )
        missing = tuple(sorted(map(int, told.get("missing", {}))))
        return Seen(batch, applied, missing, [one for shard in missing for one in self._ranges(shard)], told["epoch"])

    async def find_many(
        self, vectors: Any, k: int, filter: Any, mode: ReadMode, exact: bool, shaping: Shaping
    ) -> list[Seen]:
        raise NotImplementedError

    def tokens(self, latest: dict[int, int]) -> dict[int, int]:
        """By shard, what the session has seen, as its token says."""
        seen = session.decode(self._token, self._founding)
        return {shard: seen.get(shard, 0) for shard in latest}

    def answered_by(self) -> int:
        """The owner: no range moves during a run."""
        return self._owner(self._asked)
