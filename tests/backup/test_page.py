"""The commands of docs/backup.md, as they are written there, one after the other, against real nodes."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import needle
from harness.calm import CALM
from harness.commands import until
from needle import backup as backups
from needle.base.instants import micros, rfc3339
from needle.cli.app import main
from needle.local.process_cluster import ProcessCluster

PAGE = Path(__file__).resolve().parents[2] / "docs" / "backup.md"
TARGET = "/backups/shop"
NODE = {"sharding": {"shards": 1, "replicas": 1}, **CALM}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


class Page:
    """Runs lines of the page with a target of this machine."""

    def __init__(self, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.target, self._capsys = target, capsys

    def ready(self) -> bool:
        """Whether the cluster serves."""
        return main(["status"]) == 0

    def line(self, text: str, expect: int = 0) -> str:
        words = shlex.split(text.replace(TARGET, str(self.target)))
        assert words[0] == "needle"
        self._capsys.readouterr()
        code = main(words[1:])
        captured = self._capsys.readouterr()
        assert code == expect, f"{text}: {code} {captured.out}{captured.err}"
        return captured.out + captured.err


def started(directory: Path, monkeypatch: pytest.MonkeyPatch) -> ProcessCluster:
    """A cluster of one node, which commands find."""
    directory.mkdir()
    cluster = ProcessCluster(directory, 1, as_user=True, **NODE)
    cluster.start_nodes()
    monkeypatch.setenv("NEEDLE_CLUSTER", cluster.cluster)
    return cluster


def filled(page: Page, directory: Path) -> list[Any]:
    until(page.ready)
    rows = [{"id": f"d{n}", "vector": [n, 1, 2, 3, 4, 5, 6, 7], "metadata": {"n": n}} for n in range(200)]
    (directory / "documents.jsonl").write_text("\n".join(map(json.dumps, rows)))
    page.line(f"needle insert {directory / 'documents.jsonl'} --timeout 60")
    return documents(page)


def archived_until(page: Page) -> int:
    found = json.loads(page.line("needle backup list /backups/shop --json"))["archives"]
    return (micros(found[0]["until"]) or 0) if found else 0


def documents(page: Page, collection: str = "default") -> list[Any]:
    found = json.loads(page.line(f"needle scan -c {collection} --limit 1000 --with-vectors --json"))["documents"]
    return [{key: value for key, value in one.items() if key != "version"} for one in found]


def test_the_page_from_the_first_backup_to_the_restore(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Page(tmp_path / "target", capsys)
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert [line.split()[1:3] for line in lines if "backup" in line.split()[1]] == [
        ["backup", verb]
        for verb in ("create", "create", "archive", "list", "list", "verify", "prune", "prune", "prune", "list")
    ]
    one, by_index, indexes_of, archive, at = lines.pop(), lines.pop(), lines.pop(), lines.pop(2), lines.pop()
    former = "needle backup prune /backups/shop --drop-archive 23e1021dc477cf26"
    lines.remove(former)
    assert at == "needle restore /backups/shop --at 2026-11-26T14:03:06Z"
    first = started(tmp_path / "first", monkeypatch)
    until(page.ready)
    archiving = subprocess.Popen(
        [sys.executable, "-m", *archive.replace(TARGET, str(page.target)).split(), "--every", "1"],
        stderr=subprocess.PIPE,
    )
    try:
        until(lambda: archived_until(page) > 0, seconds=60)
        before = filled(page, tmp_path)
        time.sleep(0.01)  # the instant is of this process's clock
        instant = int(time.time() * 1e6)
        second_before = rfc3339(instant)
        page.line("needle delete d5 d7")
        page.line("needle backup list /backups/shop --newer-than 26", expect=1)
        page.line(f"needle insert {tmp_path / 'documents.jsonl'} --timeout 60")
        said = [page.line(line) for line in lines[:-1]]
        assert "'23e1021dc477cf26' is not allowed: one of the clusters that are archived" in page.line(former, expect=1)
        until(lambda: archived_until(page) > instant)
        archiving.send_signal(signal.SIGTERM)
        assert b"is at the target" in archiving.communicate(timeout=60)[1] and archiving.returncode == 0
    finally:
        archiving.kill()
        first.stop()
    third = started(tmp_path / "third", monkeypatch)
    try:
        until(page.ready)
        said_of_it = page.line(at.replace("2026-11-26T14:03:06Z", second_before) + " --timeout 60")
        assert "200 documents" in said_of_it and documents(page) == before
        line = one.replace("2026-11-26T14:03:06Z", second_before).replace("--collection shop", "-c default")
        assert "collection default, as shop-before, of what there was at" in page.line(f"{line} --timeout 60")
        assert documents(page, "shop-before") == before == documents(page)
        assert "collection shop-before already: give another name" in page.line(line, expect=1)
        # The two of the page are of a cluster of two shards; this one has one.
        assert "one index for each of the shards [0]" in page.line(by_index, expect=1)
        shown = page.line(indexes_of.replace("2026-11-26T14:03:06Z", second_before)).strip()
        assert re.fullmatch(r"--index 0:\d+", shown)
        for name in ("default", "shop-before"):
            page.line(f"needle collections drop {name} --yes")
        assert "200 documents" in page.line(f"needle restore /backups/shop {shown} --timeout 60")
        assert documents(page) == before
    finally:
        third.stop()
    assert "200 documents" in said[0] and "0.0 MB written" in said[1] and "no problems" in said[4]
    assert "0 backups deleted" in said[5] and "0 backups deleted" in said[6]
    second = started(tmp_path / "second", monkeypatch)
    try:
        until(page.ready)
        assert lines[-1] == "needle restore /backups/shop"
        assert "200 documents" in page.line(f"{lines[-1]} --timeout 60")
        assert documents(page) == before
        assert "restore into a new cluster" in page.line(lines[-1], expect=1)
    finally:
        second.stop()
    piece = next(path for path in (tmp_path / "target" / "pieces").rglob("*") if path.is_file())
    piece.write_bytes(piece.read_bytes()[:-1])
    assert f"{piece.name} is damaged" in page.line("needle backup verify /backups/shop", expect=1)
    listed = json.loads(page.line("needle backup list /backups/shop --json"))
    assert [one["documents"] for one in listed["backups"]] == [200, 200]
    assert json.loads(page.line("needle backup prune /backups/shop --keep 1 --json"))["deleted"] == [
        listed["backups"][0]["id"]
    ]


async def test_the_python_of_the_page(tmp_path: Path) -> None:
    mistake, code, instant = blocks("python")
    async with (
        ProcessCluster(fresh(tmp_path / "first"), 1, **NODE) as first,
        ProcessCluster(fresh(tmp_path / "second"), 1, **NODE) as second,
        first.connect() as client,
        second.connect() as other_client,
    ):
        await client.insert("a", [1.0, *[0.0] * 7])
        body = indented(code.replace(TARGET, str(tmp_path / "target")))
        names: dict[str, Any] = {}
        exec(f"async def example(client, other_client):\n{body}", names)
        await names["example"](client, other_client)
        found = await other_client.get("a")
        assert isinstance(found, needle.Document) and found.vector.tolist() == [1.0, *[0.0] * 7]
        for spec in await other_client.collections():
            await other_client.drop_collection(spec.name)
        body = indented(instant.replace(TARGET, str(tmp_path / "target")))
        exec(f"async def example(other_client):\n{body}    return restored", names)
        assert (await names["example"](other_client)).documents == 1
        again = await other_client.get("a")
        assert again is not None and again.vector.tolist() == found.vector.tolist()
        copy = await other_client.get("a", collection="default-before")
        assert copy is not None and copy.vector.tolist() == found.vector.tolist()
        for name in ("shop", "shop-before"):
            await client.create_collection(name, dimensions=2, metric="l2")
        await client.insert("the-id", [1.0, 2.0], {"n": 1}, collection="shop-before")
        exec(f"async def example(client):\n{indented(mistake)}", names)
        await names["example"](client)
        again = await client.get("the-id", collection="shop")
        assert again is not None and again.metadata == {"n": 1}
        assert len(backups.list_backups(backups.open_store(str(tmp_path / "target")))) == 1


def indented(code: str) -> str:
    return "".join(f"    {line}\n" for line in code.splitlines())


def fresh(path: Path) -> Path:
    path.mkdir()
    return path
