"""A scan whose filter allows few documents, by indexes that are there, looks at these only, and finds the same."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from needle.base.errors import StaleEpoch
from needle.base.model import Claim, SearchRequest
from needle.protocol.commands import Change, CreateCollection, Delete, Patch
from needle.protocol.move_commands import Freeze, PrepareMove, Release
from needle.routing.ranges import fingerprint
from needle.routing.strategy import RANGE
from needle.shard.reads import Page
from needle.shard.state_machine import Replica
from shard.replica_util import Log, floats, open_replica, put, spec

FILTERS: list[dict[str, Any]] = [
    {"kind": "rare"},
    {"kind": {"$in": ["rare", "odd"]}, "n": {"$gte": 20}},
    {"$not": {"kind": "usual"}},
    {"kind": None},
    {"kind": "none of them"},
    {"$or": [{"kind": "odd"}, {"n": 7}]},
]


@pytest.fixture(autouse=True)
def short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("needle.shard.reads.SCAN_LOOKS", 20)


def listed(replica: Replica, where: dict[str, Any], limit: int = 1000, claim: Claim | None = None) -> tuple[Any, int]:
    """All pages, and how many there were."""
    found, after, pages = [], "", 0
    while True:
        page = replica.scan(Page("c", json.dumps(where).encode(), after, limit, True), claim)
        found += [(one.id, one.version, one.metadata, len(one.vector), one.expires) for one in page.documents]
        pages += 1
        if page.reached is None:
            return found, pages
        assert page.reached > after
        after = page.reached


def indexed(replica: Replica, where: dict[str, Any]) -> None:
    replica.search(SearchRequest(collection="c", vector=floats([0, 0, 0]), k=1, filter=json.dumps(where).encode()))


def filled(path: Path) -> tuple[Replica, Log]:
    replica, log = open_replica(path), Log()
    replica.apply(log.add(CreateCollection(spec())))
    kinds = ["rare" if n % 40 == 3 else "odd" if n % 50 == 9 else "usual" for n in range(400)]
    rows = [{"kind": kind, "n": n} for n, kind in enumerate(kinds)]
    replica.apply(log.add(put([f"d{n:03}" for n in range(400)], [[1, 2, 3]] * 400, rows, expires=[5] * 400)))
    return replica, log


@pytest.mark.parametrize("where", FILTERS, ids=str)
def test_the_same_documents_in_fewer_looks(tmp_path: Path, where: dict[str, Any]) -> None:
    replica, _ = filled(tmp_path)
    slow, pages = listed(replica, where)
    assert pages == 400 // 20
    indexed(replica, where)
    for limit in (1000, 1, 3):
        assert listed(replica, where, limit)[0] == slow
    assert listed(replica, where)[1] == 1
    replica.close()


def test_what_many_match_and_what_has_no_index_is_read_as_before(tmp_path: Path) -> None:
    replica, _ = filled(tmp_path)
    indexed(replica, {"kind": "usual"})
    assert listed(replica, {"kind": "usual"})[1] == 400 // 20
    assert listed(replica, {"kind": "rare"})[1] == 1
    assert listed(replica, {"kind": "rare", "n": {"$gt": 0}})[1] > 1  # nothing was made for it
    assert replica.view.collection("c").payload.indexed() == ["kind"]
    replica.close()


@pytest.mark.parametrize("seed", range(8))
def test_what_is_written_between_the_look_and_the_read_is_not_lost(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The view that told the ordinals may be older than what is read."""
    monkeypatch.setattr("needle.shard.reads.SCAN_LOOKS", 200)
    rng = random.Random(seed)
    replica, log = filled(tmp_path)
    indexed(replica, {"kind": "rare"})
    store = replica._store
    scan_some, looks = store.scan_some, 0

    def later(*asked: Any) -> Any:
        nonlocal looks
        looks += 1
        for _ in range(rng.randint(0, 3)):
            name = f"d{rng.randrange(400):03}"
            command = rng.choice(
                [
                    put([name, f"e{name}"], [[4, 5, 6]] * 2, [{"kind": rng.choice(["rare", "usual"])}] * 2),
                    Delete("c", [name]),
                    Patch("c", [f"d{3 + 40 * rng.randrange(9):03}"], Change(set=[("seen", b"1")])),
                ]
            )
            replica.apply(log.add(command))
        expected.append(sorted(one.id for one in replica.get("c", names, False) if b'"rare"' in one.metadata))
        return scan_some(*asked)

    monkeypatch.setattr(store, "scan_some", later)
    names, expected = [f"{kind}{n:03}" for kind in ("d", "ed") for n in range(400)], list[list[str]]()
    for _ in range(20):
        page = replica.scan(Page("c", b'{"kind": "rare"}', "", 1000, True))
        assert [one.id for one in page.documents] == expected[-1]
        assert page.applied == replica.applied_index()
    assert looks == 20
    replica.close()


def test_what_the_shard_gave_away_is_not_shown(tmp_path: Path) -> None:
    replica, log = filled(tmp_path)
    indexed(replica, {"kind": "rare"})
    everything, left = [(b"", None)], [(b"", b"d200")]
    moved = PrepareMove(1, 1, False, [(b"d200", None)], everything, RANGE, 2)
    replica.apply(log.add(moved, Freeze(1, 0), Release(1, 0)))
    found, pages = listed(replica, {"kind": "rare"}, claim=Claim(fingerprint(left), 0))
    assert [one[0] for one in found] == [f"d{n:03}" for n in range(3, 200, 40)] and pages == 1
    with pytest.raises(StaleEpoch):
        listed(replica, {"kind": "rare"}, claim=Claim(fingerprint(everything), 0))
    with pytest.raises(StaleEpoch):
        listed(replica, {"kind": "none of them"}, claim=Claim(fingerprint(everything), 0))
    replica.close()
