"""Whether other nodes of a cluster live: each is asked at each address that is known of it.

Invariant: what answers and is not surely somebody else counts as alive: to make a second cluster beside a living one is
worse than to be asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from needle.base.errors import ConnectionLost, DeadlineExceeded, NeedleError, WrongCluster
from needle.base.ids import NodeId
from needle.client.directory import Caller
from needle.protocol import calls
from needle.protocol.peer_calls import WHO, WhoAnswer, WhoCall

ASK_SECONDS = 3.0
TIMES = 2


async def alive(caller: Caller, me: NodeId, addresses: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """By address: who answers there, and why nobody of the cluster does."""
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

    await asyncio.gather(*map(ask, dict.fromkeys(addresses)))
    return dict(sorted(living.items())), {at: why for at, why in sorted(silent.items()) if at not in living}
