"""API keys in the catalog: what a new one must be. It must not know how one is checked at a door."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from needle.base.access import KeyInfo, Role, check_key_name
from needle.base.config import Limits
from needle.base.errors import AlreadyExists, invalid
from needle.base.filters.builder import Filter
from needle.base.rates import Rates, check_rates
from needle.protocol.key_commands import CreateKey, LimitKey

KEYS_MAX = 1000
COLLECTIONS_MAX = 100
"""Of one key: the topology has them all, and travels whole."""
NAME_BYTES_MAX = 512
FILTER_BYTES_MAX = 1024
UNBOUND: Final = {Role.ADMIN: "an admin, who may do everything", Role.MONITOR: "a monitor, who sees no documents"}
"""Whose keys are for no collections or documents in particular."""
LIMITS = Limits()
"""Those of this release, whatever this node's own are: replicas of the catalog must not differ."""


def created(keys: tuple[KeyInfo, ...], index: int, command: CreateKey) -> tuple[KeyInfo, ...]:
    """The keys with one more. Raises InvalidArgument, AlreadyExists."""
    name, allowed = check_key_name(command.name), command.collections
    if len(command.digest) != hashlib.sha256().digest_size:
        raise invalid("digest", f"{len(command.digest)} bytes", "the SHA-256 of a key")
    if any(key.name == name for key in keys):
        raise AlreadyExists(f"there is a key {name!r}: revoke it first, or choose another name")
    if any(key.digest == command.digest for key in keys):
        raise AlreadyExists("this very key is there under another name")
    if len(keys) >= KEYS_MAX:
        raise invalid("name", name, f"one of at most {KEYS_MAX} keys: revoke what is not used any more")
    if allowed is not None:
        if command.role in UNBOUND:
            raise invalid("collections", allowed, f"nothing for {UNBOUND[command.role]}")
        if not 0 < len(allowed) <= COLLECTIONS_MAX or any(len(one.encode()) > NAME_BYTES_MAX for one in allowed):
            raise invalid("collections", allowed, f"1 to {COLLECTIONS_MAX} names of collections, or nothing for all")
    bound = command.filter
    if bound:
        if command.role in UNBOUND:
            raise invalid("filter", bound.decode(errors="replace")[:80], f"nothing for {UNBOUND[command.role]}")
        if len(bound) > FILTER_BYTES_MAX:
            raise invalid("filter", f"{len(bound)} bytes", f"JSON of at most {FILTER_BYTES_MAX} bytes")
        if Filter.from_json(bound, LIMITS).to_dict() == {}:
            raise invalid("filter", "{}", "one that says which documents, or nothing for all")
    made = KeyInfo(
        name=name,
        digest=command.digest,
        role=command.role,
        collections=None if allowed is None else tuple(sorted(set(allowed))),
        since=index,
        filter=bound,
        rates=_checked(command.rates, command.role),
    )
    return tuple(sorted([*keys, made], key=lambda key: key.name))


def limited(keys: tuple[KeyInfo, ...], command: LimitKey) -> tuple[KeyInfo, ...]:
    """The keys with other rates of one. Raises InvalidArgument."""
    found = next((key for key in keys if key.name == command.name), None)
    if found is None:
        raise invalid("name", command.name, "the name of a key: `needle keys list` shows them")
    changed = msgspec.structs.replace(found, rates=_checked(command.rates, found.role))
    return tuple(changed if key is found else key for key in keys)


def _checked(rates: Rates, role: Role) -> Rates:
    if role is Role.ADMIN and rates != Rates():
        raise invalid("rates", list(msgspec.structs.astuple(rates)), "nothing for an admin, who must be able to help")
    return check_rates(rates)
