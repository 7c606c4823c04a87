"""Where each node listens. Configured addresses win over those learned when nodes joined.

Invariant: what was learned is on disk before it is used; without room there, it is used all the same (a node that is
not reached helps nobody) and written with what is learned next. Knows no connections: `changed` is called after each
change.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from needle.base.config import check_node_id, parse_address
from needle.base.file_errors import SHORTAGES
from needle.base.ids import NodeId

log = logging.getLogger("needle.server")


class AddressBook:
    """The addresses of all nodes."""

    def __init__(
        self,
        configured: Mapping[NodeId, str],
        learned: Mapping[NodeId, str],
        save: Callable[[dict[NodeId, str]], None],
    ) -> None:
        """save: makes the learned addresses durable."""
        self._configured = dict(configured)
        self._learned = {node: address for node, address in learned.items() if node not in configured}
        self._save = save
        self._unsaved = False
        self.changed: Callable[[], None] = lambda: None
        self.version = 0
        """Counts changes."""

    def get(self, node: NodeId) -> str | None:
        """The address of a node, None if it is not known."""
        return self._configured.get(node) or self._learned.get(node)

    def all(self) -> dict[NodeId, str]:
        """Every known address, by id."""
        return dict(sorted({**self._learned, **self._configured}.items()))

    def learn_missing(self, addresses: Mapping[NodeId, str]) -> None:
        """Add addresses of nodes that have none."""
        self.learn({node: address for node, address in addresses.items() if self.get(node) is None})

    def learn(self, addresses: Mapping[NodeId, str]) -> bool:
        """Add addresses of nodes that are not configured; whether anything was new. Blocking (a small file)."""
        for node, address in addresses.items():
            check_node_id("node", node)
            parse_address(f"address of {node}", address)
        new = {
            node: address
            for node, address in sorted(addresses.items())
            if node not in self._configured and self._learned.get(node) != address
        }
        if new:
            merged = {**self._learned, **new}
            self._write(merged)
            self._learned = merged
            self.version += 1
            self.changed()
        elif self._unsaved:
            self._write(self._learned)
        return bool(new)

    def _write(self, learned: dict[NodeId, str]) -> None:
        try:
            self._save(learned)
        except SHORTAGES as error:
            if not self._unsaved:
                log.warning("addresses of nodes are not written down now: %s", error)
            self._unsaved = True
        else:
            self._unsaved = False
