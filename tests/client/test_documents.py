"""The methods for documents are one set, whoever has them; what they say when a part of a batch or cluster fails."""

from __future__ import annotations

import inspect

import pytest

from client.fake_shards import VirtualTime
from harness.scripted_network import ADDRESSES, VECTOR, Network, client_of
from needle.base.errors import (
    DeadlineExceeded,
    DiskFull,
    InvalidArgument,
    NeedleError,
    OutcomeUnknown,
    Unavailable,
)
from needle.base.model import WriteResult
from needle.client import Client
from needle.client.batches import BatchMethods
from needle.client.documents import DocumentMethods
from needle.distributed import ClusterConfig, DistributedCluster, RaftCluster, RaftConfig, ShardRouter

NAMES = [name for name in vars(DocumentMethods) if not name.startswith("_")]

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy:DeprecationWarning")


@pytest.fixture
def event_loop_policy() -> VirtualTime:
    return VirtualTime()


@pytest.mark.parametrize("kind", [Client, RaftCluster, DistributedCluster, ShardRouter])
def test_no_class_has_a_method_for_documents_of_its_own(kind: type) -> None:
    for name in NAMES:
        assert getattr(kind, name) is getattr(DocumentMethods, name)
    batch = BatchMethods.insert_batch if issubclass(kind, BatchMethods) else DocumentMethods.insert_each
    assert kind.insert_batch is batch
    assert inspect.getdoc(kind.insert_batch)


async def test_bad_input_is_refused_before_a_cluster_is_started_for_it() -> None:
    cluster = DistributedCluster(ClusterConfig(dimensions=2))
    with pytest.raises(InvalidArgument, match="vector"):
        await cluster.insert("a", ["x"])
    with pytest.raises(Unavailable, match="add_node"):
        await cluster.insert("a", VECTOR)
    await cluster.stop()
    embedded = RaftCluster(RaftConfig(node_id="n", cluster_nodes=["n=127.0.0.1:1"], data_dir="/nowhere"))
    with pytest.raises(InvalidArgument, match="max_staleness"):
        await embedded.search(VECTOR, max_staleness=1.0)
    with pytest.raises(Unavailable, match="not started"):
        await embedded.search(VECTOR)


async def test_the_entries_of_a_batch_after_a_failed_one_are_not_sent_and_each_id_has_its_outcome() -> None:
    network = Network()
    client = client_of(network, batch_bytes_max=1)
    await client.insert("first", VECTOR)
    network.script = [None, None, DiskFull("no room")]
    network.writes.clear()
    ids = [f"d{n}" for n in range(20)]
    outcomes = await client.insert_each(ids=ids, vectors=[VECTOR] * 20)
    assert list(outcomes) == ids
    sent = {name for _, command in network.writes for name in command.ids}
    assert len(sent) < 10, "no other entry is begun"
    written = {name for name, outcome in outcomes.items() if isinstance(outcome, WriteResult)}
    assert written < sent
    refused = {name for name, outcome in outcomes.items() if isinstance(outcome, DiskFull)}
    assert refused == sent - written
    for name in set(ids) - sent:
        outcome = outcomes[name]
        assert type(outcome) is Unavailable, "known not to be written, and may be tried again"
        assert "not sent" in outcome.message and "no room" in outcome.message
    network.script = [None, None, DiskFull("no room")]
    network.writes.clear()
    with pytest.raises(DiskFull) as failed:
        await client.insert_batch(ids=ids, vectors=[VECTOR] * 20)
    assert failed.value.details["documents_written"] == len(network.writes) - 1
    assert failed.value.details["documents_unknown"] == 0


async def test_a_batch_of_which_a_part_is_unknown_says_so_and_how_much_whatever_else_failed() -> None:
    network = Network()
    client = client_of(network, batch_bytes_max=1)
    await client.insert("first", VECTOR)
    ids = [f"d{n}" for n in range(20)]
    network.script = [None, DiskFull("no room"), OutcomeUnknown("who knows"), None]
    network.script += [DeadlineExceeded("slow")] * 100  # what may have been written is repeated, without an answer
    outcomes = await client.insert_each(ids=ids, vectors=[VECTOR] * 20, timeout=0.2)
    kinds = [type(outcome) for outcome in outcomes.values()]
    assert kinds == [WriteResult, DiskFull, OutcomeUnknown, WriteResult, *[Unavailable] * 16]
    network.script = [None, DiskFull("no room"), OutcomeUnknown("who knows"), None]
    network.script += [DeadlineExceeded("slow")] * 100
    with pytest.raises(OutcomeUnknown) as failed:
        await client.insert_batch(ids=ids, vectors=[VECTOR] * 20, timeout=0.2)
    assert failed.value.details["documents_written"] == 2
    assert failed.value.details["documents_unknown"] == 1


async def test_a_cluster_without_a_leader_answers_a_partial_search_with_nothing_and_says_so() -> None:
    network = Network()
    network.down = set(ADDRESSES)
    client = client_of(network)
    found = await client.search_partial(VECTOR, timeout=0.05)
    assert (found.hits, found.complete, list(found.missing), found.gaps) == ([], False, [0], [(b"", None)])
    with pytest.raises(NeedleError):
        await client.search(VECTOR, timeout=0.05)
