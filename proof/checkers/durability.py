"""No acknowledgement precedes its fsync: votes and append acks name only what is durable on the sender, and a client
is answered only after a quorum of voters holds its entry durably (raft.md, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from proof.checkers.violation import Violation

NAME = "durable before ack"


def append_ack(group: int, node: str, match: int, durable_last: int) -> None:
    """`node` tells its leader that it holds entries up to `match`."""
    if match > durable_last:
        raise Violation(NAME, f"{node} acknowledged entry {match} of group {group}; its disk holds {durable_last}")


def vote_granted(group: int, node: str, term: int, to: str, durable: tuple[int, str]) -> None:
    """`node` tells `to` that it has its vote in `term`; durable: (term, vote) on its disk."""
    if durable != (term, to):
        raise Violation(NAME, f"{node} granted {to} its vote in term {term} of group {group}; its disk says {durable}")


def write_acknowledged(
    group: int, index: int, voter_sets: Sequence[Sequence[str]], durable_last: Callable[[str], int]
) -> None:
    """A client was told that the write at `index` is done. One of the sets' majorities must hold it."""
    for voters in voter_sets:
        holding = [node for node in voters if durable_last(node) >= index]
        if len(holding) * 2 > len(voters):
            return
    raise Violation(
        NAME, f"write {index} of group {group} was acknowledged; no majority of {voter_sets} has it durably"
    )
