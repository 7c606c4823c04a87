"""How much an API key may ask of a node in a second, and what it has asked. Pure: the instant is an argument.

Each rate has an account, which fills by the rate up to what BURST_SECONDS bring. A request is taken while no account is
overdrawn, and pays for what it is, also more than there is: so the largest request passes, and those after it wait for
what it owes. What a request is may be told after its beginning (its documents, its answer's bytes).
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from needle.base.errors import TooManyRequests, invalid

BURST_SECONDS: Final = 1.0
RATE_MAX: Final = 1e12
WHAT: Final = ("requests", "documents", "bytes")


class Rates(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A second, on each node; 0 for as many as it can. documents: that are written or asked for. bytes: of requests and
    their answers."""

    requests: float = 0.0
    documents: float = 0.0
    bytes: float = 0.0


def check_rates(rates: Rates) -> Rates:
    """Raises InvalidArgument."""
    for name in WHAT:
        value = getattr(rates, name)
        if not math.isfinite(value) or not 0 <= value <= RATE_MAX:
            raise invalid(name, value, f"a number a second from 0 (for no limit) to {RATE_MAX:g}")
    return rates


class Meter:
    """What one key has asked of this node. refused: requests, by the rate that was used up."""

    __slots__ = ("_at", "_left", "_rates", "refused")

    def __init__(self, rates: Rates) -> None:
        self.refused = dict.fromkeys(WHAT, 0)
        self.change(rates)

    def change(self, rates: Rates) -> None:
        """These are its rates now; nothing is owed."""
        self._rates = (rates.requests, rates.documents, rates.bytes)
        self._left = [_most(rate) for rate in self._rates]
        self._at = -math.inf

    def admit(self, now: float) -> None:
        """One request begins. now: seconds. Raises TooManyRequests, which says when there is room again."""
        left, passed = self._left, now - self._at
        if passed > 0:
            self._at = now
            for at, rate in enumerate(self._rates):
                if rate:
                    left[at] = min(_most(rate), left[at] + passed * rate)
        wait, what = 0.0, ""
        for at, rate in enumerate(self._rates):
            if rate and left[at] <= 0 and (seconds := -left[at] / rate) >= wait:
                wait, what = max(seconds, 0.001), WHAT[at]
        if what:
            self.refused[what] += 1
            rate = self._rates[WHAT.index(what)]
            raise TooManyRequests(
                f"this API key may have {rate:g} {what} a second of this node, and has used them up: try again in "
                f"{wait:.3g} s",
                wait=round(wait, 3),
                limit=what,
            )
        left[0] -= 1

    def pay(self, documents: int, size: int) -> None:
        """For a request that was admitted. size: bytes."""
        self._left[1] -= max(0, documents)
        self._left[2] -= max(0, size)


def _most(rate: float) -> float:
    return max(1.0, rate * BURST_SECONDS)
