"""The replicated memory of requests with idempotency keys: which of their writes were executed, and what came of it.

A request is cut into writes by whoever routes it, perhaps in another way when it is sent again: shards may have come
and ranges moved meanwhile. So what is remembered is which documents each write was about, and what a move takes to
another shard is remembered there, too. Deterministic: everything depends on log entries only, so all replicas agree.

Invariants: what is remembered is not executed again, in whole or in part. Records are forgotten in the order in which
they came, when they are older than SECONDS_MAX by the clocks of leaders, or more than RECORDS_MAX, or take more than
BYTES_MAX. Who looks while an entry is applied sees a key's records as they were before, or after (`find`).

Stored as the answers of session 0, which nobody has. It must not know SQLite.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Final

import msgspec

from needle.base.errors import CollectionNotFound, KeyReused, NeedleError, OutcomeForgotten
from needle.base.model import WriteResult
from needle.protocol.commands import Asked, ChangeWhere, Command, Insert, Once, Spread
from needle.shard.apply.stored_answers import pack, unpack
from needle.shard.documents.records import AnswerRow

SESSION: Final = 0
SECONDS_MAX: Final = 24 * 3600
RECORDS_MAX: Final = 50_000
BYTES_MAX: Final = 16 << 20
RECORD_BYTES: Final = 400
"""What a record is counted with, in addition to its own bytes: about what Python and SQLite need for it."""
HASH_BYTES: Final = 16
UNIT_BYTES: Final = 8
BROUGHT_BITS: Final = 20
"""A record's number is its entry's index, with so many bits behind it for the records that a move brings."""


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One write. units: 8 bytes for each document that it was about, or for the part of a change by a filter. scope:
    the ranges of keys, of a write that is about what they hold. at: microseconds since 1970. answer: as stored."""

    asked: Asked
    scope: bytes
    units: bytes
    at: int
    answer: bytes

    @property
    def size(self) -> int:
        """What it is counted with."""
        return len(self.units) + len(self.answer) + RECORD_BYTES

    def same_write(self, other: Record) -> bool:
        """Whether both are about the same part of one request."""
        return (self.asked, self.scope, self.units) == (other.asked, other.scope, other.units)


_decoder = msgspec.msgpack.Decoder(Record)
_encoder = msgspec.msgpack.Encoder()


def _hash(data: bytes) -> bytes:
    return blake2b(data, digest_size=UNIT_BYTES).digest()


def _about(write: Command) -> tuple[bytes, bytes]:
    """The scope and the units of a write."""
    scope = b""
    if isinstance(write, Spread | ChangeWhere) and (write.owned or write.within):
        scope = _hash(_encoder.encode((write.owned, write.within)))
    if isinstance(write, ChangeWhere):
        return scope, _hash(b"%d" % write.after)
    return scope, b"".join([_hash(name.encode()) for name in dict.fromkeys(getattr(write, "ids", ()))])


def _units(data: bytes) -> set[bytes]:
    return {data[at : at + UNIT_BYTES] for at in range(0, len(data), UNIT_BYTES)}


def _kept(result: WriteResult | NeedleError) -> bool:
    """Whether it is what the request is answered from now on: what could not be done for now is not."""
    return isinstance(result, WriteResult) or not (result.retryable or isinstance(result, CollectionNotFound))


class OnceTable:
    """The requests of one shard. All but `find` and `rows_after` is called in log order by apply only."""

    def __init__(
        self, rows: Iterable[AnswerRow] = (), records_max: int = RECORDS_MAX, bytes_max: int = BYTES_MAX
    ) -> None:
        """rows: as stored, by their numbers."""
        self._records_max = records_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self.last = -1
        """The number of the newest record that was ever kept here."""
        self._by_number: OrderedDict[int, Record] = OrderedDict()
        self._by_key: dict[bytes, tuple[Record, ...]] = {}
        self._changed: dict[tuple[int, int], bytes | None] = {}
        for _, number, data in rows:
            self._add(number, _decoder.decode(data))

    def __len__(self) -> int:
        return len(self._by_number)

    @property
    def kept_bytes(self) -> int:
        """What all records are counted with."""
        return self._bytes

    def find(self, asked: Asked, write: Command) -> WriteResult | NeedleError | None:
        """What this write of a request came to when it was executed, or None if it was not. KeyReused for another
        request; OutcomeForgotten for a write that is about documents of several, or of a part of one. Any thread."""
        known = self._by_key.get(asked.key, ())
        if not known:
            return None
        mine = [record for record in known if record.asked == asked]
        if not mine:
            return KeyReused(
                "another request was sent with this idempotency key: a key is for one request, and is sent again with "
                "the same method, path and body only",
                field="idempotency-key",
            )
        scope, units = _about(write)
        for record in mine:
            if record.units == units and record.scope == scope:
                return unpack(record.answer)
        if any(record.scope != scope for record in mine):
            return _forgotten()
        wanted = _units(units)
        common = [record for record in mine if not wanted.isdisjoint(_units(record.units))]
        if not common:
            return None
        answers = [unpack(record.answer) for record in common]
        done = [answer for answer in answers if isinstance(answer, WriteResult)]
        covered = wanted.issubset(set[bytes]().union(*(_units(record.units) for record in common)))
        if isinstance(write, Insert) and covered and len(done) == len(answers):
            return max(done, key=lambda result: result.index)
        return _forgotten()

    def record(self, once: Once, index: int, result: WriteResult | NeedleError) -> None:
        """Keep what an executed write came to, after `find` returned None."""
        if not _kept(result):
            return
        self._keep(index << BROUGHT_BITS, Record(once.asked, *_about(once.write), once.at, pack(result)))
        self._expire(once.at - SECONDS_MAX * 1_000_000)

    def bring(self, rows: Sequence[bytes], index: int) -> int:
        """Take over what another shard remembers; how many that were. Their answers are of this log from now on."""
        taken = 0
        for at, row in enumerate(rows):
            record = _decoder.decode(row)
            if any(record.same_write(known) for known in self._by_key.get(record.asked.key, ())):
                continue
            answer = unpack(record.answer)
            if isinstance(answer, WriteResult):
                answer = msgspec.structs.replace(answer, index=index)
            self._keep((index << BROUGHT_BITS) + at, msgspec.structs.replace(record, answer=pack(answer)))
            taken += 1
        return taken

    def rows_after(self, number: int, bytes_max: int) -> tuple[list[bytes], int]:
        """For another shard: records with higher numbers, about so many bytes of them; and the last one's number. Any
        thread."""
        rows: list[bytes] = []
        size, last = 0, number
        for at, record in self._by_number.copy().items():
            if at > number and size < bytes_max:
                rows.append(_encoder.encode(record))
                size += len(rows[-1])
                last = at
        return rows, last

    def dirty(self) -> dict[tuple[int, int], bytes | None]:
        """What changed since the last call, as rows to store, None for what is to be deleted."""
        changed, self._changed = self._changed, {}
        return changed

    def answers(self) -> list[AnswerRow]:
        """Every record, by number: equal on replicas at equal applied index."""
        return [(SESSION, number, _encoder.encode(record)) for number, record in self._by_number.items()]

    def _keep(self, number: int, record: Record) -> None:
        self._add(number, record)
        self._changed[SESSION, number] = _encoder.encode(record)
        while len(self._by_number) > self._records_max or self._bytes > self._bytes_max:
            self._forget()

    def _add(self, number: int, record: Record) -> None:
        self._by_number[number] = record
        self.last = number
        self._by_key[record.asked.key] = (*self._by_key.get(record.asked.key, ()), record)
        self._bytes += record.size

    def _expire(self, before: int) -> None:
        while self._by_number and next(iter(self._by_number.values())).at < before:
            self._forget()

    def _forget(self) -> None:
        number, record = next(iter(self._by_number.items()))
        del self._by_number[number]
        self._changed[SESSION, number] = None
        self._bytes -= record.size
        left = tuple(one for one in self._by_key[record.asked.key] if one is not record)
        if left:
            self._by_key[record.asked.key] = left
        else:
            del self._by_key[record.asked.key]


def _forgotten() -> OutcomeForgotten:
    return OutcomeForgotten(
        "the request with this idempotency key was executed before, or a part of it, when its documents were in other "
        "shards; what came of it cannot be told any more: read them. It was not executed again",
        field="idempotency-key",
    )
