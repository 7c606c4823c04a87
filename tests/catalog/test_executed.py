"""A command of the catalog is executed once, however often and however late its copies come."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from catalog.catalog_util import create, node, spec, topology
from client.fake_shards import virtually
from needle.base.errors import (
    ClientClosed,
    ConnectionLost,
    Internal,
    InvalidArgument,
    NeedleError,
    OutcomeUnknown,
    SessionExpired,
    Unavailable,
)
from needle.base.model import WriteResult
from needle.catalog.executed import KEPT_LEAST, KEPT_MAX, Executed, execute_once
from needle.catalog.machine import CatalogMachine
from needle.client.known_topology import AskedTopology
from needle.client.shards import ClusterShards
from needle.multiraft.ports import Applied
from needle.protocol import calls
from needle.protocol.catalog_commands import (
    AdvanceMove,
    CatalogCommand,
    CreateCollection,
    DropCollection,
    FinishMove,
    Identity,
    RegisterNode,
    RemoveNode,
    SetReplicas,
    StartMove,
    decode,
    decode_identified,
    encode,
)
from needle.protocol.peer_calls import CATALOG, TOPOLOGY, CatalogCall, TopologyAnswer
from needle.routing.strategy import RANGE
from needle.routing.topology import MoveState, Topology

HALF = (b"\x10", b"\x20")
Answered = WriteResult | NeedleError


class Catalog:
    """A catalog of four shards, without disk. Commands get the identities 1, 2, ..."""

    def __init__(self) -> None:
        self.now, self.executed, self.index = topology(strategy=RANGE), Executed(), 1
        self.sent = 0

    def copy(self, data: bytes) -> Answered:
        """A copy of a command arrives."""
        self.index += 1
        self.now, self.executed, answer = execute_once(self.now, self.executed, self.index, data)
        return answer

    def send(self, command: CatalogCommand) -> tuple[bytes, WriteResult]:
        self.sent += 1
        data = encode(command, Identity(self.sent, self.now.version))
        answer = self.copy(data)
        assert isinstance(answer, WriteResult), answer
        return data, answer


def _create(catalog: Catalog) -> tuple[bytes, Callable[[], object]]:
    data, answer = catalog.send(CreateCollection(spec("a"), False, 5))
    return data, lambda: catalog.send(DropCollection("a", answer.version))


def _drop(catalog: Catalog) -> tuple[bytes, Callable[[], object]]:
    _, made = catalog.send(CreateCollection(spec("a"), False, 5))
    data, _ = catalog.send(DropCollection("a", made.version))
    return data, lambda: catalog.send(CreateCollection(spec("a"), False, 6))


def _replicas(catalog: Catalog) -> tuple[bytes, Callable[[], object]]:
    before = list(catalog.now.shards[0].replicas)
    data, _ = catalog.send(SetReplicas(0, before, before[::-1]))
    return data, lambda: catalog.send(SetReplicas(0, before[::-1], before))


def _register(catalog: Catalog) -> tuple[bytes, Callable[[], object]]:
    data, _ = catalog.send(RegisterNode(node(1, address="away:1")))
    return data, lambda: catalog.send(RegisterNode(node(1, address="home:1")))


def _remove(catalog: Catalog) -> tuple[bytes, Callable[[], object]]:
    catalog.send(RegisterNode(node(9)))
    data, _ = catalog.send(RemoveNode("node-9"))
    return data, lambda: None


def _start(catalog: Catalog) -> tuple[bytes, Callable[[], object]]:
    return catalog.send(StartMove(3, 1, [HALF], 0, 2))[0], lambda: None


def _advance(catalog: Catalog) -> tuple[bytes, Callable[[], object]]:
    move = catalog.send(StartMove(3, 1, [HALF], 0, 2))[1].version
    return catalog.send(AdvanceMove(move, MoveState.FREEZING))[0], lambda: None


def _finish(catalog: Catalog) -> tuple[bytes, Callable[[], object]]:
    move = catalog.send(StartMove(3, 1, [HALF], 0, 2))[1].version
    catalog.send(AdvanceMove(move, MoveState.FREEZING))
    catalog.send(AdvanceMove(move, MoveState.SWITCHED, 7, 8))
    return catalog.send(FinishMove(move))[0], lambda: catalog.send(StartMove(4, 2, [HALF], 2, 0))


def _found(catalog: Catalog) -> tuple[bytes, Callable[[], object]]:
    catalog.now = Topology()
    return catalog.send(create())[0], lambda: catalog.send(CreateCollection(spec("a"), False, 5))


@pytest.mark.parametrize(
    "first",
    [_found, _register, _remove, _replicas, _create, _drop, _start, _advance, _finish],
    ids=lambda first: first.__name__,
)
def test_a_copy_that_comes_late_changes_nothing_and_is_answered_as_the_first(
    first: Callable[[Catalog], tuple[bytes, Callable[[], object]]],
) -> None:
    catalog = Catalog()
    data, undo = first(catalog)
    answer = catalog.executed.answers[catalog.sent].told()
    undo()
    before = catalog.now
    assert catalog.copy(data) == answer
    assert catalog.now is before


def test_a_refusal_is_final_and_a_command_that_may_be_tried_again_is() -> None:
    catalog = Catalog()
    made = catalog.send(CreateCollection(spec("a"), False, 5))[1]
    refused = encode(CreateCollection(spec("a"), False, 6), Identity(77, catalog.now.version))
    assert getattr(catalog.copy(refused), "code", "") == "collection_exists"
    catalog.send(DropCollection("a", made.version))
    assert getattr(catalog.copy(refused), "code", "") == "collection_exists"
    assert catalog.now.collections == ()
    early = Catalog()
    data, early.now = encode(RegisterNode(node(9)), Identity(1, 0)), Topology()
    assert isinstance(early.copy(data), Unavailable)
    early.now = topology()
    assert isinstance(early.copy(data), WriteResult)


def test_commands_of_earlier_releases_are_executed_as_before() -> None:
    catalog = Catalog()
    old = encode(CreateCollection(spec("a"), False, 5))
    assert old[:1] == b"\x01" and decode_identified(old) == (CreateCollection(spec("a"), False, 5), None)
    made = catalog.copy(old)
    assert isinstance(made, WriteResult)
    assert catalog.executed == Executed()
    assert isinstance(catalog.copy(encode(DropCollection("a", made.version))), WriteResult)


def test_what_may_be_forgotten_is_refused_and_the_table_is_bounded() -> None:
    catalog = Catalog()
    first, _ = catalog.send(CreateCollection(spec("a"), False, 5))
    for turn in range(2 * KEPT_MAX):  # also of commands that change nothing senders learn what is forgotten
        catalog.send(CreateCollection(spec("a"), True, 6))
        assert len(catalog.executed.answers) <= KEPT_MAX, turn
        assert catalog.executed.floor <= catalog.now.version
        catalog.now.check_invariants()
    assert len(catalog.executed.answers) >= KEPT_LEAST
    catalog.send(DropCollection("a", catalog.now.collections[0].id))
    before = catalog.now
    late = catalog.copy(first)
    assert isinstance(late, SessionExpired)
    assert late.details["version"] == catalog.executed.floor
    assert catalog.now is before
    long = encode(RemoveNode("n" * 40_000), Identity(10**6, before.version))
    assert isinstance(catalog.copy(long), InvalidArgument)
    assert len(msgspec.msgpack.encode(catalog.executed)) < KEPT_MAX << 10


def test_restarts_and_snapshots_keep_what_was_executed(tmp_path: Path) -> None:
    catalog, log = Catalog(), [encode(create(strategy=RANGE))]
    data, undo = _replicas(catalog)
    undo()
    back = encode(SetReplicas(0, decode(data).after, decode(data).before), Identity(2, 2))  # type: ignore[union-attr]
    log += [data, back]
    one = CatalogMachine(str(tmp_path / "one"))
    one.apply([Applied(at, 1, entry, None) for at, entry in enumerate(log, 1)])
    one.close()
    one, two = CatalogMachine(str(tmp_path / "one")), CatalogMachine(str(tmp_path / "two"))
    (tmp_path / "image").mkdir()
    one.export_snapshot(str(tmp_path / "image"))
    two.install_snapshot(str(tmp_path / "image"))
    for machine in (one, two):
        before = machine.topology
        (answer,) = machine.apply([Applied(4, 1, data, None)])
        assert (answer.index, machine.topology) == (2, before)
    assert one.digest() == two.digest()
    empty = CatalogMachine(str(tmp_path / "three"))
    empty.apply([Applied(at, 1, encode(decode(entry)), None) for at, entry in enumerate(log, 1)])
    assert empty.topology == before and empty.digest() != one.digest()
    for machine in (one, two, empty):
        machine.close()


class Nodes:
    """The callers' way to a catalog. lose: how many answers are still lost; between: what happens then."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.lose = 0
        self.between: Callable[[], object] = lambda: None
        self.copies: list[bytes] = []
        self.lost: NeedleError = ConnectionLost("the answer is lost")
        self.closed = False

    def connected(self, address: str) -> bool:
        return False

    async def connect(self, address: str, timeout: float) -> None:
        if self.closed:
            raise ClientClosed("this client is closed")

    async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
        if method == TOPOLOGY:
            return calls.encode(TopologyAnswer("node-1", self.catalog.now))
        assert method == CATALOG
        self.copies.append(calls.decode(body, CatalogCall).command)
        answer = self.catalog.copy(self.copies[-1])
        if self.lose:
            self.lose -= 1
            self.between()
            raise self.lost
        if isinstance(answer, NeedleError):
            raise answer
        return calls.encode(answer)

    def shards(self, known: Topology) -> ClusterShards:
        caller: Any = self
        return ClusterShards(caller, AskedTopology(caller, ["h:1"], known), rng=random.Random(self.catalog.index))


def test_a_client_repeats_a_command_under_the_same_identity() -> None:
    catalog = Catalog()
    nodes = Nodes(catalog)
    nodes.lose, nodes.between = 1, lambda: catalog.send(DropCollection("a", catalog.now.collections[0].id))
    result = virtually(nodes.shards(catalog.now).command(CreateCollection(spec("a"), False, 5), 5.0))
    assert len(nodes.copies) == 2 and len(set(nodes.copies)) == 1
    assert (result.existed, catalog.now.collections) == (False, ())
    virtually(nodes.shards(catalog.now).command(CreateCollection(spec("a"), False, 5), 5.0))
    assert len(catalog.now.collections) == 1


@pytest.mark.parametrize("said", [ClientClosed("this client is closed"), Internal("a bug")])
def test_nobody_is_told_that_nothing_happened_when_it_may_have(said: NeedleError) -> None:
    """A client that is closed while its command is under way; and a node that fails after it has passed it on."""
    catalog = Catalog()
    nodes = Nodes(catalog)
    nodes.lose, nodes.lost = 1, said
    with pytest.raises(OutcomeUnknown):
        virtually(nodes.shards(catalog.now).command(CreateCollection(spec("a"), False, 5), 5.0))
    assert len(catalog.now.collections) == 1
    nodes.closed = True
    with pytest.raises(ClientClosed):
        virtually(nodes.shards(catalog.now).command(CreateCollection(spec("b"), False, 5), 5.0))


def test_a_client_that_knows_an_old_topology_begins_anew_only_if_nothing_was_sent() -> None:
    catalog = Catalog()
    old = catalog.now
    for _ in range(KEPT_MAX + 1):
        catalog.send(CreateCollection(spec("a"), True, 6))
    nodes = Nodes(catalog)
    virtually(nodes.shards(old).command(RegisterNode(node(9)), 5.0))
    assert catalog.now.address_of("node-9") is not None and len(nodes.copies) == 2
    nodes = Nodes(catalog)
    nodes.lose, nodes.between = 1, lambda: [catalog.send(RegisterNode(node(8))) for _ in range(KEPT_MAX + 1)]
    with pytest.raises(OutcomeUnknown):
        virtually(nodes.shards(catalog.now).command(RemoveNode("node-9"), 5.0))
