"""The beats of a node: what looks at the same pace looks at the same moment, and an idle node sleeps in between.

One timer of the event loop for each moment at which anybody looks. Who has nothing to do is asked there and not woken:
to ask costs a microsecond, to wake a task and have it sleep again thirty.

Invariant: nobody is woken earlier than half of its pace, nor later than one and a half of it, unless it said at every
beat until then that there is nothing to do. It must not know what is looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

TICKS = 1000
"""Moments that are the same a thousandth of a second are one: the event loop's timers know no shorter time."""


def _no() -> bool:
    return False


class _Waiting(NamedTuple):
    """Who waits. rests: whether it has nothing to do."""

    rests: Callable[[], bool]
    woken: asyncio.Future[None]


class _Moment(NamedTuple):
    """At which some are asked. those: by their pace."""

    timer: asyncio.TimerHandle
    those: dict[float, list[_Waiting]]


class Beats:
    """Of one node. `next` is called on its event loop."""

    def __init__(self, now: Callable[[], float], over: Callable[[], bool] = _no) -> None:
        """now: seconds of the node's monotonic clock. over: whether the node has stopped: then everybody is woken."""
        self._now, self._over = now, over
        self._waiting: dict[int, _Moment] = {}
        """By when they are asked, in ticks of that clock."""

    async def next(self, every: float, rests: Callable[[], bool] = _no) -> None:
        """Sleep until the clock shows a multiple of `every` seconds; half of them at least. rests: asked then on the
        event loop; while it says that there is nothing to do, the next multiple is waited for. Raises what that raises.
        """
        woken = asyncio.get_running_loop().create_future()
        self._wait(every, [_Waiting(rests, woken)], self._now())
        await woken

    def _wait(self, every: float, those: list[_Waiting], now: float) -> None:
        rest = every - now % every
        if rest < every / 2:
            rest += every
        at, loop = round((now + rest) * TICKS), asyncio.get_running_loop()
        moment = self._waiting.get(at)
        if moment is None:
            moment = self._waiting[at] = _Moment(loop.call_later(rest, self._ask, at), {})
        elif loop.time() + rest < moment.timer.when() - 1 / TICKS:
            # The machine slept since that timer was set. Its clock goes on meanwhile, the event loop's stands still.
            moment.timer.cancel()
            moment = self._waiting[at] = _Moment(loop.call_later(rest, self._ask, at), moment.those)
        moment.those.setdefault(every, []).extend(those)

    def _ask(self, at: int) -> None:
        now, over = self._now(), self._over()
        for every, those in self._waiting.pop(at).those.items():
            if resting := [who for who in those if not self._is_woken(who, over)]:
                self._wait(every, resting, now)

    def _is_woken(self, who: _Waiting, over: bool) -> bool:
        if who.woken.done():  # who waited was cancelled
            return True
        try:
            rests = not over and who.rests()
        except Exception as error:  # noqa: BLE001 - whoever waits raises it
            who.woken.set_exception(error)
            return True
        if not rests:
            who.woken.set_result(None)
        return not rests
