"""Executing the commands of pinned scans, and what a leader must know: pure decisions, as in `execute`.

Each of these entries is a batch of its own, so versions that died in a batch all died after the pins that were open
before it, and before those that are opened later. It must not know SQLite or clocks.
"""

from __future__ import annotations

from needle.base.errors import Overloaded, StaleEpoch
from needle.base.model import WriteResult
from needle.protocol.commands import EndPins, KnowCatalog, PinScan
from needle.shard.apply.batch import Batch
from needle.shard.apply.holdings import encode_holdings
from needle.shard.pins import Pin


def pin_scan(batch: Batch, index: int, command: PinScan) -> WriteResult:
    """Raises CollectionNotFound, StaleEpoch or Overloaded; then nothing has changed."""
    record, fence, pins = batch.record(command.collection), batch.fence, batch.pins
    if fence is not None and command.owned != fence.fingerprint:
        raise StaleEpoch("what this shard owns at this place of its log is not what the map says", owned=True)
    same = pins.of_token(command.token, record.id)
    if same is not None and same.owned == command.owned:
        return WriteResult(version=same.index, index=index, existed=True)  # an answer was lost
    others = pins if same is None else pins.without([same.index])
    if len(others.open) >= command.pins_max:
        raise Overloaded(
            f"{len(others.open)} consistent scans are open in this shard, and it takes {command.pins_max}: end one, "
            "wait until one ends by itself, or raise limits.pinned_scans_max"
        )
    held = b"" if fence is None else encode_holdings(fence.holdings)
    pin = Pin(index, command.token, record.id, record.next_ordinal, command.until, command.owned, held)
    batch.pins = others.with_pin(pin)
    return WriteResult(version=index, index=index)


def end_pins(batch: Batch, index: int, command: EndPins) -> WriteResult:
    """Those that are open no more are passed over."""
    left = batch.pins.without(command.pins)
    ended = len(batch.pins.open) - len(left.open)
    if ended:
        batch.pins = left
    return WriteResult(version=index, index=index, count=ended)


def know_catalog(batch: Batch, index: int, command: KnowCatalog) -> WriteResult:
    """From here on no leader of the shard serves by an older catalog."""
    batch.catalog = batch.catalog.with_version(command.founding, command.version)
    return WriteResult(version=index, index=index)
