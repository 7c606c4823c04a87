"""Who may do what: roles, API keys as the cluster keeps them, and callers as both doors know them.

Invariant: of a key only its SHA-256 is kept. A key is 256 random bits, so one fast hash is enough: there is nothing to
guess. Knows no network and no calls.
"""

from __future__ import annotations

import base64
import hashlib
import re
from enum import StrEnum
from typing import Final

import msgspec

from needle.base.errors import invalid
from needle.base.rates import Meter, Rates

KEY_BYTES: Final = 32
PREFIX: Final = "ndl_"
"""What every key begins with, so that programs that look for leaked secrets know one."""
NOBODY, MONITOR, READER, WRITER, ADMIN, NODE = range(6)
"""Ranks: each may do what those below it may. NODE is another node of the cluster, or code inside this one."""
NAME: Final = "1 to 64 characters of A-Z a-z 0-9 . _ -"
_KEY: Final = re.compile(PREFIX + "[A-Za-z0-9_-]{40,}")
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")


class Role(StrEnum):
    """monitor: reads metrics, and nothing else. reader: searches and reads. writer: changes documents, too. admin:
    collections, nodes, keys, too."""

    MONITOR = "monitor"
    READER = "reader"
    WRITER = "writer"
    ADMIN = "admin"


ROLES: Final = ("nobody", *Role, "node")
"""By rank."""


def rank_of(role: Role) -> int:
    """What a role may do."""
    return ROLES.index(role)


class KeyInfo(msgspec.Struct, frozen=True, array_like=True):
    """An API key, as the catalog keeps it. digest: SHA-256 of the key. collections: the only ones that it may use, by
    their own names (not aliases); None for all, and for an admin always. since: the catalog's index that made it.
    filter: as JSON, of the only documents that it sees and writes; b"" for all, and for an admin always. rates: of what
    it asks of each node; none for an admin."""

    name: str
    digest: bytes
    role: Role
    collections: tuple[str, ...] | None = None
    since: int = 0
    filter: bytes = b""
    rates: Rates = Rates()


class Identity:
    """A caller. One object for all connections and requests with the same key: when that is revoked its rank becomes
    NOBODY, and with it theirs, at once. name: of the key, "" without one. collections, filter, since: as in KeyInfo.
    meter: None for who may ask as much as the node can."""

    __slots__ = ("collections", "filter", "meter", "name", "rank", "since")

    def __init__(
        self, name: str, rank: int, collections: frozenset[str] | None = None, filter: bytes = b"", since: int = 0
    ) -> None:
        self.name = name
        self.rank = rank
        self.collections = collections
        self.filter = filter
        self.since = since
        self.meter: Meter | None = None

    def limit(self, rates: Rates) -> None:
        """These are its rates from now on."""
        if rates == Rates():
            self.meter = None
        elif self.meter is None:
            self.meter = Meter(rates)
        else:
            self.meter.change(rates)

    @property
    def is_for_all(self) -> bool:
        """Whether it may use all collections, and all documents in them."""
        return self.collections is None and not self.filter


def everybody() -> Identity:
    """Any caller where nothing is asked for."""
    return Identity("", NODE)


def new_key(random: bytes) -> str:
    """A key of KEY_BYTES random bytes, as text."""
    if len(random) != KEY_BYTES:
        raise invalid("random", f"{len(random)} bytes", f"{KEY_BYTES} bytes")
    return PREFIX + base64.urlsafe_b64encode(random).decode("ascii").rstrip("=")


def without_keys(text: str) -> str:
    """Text that is kept, or shown to others than who said it: of what could be a key only its beginning is left. Keys
    get where names belong: `needle keys revoke` with the key itself."""
    return _KEY.sub(PREFIX + "...", text) if PREFIX in text else text


def digest_of(key: str) -> bytes:
    """What is kept of a key. Any text has one."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def check_key_name(value: object) -> str:
    """The name of a key. Raises InvalidArgument."""
    if not isinstance(value, str) or not _NAME.match(value):
        raise invalid("name", value, NAME)
    return value


def check_new_key_name(value: object) -> str:
    """The name of a key that is to be made: not a key, for names are listed, told and logged. Replicas of the catalog
    ask `check_key_name`, as those of releases before. Raises InvalidArgument."""
    name = check_key_name(value)
    if (left := without_keys(name)) != name:
        raise invalid("name", left, "not a key itself, for names are shown to others: give it one, as of its program")
    return name


def check_role(value: object) -> Role:
    """A role, or its name. Raises InvalidArgument."""
    if value not in list(Role):
        raise invalid("role", value, f"one of {', '.join(Role)}")
    return Role(str(value))
