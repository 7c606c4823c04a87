"""`needle top` of real nodes: over a pipe, in a terminal of 80 columns, and from Python."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from harness.interrupted import INTERRUPTED
from needle.cli.app import main
from needle.cli.top_command import frame, say_silent
from needle.client.activity import Activity
from needle.client.alerts import holds
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.routing.jobs import RebalanceConfig
from needle.routing.plans import Wish
from needle.routing.stats import HOT_MAX

pytestmark = pytest.mark.asyncio(loop_scope="module")
WIDTH = 80


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(module_path: Path) -> AsyncIterator[ProcessCluster]:
    sharding = {"shards": 2, "replicas": 3}
    async with ProcessCluster(module_path, sharding=sharding) as made:
        yield made


async def test_what_was_called_is_what_is_shown(cluster: ProcessCluster) -> None:
    async with cluster.connect() as client:
        for n in range(50):
            await client.insert(f"d{n}", [n + 1.0] * 8)
        before = await client.activity()
        start = {node: one.at for node, one in before.looked.loads.items()}
        for n in range(40):
            await client.get(f"d{n}")
        now = await client.activity(before)
    took = {node: one.at - start[node] for node, one in now.looked.loads.items()}
    get = next(one for one in now.calls if one.kind == "get")
    assert 40 / max(took.values()) <= get.rate * 1.001 and get.rate <= 40 / min(took.values()) * 1.001
    assert get.p50 is not None and get.p99 is not None and 0 < get.p50 <= get.p99
    assert sum(one.documents for one in now.shards) == 50
    assert {one.leader for one in now.shards} <= set(cluster.nodes)
    assert all(one.cpu is not None and one.resident and one.disk_free for one in now.nodes)
    shares = [one.share for one in now.hot]
    assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1.001 and len(shares) <= HOT_MAX
    # A leader that came meanwhile knows of no calls, and the hottest ranges may be those of one shard.
    stayed = [one.leader for one in before.shards] == [one.leader for one in now.shards]
    assert {one.shard for one in now.hot} == {0, 1} or not stayed or len(shares) == HOT_MAX


async def test_one_frame_over_a_pipe_has_no_signs_of_a_terminal(
    cluster: ProcessCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await asyncio.to_thread(main, ["top", "--once", "--cluster", cluster.cluster]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= WIDTH
    assert "3 of 3 nodes answer, 2 of 2 shards have a leader" in text
    assert re.search(r"^shard +leader +up +documents +behind +lag +writes/s +reads/s$", text, re.MULTILINE)
    assert re.search(r"^0 +node-\d +3/3 ", text, re.MULTILINE) and re.search(r"^get +[\d.]+", text, re.MULTILINE)
    assert re.search(r"^node-3 +\d+ +[\d.]+ +[\d.]+/\d+ +[\d.]+ MiB ", text, re.MULTILINE)


async def test_json_is_one_document(cluster: ProcessCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert await asyncio.to_thread(main, ["top", "--once", "--json", "--cluster", cluster.cluster]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [one["shard"] for one in shown["shards"]] == [0, 1] and "looked" not in shown


def _in_a_terminal(cluster: ProcessCluster) -> tuple[int, str]:
    """Exit code and output of `needle top` in a terminal, after its second frame."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, WIDTH, 0, 0))
    argv = [sys.executable, "-c", INTERRUPTED, "top", "--every", "0.2", "--cluster", cluster.cluster]
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, env=environment)
    os.close(theirs)
    shown, deadline = b"", time.monotonic() + 60
    try:
        while shown.count(b"\x1b[H") < 3 and time.monotonic() < deadline:
            shown += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # the other end is closed when it ends; until then it may wait for a reader
            while time.monotonic() < deadline + 30:
                os.read(ours, 65536)
        return process.wait(30), shown.decode()
    finally:
        process.kill()
        process.wait()
        os.close(ours)


async def test_a_terminal_is_drawn_over_until_it_is_interrupted(cluster: ProcessCluster) -> None:
    code, shown = await asyncio.to_thread(_in_a_terminal, cluster)
    assert code == 130
    frames = [re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", one) for one in shown.split("\x1b[H")[1:3]]
    for one in frames:
        assert "3 of 3 nodes answer" in one
        lines = one.splitlines()
        assert len(lines) <= 23 and max(map(len, lines)) <= WIDTH, "it fits, so nothing scrolls"


async def test_a_move_is_shown_with_its_progress(cluster: ProcessCluster) -> None:
    async with cluster.connect() as client:
        for first in range(0, 3000, 500):
            ids = [f"m{n}" for n in range(first, first + 500)]
            await client.insert_batch(ids=ids, vectors=[[1.0] * 8] * 500)
        slow = RebalanceConfig(max_concurrent_moves=1, batch_size=10, throttle_rate=0.5)
        await client.start_rebalance(slow, wish=Wish(shards=3))
        moving: Activity | None = None

        async def copies() -> Activity | None:
            nonlocal moving
            moving = await client.activity(moving)
            return moving if moving.moves and moving.moves[0].copied and moving.rebalance else None

        seen: Activity = await wait_for(copies, 60, "a move that has copied something")
        lines = "\n".join(frame(seen, WIDTH))
        assert re.search(r"^move \d+: shard \d to 2, \w+, [\d,]+ documents copied$", lines, re.MULTILINE)
        assert re.search(r"^rebalance \d+ is running: \d+ %", lines, re.MULTILINE)
        await client.cancel_rebalance()


async def test_who_is_silent_comes_first(cluster: ProcessCluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.kill("node-3")
    try:
        assert await asyncio.to_thread(main, ["top", "--once", "--cluster", cluster.cluster]) == 0
        text = capsys.readouterr().out
        assert "CRITICAL node unreachable: node-3" in text
        assert re.search(r"^node +leads.*\nnode-3 +silent$", text, re.MULTILINE)
    finally:
        cluster.restart("node-3")
        await cluster.ready()


async def test_that_nobody_answers_is_no_document(capsys: pytest.CaptureFixture[str]) -> None:
    """A line of text stood among the JSON documents."""
    say_silent("no answer: x", json=True, live=False)
    shown = capsys.readouterr()
    assert (shown.out, shown.err.strip()) == ("", "no answer: x")
    say_silent("no answer: x", json=False, live=False)
    assert capsys.readouterr().out.strip() == "no answer: x"


async def test_what_others_say_cannot_steer_the_terminal(cluster: ProcessCluster) -> None:
    async with cluster.connect() as client:
        now = await client.activity()
    bad = holds("NeedleDiskFull", "\x1b[2J\x07node\nnode-9", "x")
    lines = frame(msgspec.structs.replace(now, conditions=[bad] * 20), 60)
    assert not any(sign in line for line in lines for sign in "\x1b\x07\n")
    assert "and 12 more: needle status" in lines and max(map(len, lines)) <= 60
