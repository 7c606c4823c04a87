"""`needle node list` while the catalog has no leader: who is down is then the question."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from catalog.catalog_util import topology
from needle.base.errors import Forbidden, NeedleError, NoQuorum
from needle.cli import node_list
from needle.routing.topology import Topology


def client(known: Topology, error: NeedleError) -> Any:
    async def refresh_topology(*, confirmed: bool, timeout: float) -> Topology:
        assert confirmed
        raise error

    return SimpleNamespace(refresh_topology=refresh_topology, topology=lambda: known)


async def test_without_a_leader_it_lists_what_a_node_knows_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    known = topology()
    assert await node_list._known(client(known, NoQuorum("no leader of the catalog was found within 2 s"))) == known
    said = capsys.readouterr()
    assert (said.out, said.err.count("no leader of the catalog was found within 2 s")) == ("", 1)


@pytest.mark.parametrize(
    ("known", "error"), [(Topology(), NoQuorum("none")), (topology(), Forbidden("no key", needs="read"))]
)
async def test_nothing_is_listed_where_nothing_is_known_or_the_key_may_not(known: Topology, error: NeedleError) -> None:
    with pytest.raises(type(error)):
        await node_list._known(client(known, error))
