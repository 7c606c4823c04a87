"""The synchronous client: the asynchronous one on an event loop in a background thread, method by method.

Nothing is written twice: `SyncClient`'s methods are made from `Client`'s by `_face`, with their signatures and
docstrings, and `SyncShardedClient`'s from `ShardedClient`'s; `sync.pyi` is generated from the same signatures by
`needle.client.sync_stub`, a test compares them. Invariant: a call always reaches the method of the client's own class.
May be used from many threads.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from needle.base.errors import Unavailable
from needle.client.client import Client
from needle.client.sharded import ShardedClient

T = TypeVar("T")

CLOSE_SECONDS = 5.0
_OWN = frozenset({"close"})


def method_names(kind: type[Client] = Client) -> list[str]:
    """The public methods of `kind` that its synchronous class mirrors: all coroutines and plain methods, except
    internals and what a class above it has already."""
    names = []
    for name, method in inspect.getmembers(kind, inspect.isfunction):
        if name.startswith("_") or name in _OWN or name == "group":
            continue
        if kind is Client or method is not getattr(Client, name, None):
            names.append(name)
    return sorted(names)


class LoopThread:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="needle-client", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and wait for its result. An interrupt (Ctrl-C) cancels it."""
        if self.loop.is_closed() or threading.current_thread() is self._thread:
            coroutine.close()
            raise Unavailable("this client is closed" if self.loop.is_closed() else "called from the client's own loop")
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End the loop and its thread. Idempotent."""
        if self.loop.is_closed():
            return
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(CLOSE_SECONDS)
        self.loop.close()


def _face(owner: str, kind: type[Client], name: str) -> Callable[..., Any]:
    original = getattr(kind, name)
    if inspect.iscoroutinefunction(original):

        def method(self: SyncClient, *args: Any, **kwargs: Any) -> Any:
            return self._thread.run(getattr(self._client, name)(*args, **kwargs))
    else:

        def method(self: SyncClient, *args: Any, **kwargs: Any) -> Any:
            return getattr(self._client, name)(*args, **kwargs)

    functools.update_wrapper(method, original)
    del method.__wrapped__  # type: ignore[attr-defined]  # else inspect would call it a coroutine function
    method.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    method.__qualname__ = f"{owner}.{name}"
    return method


class SyncClient:
    """`Client` for code without asyncio: the same methods, blocking. Made by `needle.connect_sync`; use as a context
    manager or call `close`."""

    def __init__(self, client: Client, thread: LoopThread) -> None:
        """See sync_client, which makes it. client: lives on the loop of `thread`."""
        self._client = client
        self._thread = thread

    def close(self) -> None:
        """Close all connections and end the background thread. Idempotent."""
        if not self._thread.loop.is_closed():
            self._thread.run(self._client.close())
            self._thread.stop()

    def __enter__(self) -> SyncClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class SyncShardedClient(SyncClient):
    """`ShardedClient` for code without asyncio. Made by `needle.connect_sync`, which recognises a sharded cluster."""


FACES: tuple[tuple[type[SyncClient], type[Client]], ...] = (
    (SyncClient, Client),
    (SyncShardedClient, ShardedClient),
)
for _mine, _kind in FACES:
    for _name in method_names(_kind):
        setattr(_mine, _name, _face(_mine.__name__, _kind, _name))


def sync_client(make: Callable[[], Coroutine[Any, Any, Client]]) -> SyncClient:
    """A SyncClient, or a SyncShardedClient if it is a ShardedClient that `make` makes, on a loop of its own."""
    thread = LoopThread()
    try:
        client = thread.run(make())
    except BaseException:
        thread.stop()
        raise
    kind = SyncShardedClient if isinstance(client, ShardedClient) else SyncClient
    return kind(client, thread)
