"""The real clock, threads, data directory, address book and HTTP of a node."""

import asyncio
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from needle.base.errors import ConfigError, InvalidArgument, StorageError, Unavailable, UnsupportedFormat
from needle.local.process_cluster import wait_for
from needle.server.address_book import AddressBook
from needle.server.files import claim, load_addresses, save_addresses
from needle.system import SystemClock, ThreadPool, usable_cores


async def test_a_pool_runs_in_its_threads_and_raises_what_they_raise() -> None:
    pool = ThreadPool("test", 2)
    assert await pool.run(lambda: threading.current_thread().name) in ("needle-test-0", "needle-test-1")
    with pytest.raises(KeyError):
        await pool.run({}.__getitem__, "x")
    with pytest.raises(RuntimeError, match="StopIteration"):
        await pool.run(next, iter(()))
    assert await asyncio.gather(*(pool.run(pow, n, 2) for n in range(100))) == [n * n for n in range(100)]
    pool.close()
    pool.close()
    with pytest.raises(Unavailable):
        await pool.run(print)


async def test_a_cancelled_caller_does_not_stop_the_pool() -> None:
    pool = ThreadPool("test")
    gate = threading.Event()
    waiting = asyncio.create_task(pool.run(gate.wait))
    await asyncio.sleep(0)
    waiting.cancel()
    gate.set()
    assert await pool.run(lambda: 7) == 7
    pool.close()


async def test_a_quick_call_is_made_at_once_while_calls_are_quick() -> None:
    pool, answers = ThreadPool("test"), []

    async def threads_used(count: int) -> list[str]:
        asked = len(answers)
        for n in range(count):
            pool.call(lambda result, error: answers.append((result, error)), _where, quick=True)
            await wait_for(lambda n=n: len(answers) > asked + n, 30, "an answer")
        return [result for result, _ in answers[asked:]]

    first = await threads_used(40)
    assert first[0] == "needle-test-0", "nothing is known yet about how quick they are"
    assert first[-1] == threading.current_thread().name
    gate = threading.Event()
    pool.call(lambda *_: None, gate.wait)
    pool.call(lambda result, error: answers.append((result, error)), _where, quick=True)
    assert len(answers) == 40, "calls take effect in order: it waits for the one that runs"
    gate.set()
    await wait_for(lambda: len(answers) == 41, 30, "the answer")
    pool.call(lambda *_: None, threading.Event().wait, 0.05, quick=True)
    assert set(await threads_used(5)) == {"needle-test-0"}, "after a slow one"
    pool.close()


async def test_a_quick_call_hands_on_what_it_raises() -> None:
    pool, errors = ThreadPool("test"), []
    for _ in range(40):
        count = len(errors)
        pool.call(lambda _, error: errors.append(error), {}.__getitem__, "x", quick=True)
        await wait_for(lambda count=count: len(errors) > count, 30, "the error")
    assert {type(error) for error in errors} == {KeyError}
    pool.close()


def _where() -> str:
    return threading.current_thread().name


HEAPS = """
import ctypes, re, sys, threading
from needle.system import share_one_heap
share_one_heap()
libc = ctypes.CDLL(None)
if not hasattr(libc, "malloc_info"):  # not glibc: there are no arenas
    sys.exit(print(1))
libc.fopen.restype = ctypes.c_void_p
gate = threading.Barrier(5)
def work():
    held = [bytes(100_000) for _ in range(10)]
    gate.wait()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
gate.wait()
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
print(len(re.findall("<heap nr", open(sys.argv[1]).read())))
"""


def test_the_threads_of_a_node_share_one_heap_unless_the_environment_says_otherwise(tmp_path: Path) -> None:
    def heaps(**more: str) -> int:
        env = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
        command = [sys.executable, "-c", HEAPS, str(tmp_path / "heaps.xml")]
        return int(subprocess.run(command, env={**env, **more}, check=True, capture_output=True, text=True).stdout)

    assert heaps() == 1
    if platform.libc_ver()[0] == "glibc":
        assert heaps(MALLOC_ARENA_MAX="4") > 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are given to processes on Linux only")
def test_a_process_that_is_kept_to_some_cores_counts_these() -> None:
    all_of_them = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(all_of_them)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, all_of_them)
    assert usable_cores() == len(all_of_them)


async def test_a_pool_that_is_closed_while_its_thread_repeats_waits_for_one_call_only() -> None:
    pool, looked = ThreadPool("watch"), asyncio.Event()
    loop = asyncio.get_running_loop()
    watching = asyncio.ensure_future(pool.repeat(0.001, lambda: loop.call_soon_threadsafe(looked.set)))
    await looked.wait()
    try:
        async with asyncio.timeout(30):
            await asyncio.to_thread(pool.close)
            await watching
    finally:
        watching.cancel()


async def test_a_thread_that_repeats_ends_with_whoever_waits_for_it_and_tells_what_failed() -> None:
    pool, called, loop = ThreadPool("watch"), asyncio.Event(), asyncio.get_running_loop()
    threads = set[str]()

    def look() -> None:
        threads.add(threading.current_thread().name)
        loop.call_soon_threadsafe(called.set)

    watching = asyncio.ensure_future(pool.repeat(0.001, look))
    for _ in range(3):
        called.clear()
        async with asyncio.timeout(30):
            await called.wait()
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching

    def fails() -> None:
        raise StorageError("the disk is gone")

    with pytest.raises(StorageError, match="gone"):  # the same thread is free again
        await pool.repeat(0.001, fails)
    await asyncio.to_thread(pool.close)
    assert threads == {"needle-watch-0"}
    with pytest.raises(Unavailable):
        await pool.repeat(0.001, look)


def test_the_clock_never_goes_back() -> None:
    clock = SystemClock()
    times = [clock.monotonic() for _ in range(1000)]
    assert times == sorted(times)
    assert clock.wall() > 1.6e9


def test_a_directory_belongs_to_one_process_and_one_node(tmp_path: Path) -> None:
    path = str(tmp_path / "data")
    release = claim(path, "a", "c")
    with pytest.raises(StorageError, match="in use by process"):
        claim(path, "a", "c")
    release()
    for node, cluster, field in (("b", "c", "node_id"), ("a", "d", "cluster_id")):
        with pytest.raises(UnsupportedFormat, match=field):
            claim(path, node, cluster)
    claim(path, "a", "c")()


@pytest.mark.parametrize(
    ("kind", "file", "opens"),
    [
        (b',"kind":"fixed"', None, False),
        (b',"kind":"sharded"', None, True),
        (b"", None, False),
        (b"", b'{"incarnation":7,"uid":0}', False),
        (b"", b'{"incarnation":7,"uid":9}', True),
    ],
)
def test_a_directory_of_a_cluster_without_a_catalog_is_refused_with_what_to_do(
    tmp_path: Path, kind: bytes, file: bytes | None, opens: bool
) -> None:
    """As earlier releases wrote it; the oldest did not say which kind of cluster it is."""
    (tmp_path / "shards" / "0").mkdir(parents=True)
    (tmp_path / "node.json").write_bytes(b'{"node_id":"a","cluster_id":"c","format_version":1' + kind + b"}")
    if file is not None:
        (tmp_path / "cluster.json").write_bytes(file)
    if opens:
        claim(str(tmp_path), "a", "c")()
        assert b'"kind":"sharded"' in (tmp_path / "node.json").read_bytes()
        return
    before = (tmp_path / "node.json").read_bytes()
    with pytest.raises(UnsupportedFormat, match="read the documents out with the script"):
        claim(str(tmp_path), "a", "c")
    assert (tmp_path / "node.json").read_bytes() == before


def test_configured_addresses_win_and_learned_ones_are_kept(tmp_path: Path) -> None:
    path = str(tmp_path)
    changes = []
    book = AddressBook({"a": "h:1"}, load_addresses(path), lambda new: save_addresses(path, new))
    book.changed = lambda: changes.append(book.all())
    assert book.learn({"a": "other:9", "b": "h:2"})
    assert not book.learn({"b": "h:2"})
    assert book.all() == {"a": "h:1", "b": "h:2"}
    assert changes == [{"a": "h:1", "b": "h:2"}]
    again = AddressBook({"a": "h:1"}, load_addresses(path), lambda new: None)
    assert again.get("b") == "h:2"
    with pytest.raises(ConfigError, match="address of c"):
        book.learn({"c": "nowhere"})


def test_a_file_is_no_data_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in ("file", "file/below"):
        with pytest.raises(InvalidArgument, match="data_dir"):
            claim(str(tmp_path / path), "a", "c")
    assert (tmp_path / "file").read_text() == "x"
