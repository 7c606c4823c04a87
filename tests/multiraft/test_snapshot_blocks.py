"""Of a file of which a receiver has parts only the other blocks travel, and what was not compared is not believed."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from multiraft.harness import FAST, Cluster, Node, ThreadPool, until
from needle.base.errors import CorruptSnapshot, InvalidArgument, NeedleError, StorageError
from needle.base.ids import NodeId
from needle.multiraft.blocks import BLOCK_BYTES, HASH_BYTES, hashes_of
from needle.multiraft.codec import BlocksRequest, HashesRequest, encode_file_request
from needle.multiraft.files import Files
from needle.multiraft.ports import SnapshotFile
from needle.multiraft.snapshots import receiver as receiver
from needle.multiraft.snapshots.snapshot_blocks import SharedFile, find_donors

QUICK = replace(FAST, election_timeout=0.6, snapshot_threshold=8, snapshot_chunk_bytes=4 * BLOCK_BYTES)
BLOCKS = [random.Random(number).randbytes(BLOCK_BYTES) for number in range(48)]
WHOLE = b"".join(BLOCKS)
TABLE = len(BLOCKS) * HASH_BYTES
STATE = 2000
"""More than what the state of the harness' machine takes."""


async def behind(cluster: Cluster) -> tuple[Node, dict[str, int]]:
    """A follower that is down, and the state it has missed."""
    for node in cluster.running():
        node.machines[0].constant = WHOLE
    await cluster.put("before", 1)
    await cluster.converged()
    leader = await cluster.leader()
    away = next(node for node in cluster.running() if node is not leader)
    await away.down()
    for number in range(40):
        await cluster.put(f"k{number}", number)
    while not all(node.host.status(0).first_index > 20 for node in cluster.running()):
        await cluster.put("k39", 39)
    return away, {"before": 1, **{f"k{number}": number for number in range(40)}}


@pytest.fixture
def similar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of which every state machine says that it is like the one in snapshots."""
    path = tmp_path / "similar"
    monkeypatch.setattr(
        "multiraft.harness.DictMachine.similar_file", lambda _, name: str(path) if name == "constant" else None
    )
    return path


def put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


async def caught_up(cluster: Cluster, away: Node, state: dict[str, int]) -> int:
    """Bytes that the node has fetched to get there."""
    await away.start()
    assert await cluster.converged() == state
    # The state machine has it a moment before the node goes on.
    await until(lambda: "snapshot.after_install" in away.reached)
    fetched: int = away.host.engine.fetcher.bytes_fetched
    return fetched


async def test_blocks_that_stand_elsewhere_in_a_file_do_not_travel(tmp_path: Path, similar: Path) -> None:
    async with Cluster(str(tmp_path), config=QUICK) as cluster:
        changed = [b"new" * 1000, *BLOCKS[:20], bytes(BLOCK_BYTES), *BLOCKS[22:]]
        put(similar, b"".join(block.ljust(BLOCK_BYTES, b"-") for block in changed))
        away, state = await behind(cluster)
        fetched = await caught_up(cluster, away, state)
        assert 2 * BLOCK_BYTES + TABLE < fetched < 2 * BLOCK_BYTES + TABLE + STATE
        assert away.host.engine.fetcher.bytes_reused == len(WHOLE) - 2 * BLOCK_BYTES


async def test_a_file_that_changes_while_it_is_copied_from_is_not_believed(
    tmp_path: Path, similar: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a database does that is written to. The blocks that are not what they were are fetched, and no others."""
    async with Cluster(str(tmp_path), config=QUICK) as cluster:
        put(similar, WHOLE)
        away, state = await behind(cluster)
        inner = Files.read_blocks

        def read_blocks(files: Files, path: str, blocks: list[int]) -> list[bytes]:
            if path == str(similar):
                put(similar, b"!" * BLOCK_BYTES * 3 + WHOLE[3 * BLOCK_BYTES : -7])
            return inner(files, path, blocks)

        monkeypatch.setattr(Files, "read_blocks", read_blocks)
        fetched = await caught_up(cluster, away, state)
        assert 4 * BLOCK_BYTES + TABLE < fetched < 4 * BLOCK_BYTES + TABLE + STATE
        assert "fails its checksum" not in caplog.text


async def test_a_file_that_goes_away_is_done_without(
    tmp_path: Path, similar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Cluster(str(tmp_path), config=QUICK) as cluster:
        put(similar, WHOLE)
        away, state = await behind(cluster)
        inner = Files.read_blocks

        def read_blocks(files: Files, path: str, blocks: list[int]) -> list[bytes]:
            similar.unlink(missing_ok=True)
            return inner(files, path, blocks)

        monkeypatch.setattr(Files, "read_blocks", read_blocks)
        assert await caught_up(cluster, away, state) > len(WHOLE)


async def test_what_was_fetched_of_an_older_snapshot_is_copied(tmp_path: Path, similar: Path) -> None:
    """The state machine has nothing of it, the transfer broke off in the middle, and that snapshot is gone."""
    async with Cluster(str(tmp_path), config=QUICK) as cluster:
        put(similar, b"")
        away, state = await behind(cluster)
        leader = await cluster.leader()
        calls = 0

        def gone_in_the_middle(_: str, to: str) -> bool:
            nonlocal calls
            calls += 1
            if calls == 7:
                leader.host.engine.shelf._shelf.clear()
                for node in cluster.running():
                    node.machines[0].constant = BLOCKS[40] + WHOLE
            return False

        cluster.network.drop_call = gone_in_the_middle
        fetched = await caught_up(cluster, away, state)
        assert away.host.engine.fetcher.bytes_reused >= 6 * 4 * BLOCK_BYTES
        assert fetched < len(WHOLE) + 2 * BLOCK_BYTES + 2 * TABLE + STATE


@pytest.mark.parametrize("lie", ["short", "long", "hashes", "blocks"])
async def test_a_sender_that_lies_gets_nothing_installed(
    tmp_path: Path, similar: Path, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    """Answers of a wrong length are refused; what fails the file's checksum is fetched again without the hashes."""
    async with Cluster(str(tmp_path), config=QUICK) as cluster:
        put(similar, WHOLE[: 30 * BLOCK_BYTES])
        away, state = await behind(cluster)
        leader = await cluster.leader()
        shelf, lies = leader.host.engine.shelf, 0
        hashes, blocks = shelf.hashes, shelf.blocks

        async def lying_hashes(request: HashesRequest, now: float) -> bytes:
            nonlocal lies
            lies += 1
            found: bytes = await hashes(request, now)
            if lie == "blocks" or (lies > 2 and lie != "hashes"):
                return found
            return {"short": found[:-1], "long": found * 1000}.get(lie, found[HASH_BYTES:] + found[:HASH_BYTES])

        async def lying_blocks(request: BlocksRequest, now: float, peer: NodeId) -> bytes:
            found: bytes = await blocks(request, now, peer)
            return found if lie != "blocks" else bytes(len(found))

        monkeypatch.setattr(shelf, "hashes", lying_hashes)
        monkeypatch.setattr(shelf, "blocks", lying_blocks)
        await caught_up(cluster, away, state)
        assert lies > 0
        assert not away.fatal


async def test_only_blocks_that_a_file_has_are_served(tmp_path: Path, similar: Path) -> None:
    async with Cluster(str(tmp_path), config=QUICK) as cluster:
        away, _ = await behind(cluster)
        leader = await cluster.leader()
        await away.start()
        await cluster.converged()
        exported = leader.host.engine.shelf.current(0)
        assert exported is not None

        async def ask(method: str, *rest: object) -> bytes:
            body = encode_file_request((0, exported.snapshot, "constant", *rest))  # type: ignore[arg-type]
            answer: bytes = await leader.host.engine.on_call(away.name, method, body)
            return answer

        assert await ask(receiver.BLOCKS_METHOD, [47, 0]) == BLOCKS[47] + BLOCKS[0]
        for wrong in ([48], [-1], [1 << 62, 0], [0] * 5):
            with pytest.raises(InvalidArgument):
                await ask(receiver.BLOCKS_METHOD, wrong)
        assert await ask(receiver.HASHES_METHOD, 40, 1 << 40) == hashes_of(WHOLE)[40 * HASH_BYTES :]
        for first, count in ((48, 1), (1 << 62, 1), (0, 0), (0, -1)):
            assert await ask(receiver.HASHES_METHOD, first, count) == b""
        with pytest.raises(NeedleError):
            await ask(receiver.BLOCKS_METHOD, "x")


FEW = st.lists(st.sampled_from([bytes([number]) * BLOCK_BYTES for number in range(6)]), max_size=40)


@settings(max_examples=60, deadline=None)
@given(blocks=FEW, tail=st.binary(max_size=9), first=FEW, second=FEW, most=st.integers(1, 5), ahead=st.integers(0, 3))
def test_whatever_donors_have_the_file_is_the_senders(
    tmp_path_factory: pytest.TempPathFactory,
    blocks: list[bytes], tail: bytes, first: list[bytes], second: list[bytes], most: int, ahead: int,
) -> None:  # fmt: skip
    """And no block travels that a donor has."""
    directory = tmp_path_factory.mktemp("blocks")
    content = b"".join(blocks) + tail
    paths = [str(directory / "first"), str(directory / "second"), str(directory / "none")]
    Path(paths[0]).write_bytes(b"".join(first))
    Path(paths[1]).write_bytes(b"".join(second) + tail)
    files, pool = Files(), ThreadPool()
    source = directory / "source"
    source.write_bytes(content)
    asked: list[int] = []

    async def hashes(start: int, count: int) -> bytes:
        return files.block_hashes(str(source), start, count)

    async def ask(numbers: list[int]) -> bytes:
        assert len(numbers) <= most
        asked.extend(numbers)
        return b"".join(files.read_blocks(str(source), numbers))

    async def fetch() -> bytes:
        donors = await find_donors(paths, files, pool)
        file = SnapshotFile("f", len(content), xxhash.xxh3_128_hexdigest(content))
        shared = SharedFile(file, donors, pool, hashes, ask, most)
        got = content[: min(ahead, len(blocks)) * BLOCK_BYTES]
        while len(got) < len(content):
            got += await shared.piece(len(got) // BLOCK_BYTES)
        return got

    try:
        assert asyncio.run(fetch()) == content
    finally:
        pool.close()
    here = {*first, *second, tail}
    assert not [number for number in asked if content[number * BLOCK_BYTES :][:BLOCK_BYTES] in here]


async def test_answers_of_a_wrong_length_are_refused() -> None:
    pool = ThreadPool()
    file = SnapshotFile("f", 3 * BLOCK_BYTES, "")

    async def hashes(_: int, count: int) -> bytes:
        return bytes(HASH_BYTES * count)

    async def none(_: int, count: int) -> bytes:
        return b""

    async def blocks(numbers: list[int]) -> bytes:
        return bytes(len(numbers) * BLOCK_BYTES - 1)

    for table, answer in ((none, blocks), (hashes, blocks)):
        with pytest.raises(CorruptSnapshot):
            await SharedFile(file, [], pool, table, answer, 9).piece(0)
    pool.close()


async def test_a_donor_that_cannot_be_read_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "donor").write_bytes(WHOLE)

    def refuse(*_: object) -> bytes:
        raise StorageError("no")

    pool = ThreadPool()
    monkeypatch.setattr(Files, "block_hashes", refuse)
    assert await find_donors([str(tmp_path / "donor")], Files(), pool) == []
    pool.close()
