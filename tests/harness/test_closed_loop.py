"""What a benchmark says where there is nothing to measure."""

from __future__ import annotations

import pytest

from bench.load import closed_loop


async def _answer(n: int) -> int:
    return n


@pytest.mark.parametrize(("clients", "seconds"), [(0, 1.0), (2, 0.0)])
async def test_a_load_without_a_call_says_so(clients: int, seconds: float) -> None:
    with pytest.raises(ValueError, match=rf"no call of {clients} client\(s\) was begun within {seconds:g} s"):
        await closed_loop(clients, seconds, _answer)


async def test_each_call_counts_once() -> None:
    rate = await closed_loop(3, 0.005, _answer)
    assert rate.operations > 0 and rate.per_second > 0 and rate.p50_ms <= rate.p99_ms
