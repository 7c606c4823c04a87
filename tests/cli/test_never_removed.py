"""What can never be is refused as such by the commands that take nodes out, also by their plans."""

from __future__ import annotations

import msgspec
import pytest

from cli.test_node_commands import NOTHING, Make, founded
from cli.test_node_commands import client as client
from needle.base.errors import InvalidArgument, Unavailable
from needle.cli import node_commands, rebalance_commands
from needle.routing.plans import Plan, Wish


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_node_that_takes_the_only_replica_along_is_refused_as_what_can_never_be(client: Make, dry_run: bool) -> None:
    """It was an error of the kind that is asked for again."""
    one = client(founded(2, 1, 4, [["node-1"], ["node-2"]]))
    one.silent, before, why = {"node-2"}, one.now, "shard 1 cannot be rebuilt, because its only replica is on node-2"

    async def planned(wish: Wish, *, timeout: float = 1) -> Plan:
        return msgspec.structs.replace(NOTHING, beyond_help=(why,))

    one.plan_rebalance = planned  # type: ignore[method-assign]
    with pytest.raises(InvalidArgument, match=f"node-2 cannot be removed: {why}") as caught:
        node_commands.remove("node-2", dry_run=dry_run, cluster="")
    assert not caught.value.retryable and one.now == before


def test_a_plan_of_what_can_never_be_fails_as_the_command_itself(client: Make) -> None:
    one = client(founded(2, 1, 4, [["node-1"], ["node-2"]]))
    kinds = {}
    for field in ("beyond_help", "unmet"):

        async def planned(wish: Wish, *, timeout: float = 1, field: str = field) -> Plan:
            return msgspec.structs.replace(NOTHING, **{field: ("that is why",)})

        one.plan_rebalance = planned  # type: ignore[method-assign]
        with pytest.raises((InvalidArgument, Unavailable), match="that is why") as caught:
            rebalance_commands.rebalance(lost=["node-2"], dry_run=True, cluster="")
        kinds[field] = caught.type
    assert kinds == {"beyond_help": InvalidArgument, "unmet": Unavailable}
