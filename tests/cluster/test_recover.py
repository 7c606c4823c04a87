"""A majority is lost for good: what one node has becomes a cluster of its own, by the commands of the page
docs/operations.md; it can be killed at each step; and the former nodes can do it no harm should they come back."""

from __future__ import annotations

import asyncio
import io
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import needle
from harness.calm import CALM
from multiraft.wal_util import open_wal
from needle.base.errors import InvalidArgument, NeedleError, StorageError, UnsupportedFormat
from needle.base.ids import CATALOG_GROUP, shard_group
from needle.catalog.state import execute
from needle.cli.app import main
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.multiraft.log.group_log import LogWrite
from needle.protocol.catalog_commands import RegisterNode
from needle.protocol.commands import encode
from needle.protocol.upkeep_commands import LoadRows
from needle.raft.messages import Entry, EntryKind
from needle.routing.topology import NodeInfo
from needle.server.adapters import ReplicaMachine
from needle.server.files import claim
from needle.server.recovery.directory import StoppedNode
from needle.server.recovery.plan import Plan, plan_of
from needle.server.recovery.recover import STEPS, begin, carry_out, load_plan, survey

pytestmark = pytest.mark.campaign

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
CHAPTER = "When a majority is lost for good"
DOCUMENTS = 200
DRAWS = [11, 22, 33, 44]


class Killed(Exception):
    """As by kill -9: nothing of what comes after is done."""


def blocks() -> list[str]:
    chapters = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    return re.findall(r"^ *```sh\n(.*?)^ *```", chapters[CHAPTER], re.MULTILINE | re.DOTALL)


async def command(*words: str) -> int:
    """The exit code of a command of the CLI, which has a loop of its own."""
    return await asyncio.to_thread(main, list(words))


async def until_done(*words: str, seconds: float = 60) -> None:
    """While a cluster has just started, commands are refused."""

    async def done() -> bool:
        return await command(*words) == 0

    await wait_for(done, seconds, " ".join(words))


class Book:
    """The page's world: node-1's directory is /var/lib/needle there, its address 10.0.0.1:5000."""

    def __init__(self, cluster: ProcessCluster, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cluster, self.monkeypatch = cluster, monkeypatch

    async def block(self, text: str) -> None:
        for line in filter(None, map(str.strip, text.splitlines())):
            here = line.replace("/var/lib/needle", str(self.cluster.nodes["node-1"].data_dir))
            words = shlex.split(here.replace("10.0.0.1:5000", self.cluster.addresses["node-1"]))
            if words[0] == "export":
                self.monkeypatch.setenv(*words[1].split("=", 1))
            elif words[0] == "cp":
                shutil.copytree(*words[2:])
            elif words[:3] == ["needle", "serve", "--config"]:
                self.cluster.restart(words[3].removesuffix(".toml"))
            elif words[1:] == ["status"]:
                await until_done("status")
            else:
                self.monkeypatch.setattr("sys.stdin", io.StringIO("node-1\n"))
                assert words[0] == "needle"
                await until_done(*words[1:], seconds=60 if words[1] == "node" else 0)


async def _write(cluster: ProcessCluster) -> None:
    rows = np.random.default_rng(1).standard_normal((DOCUMENTS, 8)).astype(np.float32)
    async with cluster.connect() as client:
        await client.insert_batch(
            ids=[f"d{n}" for n in range(DOCUMENTS)], vectors=rows, metadatas=[{"n": n} for n in range(DOCUMENTS)]
        )
        await client.set_alias("current", "default")


async def test_a_majority_is_lost_and_one_directory_becomes_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {**CALM, "sharding": {"shards": 2}}
    async with ProcessCluster(tmp_path, **settings) as cluster:
        await _write(cluster)
        directory, pages = cluster.nodes["node-1"].data_dir, blocks()
        assert await command("recover", str(directory), "--yes") == 1  # it runs
        assert "in use by process" in capfd.readouterr().err
        cluster.kill("node-1")
        assert await command("recover", str(directory), "--yes") == 1
        told = capfd.readouterr()
        assert "node node-2 runs" in told.err and "nothing is recovered" in told.err
        assert "shard 1: entries up to" in told.out
        cluster.kill("node-2", "node-3")
        kept = tmp_path / "kept"
        for name in ("node-1", "node-2", "node-3"):  # of which the operator knows nothing
            shutil.copytree(cluster.nodes[name].data_dir, kept / name)
        for name in ("node-2", "node-3"):
            shutil.rmtree(cluster.nodes[name].data_dir)
        _killed_at_each_step(kept / "node-1", tmp_path / "steps")
        monkeypatch.setattr("sys.stdin", io.StringIO("node-2\n"))
        assert await command("recover", str(directory)) == 1
        assert "was not typed: nothing was changed" in capfd.readouterr().err

        book = Book(cluster, monkeypatch)
        for block in pages[:2]:
            await book.block(block)
        one = cluster.nodes["node-1"]
        one.settings |= {"cluster_id": "shop-2", "cluster_nodes": [f"node-1={one.address}"]}
        for name in ("node-4", "node-5"):
            while name not in cluster.nodes:
                cluster.add(sharding={"join": [one.address]}, cluster_id="shop-2")
        capfd.readouterr()
        await book.block(pages[2])
        assert "recovered from node-1 alone" in capfd.readouterr().out
        assert "recovered from node-1 alone" in one.output()
        await book.block(pages[3])
        async with needle.connect([one.address], cluster_id="shop-2") as client:
            assert await client.count() == DOCUMENTS
            found = await client.search(np.ones(8, np.float32), DOCUMENTS + 1, collection="current", exact=True)
            assert {hit.id for hit in found} == {f"d{n}" for n in range(DOCUMENTS)}

            async def healthy() -> bool:
                health = await client.health_check()
                return health.healthy and all(one.total_followers == 2 for one in health.shards.values())

            await wait_for(healthy, 60)
            await _the_former_nodes_come_back(cluster, kept, client)
        cluster.kill(*(name for name, node in cluster.nodes.items() if node.running()))
        await _part_of_it_is_left(cluster, kept / "node-1", capfd)


async def _the_former_nodes_come_back(cluster: ProcessCluster, kept: Path, client: needle.Client) -> None:
    """As a majority of what they were: they go on as that, and harm nobody."""
    for name in ("node-2", "node-3"):
        shutil.copytree(kept / name, cluster.nodes[name].data_dir)
        cluster.restart(name)
    old = [cluster.addresses["node-2"], cluster.addresses["node-3"]]
    await cluster.ready("node-2", "node-3")
    async with needle.connect(old) as former:
        await wait_for(lambda: _writes(former, "there"), 60)
        await client.insert("here", [1.0] * 8)
        assert await former.count() == await client.count() == DOCUMENTS + 1
        assert not await former.get("here") and not await client.get("there")
    with pytest.raises(NeedleError) as refused:
        async with needle.connect(old, cluster_id="shop-2"):
            pass
    assert refused.value.code == "wrong_cluster"
    for name in ("node-1", "node-4", "node-5"):
        text = cluster.nodes[name].output()
        assert "does not go on" not in text and "is refused" not in text
    cluster.kill("node-2", "node-3")


def _forget(directory: Path, group: int) -> None:
    """The log has nothing of it, as that of a node which never held it."""
    store, start = open_wal(str(directory / "log")), b"g" + group.to_bytes(4, "big")
    store.commit(lambda txn: txn.delete_range(start, start + b"\xff"), True)
    store.close()


def _left_behind(directory: Path) -> list[str]:
    return [path.name for path in directory.glob("left-behind-*/*")]


async def _part_of_it_is_left(cluster: ProcessCluster, directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The survivor holds one of two shards, and not the catalog."""
    shutil.rmtree(directory / "catalog")
    _forget(directory, CATALOG_GROUP)
    _forget(directory, shard_group(1))
    assert await command("recover", str(directory), "--cluster-id", "shop-3", "--yes") == 1
    told = capfd.readouterr()
    assert "has nothing of shards 1" in told.err
    assert "the catalog: no replica is here" in told.out and "shard 1: no replica is here" in told.out
    assert await command("recover", str(directory), "--cluster-id", "shop-3", "--yes", "--begin-empty") == 0
    assert "shards 1 began empty" in capfd.readouterr().err
    assert _left_behind(directory) == ["1"]  # nothing is deleted
    one = cluster.nodes["node-1"]
    one.settings |= {"cluster_id": "shop-3", "data_dir": str(directory)}
    cluster.restart("node-1")
    await cluster.ready("node-1")
    async with needle.connect([one.address], cluster_id="shop-3") as client:
        left = await client.count()
        assert 0 < left < DOCUMENTS
        await client.insert_batch(ids=[f"new{n}" for n in range(50)], vectors=np.ones((50, 8), np.float32))
        assert await client.count(collection="current") == left + 50
        assert {info.shard for info in client.topology().serving} == {0, 1}


async def _writes(client: needle.Client, id_: str) -> bool:
    await client.insert(id_, [1.0] * 8)
    return True


def _killed_at_each_step(source: Path, work: Path) -> None:
    """Whatever was done when it died: nothing starts there, another run goes on, and comes to the same."""
    outcomes = list[Any]()
    for step in STEPS:
        directory = str(work / step)
        shutil.copytree(source, directory)
        found = survey(directory)
        plan = plan_of(found, "", 1_700_000_000_000_000, DRAWS)
        begin(directory, plan)
        with _killed_at(step) as failpoint:
            carry_out(directory, plan, failpoint)
        again = load_plan(directory)
        assert (again is None) == (step == "done")
        if again is not None:
            assert again == plan
            for cluster_id in (plan.former, plan.cluster_id):
                with pytest.raises((StorageError, UnsupportedFormat)):
                    claim(directory, "node-1", cluster_id)()
            carry_out(directory, again)
        with pytest.raises(UnsupportedFormat):
            claim(directory, "node-1", plan.former)()
        claim(directory, "node-1", plan.cluster_id)()
        outcomes.append(_outcome(directory, plan))
        shutil.rmtree(directory)
    assert len(outcomes) == len(STEPS) and all(one == outcomes[0] for one in outcomes)


@contextmanager
def _killed_at(step: str) -> Iterator[Any]:
    reached: list[str] = []

    def failpoint(name: str) -> None:
        if name == step:
            reached.append(name)
            raise Killed

    with pytest.raises(Killed):
        yield failpoint
    assert reached == [step]


def _outcome(directory: str, plan: Plan) -> tuple[Any, ...]:
    with StoppedNode(directory, "node-1") as node:
        assert node.cluster_id == plan.cluster_id
        found = node.survey()
        for one in found.found:
            at = plan.groups[one.group]
            assert (one.commit, one.last, one.term, one.voters) == (at.index, at.index, at.term, ("node-1",))
        digests = [node.machine(one.group).replica.stored_digest() for one in found.found if one.group != CATALOG_GROUP]
        now = found.topology
        _, refused = execute(now, now.version + 1, RegisterNode(NodeInfo(id="node-2", address="a:1", incarnation=7)))
        assert isinstance(refused, InvalidArgument)  # also with an empty directory
        with pytest.raises(InvalidArgument, match="needs nobody else"):
            found.check()
        return (now, tuple(digests), tuple(found.found))


def test_a_recovery_that_was_begun_goes_on_into_its_own_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another name was ignored in silence."""
    claim(str(tmp_path), "node-1", "needle")()
    (tmp_path / "log").mkdir(exist_ok=True)
    ids = {"uid": 2, "founding": 3, "incarnation": 4, "nonce": 5}
    plan = Plan(at=1, node="node-1", former="needle", cluster_id="shop-2", groups={}, **ids)
    begin(str(tmp_path), plan)
    for more in (["--yes"], ["--dry-run"]):
        assert main(["recover", str(tmp_path), "--cluster-id", "shop-3", *more]) == 1
        assert "cluster_id = 'shop-3' is not allowed: 'shop-2' is, or none" in capsys.readouterr().err
    for more in ([], ["--cluster-id", "shop-2"]):
        assert main(["recover", str(tmp_path), *more, "--dry-run"]) == 0
        assert "into the cluster shop-2" in capsys.readouterr().out


def test_the_directory_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log").mkdir()
    for given in (tmp_path, tmp_path / "log", tmp_path / "nothing"):
        assert main(["recover", str(given), "--yes"]) == 1
        assert "the data directory of a node" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["log"]


async def test_a_bulk_load_whose_files_are_gone_is_given_up_and_told(tmp_path: Path) -> None:
    """They were on the nodes that are lost, and no node will bring them: all else is recovered."""
    async with ProcessCluster(tmp_path, 1, **CALM) as cluster:
        await _write(cluster)
        async with cluster.connect() as client:
            await client.create_collection("loaded", dimensions=8)
            assert await client.count(collection="loaded") == 0
        cluster.kill("node-1")
        directory = str(cluster.nodes["node-1"].data_dir)
        with StoppedNode(directory, "node-1") as node:
            node.apply_all(shard_group(0))
            log = node._logs.group(shard_group(0))
            last, machine = log.last_index(), node.machine(shard_group(0))
            assert isinstance(machine, ReplicaMachine)
            records = [one.record for one in machine.replica.view.collections.values()]
            id_ = next(one.id for one in records if one.spec.name.startswith("loaded"))
            datas = [encode(LoadRows(id_, 10, 1000, "0" * 32, 0)), b""]
            entries = [Entry(last + 1 + at, log.term(last), EntryKind.NORMAL, data) for at, data in enumerate(datas)]
            node._logs.write([write := LogWrite(log=log, entries=entries)])
            node._logs.note([write])
        with StoppedNode(directory, "node-1") as node:
            (told,) = (one.in_words() for one in node.survey().found if one.group == shard_group(0))
            assert f"the documents of the bulk load of entry {last + 1} are lost: its files are not here" in told
        begin(directory, plan := plan_of(survey(directory), "shop-4", 1, DRAWS))
        carry_out(directory, plan)
        one = cluster.nodes["node-1"]
        one.settings |= {"cluster_id": "shop-4"}
        cluster.restart("node-1")
        await cluster.ready("node-1")
        async with needle.connect([one.address], cluster_id="shop-4") as client:
            assert (await client.count(), await client.count(collection="loaded")) == (DOCUMENTS, 0)
