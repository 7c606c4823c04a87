"""Documents that get other vectors: they keep their metadata, and are found where the new vector is."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from needle.base.errors import ConditionFailed, InvalidArgument, NeedleError, VersionMismatch
from needle.base.filters.builder import Filter
from needle.base.model import HitBatch, Metric, SearchRequest
from needle.protocol.commands import Change, CreateCollection, Delete, Patch, UpdateVectors
from needle.shard.state_machine import Replica
from shard.replica_util import Log, floats, open_replica, put, spec


def nearest(replica: Replica, *row: float, k: int = 1, **options: object) -> HitBatch:
    return replica.search(SearchRequest(collection="c", vector=floats(row), k=k, **options))


def filled(replica: Replica) -> Log:
    log = Log()
    rows = [[float(n), 0, 0] for n in range(5)]
    replica.apply(
        log.add(CreateCollection(spec()), put([f"d{n}" for n in range(5)], rows, [{"n": n} for n in range(5)]))
    )
    return log


def test_the_metadata_stays(tmp_path: Path) -> None:
    replica = open_replica(tmp_path)
    log = filled(replica)
    (result,) = replica.apply(
        log.add(UpdateVectors("c", ["d1", "absent", "d3"], floats([0, 9, 0], [0, 0, 0], [0, 0, 9])))
    )
    assert (result.count, result.existed) == (2, True)
    found = nearest(replica, 0, 9, 0)
    assert (found.ids, found.metadata, found.versions) == (["d1"], [b'{"n": 1}'], [result.version])
    assert nearest(replica, 0, 0, 9).ids == ["d3"] and replica.count("c") == 5
    assert nearest(replica, 1, 0, 0, filter=Filter.eq("n", 1).to_json()).distances[0] > 8
    assert replica.digest() == replica.stored_digest()[1]
    replica.close()


@pytest.mark.parametrize(
    ("options", "refused"),
    [({"expected": 1}, VersionMismatch), ({"matches": b'{"n": {"$gt": 1}}'}, ConditionFailed)],
)
def test_conditions(tmp_path: Path, options: dict[str, object], refused: type[NeedleError]) -> None:
    replica = open_replica(tmp_path)
    log = filled(replica)
    before = replica.digest()
    command = UpdateVectors("c", ["d2", "d1"], floats([0, 9, 0], [0, 0, 9]), **options)
    (result,) = replica.apply(log.add(command))
    assert isinstance(result, refused) and replica.digest() == before
    assert nearest(replica, 0, 9, 0).distances[0] > 8
    replica.close()


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    replica = open_replica(tmp_path)
    filled(replica)
    for wrong in (
        UpdateVectors("c", ["d1"], floats([1, 2])),
        UpdateVectors("c", [], b""),
        UpdateVectors("c", ["d1", "d1"], floats([1, 2, 3], [1, 2, 3])),
        UpdateVectors("c", ["d1"], floats([float("nan"), 2, 3])),
        UpdateVectors("c", ["d1"], floats([1, 2, 3]), expected=0),
        UpdateVectors("c", ["d1"], floats([1, 2, 3]), matches=b'{"$no": 1}'),
    ):
        with pytest.raises(InvalidArgument):
            replica.validate(wrong)
    replica.close()


def test_among_other_writes_batches_and_restarts_change_nothing(tmp_path: Path) -> None:
    """The same log applied one by one, all at once, and across restarts gives the same bits."""
    rng, log = random.Random(5), Log()
    log.add(CreateCollection(spec(metric=Metric.L2)))
    names = [f"d{n}" for n in range(8)]
    for step in range(150):
        some = rng.sample(names, rng.randint(1, 3))
        rows = [[rng.random() for _ in range(3)] for _ in some]
        kind = rng.randrange(4)
        if kind == 0:
            log.add(put(some, rows, [{"s": step}] * len(some)))
        elif kind == 1:
            log.add(UpdateVectors("c", some, floats(*rows)))
        elif kind == 2:
            log.add(Patch("c", some, Change(set=[("p", str(step).encode())])))
        else:
            log.add(Delete("c", some[:1]))
    digests = set()
    for name, parts in (("one", 1), ("ten", 10), ("all", 10_000)):
        replica = open_replica(tmp_path / name)
        for at in range(0, len(log.entries), parts):
            replica.apply(log.entries[at : at + parts])
            if parts == 10 and at % 50 == 0:
                replica.checkpoint()
                replica.close()
                replica = open_replica(tmp_path / name)
                replica.apply(log.entries[: at + parts])
        assert replica.digest() == replica.stored_digest()[1]
        digests.add(replica.digest())
        replica.close()
    assert len(digests) == 1
