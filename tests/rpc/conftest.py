"""Real sockets on 127.0.0.1; every wait is a condition with a deadline."""

import asyncio
import random
import time
from contextlib import AsyncExitStack

import pytest

from needle.base.access import everybody
from needle.rpc.connection import RpcLimits
from needle.rpc.promise import Promise
from needle.rpc.server import RpcServer
from needle.rpc.transport import RpcClient


class SystemClock:
    def monotonic(self):
        return time.monotonic()

    def wall(self):
        return time.time()


class Recorder:
    """Answers by method; keeps one-way bodies."""

    def __init__(self):
        self.oneways = []
        self.gone = []
        self.gate = asyncio.Event()
        self.entered = 0
        self.finished = 0
        self.cancelled = 0
        self.boom = None
        self.promises = []
        self.admitted = []
        self.refuses = None

    def admit(self, node_id, key, proven, remote):
        self.admitted.append((node_id, key, proven))
        if self.refuses is not None:
            raise self.refuses
        return everybody()

    def on_oneway(self, peer, body):
        if body == b"boom":
            raise ValueError("one-way boom")
        self.oneways.append((peer.node_id, body))

    def is_droppable(self, method):
        return method == "read"

    def on_gone(self, peer):
        self.gone.append(peer.node_id)

    def on_request(self, peer, method, body):
        if method == "raise_sync":
            raise self.boom
        if method == "parts":
            return [b"<", bytes(body), b">"]
        if method == "future":
            future = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(future.set_result, bytes(body))
            return future
        if method == "promise":
            self.promises.append(Promise())
            return self.promises[-1]
        if method == "big":
            return b"b" * int(bytes(body))
        if method in ("raise", "wait", "read", "task"):
            return self._task(method, bytes(body))
        return bytes(body)

    async def _task(self, method, body):
        self.entered += 1
        if method == "raise":
            raise self.boom
        if method in ("wait", "read"):
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        self.finished += 1
        return body


class Net:
    """Makes servers and clients of cluster "red" and closes them."""

    def __init__(self, stack):
        self._stack = stack

    async def server(
        self,
        handler,
        *,
        port=0,
        node_id="srv",
        cluster_id="red",
        version=1,
        secret="",
        door=None,
        clocks=None,
        **limits,
    ):
        server = RpcServer(
            f"127.0.0.1:{port}",
            handler,
            cluster_id=cluster_id,
            node_id=node_id,
            version=version,
            secrets=(secret,) if isinstance(secret, str) and secret else tuple(secret),
            limits=RpcLimits(**limits),
            door=door,
            **(clocks or {}),
        )
        await server.start()
        self._stack.push_async_callback(server.stop)
        return server

    def client(self, *, cluster_id="red", node_id="", version=1, clock=None, key="", secret="", dial=None, **limits):
        client = RpcClient(
            cluster_id=cluster_id,
            node_id=node_id,
            rng=random.Random(1),
            clock=clock or SystemClock(),
            version=version,
            key=key,
            secrets=(secret,) if isinstance(secret, str) and secret else tuple(secret),
            limits=RpcLimits(**limits),
            dial=dial,
        )
        self._stack.push_async_callback(client.close)
        return client

    async def raw(self, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        self._stack.callback(writer.close)
        return reader, writer


@pytest.fixture
async def net():
    async with AsyncExitStack() as stack:
        yield Net(stack)


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def until():
    async def wait(condition, seconds=30.0):
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - conditions are of many kinds; none has an Event
                await asyncio.sleep(0)

    return wait


def pytest_collection_modifyitems(items):
    # The replacement hook is global once defined; a fixture keeps the two loops a matter of this directory.
    for item in items:
        if "event_loop_policy" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy:DeprecationWarning"))


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request):
    if request.param == "uvloop":
        import uvloop

        return uvloop.EventLoopPolicy()
    return asyncio.DefaultEventLoopPolicy()
