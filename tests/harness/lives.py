"""What a node says of its life (needle.multiraft.lives), as another node would ask it."""

from __future__ import annotations

import random

from needle.multiraft.codec import LifeAnswer, LifeCall, decode_life_answer, encode_body
from needle.multiraft.lives import LIFE_METHOD
from needle.rpc.transport import RpcClient
from needle.system import SystemClock


async def life_of(address: str) -> LifeAnswer:
    """What a node says of its life to anybody who asks."""
    client = RpcClient(cluster_id="needle", rng=random.Random(1), clock=SystemClock())
    try:
        call = encode_body(LifeCall(1, None, []))
        return decode_life_answer(await client.call(address, LIFE_METHOD, call, 10.0))
    finally:
        await client.close()
