"""A client's network without one: all connections are there. What a call answers is for the test to say."""

from __future__ import annotations


class Connected:
    """`client.directory.Caller` but for `call`."""

    def connected(self, address: str) -> bool:
        return True

    async def connect(self, address: str, timeout: float) -> None:
        raise AssertionError("connected() says there is no need")

    async def close(self) -> None:
        return
