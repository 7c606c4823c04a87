"""Where each node listens, as this node reaches it. Configured addresses win over those that nodes announce.

Invariant: what was learned is on disk before it is used; without room there, it is used all the same (a node that is
not reached helps nobody) and written with what is learned next. Knows no connections: `changed` is called after each
change.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from itertools import islice

from needle.base.config import check_node_id, parse_address
from needle.base.errors import invalid
from needle.base.file_errors import SHORTAGES
from needle.base.ids import NodeId
from needle.catalog.nodes import NODES_MAX

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

    def check_room(self, addresses: Mapping[NodeId, str]) -> None:
        """Raises InvalidArgument if these, which anybody may have sent, are more than a catalog has. What the catalog
        names is known beside."""
        told = len(addresses)
        new = sum(node not in self._learned and node not in self._configured for node in addresses)
        if told > NODES_MAX or (new and new > self._room()):
            raise invalid("addresses", f"{told} nodes", f"no more than {NODES_MAX} nodes in all")

    def _room(self) -> int:
        return NODES_MAX - len(self._learned) - len(self._configured)

    def learn_missing(self, addresses: Mapping[NodeId, str]) -> None:
        """Add addresses of nodes that have none, as another node told them; no more than there is room for."""
        missing = (node for node in addresses if self.get(node) is None)
        self.learn({node: addresses[node] for node in islice(missing, max(0, self._room()))})

    def learn(self, addresses: Mapping[NodeId, str]) -> bool:
        """Add addresses of nodes that are not configured; whether anything was new. Blocking (a small file)."""
        _check(addresses)
        new = {
            node: address
            for node, address in sorted(addresses.items())
            if node not in self._configured and self._learned.get(node) != address
        }
        if new:
            merged = {**self._learned, **new}
            self._write(merged)
            self._learned = merged
            self._change()
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

    def _change(self) -> None:
        self.version += 1
        self.changed()


def _check(addresses: Mapping[NodeId, str]) -> None:
    for node, address in addresses.items():
        check_node_id("node", node)
        parse_address(f"address of {node}", address)
