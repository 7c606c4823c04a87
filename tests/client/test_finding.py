"""What a client is told that no node takes, while others do not answer at all."""

from __future__ import annotations

import pytest

from needle.base.errors import (
    ConnectionLost,
    Forbidden,
    NeedleError,
    NoQuorum,
    ProtocolError,
    TlsFailed,
    Unauthenticated,
    WrongCluster,
)
from needle.client.finding import find_cluster


class Nodes:
    """Each address answers with its error."""

    def __init__(self, **errors: NeedleError) -> None:
        self.errors = errors

    async def call(self, address: str, method: str, body: bytes, timeout: float, node: str = "") -> bytes:
        raise self.errors[address]


@pytest.mark.parametrize("kind", [Unauthenticated, Forbidden, TlsFailed, WrongCluster])
async def test_a_refusal_is_told_though_another_node_is_down(kind: type[NeedleError]) -> None:
    nodes = Nodes(a=ConnectionLost("connection refused"), b=kind("not you"), c=kind("not you"))
    with pytest.raises(kind, match="not you"):
        await find_cluster(nodes, "abc", 0.05)


async def test_who_is_refused_by_all_is_told_at_once() -> None:
    with pytest.raises(Forbidden, match="not you"):
        await find_cluster(Nodes(a=Forbidden("not you"), b=Forbidden("not you")), "ab", 600.0)


async def test_what_speaks_another_protocol_is_no_node_that_answers() -> None:
    nodes = Nodes(a=ConnectionLost("connection refused"), b=ProtocolError("garbage"))
    with pytest.raises(NoQuorum, match="answered within"):
        await find_cluster(nodes, "ab", 0.05)
