"""The files of a snapshot come several at a time, as long as they are small; nothing is left when one fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import xxhash

from multiraft.harness import FAST
from needle.base.errors import CorruptSnapshot
from needle.multiraft.codec import ChunkRequest, Manifest, encode_manifest
from needle.multiraft.files import Files
from needle.multiraft.ports import SnapshotFile
from needle.multiraft.snapshots.receiver import FILES_AT_ONCE, SnapshotFetcher

CHUNK = 1000


class Nothing:
    """A state machine that has no files."""

    def held_file(self, name: str) -> None: ...
    def similar_file(self, name: str) -> None: ...


class Inline:
    """A pool without threads."""

    async def run(self, fn: Callable[..., Any], /, *args: object) -> Any:
        return fn(*args)

    def call(self, *_: object) -> None: ...


class Leader:
    """Answers each some turns of the loop later. bad: a file that is not there any more."""

    def __init__(self, files: dict[str, bytes], bad: str = "") -> None:
        self.files, self.bad = files, bad
        self.waiting: list[ChunkRequest] = []
        self.most = self.most_bytes = 0

    async def call(self, node: str, method: str, body: Any, timeout: float) -> bytes:
        asked = msgspec.msgpack.decode(body, type=ChunkRequest)
        self.waiting.append(asked)
        self.most = max(self.most, len(self.waiting))
        self.most_bytes = max(self.most_bytes, sum(one.length for one in self.waiting))
        try:
            for _ in range(20):  # turns of the loop, in which all others that may ask do
                await asyncio.sleep(0)
            if asked.name == self.bad:
                raise CorruptSnapshot("it was replaced")
        finally:
            self.waiting.remove(asked)
        return self.files[asked.name][asked.offset : asked.offset + asked.length]


def fetcher(directory: Path, leader: Leader) -> SnapshotFetcher:
    config = replace(FAST, snapshot_chunk_bytes=CHUNK)
    return SnapshotFetcher(str(directory), Files(), Inline(), leader, config, lambda name: None)  # type: ignore[arg-type]


def manifest(files: dict[str, bytes]) -> bytes:
    listed = [SnapshotFile(name, len(data), xxhash.xxh3_128_hexdigest(data)) for name, data in files.items()]
    return encode_manifest(Manifest("s1", tuple(listed)))


@pytest.mark.parametrize(
    ("sizes", "most"),
    [([10] * 30, FILES_AT_ONCE), ([300] * 12, 3), ([CHUNK, 10, 10, CHUNK + 1, 10, 2500, 0, 5], 2), ([], 0)],
)
async def test_small_files_come_together_and_no_more_bytes_than_of_a_large_one(
    tmp_path: Path, sizes: list[int], most: int
) -> None:
    files = {f"f{n}": bytes([n]) * size for n, size in enumerate(sizes)}
    leader = Leader(files)
    staged = Path(await fetcher(tmp_path, leader).fetch(1, "n1", manifest(files), Nothing()))
    assert {name: (staged / name).read_bytes() for name in files} == files
    assert leader.most == most and leader.most_bytes <= CHUNK


async def test_when_one_fails_the_others_end_before_it_is_told(tmp_path: Path) -> None:
    files = {f"f{n}": b"x" * 50 for n in range(8)}
    leader = Leader(files, bad="f2")
    with pytest.raises(CorruptSnapshot):
        await fetcher(tmp_path, leader).fetch(1, "n1", manifest(files), Nothing())
    assert leader.waiting == [] and len(asyncio.all_tasks()) == 1
