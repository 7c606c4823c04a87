"""Promises: settled once, heard at once, awaited by whoever wants a future."""

import asyncio
import gc
import weakref

import pytest

from needle.base.errors import Unavailable
from needle.rpc.promise import Promise
from rpc.conftest import Recorder


@pytest.fixture
def no_garbage_collector():
    gc.disable()
    yield
    gc.enable()


def test_a_listener_hears_at_once_and_once() -> None:
    promise, heard = Promise[int](), []
    promise.then(lambda result, error: heard.append((result, error)))
    assert not promise.done()
    promise.set_result(7)
    assert heard == [(7, None)] and promise.done()
    promise.set_exception(Unavailable("too late"))
    promise.set_result(8)
    assert heard == [(7, None)]


def test_a_listener_that_comes_late_hears_at_once() -> None:
    promise, heard = Promise[int](), []
    error = Unavailable("no")
    promise.set_exception(error)
    promise.then(lambda result, error: heard.append((result, error)))
    assert heard == [(None, error)]


async def test_it_can_be_awaited() -> None:
    promise = Promise[int]()
    waiting = asyncio.ensure_future(promise)
    await asyncio.sleep(0)
    promise.set_result(7)
    assert await waiting == 7
    failed = Promise[int]()
    failed.set_exception(Unavailable("no"))
    with pytest.raises(Unavailable):
        await failed


async def test_a_caller_that_stops_waiting_does_no_harm() -> None:
    promise = Promise[int]()
    waiting = asyncio.ensure_future(promise)
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    promise.set_result(7)
    assert promise.done()


class Reads(Recorder):
    """Answers reads by promises, and notes whose callers have gone."""

    def __init__(self):
        super().__init__()
        self.reads = []
        self.gone_callers = []

    def on_request(self, peer, method, body):
        if method != "read":
            return super().on_request(peer, method, body)
        promise = Watched(self.gone_callers)
        self.reads.append(promise)
        return promise


class Watched(Promise):
    def __init__(self, gone):
        super().__init__()
        self._gone = gone

    def cancel(self):
        self._gone.append(self)
        self.set_exception(Unavailable("gone"))


async def test_promised_reads_hear_that_their_caller_has_gone_and_other_promises_do_not(net, until):
    handler = Reads()
    server = await net.server(handler)
    client = net.client()
    asked = [asyncio.ensure_future(client.call(server.address, "read", b"", 30.0)) for _ in range(3)]
    asked.append(asyncio.ensure_future(client.call(server.address, "promise", b"", 30.0)))
    await until(lambda: len(handler.reads) == 3 and handler.promises)
    handler.reads[0].set_result(b"answered")
    assert await asked[0] == b"answered"
    await client.close()
    await asyncio.gather(*asked, return_exceptions=True)
    await until(lambda: handler.gone_callers)
    assert handler.gone_callers == handler.reads[1:] and not handler.promises[0].done()
    handler.promises[0].set_result(b"nobody hears it")
    await until(lambda: not server.tasks and not server.held)


async def test_promised_reads_are_answered_when_the_server_stops_before_they_end(net, until):
    handler = Reads()
    server = await net.server(handler, stop_timeout=0.02)
    asked = asyncio.ensure_future(net.client().call(server.address, "read", b"", 30.0))
    await until(lambda: handler.reads)
    await server.stop()
    with pytest.raises(Unavailable, match="gone"):  # not ConnectionLost: that is no answer
        await asked
    assert handler.gone_callers == handler.reads


class Forgets(Recorder):
    """Answers by promises that nobody else holds, and knows whether they are still there."""

    def __init__(self):
        super().__init__()
        self.left = weakref.WeakSet()

    def on_request(self, peer, method, body):
        promise = Watched([])
        self.left.add(promise)
        told = (promise.set_exception, Unavailable("no")) if method == "refused" else (promise.set_result, b"answered")
        asyncio.get_running_loop().call_soon(*told)
        return promise


@pytest.mark.parametrize("method", ["read", "write", "refused"])
async def test_what_was_answered_is_gone_without_the_garbage_collector(net, until, no_garbage_collector, method):
    """A promise holds its answer, and what was searched for it: thousands of them lie there until Python looks."""
    handler = Forgets()
    server = await net.server(handler)
    client = net.client()
    told = await asyncio.gather(client.call(server.address, method, b"", 30.0), return_exceptions=True)
    assert told == [b"answered"] or isinstance(told[0], Unavailable)
    await until(lambda: not server.held and not handler.left, 5.0)
