"""What all commands of a log have in common: since which version of commands and formats they can be read.

Invariants: a command is only proposed once the cluster is at its version, so that every node that will apply it can
read it; an entry with more fields than this release knows does not decode, so nothing of it is skipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import msgspec

from needle.base.errors import ClusterTooOld
from needle.base.versions import FIRST
from needle.routing.topology import Topology


class Versioned(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """SINCE: the version that brought the command. NEWER: the versions that brought fields to it later, also to a
    struct in it ("change.expires"); such a field counts unless it has its default, as if releases before had it."""

    SINCE: ClassVar[int] = FIRST
    NEWER: ClassVar[Mapping[str, int]] = {}

    def needs(self) -> int:
        """The version that whoever applies this very command must know."""
        least = self.SINCE
        for path, version in self.NEWER.items():
            if version > least and _used(self, path):
                least = version
        return least


def shortened(command: Versioned) -> object:
    """What is encoded of a command: without the fields at its end that came later and have their default, for nodes of
    releases before refuse an entry with more fields than they know."""
    later = _later(type(command))
    left = len(later)
    while left and getattr(command, later[left - 1][0]) == later[left - 1][1]:
        left -= 1
    if left == len(later):
        return command
    kept = len(command.__struct_fields__) - len(later) + left
    return [command.__struct_config__.tag, *msgspec.structs.astuple(command)[:kept]]


@cache
def _later(kind: type[Versioned]) -> list[tuple[str, Any]]:
    """The fields at the end that came later than their command, with their defaults."""
    found: list[tuple[str, Any]] = []
    for name in reversed(kind.__struct_fields__):
        if name not in kind.NEWER:
            break
        found.insert(0, (name, _defaults(kind)[name]))
    return found


def _used(command: Versioned, path: str) -> bool:
    """Whether a field has another value than its default."""
    holder: Any = command
    *around, name = path.split(".")
    for part in around:
        holder = getattr(holder, part)
    kind: type[msgspec.Struct] = type(holder)
    return holder is not None and getattr(holder, name) != _defaults(kind)[name]


@cache
def _newest(kind: type[Versioned]) -> int:
    """The version that knows the command with all its fields."""
    return max([kind.SINCE, *kind.NEWER.values()])


@cache
def _defaults(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {
        field.name: field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        for field in msgspec.structs.fields(kind)
    }


def check_known(command: Versioned, now: Topology) -> None:
    """Raises ClusterTooOld, which names the nodes, unless every node that may apply the command can read it. Asked
    before it is proposed, with the newest topology at hand: the version never falls."""
    at = now.cluster_version
    if at >= _newest(type(command)):  # so it is but during an upgrade
        return
    needs = command.needs()
    if needs <= at:
        return
    older = now.older_than(needs)
    who = ", ".join(f"{info.id} ({info.knows})" for info in older)
    if older:
        why = (
            f"not known to know it: {who}. Start them with a release that does, or remove those that are gone; "
            "`needle node list` asks what each knows"
        )
    else:
        why = "all nodes know it: the cluster will be at that version in a moment"
    raise ClusterTooOld(
        f"{type(command).__name__}, as it was asked for, needs version {needs} of commands and formats, and the "
        f"cluster is at {now.cluster_version}; {why}",
        needs=needs,
        version=now.cluster_version,
        nodes=", ".join(info.id for info in older),
    )
