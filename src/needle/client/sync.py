"""The synchronous client: the asynchronous one on an event loop in a background thread, method by method.

Nothing is written twice: `SyncClient`'s methods are made from `Client`'s by `_face`, with their signatures and
docstrings; `sync.pyi` is generated from the same signatures by `needle.client.sync_stub`, a test compares them.
May be used from many threads, and in processes that are forked with it: gunicorn --preload, Celery, multiprocessing.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

from needle.base.errors import ClientClosed
from needle.client.client import Client
from needle.client.feed_sync import SyncChanges
from needle.client.loop_thread import LoopThread
from needle.client.scanning import Batch, SyncScan

_OWN = frozenset({"close"})


def method_names() -> list[str]:
    """The public methods of `Client` that its synchronous class mirrors: all coroutines and plain methods, except
    internals."""
    found = (name for name, _ in inspect.getmembers(Client, inspect.isfunction))
    return sorted(name for name in found if not name.startswith("_") and name not in _OWN)


def _face(name: str) -> Callable[..., Any]:
    original = getattr(Client, name)
    if inspect.iscoroutinefunction(original):

        def method(self: SyncClient, *args: Any, **kwargs: Any) -> Any:
            client, thread = self._here()
            return thread.run(getattr(client, name)(*args, **kwargs))
    else:

        def method(self: SyncClient, *args: Any, **kwargs: Any) -> Any:
            return getattr(self._here()[0], name)(*args, **kwargs)

    return _as(name, method)


def _as(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """With the signature and the docstring of Client's method of that name."""
    original = getattr(Client, name)
    functools.update_wrapper(method, original)
    del method.__wrapped__  # type: ignore[attr-defined]  # else inspect would call it a coroutine function
    method.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    method.__qualname__ = f"SyncClient.{name}"
    return method


Made = tuple[Client, LoopThread]
_all: weakref.WeakSet[SyncClient] = weakref.WeakSet()


class SyncClient:
    """`Client` for code without asyncio: the same methods, blocking. Made by `needle.connect_sync`; use as a context
    manager or call `close`. In a process that was forked with it, its first call connects again."""

    def __init__(self, make: Callable[[], Made], made: Made) -> None:
        """See sync_client, which makes it. make: a client and the thread of its loop. made: the first of them."""
        self._make = make
        self._made: Made | None = made
        self._inherited: list[Made] = []
        """Those of the processes that this one was forked from. Kept, and never touched: their sockets and the loop's
        epoll are shared with the parent, in which they work on."""
        self._closed = False
        self._lock = threading.Lock()
        _all.add(self)

    def _here(self) -> Made:
        """The client and thread of this process."""
        made = self._made
        if made is not None:
            return made
        with self._lock:
            if self._made is None:
                if self._closed:
                    raise ClientClosed("this client is closed")
                self._made = self._make()
            return self._made

    def _forked(self) -> None:
        """In the child: the thread is not here, and a lock may be held by one that is not here either."""
        if self._made is not None:
            self._inherited.append(self._made)
            self._made = None
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close all connections and end the background thread. Calls of other threads end soon, as `Client.close` says.
        Idempotent."""
        with self._lock:
            closed, self._closed = self._closed, True
            made = self._made
        if made is None or closed:
            return
        client, thread = made
        thread.run(client.close())
        thread.stop()

    def scan(self, *args: Any, **options: Any) -> SyncScan:
        """See Client.scan, whose signature and docstring this gets below."""
        begun = self._here()[0].scan(*args, **options)

        def read(at: str | None, most: int | None) -> Batch:
            client, thread = self._here()  # for each page: this may be another process by now
            return thread.run(client.scan(*args, **options).read(at, most))

        def end(at: str) -> None:
            client, thread = self._here()
            again = client.scan(*args, **options)
            if again.end is not None:
                thread.run(again.end(at))

        return SyncScan(read, begun.place, end)

    def changes(self, *args: Any, **options: Any) -> SyncChanges:
        """See Client.changes, whose signature and docstring this gets below."""
        client, thread = self._here()
        return SyncChanges(client.changes(*args, **options), thread)

    def watch(self, *args: Any, **options: Any) -> SyncChanges:
        """See Client.watch, whose signature and docstring this gets below."""
        client, thread = self._here()
        return SyncChanges(client.watch(*args, **options), thread)

    def __enter__(self) -> SyncClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _after_fork() -> None:
    for client in list(_all):
        client._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


_ITERATORS = {"scan": SyncClient.scan, "changes": SyncClient.changes, "watch": SyncClient.watch}

for _name in method_names():
    setattr(SyncClient, _name, _as(_name, _ITERATORS[_name]) if _name in _ITERATORS else _face(_name))


def sync_client(make: Callable[[], Coroutine[Any, Any, Client]]) -> SyncClient:
    """A SyncClient of the client that `make` makes, on a loop of its own."""

    def made() -> Made:
        thread = LoopThread()
        try:
            return thread.run(make()), thread
        except BaseException:
            thread.stop()
            raise

    return SyncClient(made, made())
