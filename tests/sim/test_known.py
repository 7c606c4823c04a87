"""What nodes and clients know of the catalog is looked at for as long as they are there."""

from __future__ import annotations

import gc
import random
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from catalog.catalog_util import topology
from needle.routing.topology import Topology
from proof.checkers.violation import Violation
from proof.sim.databases import ShardAware
from proof.sim.shards.known import KnownTopologies

TRUE = msgspec.structs.replace(topology(), version=5, founding=7)
FALSE = msgspec.structs.replace(TRUE, replicas=4)


class Node:
    def __init__(self, known: Topology) -> None:
        self._known = known

    def topology(self) -> Topology:
        return self._known


def known_to(**nodes: Node) -> KnownTopologies:
    stage: Any = SimpleNamespace(looks=[], fleet=SimpleNamespace(nodes=nodes))
    found = KnownTopologies(stage, lambda: [Topology(), TRUE])
    assert stage.looks == [found.look]
    return found


def client(knows: Topology) -> ShardAware:
    caller: Any = None
    return ShardAware(caller, ["a:1"], knows, random.Random(1))


def test_what_the_catalog_never_said_is_found_at_nodes_and_clients() -> None:
    known = known_to(a=Node(TRUE), b=Node(FALSE))
    with pytest.raises(Violation, match="node b has other replicas than version 5"):
        known.look()
    known = known_to()
    clients = [known.client(client(one)) for one in (TRUE, msgspec.structs.replace(FALSE, version=4))]
    known.look()  # of a version that never was some of the simulation begin
    clients.append(known.client(client(FALSE)))
    with pytest.raises(Violation, match="a client has other replicas than version 5"):
        known.look()


def test_a_client_is_looked_at_whoever_holds_it_and_no_longer() -> None:
    """One that was made for its calls alone was never looked at."""
    known = known_to()
    held = known.client(client(TRUE)).client
    gc.collect()
    known.look()
    held._shards._known.hearing.misfits = 1
    with pytest.raises(Violation, match="changes of another topology"):
        known.look()
    del held
    gc.collect()
    known.look()
