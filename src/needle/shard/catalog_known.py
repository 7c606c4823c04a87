"""The version of the catalog that whoever serves a shard must know (docs/adr/0065). Plain, replicated state."""

from __future__ import annotations

import msgspec


class CatalogKnown(msgspec.Struct, frozen=True, array_like=True):
    """founding: tells the cluster's catalog from one that was made again. version: 0 for any."""

    founding: int = 0
    version: int = 0

    def with_version(self, founding: int, version: int) -> CatalogKnown:
        """It never falls, but for another catalog."""
        if founding == self.founding and version <= self.version:
            return self
        return CatalogKnown(founding, version)

    def missing(self, founding: int, version: int) -> int:
        """The version that a node lacks that knows this one; 0 if it knows enough."""
        return self.version if founding == self.founding and version < self.version else 0


ANY = CatalogKnown()


def encode_known(known: CatalogKnown) -> bytes:
    """As stored."""
    return msgspec.msgpack.encode(known)


def decode_known(data: bytes | None) -> CatalogKnown:
    """As `encode_known` made it; None: nothing was ever said."""
    return ANY if data is None else msgspec.msgpack.decode(data, type=CatalogKnown)
