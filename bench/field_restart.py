"""How long the first filter on each field takes before there is an index, with indexes in memory, after a restart with
kept indexes and without, and on a replica that begins to lead.

`python -m bench.field_restart [documents]`: replicas without a network, five fields.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from needle.base.config import Limits, SegmentConfig
from needle.base.model import CollectionSpec, Metric
from needle.multiraft.ports import Applied
from needle.protocol.commands import CreateCollection, Insert, Session, encode
from needle.shard.disk import ReplicaDisk
from needle.shard.state_machine import Replica

FILTERS = ({"lang": "l3"}, {"year": {"$gte": 1990}}, {"price": {"$lt": 500.5}}, {"url": {"$gte": "u5"}}, {"ok": True})
BATCH = 1000


def _open(directory: str) -> Replica:
    return Replica(directory, limits=Limits(), segments=SegmentConfig(), disk=ReplicaDisk())


def _documents(first: int) -> list[bytes]:
    return [
        json.dumps(
            {
                "lang": f"l{at % 50}",
                "year": 1900 + at % 125,
                "price": at * 7 % 1000 / 2,
                "url": f"u{at}",
                "ok": at % 3 == 0,
            }
        ).encode()
        for at in range(first, first + BATCH)
    ]


def _fill(replica: Replica, count: int) -> None:
    create = CreateCollection(CollectionSpec(name="c", dimensions=4, metric=Metric.L2))
    replica.apply([Applied(index=1, term=1, data=encode(create), conf=None)])
    vectors = np.zeros((BATCH, 4), "<f4").tobytes()
    for at, first in enumerate(range(0, count, BATCH)):
        ids = [f"d{one}" for one in range(first, first + BATCH)]
        insert = Insert("c", ids, vectors, _documents(first), session=Session())
        replica.apply([Applied(index=at + 2, term=1, data=encode(insert), conf=None)])


def _filters(replica: Replica) -> list[float]:
    took = []
    for one in FILTERS:
        begun = time.perf_counter()
        replica.count_matching("c", json.dumps(one).encode())
        took.append(time.perf_counter() - begun)
    return took


def _reopened(directory: str) -> tuple[Replica, float]:
    begun = time.perf_counter()
    return _open(directory), time.perf_counter() - begun


def _show(what: str, opened: float, took: list[float]) -> None:
    print(f"{what:28} open {opened * 1e3:7.0f} ms, first filters {' '.join(f'{one * 1e3:7.1f}' for one in took)} ms")


def _prepared(replica: Replica, leader: Replica) -> float:
    """Have the indexes that a leader's searches use, as a follower does in the background; seconds."""
    begun = time.perf_counter()
    replica.held.prepare_fields(leader.field_indexes.recent())
    while replica.field_indexes.waits:
        replica.field_indexes.work()
    return time.perf_counter() - begun


def _saved(replica: Replica, directory: str) -> None:
    while replica.field_indexes.waits:
        replica.field_indexes.work()
    begun = time.perf_counter()
    while replica.held.save_fields(replica.field_indexes.rows.settled):
        pass
    sizes = [path.stat().st_size for path in Path(directory).rglob("*.field")]
    seconds = time.perf_counter() - begun
    print(f"saved {len(sizes)} files, {sum(sizes) / 1e6:.1f} MB, in {seconds * 1e3:.0f} ms")


def main(count: int) -> None:
    directory = tempfile.mkdtemp(prefix="needle-field-restart-")
    one, other = f"{directory}/one", f"{directory}/other"
    try:
        leader, follower = _open(one), _open(other)
        _fill(leader, count)
        _fill(follower, count)
        _show("no index", 0.0, _filters(leader))
        _show("indexes in memory", 0.0, _filters(leader))
        print(f"a follower prepares them in  {_prepared(follower, leader) * 1e3:.0f} ms, in the background")
        _show("then it leads", 0.0, _filters(follower))
        _saved(follower, other)
        _saved(leader, one)
        for replica in (leader, follower):
            replica.checkpoint()
        follower.close()
        follower, opened = _reopened(other)
        print(f"restarted, it has them after {_prepared(follower, leader) * 1e3:.0f} ms, in the background")
        _show("then it leads", opened, _filters(follower))
        follower.close()
        leader.close()
        leader, opened = _reopened(one)
        _show("restart, kept indexes", opened, _filters(leader))
        leader.close()
        for path in Path(one).rglob("*.field"):
            path.unlink()
        leader, opened = _reopened(one)
        _show("restart, no kept indexes", opened, _filters(leader))
        leader.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200_000)
