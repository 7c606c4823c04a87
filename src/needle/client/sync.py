"""The synchronous client: the asynchronous one on an event loop in a background thread, method by method.

Nothing is written twice: `SyncClient`'s methods are made from `Client`'s by `_face`, with their signatures and
docstrings; `sync.pyi` is generated from the same signatures by `needle.client.sync_stub`, a test compares them.
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

T = TypeVar("T")

CLOSE_SECONDS = 5.0
_OWN = frozenset({"close"})


def method_names() -> list[str]:
    """The public methods of Client that SyncClient mirrors: all coroutines and plain methods, except internals."""
    names = []
    for name, _ in inspect.getmembers(Client, inspect.isfunction):
        if not name.startswith("_") and name not in _OWN and name != "group":
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


def _face(name: str) -> Callable[..., Any]:
    original = getattr(Client, name)
    if inspect.iscoroutinefunction(original):

        def method(self: SyncClient, *args: Any, **kwargs: Any) -> Any:
            return self._thread.run(original(self._client, *args, **kwargs))
    else:

        def method(self: SyncClient, *args: Any, **kwargs: Any) -> Any:
            return original(self._client, *args, **kwargs)

    functools.update_wrapper(method, original)
    del method.__wrapped__  # type: ignore[attr-defined]  # else inspect would call it a coroutine function
    method.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    method.__qualname__ = f"SyncClient.{name}"
    return method


class SyncClient:
    """`Client` for code without asyncio: the same methods, blocking. Made by `needle.connect_sync`; use as a context
    manager or call `close`."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, Client]]) -> None:
        """make: makes the asynchronous client; called on the background loop."""
        self._thread = LoopThread()
        try:
            self._client = self._thread.run(make())
        except BaseException:
            self._thread.stop()
            raise

    def close(self) -> None:
        """Close all connections and end the background thread. Idempotent."""
        if not self._thread.loop.is_closed():
            self._thread.run(self._client.close())
            self._thread.stop()

    def __enter__(self) -> SyncClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


for _name in method_names():
    setattr(SyncClient, _name, _face(_name))
