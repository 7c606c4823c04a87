"""Whether other nodes of a cluster live: each is asked at each address that is known of it.

Invariant: what answers, or only takes a connection, and is not surely somebody else counts as alive: to make a second
cluster beside a living one is worse than to be asked again. A node that is asked without TLS though it has it ends the
connection, and one that is stopped by a signal, or too busy, says nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterable

from needle.base.config import parse_address
from needle.base.errors import ConnectionLost, DeadlineExceeded, NeedleError, WrongCluster
from needle.base.ids import NodeId
from needle.client.directory import Caller
from needle.protocol import calls
from needle.protocol.peer_calls import WHO, WhoAnswer, WhoCall

ASK_SECONDS = 3.0
TIMES = 2


async def takes_connections(address: str) -> bool:
    """Whether anybody listens there, whatever that is."""
    host, port = parse_address("address", address)
    with contextlib.suppress(OSError, ValueError):  # a name that no host can have is a ValueError
        async with asyncio.timeout(ASK_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
            writer.transport.abort()
            return True
    return False


async def alive(
    caller: Caller,
    me: NodeId,
    addresses: Iterable[str],
    no_node: Collection[str] = (),
    connects: Callable[[str], Awaitable[bool]] = takes_connections,
) -> tuple[dict[str, str], dict[str, str]]:
    """By address: who answers there, and why nobody of the cluster does. no_node: where it is known that what takes
    connections, and does not say who it is, is no node. connects: whether anybody takes connections."""
    living: dict[str, str] = {}
    silent: dict[str, str] = {}

    async def ask(at: str) -> None:
        for _ in range(TIMES):
            try:
                answer = await caller.call(at, WHO, calls.encode(WhoCall()), ASK_SECONDS)
                who = calls.decode(answer, WhoAnswer)
            except WrongCluster as error:
                silent[at] = error.message
                return
            except (ConnectionLost, DeadlineExceeded) as error:
                silent[at] = error.message
                continue
            except NeedleError as error:  # it does not tell who it is, and it is somebody
                living[at] = error.message
                return
            if not who.uid:
                silent[at] = f"node {who.node_id} there belongs to no cluster"
            elif who.lost:
                silent[at] = f"node {who.node_id} there does not go on: {who.lost}"
            elif who.node_id == me:
                living[at] = f"node {me} itself runs"
            else:
                living[at] = f"node {who.node_id} runs"
            return
        if at not in no_node and await connects(at):
            living[at] = (
                f"somebody takes connections there and does not say who ({silent[at]}): a node with TLS, which needs "
                "--tls-ca, or one that hangs. If it is surely no node of the cluster, say --no-node with this address"
            )

    await asyncio.gather(*map(ask, dict.fromkeys(addresses)))
    return dict(sorted(living.items())), {at: why for at, why in sorted(silent.items()) if at not in living}
