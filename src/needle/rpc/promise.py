"""An answer that comes later and is handed on at once, not in a later turn of the event loop as a future's is.

For what every write and most searches pass: a future costs a turn of the loop and a task. Whoever wants to wait among
other things uses a future. Invariant: settled once; later settlements are ignored. Not thread-safe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Generic, TypeVar, cast

T = TypeVar("T")
Listener = Callable[["T | None", "BaseException | None"], None]


class Promise(Generic[T]):
    """Settled by `set_result` or `set_exception`, as a future is. `then` or `await` may be used once."""

    __slots__ = ("_done", "_error", "_listener", "_result")

    def __init__(self) -> None:
        self._done = False
        self._result: T | None = None
        self._error: BaseException | None = None
        self._listener: Listener[T] | None = None

    def done(self) -> bool:
        """Whether it is settled."""
        return self._done

    def set_result(self, result: T) -> None:
        """Settle it with a value."""
        self._settle(result, None)

    def set_exception(self, error: BaseException) -> None:
        """Settle it with an error."""
        self._settle(None, error)

    def _settle(self, result: T | None, error: BaseException | None) -> None:
        if self._done:
            return
        self._done = True
        if self._listener is None:
            self._result, self._error = result, error
        else:  # which may know this promise, or an error's frames may: nothing but the garbage collector frees a ring
            listener, self._listener = self._listener, None
            listener(result, error)

    def cancel(self) -> None:
        """Nobody waits for the answer any more. Work that goes on without a caller does: nothing happens here."""

    def then(self, listener: Listener[T]) -> None:
        """Have `listener(result, error)` called once it is settled: now, or by whoever settles it."""
        if self._done:
            listener(self._result, self._error)
        else:
            self._listener = listener

    def __await__(self) -> Generator[object, None, T]:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def settled(result: T | None, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(cast("T", result))

        self.then(settled)
        try:
            return (yield from future.__await__())
        except asyncio.CancelledError:
            self.cancel()
            raise
