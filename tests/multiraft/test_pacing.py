"""A snapshot that is to come slowly: how long its parts rest together, and that its sender hears of who fetches it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from client.fake_shards import virtually
from multiraft.harness import FAST
from multiraft.test_fetched_files import CHUNK, Inline, Leader, Nothing, manifest
from needle.multiraft.files import Files
from needle.multiraft.snapshots.receiver import SnapshotFetcher


class Asked(Leader):
    """Notes when each part was asked for, and of how many bytes."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(files)
        self.asked: list[tuple[float, int]] = []

    async def call(self, node: str, method: str, body: Any, timeout: float) -> bytes:
        answer = await super().call(node, method, body, timeout)
        self.asked.append((asyncio.get_running_loop().time(), len(answer)))
        return answer


def fetched(directory: Path, leader: Asked, pace: Callable[[int], float], keep: float = 30.0) -> tuple[Path, float]:
    """Where the files are, and how long it took."""

    async def work() -> tuple[Path, float]:
        config = replace(FAST, snapshot_chunk_bytes=CHUNK, snapshot_keep=keep)
        fetcher = SnapshotFetcher(str(directory), Files(), Inline(), leader, config, lambda _: None, pace)  # type: ignore[arg-type]
        began = asyncio.get_running_loop().time()
        staged = await fetcher.fetch(7, "n1", manifest(leader.files), Nothing())
        return Path(staged), asyncio.get_running_loop().time() - began

    return run(work)


def run(work: Callable[[], Awaitable[tuple[Path, float]]]) -> tuple[Path, float]:
    return virtually(work())


@pytest.mark.parametrize("sizes", [[4000], [CHUNK, CHUNK, CHUNK, CHUNK], [100] * 40, [2500, 10, 10, 1480]])
def test_the_rest_is_the_same_however_the_bytes_are_cut(tmp_path: Path, sizes: list[int]) -> None:
    files = {f"f{n}": bytes([n]) * size for n, size in enumerate(sizes)}
    leader = Asked(files)
    staged, took = fetched(tmp_path, leader, lambda group: 8.0 if group == 7 else 0.0)
    assert took == pytest.approx(8.0)
    assert {name: (staged / name).read_bytes() for name in files} == files


def test_other_groups_and_empty_snapshots_do_not_rest(tmp_path: Path) -> None:
    assert fetched(tmp_path / "a", Asked({"f": b"x" * 5000}), lambda group: 8.0 * (group == 6))[1] == 0
    assert fetched(tmp_path / "b", Asked({"f": b""}), lambda _: 8.0)[1] == 0


def test_what_is_not_fetched_again_does_not_rest(tmp_path: Path) -> None:
    leader = Asked({"f": bytes(4 * CHUNK), "g": b"y" * CHUNK})
    fetched(tmp_path, leader, lambda _: 0.0)
    assert fetched(tmp_path, leader, lambda _: 50.0)[1] == 0


def test_the_sender_hears_of_a_long_rest_and_a_new_pace_counts_at_once(tmp_path: Path) -> None:
    leader = Asked({"f": b"x" * 2 * CHUNK})
    ended = 100.0

    def pace(_: int) -> float:
        return 3600.0 if asyncio.get_running_loop().time() < ended else 0.0

    took = fetched(tmp_path, leader, pace, keep=30.0)[1]
    assert ended <= took <= ended + 10
    at = [moment for moment, _ in leader.asked]
    assert max(later - earlier for earlier, later in pairwise(at)) <= 10.0 + 1e-6
    assert [size for _, size in leader.asked if size] == [CHUNK, CHUNK]


def test_several_snapshots_of_a_node_share_the_pace_and_each_sender_hears_of_it(tmp_path: Path) -> None:
    leaders = {group: Asked({"f": bytes([group]) * 4 * CHUNK}) for group in (7, 8, 9)}

    async def work() -> tuple[Path, float]:
        loop, config = asyncio.get_running_loop(), replace(FAST, snapshot_chunk_bytes=CHUNK, snapshot_keep=30.0)

        class Both(Nothing):
            async def call(self, node: str, method: str, body: Any, timeout: float) -> bytes:
                return await leaders[int(node)].call(node, method, body, timeout)

        paces = {7: 80.0, 8: 80.0, 9: 0.0}
        fetcher = SnapshotFetcher(
            str(tmp_path),
            Files(),
            Inline(),
            Both(),
            config,
            lambda _: None,
            paces.__getitem__,  # type: ignore[arg-type]
        )
        began, ended = loop.time(), dict[int, float]()

        async def fetch(group: int) -> None:
            await fetcher.fetch(group, str(group), manifest(leaders[group].files), Nothing())
            ended[group] = loop.time() - began

        await asyncio.gather(*map(fetch, leaders))
        assert ended[9] == 0.0  # who was away is not held up by others
        assert ended[7] > 80.0 and ended[8] > 80.0
        return tmp_path, loop.time() - began

    assert run(work)[1] == pytest.approx(160.0)
    for group in (7, 8):
        at = [moment for moment, _ in leaders[group].asked]
        assert max(later - earlier for earlier, later in pairwise(at)) <= 30.0


def test_what_is_paused_comes_no_further_until_it_goes_on_and_the_sender_hears_of_it(tmp_path: Path) -> None:
    leader = Asked({"f": b"x" * 4 * CHUNK})

    def pace(_: int) -> float:
        return float("inf") if 0.0 <= asyncio.get_running_loop().time() < 500.0 else 0.0

    took = fetched(tmp_path, leader, pace)[1]
    assert 500.0 <= took <= 510.0
    parts = [moment for moment, size in leader.asked if size]
    assert parts[0] < 1.0 and min(parts[1:]) >= 500.0 and len(parts) == 4
    at = [moment for moment, _ in leader.asked]
    assert max(later - earlier for earlier, later in pairwise(at)) <= 10.0 + 1e-6
