"""What the leader of a bulk load asks the other replicas before it proposes the entry."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from needle.base.errors import CollectionNotFound, DiskFull, StaleEpoch, Unavailable
from needle.base.model import CollectionSpec, Metric
from needle.protocol import calls
from needle.protocol.bulk_calls import BulkHereAnswer
from needle.protocol.peer_calls import DiskRoom
from needle.protocol.upkeep_commands import LoadRows
from needle.server.service.bulk_loads import BulkLoads, needed_room

LOAD = LoadRows(1, 1000, 500_000, "0" * 32, 0)
NEEDED = needed_room(LOAD)
NAMES = ["rows", "index"]
KEPT = 1 << 20


class Node:
    """Leads a group of three. answers: what each of the others says, one after the other."""

    def __init__(self, own: int, **answers: Any) -> None:
        self.node_id = "a"
        self.space = SimpleNamespace(disk=SimpleNamespace(room=lambda: DiskRoom(KEPT + own, 1 << 40, 0, KEPT)))
        self.peers, self._seconds = self, iter(range(10_000))
        self._answers: dict[str, Iterator[Any]] = {node: iter(said) for node, said in answers.items()}

    def status(self, *_: object) -> Any:
        return SimpleNamespace(voters=["a", "b", "c"])

    def now(self) -> float:
        return 20.0 * next(self._seconds)

    async def call(self, node: str, *_: object) -> bytes:
        said = next(self._answers[node])
        if isinstance(said, Exception):
            raise said
        return calls.encode(said)


def whole(room: int) -> BulkHereAnswer:
    return BulkHereAnswer([-1, -1], room)


async def ready(node: Node, seconds: float = 1000.0) -> None:
    deadline: Any = SimpleNamespace(left=lambda: seconds)
    await BulkLoads(node)._held_by_majority(1, NAMES, NEEDED, deadline)  # type: ignore[arg-type]


def test_the_room_is_four_times_the_file_and_what_tables_take() -> None:
    assert NEEDED == 4 * 500_000 + 250 * 1000


async def test_all_with_the_files_have_room() -> None:
    await ready(Node(NEEDED, b=[whole(NEEDED)], c=[whole(NEEDED)]))


@pytest.mark.parametrize(("own", "b", "c", "named"), [(1, 0, 0, "a"), (0, 1, 0, "b"), (0, 0, 1, "c")])
async def test_a_replica_that_has_the_files_and_too_little_room_ends_it(own: int, b: int, c: int, named: str) -> None:
    with pytest.raises(DiskFull) as caught:
        await ready(Node(NEEDED - own, b=[whole(NEEDED - b)], c=[whole(NEEDED - c)]))
    assert caught.value.details == {"node": named, "room": NEEDED - 1, "needed": NEEDED}
    assert f"the disk of node {named} takes {NEEDED - 1} more bytes" in caught.value.message


async def test_one_that_is_away_or_has_not_all_files_is_not_asked_for_room() -> None:
    part = BulkHereAnswer([-1, 5], 0)
    await ready(Node(NEEDED, b=[whole(NEEDED)], c=[Unavailable("away"), part, part]))


async def test_without_a_majority_it_is_not_proposed() -> None:
    part = BulkHereAnswer([-1, 5], NEEDED)
    with pytest.raises(Unavailable, match="1 of 3 replicas"):
        await ready(Node(NEEDED, b=[part], c=[part]), 0.5)


async def test_another_map_in_the_shards_log_refuses_it_at_once() -> None:
    """By a word that whoever asks does not repeat: until its time is over it would hear the same."""
    fence: Any = SimpleNamespace(fingerprint=LOAD.owned + 1, freezes=False)
    record = SimpleNamespace(id=1, spec=CollectionSpec(name="c", dimensions=3, metric=Metric.L2))
    view = SimpleNamespace(collections={"c": SimpleNamespace(record=record)}, fence=fence)
    replica = SimpleNamespace(staged=SimpleNamespace(here=lambda _: -1), view=view)
    hosted: Any = SimpleNamespace(replica=replica, collections=SimpleNamespace(find=lambda *_: None))
    node: Any = Node(NEEDED)
    node.topology = None
    node.blocking = blocking
    with pytest.raises(StaleEpoch):
        await BulkLoads(node)._ready(hosted, 1, LOAD, SimpleNamespace(left=lambda: 1000.0))  # type: ignore[arg-type]


async def test_a_collection_that_is_dropped_while_the_files_are_looked_for_is_told_as_that() -> None:
    view = SimpleNamespace(collections={}, fence=None)
    hosted: Any = SimpleNamespace(replica=SimpleNamespace(staged=SimpleNamespace(here=lambda _: -1), view=view))
    node: Any = Node(NEEDED)
    node.blocking = blocking
    with pytest.raises(CollectionNotFound, match="no collection with id 1"):
        await BulkLoads(node)._ready(hosted, 1, LOAD, SimpleNamespace(left=lambda: 1000.0))  # type: ignore[arg-type]


async def blocking(fn: Any, *arguments: Any) -> Any:
    return fn(*arguments)


async def test_the_others_get_half_of_the_time_and_no_more() -> None:
    """With a majority a load of a short time is done, though a replica is away."""
    node = Node(NEEDED, b=[whole(NEEDED)], c=[Unavailable("away")])
    node.now = iter([0.0, 1.6]).__next__  # type: ignore[method-assign]
    await ready(node, 3.0)
