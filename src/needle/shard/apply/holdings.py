"""What a shard's log says of the keys it owns: the fence that moves of ranges rely on. Pure, replicated state.

A shard that never took part in a move has none, and trusts the maps of its nodes: what it owns never changed. From its
first PrepareMove on, every write is judged here, at apply, by the entry's place in the log, on every replica alike:
- a key is accepted if it is in `owned` and no move of this shard has frozen it;
- a document whose key is not in `owned` is invisible: imported and not owned yet, or released and not deleted yet.

Invariant: `owned` is normal (base.routing.ranges); transfers are in the order of their ids, at most one of them is
about a key unless it is over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from needle.base.decoding import routed_metadata
from needle.base.errors import InvalidArgument, NeedleError, StaleEpoch
from needle.base.model import Claim
from needle.protocol.move_commands import PrepareMove
from needle.routing.ranges import KeySet, contains, difference, fingerprint, union
from needle.routing.shard_map import KeyRange
from needle.routing.strategy import ShardStrategy, routing_key

OPEN, FROZEN, RELEASED, OVER = "open", "frozen", "released", "over"
DISCARDING, GIVEN_UP = "discarding", "given_up"
ENDED = (OVER, GIVEN_UP)


class Transfer(msgspec.Struct, frozen=True, array_like=True):
    """One move, as this shard's log knows it. phase of a source: open, frozen (and open again), released, over; of a
    target: open, over; of one that was given up: discarding at the target, given_up at both. floor: of a frozen source,
    see Freeze. at: index of the entry that released or owned. step: imports applied. cursors: by collection, the
    source's last ordinal that imports (of a target) or marks (of a source) looked at. attempt: of a source, the one
    that froze it, or while it is open the lowest that may; of a target, the last that it has confirmed, plus 1."""

    move: int
    incoming: bool
    ranges: tuple[KeyRange, ...]
    phase: str = OPEN
    floor: int = 0
    at: int = 0
    step: int = 0
    cursors: dict[str, int] = {}
    attempt: int = 0

    @property
    def hides(self) -> bool:
        """Whether this shard may hold documents of the ranges that are invisible."""
        return self.phase in (OPEN, DISCARDING) if self.incoming else self.phase == RELEASED

    @property
    def marks(self) -> bool:
        """Whether this shard finds out what it will hide."""
        return not self.incoming and self.phase in (OPEN, FROZEN)


class Holdings(msgspec.Struct, frozen=True, array_like=True):
    """See the module. base: a write at log index i gets version base + i. oldest: moves with lower ids are over."""

    strategy: ShardStrategy
    shard_count: int
    owned: tuple[KeyRange, ...]
    base: int = 0
    oldest: int = 0
    transfers: tuple[Transfer, ...] = ()

    def transfer(self, move: int) -> Transfer | None:
        return next((one for one in self.transfers if one.move == move), None)

    def with_transfer(self, changed: Transfer, **changes: Any) -> Holdings:
        """With one transfer added or replaced, and other fields changed."""
        others = [one for one in self.transfers if one.move != changed.move]
        ordered = tuple(sorted([*others, changed], key=lambda one: one.move))
        return msgspec.structs.replace(self, transfers=ordered, **changes)

    def taking(self, ranges: Sequence[KeyRange]) -> tuple[KeyRange, ...]:
        """What it owns after it took `ranges`."""
        return tuple(union(self.owned, ranges))

    def giving(self, ranges: Sequence[KeyRange]) -> tuple[KeyRange, ...]:
        """What it owns after it gave `ranges` up."""
        return tuple(difference(self.owned, ranges))


def prepared(now: Holdings | None, command: PrepareMove) -> Holdings:
    """The holdings that take part in the move. Raises InvalidArgument when the log cannot do what the catalog says."""
    if now is None:
        now = Holdings(command.strategy, command.shard_count, tuple(union(command.owned)))
    if command.move < now.oldest or now.transfer(command.move) is not None:
        return now
    if command.incoming and now.giving(command.ranges) != now.owned:
        raise InvalidArgument(f"move {command.move} brings ranges that this shard owns already", field="ranges")
    if not command.incoming and not contains(now.owned, command.ranges):
        raise InvalidArgument(f"move {command.move} takes ranges that this shard does not own", field="ranges")
    oldest = max(now.oldest, command.oldest)
    kept = tuple(one for one in now.transfers if one.move >= oldest or one.phase not in ENDED)
    now = msgspec.structs.replace(now, oldest=oldest, transfers=kept)
    return now.with_transfer(Transfer(command.move, command.incoming, tuple(command.ranges)))


class Fence:
    """Holdings, ready to judge keys. Immutable."""

    def __init__(self, holdings: Holdings) -> None:
        self.holdings = holdings
        self.fingerprint = fingerprint(holdings.owned)
        self.custom = holdings.strategy.kind == "custom"
        frozen = union(*(t.ranges for t in holdings.transfers if not t.incoming and t.phase == FROZEN))
        self.freezes = bool(frozen)
        """Whether some owned keys take no writes."""
        self.copies = any(transfer.marks for transfer in holdings.transfers)
        """Whether documents are being copied to another shard."""
        self._owned = KeySet(holdings.owned)
        self._open = difference(holdings.owned, frozen)
        self._frozen = KeySet(frozen)
        self._writable = KeySet(self._open)

    def key(self, document_id: str, metadata: bytes) -> bytes:
        """A document's routing key. metadata: JSON, looked at under a custom strategy only."""
        decoded = routed_metadata(metadata) if self.custom else None
        return routing_key(self.holdings.strategy, self.holdings.shard_count, document_id, decoded)

    def accepts(self, document_id: str, metadata: bytes) -> bool:
        """Whether a write of this document may take effect here."""
        return self.key(document_id, metadata) in self._writable

    def froze(self, document_id: str, metadata: bytes) -> bool:
        """Whether a move has frozen a document's key."""
        return self.freezes and self.key(document_id, metadata) in self._frozen

    def takes(self, ranges: Sequence[KeyRange]) -> bool:
        """Whether writes of all keys of these ranges, which are normal, may take effect here."""
        return contains(self._open, ranges)

    def shows(self, document_id: str, metadata: bytes) -> bool:
        """Whether a stored document is visible."""
        return self.key(document_id, metadata) in self._owned

    def member(self, ranges: Sequence[KeyRange]) -> Callable[[str, bytes], bool]:
        """Tells the documents of some ranges from others."""
        keys = KeySet(ranges)
        return lambda document_id, metadata: self.key(document_id, metadata) in keys


def check_claim(fence: Fence | None, claim: Claim | None, applied: int) -> None:
    """Raises StaleEpoch unless the log owns what the reader takes it to own at this applied index."""
    if claim is None:
        return
    if applied < claim.since or (fence is not None and fence.fingerprint != claim.fingerprint):
        raise StaleEpoch(
            "what this shard owns at this place of its log is not what the map says", replica=True, applied=applied
        )


def moved(document_id: str) -> NeedleError:
    """The answer to a write whose key this shard's log does not accept: it has no effect and never will."""
    return StaleEpoch(f"document {document_id[:80]!r} is moving to another shard, or has moved", owned=False)


def within(fence: Fence | None, ranges: Sequence[KeyRange], documents: Mapping[str, bytes]) -> list[str]:
    """The ids of those documents (id -> metadata) whose keys are in these ranges, which are normal. Raises StaleEpoch
    unless the log accepts all keys of them: what is not here may be where they are."""
    if fence is None or not fence.custom:
        raise InvalidArgument("only a shard that took part in a move of custom keys deletes by ranges", field="within")
    if not fence.takes(ranges):
        raise StaleEpoch("these ranges are moving to another shard, or have moved", owned=False)
    member = fence.member(ranges)
    return [name for name, metadata in documents.items() if member(name, metadata)]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Holdings)


def encode_holdings(holdings: Holdings) -> bytes:
    """As stored. Part of a replica's digest, so what earlier releases wrote must be encoded as they did: without the
    attempt, while that is the first one."""
    *fields, transfers = msgspec.structs.astuple(holdings)
    return _encoder.encode((*fields, [_fields(one) for one in transfers]))


def _fields(transfer: Transfer) -> tuple[Any, ...]:
    fields = msgspec.structs.astuple(transfer)
    return fields if transfer.attempt else fields[:-1]


def decode_holdings(data: bytes) -> Holdings:
    """As `encode_holdings` made it."""
    return _decoder.decode(data)
