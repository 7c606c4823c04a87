"""Ctrl-C in commands that use a target of backups, which may be a bucket that says nothing."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar

import needle
from needle.backup.store import Store, hurry
from needle.cli.common import run

T = TypeVar("T")


def run_with(store: Store, cluster: str, work: Callable[[needle.Client], Awaitable[T]]) -> T:
    """As `run`; Ctrl-C is heard also while the target does not answer."""
    return _interrupted(lambda: run(cluster, lambda client: _heeding(store, lambda: work(client))))


def run_alone(store: Store, work: Callable[[], Awaitable[T]]) -> T:
    """The same without a cluster."""
    return _interrupted(lambda: asyncio.run(_heeding(store, work)))


def until_signal(store: Store) -> asyncio.Event:
    """Set by SIGTERM or Ctrl-C; by the second of them nothing more is waited for that the target does not answer."""
    stopped = asyncio.Event()

    def stop() -> None:
        if stopped.is_set():
            hurry(store)
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    return stopped


def _interrupted(call: Callable[[], T]) -> T:
    try:
        return call()
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


async def _heeding(store: Store, work: Callable[[], Awaitable[T]]) -> T:
    """What ends by Ctrl-C still takes its mark away, for which a bucket gets two seconds."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()

    def stop() -> None:
        hurry(store)
        if task is not None:
            task.cancel()

    if threading.current_thread() is not threading.main_thread():  # which alone hears of signals
        return await work()
    loop.add_signal_handler(signal.SIGINT, stop)
    try:
        return await work()
    finally:
        loop.remove_signal_handler(signal.SIGINT)
