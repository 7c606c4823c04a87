"""How fast a backup reads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from needle.backup.around import Around
from needle.backup.pacing import GIVES_WAY, RESTS_SECONDS, Pace, check_rate
from needle.base.errors import InvalidArgument


class Time:
    """rests: of a backup, in seconds."""

    def __init__(self) -> None:
        self.now = 100.0
        self.rests: list[float] = []
        clock: Any = SimpleNamespace(monotonic=lambda: self.now)
        self.around = Around(clock=clock, rest=self._rest)

    async def _rest(self, seconds: float) -> None:
        self.rests.append(round(seconds, 6))
        self.now += seconds

    async def works(self, pace: Pace, seconds: float, size: int = 1000) -> None:
        self.now += seconds
        await pace.rest(size)


async def test_it_gives_way_for_longer_where_nodes_are_busy_but_not_for_ever() -> None:
    time = Time()
    pace = Pace(None, time.around)
    pace.begin()
    for took in (0.5, 0.1, 3.0):
        await time.works(pace, took)
    assert time.rests == [GIVES_WAY * took for took in (0.5, 0.1, 3.0)] and pace.read == 3000
    for _ in range(100):
        await time.works(pace, 3.0)
    assert sum(time.rests) == pytest.approx(RESTS_SECONDS)
    rests = len(time.rests)
    pace.begin(again=True)
    await time.works(pace, 3.0)
    assert len(time.rests) == rests, "it took too long before"
    pace.begin()
    await time.works(pace, 3.0)
    assert time.rests[rests:] == [GIVES_WAY * 3.0], "another collection"


async def test_so_many_bytes_a_second() -> None:
    time = Time()
    pace, free = Pace(1000.0, time.around), Pace(0.0, time.around)
    pace.begin()
    await time.works(pace, 0.25)
    await time.works(pace, 5.0)
    await time.works(free, 5.0)
    assert time.rests == [0.75]


@pytest.mark.parametrize("rate", [-1.0, float("nan")])
def test_other_rates_are_refused(rate: float) -> None:
    check_rate(None)
    with pytest.raises(InvalidArgument, match="rate = "):
        check_rate(rate)
