"""The blocking client in forked processes and many threads: every call ends, on sockets of its own process."""

from __future__ import annotations

import asyncio
import faulthandler
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import needle
from harness.scripted_network import Network, client_of
from needle.base.errors import ClientClosed, NeedleError, OutcomeUnknown
from needle.client import Client, SyncClient, loop_thread
from needle.client.sync import sync_client
from needle.distributed import RaftCluster, RaftConfig
from needle.local.free_ports import free_ports

QUERY = [1.0, 0.0]


def in_a_child(work: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What `work` returns in a forked process."""
    faulthandler.register(signal.SIGUSR1, all_threads=True, chain=True)
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe(False)
    child = context.Process(target=lambda: theirs.send(work()))
    child.start()
    theirs.close()
    try:
        if not mine.poll(seconds):
            assert child.pid is not None
            os.kill(child.pid, signal.SIGUSR1)
            child.join(5)
            raise AssertionError("the child says nothing; its stacks are on standard error")
        return mine.recv()
    finally:
        child.kill()
        child.join()


async def test_a_client_that_was_open_before_a_fork_works_on_both_sides(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    config = RaftConfig(
        node_id="node-1", cluster_nodes=[f"node-1={address}"], data_dir=str(tmp_path / "node-1"), dimensions=2
    )

    def blocking() -> None:
        with needle.connect_sync(address) as client:
            client.insert("parent", QUERY)

            def child() -> list[Any]:
                client.insert("child", QUERY)
                grandchild = in_a_child(lambda: client.get("child").id)  # type: ignore[union-attr]
                found = [hit.id for hit in client.search(QUERY, 5)]
                client.close()
                try:
                    client.get("child")
                except ClientClosed:
                    return [*found, grandchild, "closed"]
                return []

            assert in_a_child(child) == ["child", "parent", "child", "closed"]
            client.insert("later", QUERY)
            assert client.count() == 3
            # Forked while other threads are within calls, holding whatever they hold.
            stop = threading.Event()

            def work() -> int:
                done = 0
                while not stop.is_set():
                    client.search(QUERY, 1)
                    done += 1
                return done

            with ThreadPoolExecutor(4) as pool:
                running = [pool.submit(work) for _ in range(4)]
                try:
                    counts = [in_a_child(client.count) for _ in range(5)]
                finally:
                    stop.set()
                assert counts == [3] * 5
                assert all(each.result(60) for each in running)
        assert in_a_child(lambda: closed(client)) == "client_closed"

    async with RaftCluster(config) as node:
        await node.wait_ready()
        await asyncio.to_thread(blocking)


def closed(client: SyncClient) -> str:
    try:
        client.count()
    except NeedleError as error:
        return error.code
    return ""


class _Silent(Network):
    """Nodes that are connected and never answer, until the client is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.over = asyncio.Event()

    async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
        self.begun.set()
        await self.over.wait()
        raise ClientClosed("this client is closed")

    async def close(self) -> None:
        self.over.set()


def silent_client() -> tuple[SyncClient, _Silent]:
    network = _Silent()

    async def make() -> Client:
        return client_of(network)

    return sync_client(make), network


def test_closing_ends_the_calls_of_other_threads() -> None:
    client, network = silent_client()
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(client.search, QUERY, 1, timeout=600) for _ in range(3)]
        assert network.begun.wait(30)
        client.close()
        for call in calls:
            with pytest.raises((ClientClosed, OutcomeUnknown)):
                call.result(30)
    client.close()


def test_a_call_whose_thread_is_gone_or_stuck_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_thread, "LOOK_SECONDS", 0.01)
    client, _ = silent_client()
    held = threading.Event()
    thread = client._here()[1]
    thread.loop.call_soon_threadsafe(held.wait, 30)
    with pytest.raises(OutcomeUnknown, match="has not turned"):
        client.search(QUERY, 1, timeout=600)
    held.set()
    monkeypatch.setattr(thread, "_thread", threading.Thread())  # one that does not run
    with pytest.raises(OutcomeUnknown, match="thread has ended"):
        client.search(QUERY, 1, timeout=600)


def test_a_time_out_of_what_the_caller_hands_in_ends_the_call() -> None:
    client, _ = silent_client()

    def rows() -> Any:
        yield "a", QUERY
        raise TimeoutError("the source of the documents does not answer")

    ended: list[BaseException] = []

    def call() -> None:
        try:
            client.insert_batch(rows())
        except TimeoutError as error:
            ended.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(30)
    assert ended and "does not answer" in str(ended[0])
    client.close()
