"""The catalog's commands about API keys. They are a part of `catalog_commands`, which has the forms of an entry."""

from __future__ import annotations

from typing import ClassVar, Final

from needle.base.access import Role
from needle.base.rates import Rates
from needle.protocol.versioned import Versioned

MONITOR_SINCE: Final = 5


class CreateKey(Versioned, frozen=True, tag="create-key"):
    """Let in who has the API key with this SHA-256. collections, filter, rates: as in KeyInfo. Refused if the name is
    in use."""

    SINCE: ClassVar[int] = 2
    NEWER: ClassVar[dict[str, int]] = {"filter": 3, "rates": 3}
    FILTERS: ClassVar[tuple[str, ...]] = ("filter",)

    name: str
    digest: bytes
    role: Role
    collections: list[str] | None = None
    filter: bytes = b""
    rates: Rates = Rates()

    def needs(self) -> int:
        """The role of who only monitors is newer than the others."""
        return max(super().needs(), MONITOR_SINCE if self.role is Role.MONITOR else 0)


class LimitKey(Versioned, frozen=True, tag="limit-key"):
    """Let the key of this name ask for so much from now on. Refused if there is none, and for an admin's."""

    SINCE: ClassVar[int] = 3

    name: str
    rates: Rates


class RevokeKey(Versioned, frozen=True, tag="revoke-key"):
    """Let nobody in any more with the key of this name; fine if there is none."""

    SINCE: ClassVar[int] = 2

    name: str
