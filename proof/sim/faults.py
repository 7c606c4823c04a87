"""What carries out a fault is given, and what all who do have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from proof.sim.spec import Fault

T = TypeVar("T")
Handler = Callable[[Fault, str], Awaitable[None]]
"""Carries out a fault on a node, and undoes it; it is cancelled when faults end."""


class Controls(Protocol):
    """What faults need to know of the cluster, and the commands of its operator."""

    def leader(self, hint: int = 0) -> str | None:
        """A node that leads. hint: picks the group, where there are several."""
        ...

    def may_lose(self, name: str) -> bool:
        """Whether a good quorum remains without this node's data."""
        ...

    def is_moving(self) -> bool:
        """Whether a rebalance is under way."""
        ...

    def sharing(self, name: str) -> set[str]:
        """The nodes with which this one shares a group."""
        ...

    def finds_others(self, name: str) -> bool:
        """Whether this node, with nothing but its configuration, knows where one is that is still there."""
        ...

    async def admin(self, name: str, what: str) -> None:
        """An operator's command; it may be refused or time out."""
        ...


async def hold(seconds: float, undo: Callable[[], None]) -> None:
    """Let a fault last, and undo it, also when faults end before."""
    try:
        await asyncio.sleep(seconds)
    finally:
        undo()


def each(action: Callable[[T], None], items: list[T]) -> None:
    """Do it to all."""
    for item in items:
        action(item)


def both(name: str, others: list[str]) -> list[tuple[str, str]]:
    """The links between a machine and others, in both directions."""
    return [link for other in others for link in ((name, other), (other, name))]
