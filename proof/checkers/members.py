"""The members of a group and the nodes that the catalog lets hold it agree, whenever either changes.

Checked at each committed configuration, and at each committed command that changes who holds a group:
- Every member is a node that holds the group by the catalog. The others may have closed their replicas: with a majority
  of them as voters the group would stand still for good.
- Nodes may give up their replicas only when the voters are exactly those that are wanted, and nobody else is a member.
- Who becomes a voter was a learner, and its log reaches the entry that made it one: it has all that there was before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from needle.base.ids import GroupId, NodeId
from needle.raft import membership
from needle.raft.messages import ConfState
from needle.routing.topology import Holders
from proof.checkers.violation import Violation


class Members:
    """See the module. last_index: how far a node's log of a group reaches; None if nobody can tell."""

    def __init__(self, last_index: Callable[[GroupId, NodeId], int | None]) -> None:
        self._last_index = last_index
        self._conf: dict[GroupId, ConfState] = {}
        self._since: dict[GroupId, dict[NodeId, int]] = {}
        """Of members by group: the entry that made them members."""
        self.confirmed = 0
        """How often nodes gave up their replicas after others had taken their place."""

    def founded(self, group: GroupId, nodes: Sequence[NodeId]) -> None:
        """A group begins with these voters."""
        self._conf.setdefault(group, ConfState(voters=tuple(sorted(nodes))))

    def changed(self, group: GroupId, index: int, conf: ConfState, holders: Holders | None) -> None:
        """The entry at `index` put a configuration into force; holders: by the catalog now. Raises Violation."""
        before, since = self._conf.get(group), self._since.get(group, {})
        known = set(membership.members(before)) if before is not None else set(membership.members(conf))
        if holders is not None:
            self._holds(group, conf, holders, f"the configuration of entry {index}")
        if before is not None:
            for node in sorted(set(conf.voters) - set(before.voters) - set(before.voters_outgoing)):
                self._grown_up(group, node, since.get(node, 0) if node in known else None)
        self._conf[group] = conf
        self._since[group] = {node: since.get(node, 0 if node in known else index) for node in membership.members(conf)}

    def assigned(self, group: GroupId, before: Holders, holders: Holders) -> None:
        """The catalog's word on who holds a group changed. Raises Violation."""
        conf = self._conf.get(group)
        if conf is None:
            return
        self._holds(group, conf, holders, f"the configuration when {', '.join(holders.all)} are to hold it")
        if before.leaving and not holders.leaving and before.wanted == holders.wanted:
            self.confirmed += 1
            if sorted(membership.members(conf)) != sorted(holders.wanted) or conf.learners or conf.voters_outgoing:
                raise Violation(
                    "replicas are given up last",
                    f"group {group}: {', '.join(before.leaving)} may go, and its members are {conf}",
                )

    def _holds(self, group: GroupId, conf: ConfState, holders: Holders, what: str) -> None:
        strange = sorted(set(membership.members(conf)) - set(holders.all))
        if strange:
            raise Violation(
                "members hold replicas",
                f"group {group}: {what} counts on {', '.join(strange)}; it is held by {', '.join(holders.all)}",
            )

    def _grown_up(self, group: GroupId, node: NodeId, since: int | None) -> None:
        if since is None:
            raise Violation("voters were learners", f"group {group}: {node} becomes a voter and was no member before")
        last = self._last_index(group, node)
        if last is not None and last < since:
            raise Violation(
                "voters have the log",
                f"group {group}: {node} becomes a voter with a log up to {last}; it is a member since {since}",
            )
