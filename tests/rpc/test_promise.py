"""Promises: settled once, heard at once, awaited by whoever wants a future."""

import asyncio

import pytest

from needle.base.errors import Unavailable
from needle.rpc.promise import Promise


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
