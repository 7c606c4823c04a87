"""What the node that leads the catalog is asked about rebalancing, in addition to `peer_calls`.

| method | takes | answers |
|---|---|---|
| plan | PlanCall | Plan |
| progress | ProgressCall | ProgressAnswer |
"""

from __future__ import annotations

from typing import Final

import msgspec

from needle.routing.jobs import Progress
from needle.routing.plans import Wish

PLAN: Final = "plan"
PROGRESS: Final = "progress"


class PlanCall(msgspec.Struct, frozen=True, array_like=True):
    """What would move so that the cluster is as wished; nothing does."""

    wish: Wish
    timeout: float = 10.0


class ProgressCall(msgspec.Struct, frozen=True, array_like=True):
    """How far the last rebalance is."""

    timeout: float = 10.0


class ProgressAnswer(msgspec.Struct, frozen=True, array_like=True):
    """None if there never was one."""

    progress: Progress | None
