"""Purging waits for exactly the searches that may still read what it deletes."""

from __future__ import annotations

import threading
from pathlib import Path

from needle.protocol.commands import CreateCollection
from needle.shard.in_flight import InFlight
from shard.replica_util import Log, open_replica, put, spec


def test_drain_waits_for_earlier_searches_and_not_for_later_ones() -> None:
    flights = InFlight()
    flights.drain()
    left: list[str] = []
    first = flights.enter()
    first.__enter__()
    drained = threading.Thread(target=lambda: (flights.drain(), left.append("drained")))
    drained.start()
    while not flights._left._waiters:  # type: ignore[attr-defined]  # until the thread waits
        threading.Event().wait(0.001)
    with flights.enter():
        left.append("first")
        first.__exit__(None, None, None)
        drained.join(10)
        left.append("second")
    assert left == ["first", "drained", "second"]


def test_purging_drains_before_it_deletes(tmp_path: Path) -> None:
    replica, log = open_replica(tmp_path), Log()
    replica.apply(log.add(CreateCollection(spec()), put(["a"], [[1, 2, 3]]), put(["a"], [[4, 5, 6]])))
    at_drain: list[int] = []

    class Watching(InFlight):
        def drain(self) -> None:
            at_drain.append(len(replica._store.metadata_between(1, 0, 10).ordinals))
            super().drain()

    replica._upkeep._in_flight = Watching()
    replica.checkpoint()
    assert at_drain == [2]
    assert replica._store.metadata_between(1, 0, 10).ordinals == [1]
