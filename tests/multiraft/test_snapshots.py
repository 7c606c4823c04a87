"""Snapshots between hosts: catching up, lost chunks, corrupt bytes, restarts in the middle."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import threading
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.told import told
from multiraft.harness import FAST, Cluster, DictMachine, Disk, Node, until
from needle.base.errors import CorruptSnapshot, DiskFull, InvalidArgument, NeedleError, ProtocolError, Unavailable
from needle.base.runtime import Pool
from needle.multiraft import group
from needle.multiraft.codec import ChunkRequest, Manifest, decode_manifest, encode_file_request, encode_manifest
from needle.multiraft.files import Files
from needle.multiraft.group_snapshots import SnapshotTraffic
from needle.multiraft.ports import Applied, SnapshotFile
from needle.multiraft.snapshots.sender import Exported, SnapshotShelf
from needle.raft.messages import ConfState, Message, MessageType, SnapshotMeta
from raft.solo import Solo

CONF = ConfState(voters=("a", "b", "c"))
TINY = replace(FAST, election_timeout=0.6, snapshot_threshold=8, snapshot_chunk_bytes=64)


async def _left_behind(cluster: Cluster) -> tuple[Node, dict[str, int]]:
    """A follower that is down, and the state it has missed; the others have compacted what it lacks."""
    await cluster.put("before", 1)
    await cluster.converged()
    leader = await cluster.leader()
    away = next(n for n in cluster.running() if n is not leader)
    await away.down()
    for number in range(40):
        await cluster.put(f"k{number}", number)
    while not all(n.host.status(0).first_index > 20 for n in cluster.running()):
        await cluster.put("k39", 39)
    return away, {"before": 1, **{f"k{number}": number for number in range(40)}}


def _scribble(node: Node) -> None:
    """Damage the snapshot that is staged on a node."""
    folder = next(name for name in os.listdir(f"{node.directory}/snapshots") if name.startswith("in-"))
    with open(f"{node.directory}/snapshots/{folder}/state.json", "r+b") as file:
        file.write(b"XX")


async def test_a_follower_behind_the_log_catches_up_by_snapshot(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "needle")
    async with Cluster(str(tmp_path), config=TINY) as cluster:
        away, state = await _left_behind(cluster)
        await away.start()
        assert await cluster.converged() == state
        assert away.host.engine.fetcher.bytes_fetched > 100
        await cluster.put("after", 1)
        assert (await cluster.converged())["after"] == 1
        await until(lambda: not any(name.startswith("in-") for name in os.listdir(f"{away.directory}/snapshots")))
        await away.restart()
        assert (await cluster.converged())["after"] == 1
    made, sent, installed = (told(caplog, f"snapshot_{what}") for what in ("made", "sent", "installed"))
    assert made and sent and len(installed) == 1 and {one["to"] for one in sent} == {away.name}
    assert installed[0]["index"] in {one["index"] for one in sent} and installed[0]["seconds"] >= 0


async def test_lost_chunks_are_asked_for_again_and_not_fetched_twice(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=TINY) as cluster:
        away, state = await _left_behind(cluster)
        calls = 0

        def every_second(_: str, to: str) -> bool:
            nonlocal calls
            calls += 1
            return calls % 2 == 0

        cluster.network.drop_call = every_second
        await away.start()
        assert await cluster.converged() == state
        exported = (await cluster.leader()).host.engine.shelf.current(0)
        assert exported is not None
        assert away.host.engine.fetcher.bytes_fetched == sum(file.size for file in exported.files.values())
        assert calls > 10


async def test_a_restarted_receiver_resumes(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=TINY) as cluster:
        away, state = await _left_behind(cluster)
        await away.start()
        away.crash_at("snapshot.after_chunk", 5)
        await until(lambda: away.crashed)
        await away.down()
        await away.start()
        assert await cluster.converged() == state
        exported = (await cluster.leader()).host.engine.shelf.current(0)
        assert exported is not None
        whole = sum(file.size for file in exported.files.values())
        assert away.host.engine.fetcher.bytes_fetched == whole - 5 * 64


async def test_a_corrupt_file_is_never_installed(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=TINY) as cluster:
        away, state = await _left_behind(cluster)
        await away.start()
        away.crash_at("snapshot.after_chunk", 5)
        await until(lambda: away.crashed)
        await away.down()
        _scribble(away)
        await away.start()
        assert await cluster.converged() == state


async def test_a_snapshot_that_is_gone_is_replaced_by_another(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=TINY) as cluster:
        away, state = await _left_behind(cluster)
        leader = await cluster.leader()
        dropped = False

        def drop_once(_: str, to: str) -> bool:
            nonlocal dropped
            if not dropped:
                dropped = True
                leader.host.engine.shelf._shelf.clear()
            return False

        cluster.network.drop_call = drop_once
        await away.start()
        assert await cluster.converged() == state
        assert leader.reached.count("snapshot.after_export") == 2


CONSTANT = bytes(range(256)) * 20


async def test_a_file_that_the_state_machine_has_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Cluster(str(tmp_path), config=TINY) as cluster:
        for node in cluster.running():
            node.machines[0].constant = CONSTANT
        away, state = await _left_behind(cluster)
        (tmp_path / "mine").write_bytes(CONSTANT)
        mine = str(tmp_path / "mine")
        monkeypatch.setattr(DictMachine, "held_file", lambda self, name: mine if name == "constant" else None)
        await away.start()
        assert await cluster.converged() == state
        assert away.host.engine.fetcher.bytes_reused == len(CONSTANT)
        assert 0 < away.host.engine.fetcher.bytes_fetched < len(CONSTANT)


async def test_a_file_of_another_content_is_not_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Cluster(str(tmp_path), config=TINY) as cluster:
        for node in cluster.running():
            node.machines[0].constant = CONSTANT
        away, state = await _left_behind(cluster)
        (tmp_path / "mine").write_bytes(CONSTANT[:-1] + b"?")
        mine = str(tmp_path / "mine")
        monkeypatch.setattr(DictMachine, "held_file", lambda self, name: mine if name == "constant" else None)
        await away.start()
        assert await cluster.converged() == state
        assert away.host.engine.fetcher.bytes_reused == 0
        assert away.host.engine.fetcher.bytes_fetched > len(CONSTANT)


async def test_a_file_of_the_state_machine_is_never_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was taken over into what is staged, and is damaged when the receiver resumes: it is fetched again, and what
    the state machine uses, or has mapped, is neither cut nor changed."""
    async with Cluster(str(tmp_path), config=TINY) as cluster:
        for node in cluster.running():
            node.machines[0].constant = CONSTANT
        away, state = await _left_behind(cluster)
        mine = tmp_path / "mine"
        mine.write_bytes(CONSTANT)
        monkeypatch.setattr(DictMachine, "held_file", lambda self, name: str(mine) if name == "constant" else None)
        damaged = CONSTANT[:-1] + b"?"
        inner = Files.link

        def link(files: Files, source: str, target: str) -> None:
            inner(files, source, target)
            if target.endswith("constant"):
                mine.write_bytes(damaged)

        monkeypatch.setattr(Files, "link", link)
        await away.start()
        assert await cluster.converged() == state
        assert mine.read_bytes() == damaged


async def test_what_was_fetched_of_a_snapshot_that_is_gone_is_not_fetched_again(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=TINY) as cluster:
        for node in cluster.running():
            node.machines[0].constant = CONSTANT
        away, state = await _left_behind(cluster)
        leader = await cluster.leader()
        calls = 0

        def gone_after_the_first_file(_: str, to: str) -> bool:
            nonlocal calls
            calls += 1
            if calls == len(CONSTANT) // TINY.snapshot_chunk_bytes + 3:
                leader.host.engine.shelf._shelf.clear()
            return False

        cluster.network.drop_call = gone_after_the_first_file
        await away.start()
        assert await cluster.converged() == state
        assert leader.reached.count("snapshot.after_export") == 2
        assert away.host.engine.fetcher.bytes_reused == len(CONSTANT)
        assert away.host.engine.fetcher.bytes_fetched < 2 * len(CONSTANT)


@pytest.mark.parametrize(
    "name",
    [
        "snapshot.after_stage",
        "snapshot.after_pending",
        "snapshot.after_install",
        "snapshot.after_reset",
        "snapshot.after_chunk",
    ],
)
async def test_a_crash_in_any_step_of_an_install_is_finished_or_abandoned(tmp_path: Path, name: str) -> None:
    async with Cluster(str(tmp_path), config=TINY) as cluster:
        away, state = await _left_behind(cluster)
        await away.start()
        away.crash_at(name)
        await until(lambda: away.crashed)
        await away.down()
        await away.start()
        assert away.host.engine.groups[0].log.pending is None
        assert away.host.engine.find(0).may_vote
        if name in ("snapshot.after_pending", "snapshot.after_install", "snapshot.after_reset"):
            assert away.machines[0].applied_index() > 20
        assert await cluster.converged() == state


async def test_a_pending_install_whose_files_are_damaged_is_abandoned(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=TINY) as cluster:
        away, state = await _left_behind(cluster)
        await away.start()
        away.crash_at("snapshot.after_pending")
        await until(lambda: away.crashed)
        await away.down()
        _scribble(away)
        before = away.disks[0].saved["index"]
        cluster.network.isolate(away.name)
        await away.start()
        assert away.machines[0].applied_index() == before
        cluster.network.heal()
        assert await cluster.converged() == state


async def test_the_log_is_compacted_only_below_what_is_durable(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=TINY) as cluster:
        for node in cluster.nodes.values():
            node.machines[0].lazy = True
        for number in range(30):
            await cluster.put(f"k{number}", number)
        for node in cluster.running():
            await until(lambda node=node: node.host.status(0).first_index > 3)
            assert node.host.status(0).first_index <= node.disks[0].saved["index"] + 1
            status = node.host.status(0)
            assert status.last_applied - status.first_index >= TINY.snapshot_threshold // 4 - 1


async def test_a_checkpoint_that_lags_holds_compaction_back(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), nodes=1, config=TINY) as cluster:
        node = cluster.nodes["n1"]
        await cluster.leader()
        machine = node.machines[0]
        machine.lazy = True
        machine.checkpoint = lambda: 5  # type: ignore[method-assign]
        for number in range(30):
            await cluster.put(f"k{number}", number)
        await until(lambda: node.reached.count("compact.after_checkpoint") > 2)
        assert node.host.status(0).first_index == 6


async def test_an_exported_snapshot_that_nobody_fetches_is_removed(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=replace(TINY, snapshot_keep=0.2)) as cluster:
        away, state = await _left_behind(cluster)
        leader = await cluster.leader()
        await away.start()
        assert await cluster.converged() == state
        assert "snapshot.after_export" in leader.reached
        await until(lambda: leader.host.engine.shelf.current(0) is None)
        await until(lambda: not any(name.startswith("out-") for name in os.listdir(f"{leader.directory}/snapshots")))


def test_files_the_core_waits_for_are_not_replaced_by_a_newer_offer() -> None:
    spawned: list[str] = []
    raft = SimpleNamespace(applied=3, commit=9, term=1, refuses=lambda _: "")
    group = SimpleNamespace(id=0, raft=raft, log=SimpleNamespace(pending=None))

    def spawn(work: Coroutine[object, object, None]) -> object:
        spawned.append(work.__name__)
        work.close()
        return SimpleNamespace(done=lambda: True)

    traffic = SnapshotTraffic(group, SimpleNamespace(spawn=spawn), SimpleNamespace(fetching=False))  # type: ignore[arg-type]
    traffic._staged_index = 9
    offer = Message(MessageType.SNAPSHOT, to="n1", frm="n2", term=1, snapshot=SnapshotMeta(20, 1, ConfState(), b"x"))
    traffic.offered(offer, False)
    assert spawned == []
    raft.applied = 9
    traffic.offered(offer, False)
    assert spawned == ["_fetch_offer"]


async def test_what_the_core_had_no_use_for_is_not_waited_for() -> None:
    """When it is here, the log of a damaged replica holds all of it: the core takes the commit index, and no snapshot
    will be installed. The replica, which applies nothing, has to fetch its data in another way."""
    solo = Solo(1, 1, 1, term=1, commit=1)

    async def fetch(*_: object) -> str:
        return "staged"

    async def run(*_: object) -> None:
        return

    group = SimpleNamespace(
        id=1,
        raft=solo.raft,
        log=SimpleNamespace(pending=None),
        machine=SimpleNamespace(check_snapshot=None),
    )
    host = SimpleNamespace(
        spawn=lambda work: asyncio.get_running_loop().create_task(work),
        fetcher=SimpleNamespace(fetch=fetch),
        apply_pool=SimpleNamespace(run=run),
        clock=SimpleNamespace(monotonic=lambda: 0.0),
        counters=SimpleNamespace(snapshots_fetched=0),
        stopped=False,
        wake=lambda _: None,
    )
    traffic = SnapshotTraffic(group, host, SimpleNamespace(fetching=False))  # type: ignore[arg-type]
    offers = [
        Message(MessageType.SNAPSHOT, to="a", frm="b", term=1, snapshot=SnapshotMeta(index, 1, CONF, b"x"))
        for index in (2, 9)
    ]
    traffic.offered(offers[0], False)
    fetching = traffic._fetch
    assert fetching is not None and traffic.fetching
    await fetching
    assert (solo.raft.applied, solo.raft.commit) == (0, 2)
    assert not traffic.fetching
    traffic.offered(offers[1], False)
    assert traffic._fetch is not fetching, "the next offer is fetched"


def test_a_manifest_cannot_name_files_elsewhere() -> None:
    for name in ("../x", "/etc/passwd", "a/../../b", "a//b", "", "a\\b"):
        with pytest.raises(ProtocolError, match="outside"):
            decode_manifest(encode_manifest(Manifest("s", (SnapshotFile(name, 1, ""),))))
    for snapshot in ("..", "a/b"):
        with pytest.raises(ProtocolError):
            decode_manifest(encode_manifest(Manifest(snapshot, ())))
    good = Manifest("1-ab", (SnapshotFile("segments/a.faiss", 1, "00"),))
    assert decode_manifest(encode_manifest(good)) == good


async def test_chunks_are_served_only_from_finished_snapshots(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), nodes=1) as cluster:
        host = cluster.nodes["n1"].host
        with pytest.raises(Unavailable, match="not here any more"):
            await host.engine.on_call(
                "n2", "raft.snapshot_chunk", encode_file_request(ChunkRequest(0, "x", "../log/data.mdb", 0, 9))
            )
        with pytest.raises(InvalidArgument):
            await host.engine.on_call("n2", "raft.other", b"")
        with pytest.raises(ProtocolError):
            await host.engine.on_call("n2", "raft.snapshot_chunk", b"\x01")
        with pytest.raises(ProtocolError):
            host.engine.on_raft("n2", b"\x93")
    assert CorruptSnapshot.code == "corrupt_snapshot"


async def test_a_snapshot_that_finds_no_room_is_installed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Cluster(str(tmp_path), config=TINY) as cluster:
        away, state = await _left_behind(cluster)
        inner, tries = DictMachine.install_snapshot, 0

        def install(machine: DictMachine, directory: str) -> None:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise DiskFull("no room")
            inner(machine, directory)

        monkeypatch.setattr(DictMachine, "install_snapshot", install)
        await away.start()
        assert await cluster.converged() == state
        assert tries == 3 and not away.fatal


async def test_what_finds_no_room_is_applied_later_and_the_node_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Cluster(str(tmp_path)) as cluster:
        await cluster.put("a", 1)
        inner, failed = DictMachine.apply, set()

        def apply(machine: DictMachine, entries: list[Applied]) -> list[object]:
            if machine not in failed:
                failed.add(machine)
                raise DiskFull("no room")
            return inner(machine, entries)

        monkeypatch.setattr(DictMachine, "apply", apply)
        await cluster.put("b", 2)
        assert await cluster.converged() == {"a": 1, "b": 2}
        assert len(failed) == 3 and not any(node.fatal for node in cluster.nodes.values())


async def test_what_waits_for_room_is_logged_once_in_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each attempt was a line, of each group: fifty a second."""
    monkeypatch.setattr(group, "NO_ROOM_SECONDS", 0.0)
    async with Cluster(str(tmp_path), nodes=1) as cluster:
        await cluster.put("a", 1)
        inner, tries = DictMachine.apply, 0

        def apply(machine: DictMachine, entries: list[Applied]) -> list[object]:
            nonlocal tries
            tries += 1
            if tries < 20:
                raise DiskFull("no room")
            return inner(machine, entries)

        monkeypatch.setattr(DictMachine, "apply", apply)
        await cluster.put("b", 2)
    assert tries >= 20
    assert len([one for one in caplog.records if "waits to be applied" in one.getMessage()]) == 1


async def test_what_is_applied_in_part_is_answered_and_the_rest_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Cluster(str(tmp_path)) as cluster:
        await cluster.put("a", 1)
        inner, calls, open_ = DictMachine.apply, 0, threading.Event()

        def apply(machine: DictMachine, entries: list[Applied]) -> list[object]:
            nonlocal calls
            if any(b"late" in entry.data for entry in entries) and not open_.is_set():
                calls += 1
                early = [entry for entry in entries if b"late" not in entry.data]
                if not early:
                    raise DiskFull("no room")
                return inner(machine, early)
            return inner(machine, entries)

        monkeypatch.setattr(DictMachine, "apply", apply)
        host = (await cluster.leader()).host
        data = [json.dumps([key, 1]).encode() for key in ("early", "late")]
        early, late = (asyncio.ensure_future(host.propose(0, one, 5.0)) for one in data)
        await early
        assert calls and not late.done()
        open_.set()
        await late
        assert await cluster.converged() == {"a": 1, "early": 1, "late": 1}
        assert not any(node.fatal for node in cluster.nodes.values())


async def test_a_group_that_waits_for_room_can_be_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Cluster(str(tmp_path), nodes=1) as cluster:
        await cluster.put("a", 1)
        node, asked = await cluster.leader(), threading.Event()

        def apply(*_: object) -> list[object]:
            asked.set()
            raise DiskFull("no room")

        monkeypatch.setattr(DictMachine, "apply", apply)
        write = asyncio.ensure_future(node.host.propose(0, json.dumps(["b", 1]).encode(), 5.0))
        await until(asked.is_set)
        async with asyncio.timeout(10):
            await node.host.engine.close_group(0)
        with pytest.raises(NeedleError):
            await write
        assert not node.fatal


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
async def test_after_a_failed_sync_what_was_fetched_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    async with Cluster(str(tmp_path), config=TINY) as cluster:
        away, state = await _left_behind(cluster)
        inner, left = Files._sync, 2

        def sync(path: str) -> None:
            nonlocal left
            if "/in-" in path and path.endswith(".json") and left:
                left -= 1
                raise OSError(number, os.strerror(number))
            inner(path)

        monkeypatch.setattr(Files, "_sync", staticmethod(sync))
        await away.start()
        assert await cluster.converged() == state
        exported = (await cluster.leader()).host.engine.shelf.current(0)
        assert exported is not None
        assert away.host.engine.fetcher.bytes_fetched == 3 * sum(file.size for file in exported.files.values())


async def test_an_export_that_finds_no_room_leaves_nothing_behind(tmp_path: Path) -> None:
    class Now(Pool):
        async def run(self, fn, /, *args):  # type: ignore[no-untyped-def]
            return fn(*args)

    class Full(DictMachine):
        def export_snapshot(self, directory: str) -> tuple[int, int, bytes, list[SnapshotFile]]:
            Path(directory, "half").write_bytes(b"x")
            raise DiskFull("no room")

    shelf = SnapshotShelf(str(tmp_path), Files(), Now(), random.Random(1), 1, 64, lambda _: None)
    for _ in range(3):
        with pytest.raises(DiskFull):
            await shelf.export(0, Full(Disk()), asyncio.Lock(), 0.0)
    assert os.listdir(tmp_path) == []


def test_a_snapshot_knows_how_much_of_it_each_peer_has_read() -> None:
    files = [SnapshotFile("a", 100, ""), SnapshotFile("b", 300, "")]
    made = Exported("1-0", "", SnapshotMeta(1, 1, ConfState(), b""), files, 0.0)
    assert made.shares() == {}
    made.note("node-4", "a", 100)
    made.note("node-4", "b", 100)
    made.note("node-4", "b", 50)  # asked for again
    made.note("node-5", "b", 1 << 20)  # the last block is not whole
    assert made.shares() == {"node-4": 0.5, "node-5": 0.75}
