"""What the nodes of a group said when they were asked who leads, for the error of a call that found no leader. Pure.

Invariant: a node that was not asked, or has not answered yet, is never said to answer, nor to be silent: what is older
than the call that failed counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from needle.base.errors import ClientClosed, NeedleError, Overloaded, ProtocolError, Unauthenticated
from needle.base.ids import NodeId
from needle.protocol.calls import LeaderAnswer

REASON_MAX = 300
"""Characters of what another node says that an error repeats."""

_REFUSES = (ProtocolError, ClientClosed, Unauthenticated)


class _Last(NamedTuple):
    """at: when, in seconds of the clock that `Heard` is told. failure: why there was no answer. hinders: why the node
    cannot lead, by its answer."""

    at: float
    failure: NeedleError | None = None
    hinders: str = ""


class Heard:
    """What was heard last of each address."""

    def __init__(self) -> None:
        self._last: dict[str, _Last] = {}

    def answered(self, address: str, answer: LeaderAnswer, now: float) -> None:
        """The node at `address` said what it knows."""
        hinders = answer.hinders[:REASON_MAX] or ("it is in maintenance" if answer.maintenance else "")
        self._last[address] = _Last(now, hinders=hinders)

    def failed(self, address: str, error: NeedleError, now: float) -> None:
        """The node at `address` did not answer."""
        self._last[address] = _Last(now, error)

    def since(self, address: str, since: float) -> bool:
        """Whether anything was heard of `address` from `since` on."""
        last = self._last.get(address)
        return last is not None and last.at >= since

    def keep(self, addresses: Iterable[str]) -> None:
        """Forget all others."""
        self._last = {address: self._last[address] for address in addresses if address in self._last}

    def refusal(self, addresses: Iterable[str]) -> NeedleError | None:
        """Why one of them refused to talk at all (other cluster, other protocol, no key, this client is closed) when it
        was last asked, if none of them answered then."""
        failures = [last.failure if (last := self._last.get(address)) is not None else None for address in addresses]
        refusals = [error for error in failures if isinstance(error, _REFUSES)]
        return refusals[0] if refusals and None not in failures else None

    def overloaded(self, addresses: Iterable[str], since: float) -> NeedleError | None:
        """Why those of `addresses` that were heard of from `since` on had no room, if that is what all of them said."""
        failures = [self._last[address].failure for address in addresses if self.since(address, since)]
        return failures[0] if failures and all(isinstance(error, Overloaded) for error in failures) else None

    def explain(self, nodes: Mapping[NodeId, str], leader: str | None, since: float) -> str:
        """What was heard of `nodes`, which have these addresses, from `since` on. leader: the address of the leader, as
        far as known."""
        named = {address: f"{node} at {address}" for node, address in nodes.items()}
        heard = {address: self._last[address] for address in named if self.since(address, since)}
        silent = [f"{named[at]} ({last.failure.message})" for at, last in heard.items() if last.failure is not None]
        hindered = [
            f"{named[at]} answers but cannot lead: {last.hinders}" for at, last in heard.items() if last.hinders
        ]
        told = [f"{len(silent)} of {len(named)} nodes did not answer: {'; '.join(silent)}"] if silent else []
        told += hindered
        if leader is not None:
            told.append(f"{named.get(leader, leader)} leads, as far as known")
        elif not heard:
            told.append("no node has said in this time who leads")
        elif len(heard) < len(named):
            told.append(f"{len(heard)} of {len(named)} nodes were heard of in this time")
        elif not told:
            told.append(f"all {len(named)} nodes answer, but none leads" if len(named) > 1 else _alone(named))
        return "; ".join(told)


def _alone(named: Mapping[str, str]) -> str:
    return f"{', '.join(named.values()) or 'no node is known that'} answers, but does not lead"
