"""What all commands of a log have in common: since which version of commands and formats they can be read.

Invariants: a command is only proposed once the cluster is at its version, so that every node that will apply it can
read it; an entry with more fields than this release knows does not decode, so nothing of it is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from operator import attrgetter
from typing import Any, ClassVar, Final

import msgspec

from needle.base.config import Limits
from needle.base.errors import ClusterTooOld
from needle.base.filters.builder import Filter
from needle.base.filters.operators import OPERATORS
from needle.base.versions import FIRST, KNOWN
from needle.routing.topology import Topology

APPLIED_LIMITS: Final = Limits(filter_depth_max=200, filter_nodes_max=1_000_000)
"""Of a filter in a log: who proposes judges by its own, and a replica must not judge by its."""
_OPERATORS: Final = [one.since for one in OPERATORS.values()]
ARRAY_MAX: Final = 15
"""Elements of an array whose head is one byte; a command has its tag in front."""
SMALL_BYTES: Final = 64 * 1024
"""What is smaller is copied once more for less than it takes to avoid it."""
_encoder = msgspec.msgpack.Encoder()


class Versioned(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """SINCE: the version that brought the command. NEWER: the versions that brought fields to it later, also to a
    struct in it ("change.expires"); such a field counts unless it has its default, as if releases before had it. Of
    values that came later than their field: "spec.dtype=bit", "*" for each of a list and a number for one of it.
    FILTERS: its fields with filters (JSON, b"" for none), whose operators are judged when it is applied."""

    SINCE: ClassVar[int] = FIRST
    NEWER: ClassVar[Mapping[str, int]] = {}
    FILTERS: ClassVar[Sequence[str]] = ()

    def needs(self) -> int:
        """The version that whoever applies this very command must know."""
        least = self.SINCE
        for path, version in self.NEWER.items():
            if version > least and _used(self, path):
                least = version
        for path in self.FILTERS:
            if written := _at(self, path):
                least = max(least, Filter.from_json(written, APPLIED_LIMITS).since)
        return least


def written(prefix: bytes, command: Versioned) -> bytes:
    """A command in MessagePack, behind `prefix`: without the fields at its end that came later and have their default,
    for nodes of releases before refuse an entry with more fields than they know."""
    data, kind = _encoder.encode(command), type(command)
    read, defaults, dropped, size = _all_later(kind)
    if dropped and read(command) != defaults:  # most have none of them: they are looked at together
        dropped, size = _dropped(command)
    if not dropped:
        return prefix + data
    # The first byte is that of an array of at most 15, which `_later` has made sure of.
    head = prefix + (data[0] - dropped).to_bytes(1, "big")
    return head + data[1:-size] if len(data) < SMALL_BYTES else b"".join((head, memoryview(data)[1:-size]))


def _dropped(command: Versioned) -> tuple[int, int]:
    """How many fields at its end have their default, and the bytes that these take."""
    dropped = size = 0
    for name, default, width in _later(type(command)):
        if getattr(command, name) != default:
            break
        dropped, size = dropped + 1, size + width
    return dropped, size


def shortened(command: Versioned) -> object:
    """What `written` writes, to be encoded."""
    dropped, _ = _dropped(command)
    values = msgspec.structs.astuple(command)
    return [command.__struct_config__.tag, *values[: len(values) - dropped]] if dropped else command


@cache
def _later(kind: type[Versioned]) -> tuple[tuple[str, Any, int], ...]:
    """The fields at the end that came later than their command, from the last on: each with its default, and the bytes
    that this takes. None of a command of so many fields that its array has a longer head: it writes all of them."""
    found: list[tuple[str, Any, int]] = []
    if len(kind.__struct_fields__) < ARRAY_MAX:
        for name in reversed(kind.__struct_fields__):
            if name not in kind.NEWER:
                break
            default = _defaults(kind)[name]
            found.append((name, default, len(_encoder.encode(default))))
    return tuple(found)


@cache
def _all_later(kind: type[Versioned]) -> tuple[Callable[[Versioned], Any], Any, int, int]:
    """What reads all of these fields, their defaults as it gives them, how many they are, and the bytes of the
    defaults."""
    found = _later(kind)
    names, defaults = [name for name, _, _ in found], tuple(default for _, default, _ in found)
    read = attrgetter(*names) if names else id  # nobody asks it
    return read, defaults if len(names) > 1 else defaults[0] if names else None, len(found), sum(w for *_, w in found)


def _used(command: Versioned, path: str) -> bool:
    """Whether a field has another value than its default; or that value."""
    path, said, value = path.partition("=")
    if said:
        return value in _all_at(command, path.split("."))
    around, _, name = path.rpartition(".")
    holder: Any = _at(command, around) if around else command
    kind: type[msgspec.Struct] = type(holder)
    return holder is not None and getattr(holder, name) != _defaults(kind)[name]


def _all_at(holder: Any, path: Sequence[str]) -> list[Any]:
    """What fields hold; nothing where something on the way to them is missing."""
    if not path or holder is None:
        return [] if holder is None else [holder]
    part, *rest = path
    if part == "*":
        return [found for one in holder for found in _all_at(one, rest)]
    return _all_at(holder[int(part)] if part.isdigit() else getattr(holder, part), rest)


def _at(command: Versioned, path: str) -> Any:
    """What a field holds; None where a struct on the way to it is missing."""
    holder: Any = command
    for part in path.split("."):
        holder = None if holder is None else getattr(holder, part)
    return holder


@cache
def _newest(kind: type[Versioned]) -> int:
    """The version that knows the command with all its fields, whatever they hold."""
    said = kind.needs is Versioned.needs  # else only the command itself can tell, and no command needs more than KNOWN
    return max([kind.SINCE, *kind.NEWER.values(), *(_OPERATORS if kind.FILTERS else []), *([] if said else [KNOWN])])


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
