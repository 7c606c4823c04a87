"""The replicas of the catalog are compared, as those of shards are (docs/adr/0115).

A replica stores the whole catalog after each batch of entries, with its sum, and notes that. The leader asks for it at
the entry with which its own last batch ended: a replica whose batch went on behind that has nothing to say of it, and
is compared after the next change. Nothing is proposed for it, so nodes of earlier releases need not know it; they
cannot answer, and nor is who writes the catalog in another form compared.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from needle.base.errors import NeedleError, Unavailable
from needle.base.ids import CATALOG_GROUP, GroupId, NodeId, group_name
from needle.base.runtime import Pool
from needle.catalog.machine import CatalogMachine, form
from needle.multiraft.host import Host
from needle.server.beats import Beats
from needle.server.chores.context import others_of

log = logging.getLogger("needle.server")

T = TypeVar("T")


class CatalogCompared:
    """See the module, and `comparing.Compared`."""

    group: Final[GroupId] = CATALOG_GROUP
    name: Final[str] = group_name(CATALOG_GROUP)

    def __init__(self, host: Host, pool: Pool, catalog: Callable[[], CatalogMachine | None], beats: Beats) -> None:
        """pool: for what blocks. catalog: this node's replica of it, while it has one. beats: of the node."""
        self.host, self.beats = host, beats
        self.form: list[str] = []
        self._pool, self._catalog = pool, catalog

    @property
    def leads(self) -> bool:
        return self._catalog() is not None and self.host.is_leader(CATALOG_GROUP)

    @property
    def ready(self) -> bool:
        catalog = self._catalog()
        return catalog is not None and catalog.compared.newest > 0

    def others(self) -> list[NodeId]:
        """Who else holds it."""
        return others_of(self.host.status(CATALOG_GROUP))

    async def mark(self) -> int:
        """The end of the last batch."""
        if not self.form:
            self.form = [await self._pool.run(form)]
        catalog = self._catalog()
        return 0 if catalog is None else catalog.compared.newest

    def digest_at(self, index: int) -> str | None:
        """Of this node's replica."""
        catalog = self._catalog()
        return None if catalog is None else catalog.compared.at(index)

    async def answer(self, index: int) -> list[str]:
        """What this node's replica had at an entry that it has applied, and in which form; none if it kept nothing.
        Raises Unavailable where there is none."""
        catalog = self._catalog()
        if catalog is None:
            raise Unavailable("this node holds no replica of the catalog", group=CATALOG_GROUP)
        found = catalog.compared.at(index)
        return [] if found is None else [found, await self._pool.run(form)]

    async def attempt(self, work: Awaitable[T], otherwise: str) -> T | None:
        """An error is logged, and makes None: it is tried again later."""
        try:
            return await work
        except NeedleError as error:
            log.debug("%s: %s: %s", self.name, otherwise, error)
            return None
