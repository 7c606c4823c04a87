"""Where each node listens. Configured addresses win over those learned when nodes joined; an address that a member was
given by command wins over the one that was configured when that happened, until another one is configured.

Invariant: what was learned is on disk before it is used; without room there, it is used all the same (a node that is
not reached helps nobody) and written with what is learned next. Knows no connections: `changed` is called after each
change.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from itertools import islice
from types import MappingProxyType

import msgspec

from needle.base.config import check_node_id, check_range, parse_address
from needle.base.errors import invalid
from needle.base.file_errors import SHORTAGES
from needle.base.ids import NodeId

log = logging.getLogger("needle.server")

NUMBER_MAX = 2**62
NODES_MAX = 4096
"""Nodes that whoever asks may make this one know; as many as a catalog has. What the catalog, or a command for the
members of a group, names is known beside."""


class Moved(msgspec.Struct, frozen=True, array_like=True):
    """A member's new address. number: of the command that gave it. over: what was configured here then, or ""."""

    number: int
    address: str
    over: str


class AddressBook:
    """The addresses of all nodes."""

    def __init__(
        self,
        configured: Mapping[NodeId, str],
        learned: Mapping[NodeId, str],
        save: Callable[[dict[NodeId, str]], None],
        moved: Mapping[NodeId, Moved] = MappingProxyType({}),
        save_moved: Callable[[dict[NodeId, Moved]], None] = lambda _: None,
    ) -> None:
        """save, save_moved: make the learned addresses, and those given by command, durable."""
        self._configured = dict(configured)
        self._learned = {node: address for node, address in learned.items() if node not in configured}
        self._moved = dict(moved)
        self._save = save
        self._save_moved = save_moved
        self._unsaved = False
        self.changed: Callable[[], None] = lambda: None
        self.version = 0
        """Counts changes."""

    def get(self, node: NodeId) -> str | None:
        """The address of a node, None if it is not known."""
        moved, configured = self._moved.get(node), self._configured.get(node)
        if moved is not None and moved.over == (configured or ""):
            return moved.address
        return configured or self._learned.get(node)

    def all(self) -> dict[NodeId, str]:
        """Every known address, by id."""
        nodes = sorted({*self._learned, *self._configured, *self._moved})
        return {node: address for node in nodes if (address := self.get(node)) is not None}

    def moved(self) -> dict[NodeId, tuple[int, str]]:
        """Members' addresses that were given by command, with its number."""
        return {node: (moved.number, moved.address) for node, moved in self._moved.items()}

    def check_room(self, addresses: Mapping[NodeId, str], moved: Mapping[NodeId, object]) -> None:
        """Raises InvalidArgument if these, which anybody may have sent, are too many."""
        told = max(len(addresses), len(moved))
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
            self._write(merged, None)
            self._learned = merged
            self._change()
        elif self._unsaved:
            self._write(self._learned, self._moved)
        return bool(new)

    def move(self, moved: Mapping[NodeId, tuple[int, str]]) -> bool:
        """Take new addresses of nodes that are known, by commands newer than those known; whether any was. Blocking."""
        _check({node: address for node, (_, address) in moved.items()})
        for number, _ in moved.values():
            check_range("number", number, 1, NUMBER_MAX)
        new = {
            node: Moved(number, address, self._configured.get(node, ""))
            for node, (number, address) in sorted(moved.items())
            if self.get(node) is not None and (node not in self._moved or self._moved[node].number < number)
        }
        if new:
            merged = {**self._moved, **new}
            self._write(None, merged)
            self._moved = merged
            self._change()
        return bool(new)

    def _write(self, learned: dict[NodeId, str] | None, moved: dict[NodeId, Moved] | None) -> None:
        if self._unsaved:
            learned, moved = learned or self._learned, moved or self._moved
        try:
            if learned:
                self._save(learned)
            if moved:
                self._save_moved(moved)
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
