"""Directories that nodes of releases before the catalog made, and what the refusal of one says, with that release.

`old_directories/KIND-DAY.tar.xz` are whole data directories of clusters of one node, made by fe6930a (2026-11-23) and
cbb4781a (2026-11-27, the last commit with two kinds of cluster): `default` with 4 dimensions and l2, doc-0 to doc-6
written, doc-6 deleted, the node stopped. Without `reserve`, which the node makes again.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import needle
from needle.base.errors import UnsupportedFormat
from needle.client.client import Client
from needle.local.free_ports import free_ports
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.server.files import claim

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
PAGE = REPOSITORY / "docs" / "data-on-disk.md"
CHAPTER = "Directories of releases before the catalog"
RELEASES = {"2026-11-23": "fe6930a", "2026-11-27": "cbb4781a"}


def unpacked(kind: str, day: str, directory: Path) -> Path:
    with tarfile.open(HERE / "old_directories" / f"{kind}-{day}.tar.xz") as archive:
        archive.extractall(directory, filter="data")
    return directory / f"{kind}-{day}"


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "lock"
    }


@pytest.mark.parametrize("day", RELEASES)
def test_one_of_a_fixed_cluster_is_refused_and_left_as_it_was(tmp_path: Path, day: str) -> None:
    path = unpacked("fixed", day, tmp_path)
    before = contents(path)
    with pytest.raises(UnsupportedFormat, match="fixed cluster") as refused:
        claim(str(path), "node-1", "needle")
    assert contents(path) == before
    page, chapter = re.findall(r"script in (\S+) \((.+?)\)", refused.value.message)[0]
    text = (REPOSITORY / page).read_text()
    assert f"\n## {chapter}\n" in text and "read_out.py" in text.partition(f"\n## {chapter}\n")[2]


def serve(source: Path | None, *arguments: str) -> subprocess.Popen[bytes]:
    """`needle serve`, of another release if it is told where that is."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **({"PYTHONPATH": str(source)} if source else {})}
    return subprocess.Popen(
        [sys.executable, "-m", "needle", "serve", "--node-id", "node-1", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("day", RELEASES)
async def test_one_of_a_sharded_cluster_is_opened_with_all_that_it_had(tmp_path: Path, day: str) -> None:
    path, (port,) = unpacked("sharded", day, tmp_path), free_ports(1)
    node = serve(None, "--listen", f"127.0.0.1:{port}", "--data-dir", str(path))
    try:
        async with await wait_for(lambda: connected(port), 60, "the node") as client:
            rows = {row.id: row async for row in client.scan(with_vectors=True)}
            assert rows.keys() == {f"doc-{n}" for n in range(6)}
            assert rows["doc-3"].vector.tolist() == [3, 1, 2, 3] and rows["doc-3"].metadata == {"n": 3, "lang": "en"}
            assert set((await client.counts()).keys()) == {0, 1}
            await client.insert("doc-6", [6, 1, 2, 3], timeout=30)
            assert await client.count() == 7
    finally:
        node.terminate()
        _, told = node.communicate()
    assert node.returncode == 0, told.decode()


async def connected(port: int) -> Client | None:
    try:
        client = await needle.connect([f"127.0.0.1:{port}"])
        await client.count(timeout=5)
    except needle.NeedleError:
        return None
    return client


def old_release(directory: Path, day: str) -> Path:
    """Where `needle` of that day is; skips the test in a checkout without its commit (a shallow clone)."""
    found = subprocess.run(["git", "archive", RELEASES[day], "src"], cwd=REPOSITORY, capture_output=True, check=False)
    if found.returncode:
        pytest.skip(f"this checkout does not have the commit {RELEASES[day]}")
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
        archive.extractall(directory / "release", filter="data")
    return directory / "release" / "src"


WRITE_MORE = """
import asyncio, sys, needle
async def main():
    client = await needle.connect([sys.argv[1]])
    await client.create_collection("words.of-2", dimensions=3, metric="cosine")
    for n in range(30):
        metadata = {"id": n, "text": "x", "metadata": [None, n / 7]}
        await client.insert(f"w {n} \\u00e9\\n", [n / 3, -1e-7, 1e20], metadata, collection="words.of-2")
    await client.create_collection("empty", dimensions=2, metric="dot")
    await client.insert("none", [1, 2, 3, 4.5])
    await client.close()
asyncio.run(main())
"""


@pytest.mark.parametrize("day", [pytest.param("2026-11-23", marks=pytest.mark.campaign), "2026-11-27"])
async def test_the_documents_of_a_fixed_cluster_come_to_a_new_one_as_the_page_says(tmp_path: Path, day: str) -> None:
    source, path, (port,) = old_release(tmp_path, day), unpacked("fixed", day, tmp_path), free_ports(1)
    chapter = PAGE.read_text().partition(f"\n## {CHAPTER}\n")[2]
    script = tmp_path / "read_out.py"
    script.write_text(re.findall(r"```python\n(.*?)```", chapter, re.DOTALL)[0])
    address, out = f"127.0.0.1:{port}", tmp_path / "out"
    former = {**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}

    async def python(*arguments: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, env=former, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        told, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, told.decode()

    async def commanded(arguments: list[str]) -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        told, _ = await process.communicate()
        assert process.returncode == 0, told.decode()
        return told.decode()

    node = serve(
        source, "--cluster-node", f"node-1={address}", "--data-dir", str(path), "--dimensions", "4", "--metric", "l2"
    )
    try:

        async def written() -> bool:
            return (await python("-c", WRITE_MORE, address))[0] == 0

        await wait_for(written, 90, "the old node")
        status, told = await python(str(script), address, str(out))
        assert status == 0, told
        status, again = await python(str(script), address, str(out))
        assert status and "FileExistsError" in again  # what was read out is not overwritten
    finally:
        node.kill()  # told to stop, one of that release may hang for good (mended by 87599e33)
        node.communicate()
    rows = [json.loads(line) for line in (out / "default.jsonl").read_text().splitlines()]
    assert len(rows) == 7
    (tmp_path / "new").mkdir()
    async with (
        ProcessCluster(tmp_path / "new", 1, dimensions=None, sharding={"shards": 1}) as processes,
        processes.connect() as client,
    ):
        await processes.ready()
        for line in told.splitlines():
            await commanded([*shlex.split(line, comments=True), "--cluster", processes.cluster])
        assert {spec.name for spec in await client.collections()} == {"default", "words.of-2", "empty"}
        assert (await client.count(), await client.count(collection="words.of-2")) == (7, 30)
        found = await client.get("none")
        assert found is not None and found.vector.tolist() == [1, 2, 3, 4.5] and found.metadata is None
        found = await client.get("w 29 \u00e9\n", collection="words.of-2")
        assert found is not None and found.metadata == {"id": 29, "text": "x", "metadata": [None, 29 / 7]}
