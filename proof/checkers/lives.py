"""Who speaks is who is remembered: a node whose directory was replaced gives no vote and no acknowledgement to one that
durably remembers a life of it which its directory does not know. Some time passes until both have heard of it."""

from __future__ import annotations

from collections.abc import Collection

from needle.base.ids import CATALOG_GROUP
from needle.multiraft.log.log_records import Identity, Life
from proof.checkers.violation import Violation

NAME = "no silent acceptance"
NOTICED_SECONDS = 5.0


class SpokenLives:
    """Fed with what nodes with another directory than before say to others."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, str], float] = {}

    def said(self, now: float, node: str, to: str, identity: Identity | None, remembered: Life | None) -> None:
        """`node` votes for `to`, or acknowledges to it. identity: what its disk says that it is. remembered: what the
        other's disk says of it. Raises Violation."""
        if remembered is None or identity is None or _has_lived(identity, remembered):
            self._since.pop((node, to), None)
            return
        since = self._since.setdefault((node, to), now)
        if now - since > NOTICED_SECONDS:
            raise Violation(
                NAME,
                f"{node} still promises things to {to}, which remembers start {remembered.start} of another directory",
            )


def leads(node: str, group: int) -> None:
    """`node`, which has another directory than before, leads. Raises Violation."""
    raise Violation(NAME, f"{node} leads group {group} with another directory than the one that others remember")


def opened(node: str, groups: Collection[int]) -> Violation | None:
    """What is wrong if `node` came back with empty disks and runs these groups. The catalog may be
    founded there again by a call that comes late; a shard is given to a directory, not to a name."""
    shards = [group for group in groups if group != CATALOG_GROUP]
    return Violation(NAME, f"{node} came back with empty disks and opens the groups {shards}") if shards else None


def _has_lived(identity: Identity, life: Life) -> bool:
    return identity.incarnation == life.incarnation and (life.start, life.nonce) in identity.starts
