"""The client's decisions against a scripted network: what is repeated, with which number, and which error is told."""

import asyncio

import pytest

from client.fake_shards import VirtualTime, virtually
from harness.scripted_network import ADDRESSES, VECTOR, Network, client_of, group_of, numbers
from needle.base.errors import (
    AlreadyExists,
    ConditionFailed,
    ConnectionLost,
    DeadlineExceeded,
    DiskFull,
    NeedleError,
    NoQuorum,
    NotLeader,
    OutcomeUnknown,
    OutOfMemory,
    Overloaded,
    SessionExpired,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    WrongCluster,
)
from needle.base.model import ReadMode
from needle.client import Client
from needle.client import attempts as attempts_of_calls
from needle.client.finding import find_cluster
from needle.local.process_cluster import wait_for
from needle.protocol import calls
from needle.protocol.peer_calls import SHARD_LEADER

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy:DeprecationWarning")


@pytest.fixture
def event_loop_policy() -> VirtualTime:
    return VirtualTime()


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def client(network: Network) -> Client:
    return client_of(network)


async def test_a_lost_answer_is_asked_for_again_under_the_same_number(network: Network, client: Client) -> None:
    network.script = [ConnectionLost("gone"), DeadlineExceeded("late"), OutcomeUnknown("leader lost"), None]
    result = await client.insert("a", VECTOR)
    assert result.version == 9
    assert numbers(network) == [(100, 1)] * 4


async def test_concurrent_writes_share_one_session_and_never_a_number(network: Network, client: Client) -> None:
    await asyncio.gather(*(client.insert(f"d{n}", VECTOR) for n in range(50)))
    assert network.sessions == 1
    assert sorted(numbers(network)) == [(100, n) for n in range(1, 51)]


async def test_acked_never_passes_a_write_that_still_waits(network: Network, client: Client) -> None:
    await client.insert("first", VECTOR)
    network.script = [ConnectionLost("gone")] * 3
    slow = asyncio.create_task(client.insert("slow", VECTOR))
    await wait_for(lambda: any(command.ids == ["slow"] for _, command in network.writes), 30)
    for n in range(5):
        await client.insert(f"quick-{n}", VECTOR)
    await slow
    sent = {command.ids[0]: command.session for _, command in network.writes}
    waiting = next(command.session.seq for _, command in network.writes if command.ids == ["slow"])
    assert sent["quick-0"].acked <= waiting
    await client.insert("last", VECTOR)
    assert network.writes[-1][1].session.acked == sent["quick-4"].seq + 1


async def test_an_expired_session_is_opened_anew_unless_the_write_was_sent_before(
    network: Network, client: Client
) -> None:
    network.script = [SessionExpired("unknown here")]
    assert (await client.insert("a", VECTOR)).version == 9
    assert numbers(network) == [(100, 1), (200, 1)]
    network.script = [ConnectionLost("gone"), SessionExpired("unknown here")]
    with pytest.raises(OutcomeUnknown):
        await client.insert("b", VECTOR)


async def test_a_refusal_is_told_at_once(network: Network, client: Client) -> None:
    network.script = [AlreadyExists("there", version=3)]
    with pytest.raises(AlreadyExists):
        await client.insert_if_absent("a", VECTOR)
    assert len(network.writes) == 1


@pytest.mark.parametrize("answer", [AlreadyExists("there", version=3), ConditionFailed("it does not match", id="a")])
async def test_what_the_log_says_of_a_write_is_its_answer_however_often_it_was_sent(
    network: Network, client: Client, answer: NeedleError
) -> None:
    network.script = [ConnectionLost("gone"), answer]
    with pytest.raises(type(answer)):
        await client.insert("a", VECTOR, if_matches={"n": 1})
    assert numbers(network) == [(100, 1)] * 2


async def test_the_leader_is_found_again_after_it_moved(network: Network, client: Client) -> None:
    await client.insert("a", VECTOR)
    network.leader = "n3"
    await client.insert("b", VECTOR)
    assert [node for node, _ in network.writes] == ["n1", "n3"]
    network.down = {"n3"}
    network.leader = "n2"
    await client.insert("c", VECTOR)
    assert network.writes[-1][0] == "n2"


async def test_a_new_leader_ends_the_pause_at_once_and_all_callers_share_the_question(
    network: Network, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts_of_calls, "BACKOFF_MIN", 60.0)
    monkeypatch.setattr(attempts_of_calls, "BACKOFF_MAX", 60.0)
    await client.insert("a", VECTOR)
    network.down = {"n1"}
    writes = [asyncio.create_task(client.insert(f"d{n}", VECTOR)) for n in range(20)]
    await wait_for(lambda: len(network.waiting) == 2, 30, "n2 and n3 asked to wait")
    assert {call.after_term for call in network.waiting} == {1}
    network.elect("n2")
    await asyncio.wait_for(asyncio.gather(*writes), 30)
    assert sorted(node for node, _ in network.writes[1:]) == ["n2"] * 20


async def test_nodes_that_name_the_same_term_again_are_not_asked_over_and_over(
    network: Network, client: Client
) -> None:
    await client.insert("a", VECTOR)
    network.waits = False
    network.script = [ConnectionLost("gone")] * 1000
    network.calls.clear()
    with pytest.raises(OutcomeUnknown):
        await client.insert("b", VECTOR, timeout=0.3)
    assert sum(method == SHARD_LEADER for _, method in network.calls) <= 6 * 12, "six a pause: a wait and a search"


async def test_many_callers_share_one_search_for_the_leader(network: Network, client: Client) -> None:
    await asyncio.gather(*(client.insert(f"d{n}", VECTOR) for n in range(50)))
    asked = [address for address, method in network.calls if method == SHARD_LEADER]
    assert len(asked) == 3


async def test_without_a_leader_the_error_names_the_silent_nodes(network: Network, client: Client) -> None:
    network.leader = None
    network.down = {"n2", "n3"}
    with pytest.raises(NoQuorum, match=r"2 of 3 nodes did not answer.*h:2.*h:3"):
        await client.insert("a", VECTOR, timeout=0.5)


async def test_what_keeps_nodes_from_leading_is_told(network: Network, client: Client) -> None:
    network.leader, network.hinders = None, {"n2": "documents.db is damaged"}
    with pytest.raises(NoQuorum, match=r"n2 at h:2 answers but cannot lead: documents.db is damaged"):
        await client.insert("a", VECTOR, timeout=0.5)


async def test_nodes_without_room_for_another_connection_are_not_called_silent(
    client: Client, network: Network
) -> None:
    async def full(address: str, method: str, body: bytes, timeout: float) -> bytes:
        raise Overloaded("this node has 48 connections; its limit is 64")

    network.call = full  # type: ignore[method-assign]
    with pytest.raises(Overloaded, match="48 connections"):
        await client.insert("a", VECTOR, timeout=0.3)
    with pytest.raises(Overloaded, match="48 connections"):
        await client.search_eventual(VECTOR, 1, timeout=0.3)
    with pytest.raises(Overloaded, match=r"took the connection within 0\.2 s: .*48 connections"):
        await find_cluster(network, list(ADDRESSES.values()), 0.2)


async def test_a_node_that_says_nothing_within_the_search_is_named_too(client: Client, network: Network) -> None:
    async def silent(address: str, method: str, body: bytes, timeout: float) -> bytes:
        await asyncio.sleep(timeout + 0.2)  # its own error comes too late for the search
        raise DeadlineExceeded("late")

    network.call = silent  # type: ignore[method-assign]
    with pytest.raises(NoQuorum, match=r"3 of 3 nodes did not answer"):
        await client.insert("a", VECTOR, timeout=0.8)


async def test_a_write_sent_and_never_answered_is_unknown(network: Network, client: Client) -> None:
    await client.insert("a", VECTOR)
    network.script = [ConnectionLost("gone")] * 1000
    with pytest.raises(OutcomeUnknown, match="may or may not"):
        await client.insert("b", VECTOR, timeout=0.5)


async def test_nodes_that_all_refuse_us_are_not_asked_for_ever() -> None:
    class Refusing(Network):
        async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
            raise WrongCluster("theirs, not ours")

    with pytest.raises(WrongCluster):
        await client_of(Refusing()).insert("a", VECTOR)


async def test_a_node_that_refused_once_does_not_end_calls_while_all_are_away() -> None:
    """As one does that had not heard of a key yet, long before all of them are restarted."""

    class OnceRefusing(Network):
        refuses = False

        async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
            if self.refuses and address == "h:3":
                raise Unauthenticated("no such key")
            return await super().call(address, method, body, timeout)

    network = OnceRefusing()
    client = client_of(network)
    network.refuses = True
    await client.insert("a", VECTOR)
    network.refuses = False
    network.down = set(ADDRESSES)
    waits = asyncio.create_task(client.insert("b", VECTOR, timeout=30))
    asked = len(network.calls)
    await wait_for(lambda: waits.done() or len(network.calls) > asked + 12, 20)
    network.down = set()
    assert (await waits).version == 9


async def test_eventual_reads_take_turns_and_avoid_a_failing_node(network: Network, client: Client) -> None:
    def asked() -> list[str]:
        return [address for address, method in network.calls if method == calls.SEARCH]

    for _ in range(6):
        await client.search_eventual(VECTOR, 1)
    assert sorted(asked()) == sorted(list(ADDRESSES.values()) * 2)
    network.down = {"n2"}
    network.calls.clear()
    for _ in range(12):
        await client.search_eventual(VECTOR, 1)
    assert asked().count("h:2") == 1


async def test_eventual_reads_of_one_moment_go_to_a_node_in_fours(network: Network, client: Client) -> None:
    await client.insert("a", VECTOR)
    network.calls.clear()
    await asyncio.gather(*(client.search_eventual(VECTOR, 1) for _ in range(12)))
    asked = [address for address, method in network.calls if method == calls.SEARCH]
    assert [len({*asked[at : at + 4]}) for at in (0, 4, 8)] == [1, 1, 1]
    assert sorted(asked[::4]) == sorted(ADDRESSES.values())


async def test_a_session_read_carries_the_newest_index_seen(network: Network, client: Client) -> None:
    await client.insert("a", VECTOR)
    await client.search_eventual(VECTOR, 1, session=True)
    await client.search_eventual(VECTOR, 1, session=True)
    await client.search_eventual(VECTOR, 1)
    assert network.fresh == [1, 7, 0]


async def test_of_documents_with_one_id_the_last_counts_wherever_the_batch_is_split(network: Network) -> None:
    client = client_of(network, batch_bytes_max=100)
    names = [f"d{n % 7}" for n in range(40)]
    results = await client.insert_batch(
        ids=names, vectors=[[float(n), 0.0] for n in range(40)], metadatas=list(range(40))
    )
    written = [
        (name, json) for _, command in network.writes for name, json in zip(command.ids, command.metadata, strict=True)
    ]
    assert len(results) == len(network.writes) > 1
    assert sorted(written) == [(f"d{n % 7}", b"%d" % n) for n in sorted(range(33, 40), key=lambda n: n % 7)]


async def test_a_full_disk_says_nothing_of_an_earlier_attempt(network: Network, client: Client) -> None:
    network.script = [DiskFull("no room")]
    with pytest.raises(DiskFull):
        await client.insert("a", VECTOR)
    assert len(network.writes) == 1, "it is told at once: repeating it does not help"
    network.script = [ConnectionLost("gone"), DiskFull("no room")]
    with pytest.raises(OutcomeUnknown, match="sent before"):
        await client.insert("b", VECTOR)


async def test_an_attempt_that_the_deadline_cuts_off_does_not_hide_that_a_node_was_busy(
    network: Network, client: Client
) -> None:
    inner, loop = network.call, asyncio.get_running_loop()
    busy_until = 0.0

    async def call(address: str, method: str, body: bytes, timeout: float) -> bytes:
        if method != calls.STATUS:
            return await inner(address, method, body, timeout)
        if loop.time() < busy_until:
            raise Overloaded("2 consistent scans are open")
        await asyncio.sleep(timeout)
        raise DeadlineExceeded("no answer in time")

    network.call = call  # type: ignore[method-assign]
    group = group_of(client)
    await group.find_leader(1)
    for busy, error in ((1.5, Overloaded), (0.02, DeadlineExceeded)):  # pauses end within 0.375 s
        busy_until = loop.time() + busy
        with pytest.raises(error):
            await group.ask_leader(calls.STATUS, lambda _: b"", 2)


async def test_a_write_refused_until_the_end_is_not_sent_once_more_when_no_answer_can_come_in_time(
    network: Network, client: Client
) -> None:
    await client.insert("a", VECTOR)
    inner = network.call

    async def call(address: str, method: str, body: bytes, timeout: float) -> bytes:
        if method != calls.WRITE:
            return await inner(address, method, body, timeout)
        if timeout > 0.05:
            raise OutOfMemory("data is refused")
        await asyncio.sleep(timeout)
        raise DeadlineExceeded("no answer in time")

    network.call = call  # type: ignore[method-assign]
    for _ in range(5):  # attempts are at random times
        with pytest.raises(OutOfMemory):
            await client.insert("b", VECTOR, timeout=1.0)


async def test_nor_is_it_when_finding_who_leads_took_the_time_that_an_answer_needs(
    network: Network, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.insert("a", VECTOR)
    inner, directory, sent = network.call, group_of(client)._directory, list[float]()

    async def call(address: str, method: str, body: bytes, timeout: float) -> bytes:
        if method != calls.WRITE:
            return await inner(address, method, body, timeout)
        sent.append(timeout)
        if len(sent) == 1:
            raise OutOfMemory("data is refused")
        await asyncio.sleep(timeout)
        raise DeadlineExceeded("no answer in time")

    async def find_leader(timeout: float) -> str:
        await asyncio.sleep(timeout - 0.02)
        return next(iter(ADDRESSES.values()))

    network.call = call  # type: ignore[method-assign]
    monkeypatch.setattr(directory, "find_leader", find_leader)
    with pytest.raises(OutOfMemory):
        await client.insert("b", VECTOR, timeout=1.0)
    assert len(sent) == 1


def test_who_has_to_wait_until_it_is_too_late_to_ask_again_is_told_at_once() -> None:
    """It waited for as long as the node said, and was refused then without being asked again."""

    async def work() -> None:
        network = Network()
        inner, sent = network.call, list[float]()

        async def call(address: str, method: str, body: bytes, timeout: float) -> bytes:
            if method != calls.WRITE:
                return await inner(address, method, body, timeout)
            sent.append(timeout)
            raise TooManyRequests("requests are used up", wait=1.95, limit="requests")

        network.call = call  # type: ignore[method-assign]
        client, loop = client_of(network), asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(TooManyRequests):
            await client.insert("a", VECTOR, timeout=2.0)
        assert loop.time() - began < 0.5 and len(sent) == 1
        with pytest.raises(TooManyRequests):
            await client.insert("a", VECTOR, timeout=3.0)
        assert len(sent) == 3, "there was time for once more"

    virtually(work())


async def test_who_does_not_lead_has_no_answer_whatever_is_final(network: Network, client: Client) -> None:
    inner, asked = network.call, list[str]()

    async def call(address: str, method: str, body: bytes, timeout: float) -> bytes:
        if method != calls.STATUS:
            return await inner(address, method, body, timeout)
        asked.append(network.is_at[address])
        if asked[-1] != network.leader:
            raise NotLeader("not here", leader=network.leader, leader_address=ADDRESSES[network.leader or ""])
        raise Unavailable("the parts before are not here") if len(asked) < 4 else AlreadyExists("done")

    network.call = call  # type: ignore[method-assign]
    group = group_of(client)
    with pytest.raises(Unavailable, match="parts before"):
        await group.ask_leader(calls.STATUS, lambda _: b"", 5, (Unavailable,))
    network.elect("n3")
    with pytest.raises(Unavailable, match="parts before"):
        await group.ask_leader(calls.STATUS, lambda _: b"", 5, (Unavailable,))
    assert asked == ["n1", "n1", "n3"]


async def test_a_replica_without_room_is_passed_over_by_eventual_reads(network: Network, client: Client) -> None:
    inner = network.call

    async def call(address: str, method: str, body: bytes, timeout: float) -> bytes:
        if method == calls.SEARCH and address == ADDRESSES["n1"]:
            network.calls.append((address, method))
            raise DiskFull("what is applied cannot be committed")
        return await inner(address, method, body, timeout)

    network.call = call  # type: ignore[method-assign]
    for _ in range(9):
        await client.search(VECTOR, 1, mode=ReadMode.EVENTUAL)
    assert (ADDRESSES["n1"], calls.SEARCH) in network.calls
