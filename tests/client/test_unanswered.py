"""A request that takes long is waited for, once; it is left only for a later leader."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, cast

import pytest

from client.fake_shards import VirtualTime, virtually
from harness.scripted_network import ADDRESSES, VECTOR, Network, client_of, group_of, numbers
from needle.base.errors import (
    AlreadyExists,
    ClientClosed,
    CollectionNotFound,
    ConnectionLost,
    DeadlineExceeded,
    DiskFailed,
    Internal,
    InvalidArgument,
    NeedleError,
    NoQuorum,
    OutcomeUnknown,
    Overloaded,
    ProtocolError,
    StorageError,
    TooStale,
    UnsupportedVersion,
    VersionMismatch,
    WrongCluster,
)
from needle.client import Client
from needle.client import attempts as attempts_of_calls
from needle.client.attempts import Unanswered, WatchedTogether
from needle.local.process_cluster import wait_for
from needle.protocol import calls
from needle.protocol.calls import SearchCall, WriteCall
from needle.protocol.peer_calls import SHARD_LEADER

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy:DeprecationWarning")


@pytest.fixture
def event_loop_policy() -> VirtualTime:
    return VirtualTime()


class SlowNetwork(Network):
    """Nodes in `held` begin what they are asked and answer once `release` is set; those in `paused` say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.held: set[str] = set()
        self.paused: set[str] = set()
        self.release = asyncio.Event()
        self.asked: list[tuple[str, str, float]] = []
        self.search_script: list[NeedleError] = []

    async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
        node = next(name for name, there in ADDRESSES.items() if there == address)
        if method in (calls.SEARCH, calls.WRITE):
            given = (
                calls.decode(body, SearchCall).freshness.timeout
                if method == calls.SEARCH
                else calls.decode(body, WriteCall).timeout
            )
            self.asked.append((node, method, given))
        try:
            async with asyncio.timeout(timeout):
                if node in self.paused:
                    await asyncio.Event().wait()
                if node in self.held and method != SHARD_LEADER:
                    await self.release.wait()
                if method == calls.SEARCH and self.search_script:
                    raise self.search_script.pop(0)
                return await super().call(address, method, body, timeout)
        except TimeoutError:
            raise DeadlineExceeded(f"no answer from {address} in time") from None

    def searched(self) -> list[str]:
        return [node for node, method, _ in self.asked if method == calls.SEARCH]


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts_of_calls, "PATIENCE_SECONDS", 0.05)


@pytest.fixture
def network() -> SlowNetwork:
    return SlowNetwork()


@pytest.fixture
def client(network: SlowNetwork) -> Client:
    return client_of(network)


async def rounds(network: SlowNetwork, count: int) -> None:
    """Until the watch over slow requests has asked the nodes so often."""
    before = len(network.calls)
    await wait_for(lambda: len(network.calls) - before >= 3 * count, 30, "the nodes are asked who leads")


@pytest.mark.parametrize("mode", ["strong", "leased"])
async def test_a_slow_search_is_asked_once_and_has_the_whole_time(
    network: SlowNetwork, client: Client, mode: str
) -> None:
    network.held = set(ADDRESSES)
    search = asyncio.create_task(client.search(VECTOR, 1, mode=mode, timeout=60))
    await wait_for(lambda: network.searched() != [], 30, "the search arrives")
    await rounds(network, 4)
    network.release.set()
    assert await search == []
    assert len(network.searched()) == 1
    assert network.asked[-1][2] > 50, "the deadline travels with the request"


async def test_many_slow_searches_share_one_watch(network: SlowNetwork, client: Client) -> None:
    network.held = {"n1"}
    searches = [asyncio.create_task(client.search(VECTOR, 1, timeout=60)) for _ in range(50)]
    await wait_for(lambda: len(network.searched()) == 50, 30, "the searches arrive")
    network.calls.clear()
    await rounds(network, 4)
    assert len(network.calls) < 50
    network.release.set()
    await asyncio.gather(*searches)
    assert network.searched() == ["n1"] * 50


async def test_a_paused_leader_is_left_for_the_next_one_and_a_write_keeps_its_number(
    network: SlowNetwork, client: Client
) -> None:
    await client.insert("a", VECTOR)
    network.paused = {"n1"}
    write = asyncio.create_task(client.insert("b", VECTOR, timeout=60))
    search = asyncio.create_task(client.search(VECTOR, 1, timeout=60))
    await wait_for(lambda: len(network.asked) == 4, 30, "both wait for n1")
    network.elect("n3")
    await asyncio.wait_for(asyncio.gather(write, search), 30)
    assert numbers(network) == [(100, 1), (100, 2)]
    assert [node for node, _ in network.writes] == ["n1", "n3"]


async def test_who_cancels_a_call_ends_it_also_while_its_request_is_given_up(
    network: SlowNetwork, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both come to the task as one cancellation: the caller's must not be taken for a request that is sent again."""
    await client.insert("a", VECTOR)
    network.paused = {"n1"}
    write = asyncio.create_task(client.insert("b", VECTOR, timeout=60))
    await wait_for(lambda: len(network.asked) == 3, 30, "it waits for n1")
    give_up = attempts_of_calls._Asked.give_up

    def both(asked: attempts_of_calls._Asked) -> None:
        give_up(asked)
        write.cancel()

    monkeypatch.setattr(attempts_of_calls._Asked, "give_up", both)
    network.elect("n3")
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asyncio.shield(write), 30)
    assert write.cancelled() and len(network.asked) == 3


async def test_an_eventual_search_leaves_a_node_that_says_nothing(network: SlowNetwork, client: Client) -> None:
    network.paused = {"n1", "n2"}
    await asyncio.wait_for(client.search_eventual(VECTOR, 1, timeout=60), 30)
    assert network.searched()[-1] == "n3"


async def test_a_search_that_takes_too_long_is_not_called_a_missing_leader(
    network: SlowNetwork, client: Client
) -> None:
    network.held = {"n1"}
    with pytest.raises(DeadlineExceeded, match=r"h:1, which leads .* did not answer within [12](\.\d+)? s"):
        await client.search(VECTOR, 1, timeout=2.0)
    assert network.searched() == ["n1"]


async def test_frozen_nodes_are_not_said_to_answer(network: SlowNetwork, client: Client) -> None:
    await client.insert("a", VECTOR)
    network.paused = {"n1", "n2", "n3"}
    with pytest.raises(OutcomeUnknown, match=r"\(n1 at h:1 leads, as far as known; last error: ") as told:
        await client.insert("b", VECTOR, timeout=0.2)
    assert "nodes answer" not in told.value.message


async def test_too_little_time_says_nothing_of_the_nodes(network: SlowNetwork, client: Client) -> None:
    network.paused = {"n1", "n2", "n3"}
    with pytest.raises(DeadlineExceeded, match=r"within 0\.0\d+ s: no node has said in this time who leads"):
        await client.insert("b", VECTOR, timeout=0.05)


async def test_overload_is_told_by_its_name_when_it_lasts(network: SlowNetwork, client: Client) -> None:
    network.search_script = [Overloaded("4096 searches wait already")] * 2
    await client.search(VECTOR, 1)
    network.search_script = [Overloaded("4096 searches wait already")] * 1000
    with pytest.raises(Overloaded, match="4096"):
        await client.search(VECTOR, 1, timeout=0.3)
    assert len(network.searched()) < 12, "with pauses"


async def test_a_search_for_the_leader_that_takes_all_the_time_sends_no_negative_timeout(
    network: SlowNetwork, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.insert("a", VECTOR)
    directory = group_of(client)._directory
    real = directory.find_leader

    async def late(timeout: float) -> str | None:
        assert timeout > 0
        found = await real(5)
        await asyncio.sleep(timeout + 0.001)  # as on a machine that is busy: the caller is run late
        return found

    monkeypatch.setattr(directory, "find_leader", late)
    network.script = [ConnectionLost("gone")] * 100
    with pytest.raises(OutcomeUnknown):
        await client.insert("b", VECTOR, timeout=0.2)
    directory.leader = None
    with pytest.raises(NeedleError) as told:
        await client.search(VECTOR, 1, timeout=0.01)
    assert not isinstance(told.value, InvalidArgument)
    assert all(given > 0 for _, _, given in network.asked)


ERRORS: list[type[NeedleError]] = [
    InvalidArgument, CollectionNotFound, ProtocolError, UnsupportedVersion, WrongCluster, Internal, StorageError,
    DiskFailed, NoQuorum, Overloaded, DeadlineExceeded, ConnectionLost, ClientClosed,
]  # fmt: skip


@pytest.mark.parametrize("kind", ERRORS)
async def test_after_an_attempt_of_unknown_fate_no_error_says_that_nothing_happened(
    network: SlowNetwork, client: Client, kind: type[NeedleError]
) -> None:
    network.script = [OutcomeUnknown("leader lost"), *[kind("refused")] * 1000]
    with pytest.raises(OutcomeUnknown):
        await client.insert("a", VECTOR, timeout=0.3)


@pytest.mark.parametrize("kind", [VersionMismatch, AlreadyExists])
async def test_what_only_the_log_can_find_is_the_answer_however_often_it_was_sent(
    network: SlowNetwork, client: Client, kind: type[NeedleError]
) -> None:
    network.script = [OutcomeUnknown("leader lost"), kind("as the log says")]
    with pytest.raises(kind):
        await client.compare_and_set("a", 3, VECTOR)


async def test_nodes_that_refuse_us_later_do_not_undo_what_was_sent(network: SlowNetwork, client: Client) -> None:
    await client.insert("a", VECTOR)
    real = network.call

    async def refusing(address: str, method: str, body: bytes, timeout: float) -> bytes:
        if method == SHARD_LEADER:
            raise WrongCluster("theirs, not ours")
        return await real(address, method, body, timeout)

    network.call = refusing  # type: ignore[method-assign]
    network.script = [ConnectionLost("gone")] * 1000
    with pytest.raises(OutcomeUnknown):
        await client.insert("b", VECTOR, timeout=0.5)


async def test_an_answer_that_cannot_be_read_leaves_a_write_unknown(network: SlowNetwork, client: Client) -> None:
    await client.insert("a", VECTOR)
    real = network.call

    async def garbled(address: str, method: str, body: bytes, timeout: float) -> bytes:
        answer = await real(address, method, body, timeout)
        return b"\xff" if method == calls.WRITE else answer

    network.call = garbled  # type: ignore[method-assign]
    with pytest.raises(OutcomeUnknown):
        await client.insert("b", VECTOR, timeout=0.5)


async def test_a_read_that_a_broken_disk_refuses_is_answered_by_another_replica(
    network: SlowNetwork, client: Client
) -> None:
    network.search_script = [DiskFailed("input/output error")]
    await client.search_eventual(VECTOR, 1)
    assert len(set(network.searched())) == 2
    network.search_script = [StorageError("damaged")] * 10_000
    with pytest.raises(DeadlineExceeded, match=r"no replica .*damaged"):
        await client.search_eventual(VECTOR, 1, timeout=0.3)


async def test_replicas_that_are_all_too_old_are_told_by_that_name_and_are_not_taken_for_broken(
    network: SlowNetwork, client: Client
) -> None:
    network.search_script = [TooStale("0.9 s old", applied=4)] * 10_000
    with pytest.raises(TooStale, match=r"fresh enough .*0.9 s old") as told:
        await client.search_eventual(VECTOR, 1, max_staleness=0.5, timeout=0.3)
    assert told.value.details["applied"] == 4
    assert not group_of(client)._directory._suspect


class Hung:
    """What is known of a group whose leader hangs, until another is elected."""

    term, leader = 1, "h:1"

    def __init__(self, elected: bool = False) -> None:
        self.caller, self.elected = self, elected

    async def call(self, *_: object) -> bytes:
        await asyncio.Event().wait()
        return b""

    def addresses(self) -> list[str]:
        return []

    async def await_leader(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if self.elected:
            self.term, self.leader = 2, "h:2"


def test_shards_that_wait_for_one_node_are_given_up_together_when_others_lead_them() -> None:
    async def work(*elected: bool) -> None:
        watches, together = [Unanswered(cast("Any", Hung(one))) for one in elected], WatchedTogether()
        async with asyncio.timeout(30):
            assert await together.call(watches, "h:1", "search_shards", b"", 20) is None
        task = asyncio.current_task()
        assert task is not None and not task.cancelling()
        assert not any(watch._old for watch in watches) and not together._young

    for elected in ((True, True), (False, True)):
        virtually(work(*elected))


class Counted(dict[Any, Any]):
    """Counts what is looked at in it, or copied of it."""

    looked = 0

    def __iter__(self) -> Iterator[Any]:
        for one in super().__iter__():
            Counted.looked += 1
            yield one

    def keys(self) -> Any:
        Counted.looked += len(self)
        return super().keys()

    def items(self) -> Any:
        for one in super().items():
            Counted.looked += 1
            yield one


def steps_of(requests: int, seconds: float) -> int:
    """Lines, and looks at what waits, that so many requests to a node that hangs take in all, of which it is left after
    so many seconds."""
    lines = 0

    def count(frame: Any, event: str, _: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return count if frame.f_code.co_filename == attempts_of_calls.__file__ else None

    async def work() -> None:
        groups = [Hung() for _ in range(4)]
        watches, together = [Unanswered(cast("Any", one)) for one in groups], WatchedTogether()
        together._young = Counted()
        for watch in watches:
            watch._asked, watch._old = Counted(), Counted()
        several = [together.call(watches, "h:1", "search_shards", b"", 60) for _ in range(requests)]
        single = [watches[0].call("h:1", "search", b"", 60) for _ in range(requests)]
        tasks = [asyncio.create_task(one) for one in (*several, *single)]
        await asyncio.sleep(seconds)
        assert not any(one.done() for one in tasks)
        for one in groups:
            one.elected = True
        assert await asyncio.gather(*tasks) == [None] * len(tasks)
        waiting = [one for watch in watches for one in (watch._asked, watch._old)] + [together._young]
        assert {type(one) for one in waiting} == {Counted} and not any(waiting)

    Counted.looked = 0
    sys.settrace(count)
    try:
        virtually(work())
    finally:
        sys.settrace(None)
    return lines + Counted.looked


def test_a_request_to_a_node_that_hangs_costs_so_much_however_many_wait_and_however_long() -> None:
    """Each that turned old copied all that waited, once."""

    def of_each(requests: int, seconds: float) -> float:
        return (steps_of(requests, seconds) - steps_of(1, seconds)) / (requests - 1)

    few, many, longer = of_each(40, 1.0), of_each(400, 1.0), of_each(400, 4.0)
    assert many < 1.1 * few and longer < 1.1 * many, (few, many, longer)


def test_what_turns_old_at_once_is_handed_to_its_groups_in_several_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts_of_calls, "HANDED_MAX", 10)
    handed = list[int]()

    async def work() -> None:
        loop, patience = asyncio.get_running_loop(), attempts_of_calls.PATIENCE_SECONDS
        watches, together = [Unanswered(cast("Any", Hung())) for _ in range(4)], WatchedTogether()
        calls = [together.call(watches, "h:1", "search_shards", b"", 60) for _ in range(9)]
        tasks = [asyncio.create_task(one) for one in calls]
        await asyncio.sleep(0.9 * patience)
        while len(watches[0]._old) < len(tasks):
            assert loop.time() < 3 * patience
            handed.append(len(watches[0]._old))
            await asyncio.sleep(0 if handed[-1] else patience / 100)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert not any(watch._old for watch in watches)

    virtually(work())
    assert handed and all(after - before in (0, 3) for before, after in pairwise(handed))
