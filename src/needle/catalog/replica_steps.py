"""The next step by which a group's members become the nodes that the catalog names. Pure: facts in, one step out.

Invariants: a node becomes a voter only when it has the log, but for a little; each set of voters that a step asks for
has a majority that answers and has the log; no step shrinks the voters below what is wanted; a leader that is to leave
hands over first, and goes with the last step. A step is a function of its facts alone, so any leader may go on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from needle.base.ids import NodeId


class Members(msgspec.Struct, frozen=True, kw_only=True):
    """A group as its leader sees it. changing: a change of its members is under way, or may be. live: who answers;
    caught_up: who has the log but for a little; both with the leader. wanted: as the catalog says. resting: who is in
    maintenance, and so never leads."""

    leader: NodeId
    voters: frozenset[NodeId]
    learners: frozenset[NodeId]
    changing: bool
    wanted: Sequence[NodeId]
    live: Collection[NodeId]
    caught_up: Collection[NodeId]
    resting: Collection[NodeId] = ()

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do."""
        return not self.changing and not self.learners and self.voters == frozenset(self.wanted)


class Settled(msgspec.Struct, frozen=True):
    """The members are those that are wanted."""


class Wait(msgspec.Struct, frozen=True):
    """Nothing can be done now. why: for people."""

    why: str


class Change(msgspec.Struct, frozen=True):
    """Make these the voters and the learners."""

    voters: frozenset[NodeId]
    learners: frozenset[NodeId]


class HandOver(msgspec.Struct, frozen=True):
    """Have another voter lead."""

    to: NodeId


Step = Settled | Wait | Change | HandOver


def next_step(now: Members) -> Step:
    """What the leader does next."""
    if now.settled:
        return Settled()
    if now.changing:
        return Wait("a change of its members is under way")
    wanted = frozenset(now.wanted)
    missing = wanted - now.voters
    joining = (missing - now.learners) & frozenset(now.live)
    surplus = now.learners - wanted
    if joining or surplus:
        return _possible(now, now.voters, (now.learners - surplus) | joining)
    ready = missing & frozenset(now.caught_up) & frozenset(now.live)
    grows = len(now.voters | ready) <= len(wanted)  # one more voter that must answer, and no more that may fail
    if missing and (not ready or (grows and ready != missing)):
        return Wait(_lacking(now, missing - ready))
    return _replace(now, ready, now.voters - wanted)


def _replace(now: Members, ready: frozenset[NodeId], leaving: frozenset[NodeId]) -> Step:
    """The ready ones for as many of the leaving ones: those that do not answer first, the leader last."""
    voters = now.voters | ready
    order = sorted(leaving, key=lambda node: (node == now.leader, node in now.live, node))
    gone = frozenset(order[: max(0, len(voters) - len(now.wanted))])
    voters -= gone
    if now.leader in gone:
        able = (now.voters & voters & frozenset(now.caught_up) & frozenset(now.live)) - frozenset(now.resting)
        if able:
            return HandOver(min(able, key=lambda node: (node not in now.wanted, _rank(now.wanted, node), node)))
        gone, voters = gone - {now.leader}, voters | {now.leader}
        if voters == now.voters:
            others = _named(now, now.voters - {now.leader})
            why = f"no other voter than {now.leader}, which is to leave, has the log, answers and may lead"
            return Wait(f"{why}: {others} cannot now" if others else why)
    return _possible(now, voters, (now.learners - ready) | gone)


def _possible(now: Members, voters: frozenset[NodeId], learners: frozenset[NodeId]) -> Step:
    """That change, if a majority of its voters can commit something."""
    able = voters & frozenset(now.live) & frozenset(now.caught_up)
    if 2 * len(able) > len(voters):
        return Change(voters, learners)
    lacking = _named(now, voters - able)
    return Wait(f"of the voters {', '.join(sorted(voters))} no majority answers and has the log: {lacking} does not")


def _lacking(now: Members, nodes: frozenset[NodeId]) -> str:
    silent, behind = _named(now, nodes - frozenset(now.live)), _named(now, nodes & frozenset(now.live))
    parts = [f"{silent} does not answer, is lost, or is short of memory"] if silent else []
    parts += [f"{behind} has not caught up yet"] if behind else []
    return "; ".join(parts)


def _named(now: Members, nodes: Collection[NodeId]) -> str:
    """For people: whoever reads it can bring back a node that is in maintenance."""
    return ", ".join(f"{node} (in maintenance)" if node in now.resting else node for node in sorted(nodes))


def _rank(wanted: Sequence[NodeId], node: NodeId) -> int:
    return list(wanted).index(node) if node in wanted else len(wanted)
