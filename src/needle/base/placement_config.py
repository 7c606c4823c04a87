"""What placement is to know of a node: part of the one schema of settings (needle/base/config.py)."""

from __future__ import annotations

from typing import Annotated, ClassVar

from needle.base.schema import Settings, about


class PlacementConfig(Settings, frozen=True, kw_only=True):
    """What the placement of replicas is to know of a node.

    zone: Failure domain of this node, such as its rack; replicas of a shard go to different ones.
    weight: This node's share of replicas beside that of others.
    """

    table: ClassVar[str] = "placement"

    zone: Annotated[str, about(option="--zone")] = ""
    weight: Annotated[float, about(0, 1000, option="--weight")] = 1.0
