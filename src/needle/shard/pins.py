"""Scans that are pinned to one index of a shard's log (docs/adr/0060). Plain, replicated state.

A pin is opened and ended by entries of the log, so all replicas have the same ones at the same index. While it is open,
each version of a document of its collection that was there when it was opened and has died since is named in the table
`kept` of the replica's file, and no purge takes it (apply/batch.py, documents/writer.py).

Invariant: pins are in the order of the entries that opened them.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from needle.base.errors import ScanEnded


class Pin(msgspec.Struct, frozen=True, array_like=True):
    """One scan's pin. index: of the entry that opened it, at which it sees everything. token: drawn by who scans.
    below: ordinals that were given later are not of it. until: by a leader's clock (microseconds since 1970), when it
    is to be ended. owned: fingerprint of the ranges that the shard was asked for. holdings: what it owned, as stored,
    b"" if that had never changed."""

    index: int
    token: int
    collection_id: int
    below: int
    until: int
    owned: int
    holdings: bytes = b""

    def sees(self, ordinal: int, died: int) -> bool:
        """Whether a version that died at an index (0: it lives) was current when the pin was opened."""
        return ordinal < self.below and (not died or died > self.index)


class Pins(msgspec.Struct, frozen=True, array_like=True):
    """Of one shard."""

    open: tuple[Pin, ...] = ()

    def below(self, collection_id: int) -> int:
        """Versions of a collection with lower ordinals may be seen by an open pin, if they live."""
        return max((pin.below for pin in self.open if pin.collection_id == collection_id), default=0)

    @property
    def oldest(self) -> int | None:
        """What died up to this index no pin sees; None if none is open: none sees anything that is dead."""
        return self.open[0].index if self.open else None

    def of_token(self, token: int, collection_id: int) -> Pin | None:
        return next((pin for pin in self.open if (pin.token, pin.collection_id) == (token, collection_id)), None)

    def find(self, index: int, token: int, collection_id: int) -> Pin:
        """Raises ScanEnded."""
        for pin in self.open:
            if (pin.index, pin.token, pin.collection_id) == (index, token, collection_id):
                return pin
        raise ScanEnded(
            "this consistent scan has ended in a shard: it was read to its end or closed, its time was over "
            "(limits.pinned_scan_seconds), what was kept for it became too large (limits.pinned_scan_bytes_max), the "
            "disk had too little room, or its collection was dropped, or a named vector of it. Begin it again; that is "
            "safe: it changes nothing",
            pin=index,
        )

    def with_pin(self, pin: Pin) -> Pins:
        return Pins((*self.open, pin))

    def without(self, indexes: Collection[int]) -> Pins:
        return Pins(tuple(pin for pin in self.open if pin.index not in indexes))

    def without_collection(self, collection_id: int) -> Pins:
        """The same object if it had none."""
        left = tuple(pin for pin in self.open if pin.collection_id != collection_id)
        return self if len(left) == len(self.open) else Pins(left)


NO_PINS = Pins()


def encode_pins(pins: Pins) -> bytes:
    """As stored."""
    return msgspec.msgpack.encode(pins)


def decode_pins(data: bytes | None) -> Pins:
    """As `encode_pins` made it; None: none was ever opened."""
    return NO_PINS if data is None else msgspec.msgpack.decode(data, type=Pins)
