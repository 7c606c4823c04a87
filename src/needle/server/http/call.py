"""One request, decoded, and what its handler needs of the node."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from needle.base.access import Identity
from needle.base.dtypes import BYTE_MAX
from needle.base.errors import InvalidArgument, NeedleError, invalid
from needle.base.model import HitBatch, ReadMode
from needle.base.runtime import beside
from needle.client import answers, values
from needle.client.client import Client
from needle.client.router.router import Router
from needle.protocol.calls import DocumentBatch, batch_bytes
from needle.protocol.commands import Asked
from needle.server.history import History
from needle.server.http import bodies
from needle.server.http.feeds import Feeds
from needle.server.http.memory import Memory, Share
from needle.server.service.served import LARGE_ROWS
from needle.server.service.watched import Subject

T = TypeVar("T")
BESIDE_BYTES: Final = 64 * 1024
"""What takes time by the byte is done in a thread from this size on."""
MANY_ROWS: Final = 100
"""Lists of more vectors or documents are read in a thread, however few bytes they have."""
CONDITION_VALUES: Final = 500
"""A filter with more values is read in a thread: 10,000 take 40 ms."""
_TYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "uint8": np.dtype("u1"),
}


@dataclass(frozen=True, slots=True)
class Call:
    """client, router: what this request may do; the router remembers what this request's session has seen. path: the
    names in its path. packed: the answer is MessagePack. blocking: threads. caller: who asks; it may. share: what it
    may hold. large: what goes through all of its body is done in a thread. asked: if it has an idempotency key.
    history: what this node saw of the cluster in the last hour. last_event: where a reader of events was. feeds: those
    that are open here. go_on: raises once an answer that has no end is to have one."""

    client: Client
    router: Router
    path: Mapping[str, str]
    body: Any
    packed: bool
    session: bool
    blocking: Callable[..., Awaitable[Any]]
    caller: Identity
    share: Share
    large: bool
    asked: Asked | None
    history: History
    feeds: Feeds = field(default_factory=lambda: Feeds(Memory()))
    last_event: str = ""
    go_on: Callable[[], None] = lambda: None

    @property
    def collection(self) -> str:
        """The collection that the path names."""
        return self.path["collection"]

    async def beside(self, work: Callable[[], T]) -> T:
        """What `work` makes of the body."""
        if not self.large:
            return work()
        made: T = await self.blocking(work)
        return made

    async def filter(self) -> bytes:
        """The body's as canonical JSON; b"", which all documents match, if it has none."""
        return await self.beside(lambda: values.filter_bytes(self.body.filter))

    def reading(self) -> values.Reading:
        """How fresh this read is to be. A session says something to eventual reads only. Raises InvalidArgument."""
        eventual = self.body.mode is ReadMode.EVENTUAL
        return values.reading(self.body.mode, self.session and eventual, self.body.max_staleness)

    def metadata(self, data: bytes) -> Any:
        """Metadata as it is stored, for the answer: JSON is not read to be written again."""
        if self.packed:
            return answers.json_value(data)
        return msgspec.Raw(data or b"null")


def vector_of(value: bodies.Vector, kind: bodies.VectorType, field: str = "vector") -> npt.NDArray[np.float32]:
    """shape (dimensions,). Raises InvalidArgument."""
    numbers = _numbers(value, kind, field)
    if numbers is value:  # a list of floats, and nothing else: it was decoded so
        with np.errstate(over="ignore"):
            numbers = np.array(value, "<f4")
    return values.as_array(numbers, field, 1)


def vectors_of(value: bodies.Vectors, count: int, kind: bodies.VectorType) -> npt.NDArray[np.float32]:
    """shape (count, dimensions). Raises InvalidArgument."""
    numbers = _numbers(value, kind, "vectors")
    if isinstance(numbers, np.ndarray):
        if not count or len(numbers) % count:
            raise invalid("vectors", f"{len(numbers)} numbers", f"the same number for each of the {count} ids")
        numbers = numbers.reshape(count, -1)
    return values.as_array(numbers, "vectors", 2)


def _numbers(value: Any, kind: bodies.VectorType, field: str) -> Any:
    if not isinstance(value, bytes):
        return value
    dtype = _TYPES[kind]
    if len(value) % dtype.itemsize:
        raise invalid(field, f"{len(value)} bytes", f"whole {kind} numbers of {dtype.itemsize} bytes each")
    return np.frombuffer(value, dtype).astype(np.float32)


def _a_byte_each(data: bytes) -> bytes:
    """float32 bytes as one byte for each number. Raises InvalidArgument for numbers that none can say."""
    numbers = np.frombuffer(data, "<f4")
    if not ((numbers >= 0) & (numbers <= BYTE_MAX) & (numbers == np.rint(numbers))).all():
        raise invalid("vector_format", "uint8", f"numbers or float32: these are no whole numbers from 0 to {BYTE_MAX}")
    return numbers.astype(np.uint8).tobytes()


def rows_of(data: bytes, count: int, form: bodies.VectorFormat) -> Sequence[list[float] | bytes | None]:
    """The vectors of an answer: `count` rows of float32 bytes, or none."""
    if not data or not count:
        return [None] * count
    if form == "numbers":
        rows: list[list[float]] = np.frombuffer(data, "<f4").reshape(count, -1).tolist()
        return rows
    if form == "uint8":
        data = _a_byte_each(data)
    size = len(data) // count
    return [data[at * size : (at + 1) * size] for at in range(count)]


def takes_long(body: object) -> bool:
    """Whether a request's conditions have many values: to read a filter takes ten times as long, by the byte, as to
    read a vector."""
    return any(_more_than(CONDITION_VALUES, getattr(body, name, None)) for name in ("filter", "if_matches"))


def _more_than(most: int, value: object) -> bool:
    seen, waiting = 0, [value]
    while waiting and seen <= most:
        one = waiting.pop()
        if isinstance(one, dict | list):
            seen += len(one)
            waiting += one.values() if isinstance(one, dict) else one
    return seen > most


def one_of(ids: object, filter: object) -> None:
    """Either ids or a filter. Raises InvalidArgument."""
    if (ids is None) == (filter is None):
        raise InvalidArgument("give either ids or a filter; the filter {} matches all documents", field="ids")


def subject_of(call: Call, *, filtered: bool) -> Subject:
    """What is told of it. filtered: also by which filter. That has to be read for it once more, which takes 40 us, and
    5 ms for the largest."""
    body = call.body
    k, said = getattr(body, "k", 0), getattr(body, "filter", None)
    filter = b""
    if filtered and said and not call.large:
        with suppress(NeedleError):  # it is refused by its handler
            filter = values.filter_bytes(said)
    return Subject(call.path.get("collection", ""), filter, k if isinstance(k, int) else 0)


async def hold(call: Call, batches: Sequence[DocumentBatch | HitBatch], form: bodies.VectorFormat) -> int:
    """Count what becomes of batches until they are sent; their bytes. A number of 4 bytes is an object of 32 and then
    text. Raises HttpError."""
    vectors = sum([len(batch.vectors) for batch in batches])
    vectors += sum(len(one.vectors) for batch in batches if isinstance(batch, DocumentBatch) for one in batch.named)
    rows = sum([len(batch.ids) for batch in batches])
    size = await beside(call.blocking if rows >= LARGE_ROWS else None, lambda: sum(map(batch_bytes, batches)))
    call.share.take(3 * size + (14 * vectors if form == "numbers" else 0))
    return size
