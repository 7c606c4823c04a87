"""Replicas that do not hold the same at the same place of their log: which ones, and how it is told. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from needle.base.ids import NodeId


def strays(digests: Mapping[NodeId, str]) -> list[NodeId]:
    """Those without the digest that most have. Where no digest is that of more replicas than each other one, nobody can
    tell who is wrong, and those with the digest that was told first count as most."""
    if not digests:
        return []
    usual = Counter(digests.values()).most_common(1)[0][0]
    return sorted(node for node, digest in digests.items() if digest != usual)


def differing(digests: Mapping[NodeId, str], index: int) -> str:
    """A line: at which entry, which replica has what."""
    told = ", ".join(f"{node} has {digest}" for node, digest in sorted(digests.items()))
    others = strays(digests)
    if 2 * len(others) < len(digests):
        return f"at index {index} {told}: {' and '.join(others)} differ{'s' * (len(others) == 1)} from most"
    return f"at index {index} {told}: no digest is that of most"
