"""Who may come in: the one place where both doors of a node ask, the binary protocol's and HTTP's.

Invariants: what is not allowed is refused; a key that the catalog has no more opens nothing from the moment on in which
this node hears of it, also where it opened something before. What a refusal says does not depend on which keys there
are. It must not know connections, requests or calls.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from typing import Final

import msgspec

from needle.base.access import NOBODY, NODE, ROLES, Identity, KeyInfo, digest_of, everybody, rank_of
from needle.base.errors import Forbidden, NeedleError, Unauthenticated
from needle.base.rates import Meter, Rates

_INDEXED: Final = 8
"""Keys are looked up by so many bytes of their SHA-256, which no caller can choose; the rest is compared in constant
time."""

NO_KEY: Final = (
    "this cluster asks for an API key: give one with needle.connect(..., api_key=...), NEEDLE_API_KEY, "
    "or the header Authorization: Bearer"
)
WRONG_KEY: Final = (
    "this API key is none that this node knows: it was revoked, or never made (an admin makes another with "
    "`needle keys create`), or the node has lost its data directory, or has not joined the cluster yet"
)
NO_SECRET: Final = (
    "nodes of this cluster must prove that they know its secret: give this node the setting cluster_secret of the "
    "others"
)


class Access:
    """See the module. required: whether who has no key, or proof of the cluster's secret, is refused."""

    def __init__(self, required: bool) -> None:
        self.required = required
        self.anonymous = Identity("", NOBODY) if required else everybody()
        self.node = Identity("", NODE)
        self._keys: tuple[KeyInfo, ...] = ()
        self._known: dict[bytes, tuple[bytes, Identity]] = {}

    def follow(self, keys: tuple[KeyInfo, ...]) -> None:
        """These are the cluster's keys now."""
        if keys == self._keys:
            return
        there = dict(zip((key.digest for key in self._keys), self._keys, strict=True))
        known: dict[bytes, tuple[bytes, Identity]] = {}
        for key in keys:
            before, found = there.get(key.digest), None
            if before is not None and _but_for_rates(before) == _but_for_rates(key):
                found = self._known.pop(key.digest[:_INDEXED], None)
            found = known[key.digest[:_INDEXED]] = found or (key.digest, _identity(key))
            if before is None or before.rates != key.rates or found[1].meter is None:
                found[1].limit(key.rates)
        for _, identity in self._known.values():
            identity.rank = NOBODY
        self._keys, self._known = keys, known

    def meters(self) -> Iterator[tuple[str, Meter]]:
        """Of the keys that may not ask for as much as they like, by name."""
        for _, identity in self._known.values():
            if identity.meter is not None:
                yield identity.name, identity.meter

    def of_key(self, key: str) -> Identity:
        """Whose key this is. Raises Unauthenticated."""
        digest = digest_of(key)
        found = self._known.get(digest[:_INDEXED])
        if found is None or not hmac.compare_digest(found[0], digest):
            raise Unauthenticated(WRONG_KEY)
        return found[1]

    def admit(self, node_id: str, key: str, proven: bool) -> Identity:
        """Who has said hello. Raises Unauthenticated."""
        if key:
            return self.of_key(key)
        if proven:
            return self.node
        if self.required:
            raise Unauthenticated(NO_SECRET if node_id else NO_KEY)
        return self.anonymous


def _but_for_rates(key: KeyInfo) -> KeyInfo:
    """These change while the key is in use."""
    return key if key.rates == Rates() else msgspec.structs.replace(key, rates=Rates())


def _identity(key: KeyInfo) -> Identity:
    allowed = None if key.collections is None else frozenset(key.collections)
    return Identity(key.name, rank_of(key.role), allowed, key.filter, key.since)


def refusal(caller: Identity, needed: int, what: str) -> NeedleError:
    """Why `caller`, of a lower rank than `needed`, may not do `what`."""
    if caller.rank == NOBODY:
        return Unauthenticated(WRONG_KEY if caller.name else NO_KEY)
    if needed == NODE:
        return Forbidden(f"{what} is what nodes ask each other, and no API key may")
    text = f"{what} needs a key of the role {ROLES[needed]}; this one is of a {ROLES[caller.rank]}"
    return Forbidden(text, needs=ROLES[needed])


def check_collection(caller: Identity, collection: str | None, what: str) -> None:
    """Raises Forbidden unless the caller may use a collection, by its own name, or None for what is about no one
    collection, which no key for some documents may. Whether there is such a collection makes no difference."""
    allowed = caller.collections
    if collection is None and caller.filter:
        raise Forbidden(f"{what} is about all documents, and this API key is for some only: use a key for all")
    if allowed is None or collection in allowed:
        return
    about = "the whole cluster" if collection is None else f"collection {collection[:80]!r}"
    raise Forbidden(
        f"this API key is for {', '.join(sorted(allowed)[:10])} only, and {what} is about {about}: use a key for it"
    )
