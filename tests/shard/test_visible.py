"""Writes and reads of API keys that are bound to a filter, on one replica: decided by what is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from needle.base.errors import (
    AlreadyExists,
    ConditionFailed,
    DeadlineExceeded,
    Forbidden,
    InvalidArgument,
    NeedleError,
    SessionExpired,
)
from needle.base.filters.nodes import evaluate
from needle.base.model import SearchRequest, WriteResult
from needle.protocol.commands import (
    Bound,
    Change,
    ChangeWhere,
    CreateCollection,
    Delete,
    OpenSession,
    Patch,
    Session,
    UpdateVectors,
)
from needle.shard import reads
from needle.shard.reads import Page
from needle.shard.state_machine import Replica
from shard.replica_util import Log, floats, open_replica, put, spec

FILTER = b'{"tenant":"a"}'
BOUND = Bound(FILTER, 5)
MINE, THEIRS = {"tenant": "a"}, {"tenant": "b"}
ROW = (1.0, 2.0, 3.0)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def replica(tmp_path: Path, log: Log) -> Replica:
    made = open_replica(tmp_path)
    made.apply(log.add(CreateCollection(spec())))
    made.apply(log.add(put(["mine", "theirs", "bare"], [ROW] * 3, [MINE, THEIRS, None])))
    return made


def done(replica: Replica, log: Log, *commands: Any) -> list[Any]:
    return list(replica.apply(log.add(*commands)))


def stored(replica: Replica) -> dict[str, Any]:
    return {
        one.id: (one.version, one.metadata, one.vector)
        for one in replica.get("c", ["mine", "theirs", "bare", "new", "other"], True)
    }


@pytest.mark.parametrize(
    ("ids", "metadata", "options"),
    [
        (["theirs"], [MINE], {}),
        (["bare"], [MINE], {}),
        (["new", "theirs"], [MINE, MINE], {}),
        (["new"], [THEIRS], {}),
        (["new"], [None], {}),
        (["mine"], [THEIRS], {}),
        (["theirs"], [MINE], {"expected": 0}),
        (["theirs"], [MINE], {"expected": 2}),
        (["theirs"], [MINE], {"matches": b'{"tenant":"x"}'}),
    ],
)
def test_no_insert_takes_anothers_place_or_leaves_what_the_key_cannot_see(
    replica: Replica, log: Log, ids: list[str], metadata: list[Any], options: dict[str, Any]
) -> None:
    before = stored(replica)
    (refused,) = done(replica, log, put(ids, [ROW] * len(ids), metadata, bound=BOUND, **options))
    assert isinstance(refused, Forbidden)
    assert "version" not in refused.details
    assert stored(replica) == before


def test_what_is_its_own_a_key_writes_under_all_conditions(replica: Replica, log: Log) -> None:
    written = done(
        replica, log,
        put(["new"], [ROW], [MINE], bound=BOUND, expected=0),
        put(["new"], [ROW], [MINE], bound=BOUND, expected=3),
        put(["new"], [ROW], [MINE], bound=BOUND, matches=FILTER),
        put(["mine", "new"], [ROW] * 2, [MINE] * 2, bound=BOUND),
    )  # fmt: skip
    assert [type(one) for one in written] == [WriteResult] * 4
    (again,) = done(replica, log, put(["mine"], [ROW], [MINE], bound=BOUND, expected=0))
    assert isinstance(again, AlreadyExists)


@pytest.mark.parametrize(
    "command",
    [
        Delete("c", ["theirs", "bare"], bound=BOUND),
        Delete("c", ["theirs"], matches=b'{"tenant":"x"}', bound=BOUND),
        Patch("c", ["theirs"], Change(set=[("n", b"1")]), bound=BOUND),
        Patch("c", ["theirs"], Change(whole=FILTER), matches=b'{"tenant":"x"}', bound=BOUND),
        UpdateVectors("c", ["theirs"], floats((9, 9, 9)), bound=BOUND),
        ChangeWhere("c", b'{"tenant":"b"}', None, return_ids=True, bound=BOUND),
        ChangeWhere("c", b"", Change(set=[("tenant", b'"a"')]), after=0, upto=2, return_ids=True, bound=BOUND),
        ChangeWhere("c", b'{"tenant":{"$exists":false}}', Change(set=[("tenant", b'"a"')]), bound=BOUND),
    ],
)
def test_what_is_not_visible_is_as_if_it_were_not_there(replica: Replica, log: Log, command: Any) -> None:
    before = stored(replica)
    (result,) = done(replica, log, command)
    assert isinstance(result, WriteResult), result
    assert (result.count, result.existed, result.ids) == (0, False, [])
    assert stored(replica) == before


@pytest.mark.parametrize("kind", ["delete", "patch", "vectors"])
def test_no_condition_tells_what_is_stored_of_others(replica: Replica, log: Log, kind: str) -> None:
    def made(id_: str) -> Any:
        if kind == "delete":
            return Delete("c", [id_], expected=2, bound=BOUND)
        if kind == "patch":
            return Patch("c", [id_], Change(set=[("n", b"1")]), expected=2, bound=BOUND)
        return UpdateVectors("c", [id_], floats(ROW), expected=2, bound=BOUND)

    refused, absent = done(replica, log, made("theirs"), made("nowhere"))
    assert type(refused) is type(absent)
    assert str(refused) == str(absent).replace("nowhere", "theirs")
    assert done(replica, log, made("mine"))[0].count == 1


@pytest.mark.parametrize(
    "command",
    [
        Patch("c", ["mine"], Change(set=[("tenant", b'"b"')]), bound=BOUND),
        Patch("c", ["mine"], Change(unset=["tenant"]), bound=BOUND),
        Patch("c", ["mine"], Change(whole=b'{"tenant":"b"}'), bound=BOUND),
        Patch("c", ["mine"], Change(whole=b""), bound=BOUND),
        ChangeWhere("c", b"", Change(set=[("tenant", b'"b"')]), bound=BOUND),
    ],
)
def test_no_change_moves_a_document_out_of_the_filter(replica: Replica, log: Log, command: Any) -> None:
    before = stored(replica)
    (refused,) = done(replica, log, command)
    assert isinstance(refused, Forbidden)
    assert stored(replica) == before


def test_entries_of_one_batch_see_those_before_them(replica: Replica, log: Log) -> None:
    results = done(
        replica, log,
        Delete("c", ["mine"]),
        put(["mine"], [ROW], [THEIRS]),
        put(["mine"], [ROW], [MINE], bound=BOUND),
        Patch("c", ["mine"], Change(set=[("tenant", b'"a"')])),
        put(["mine"], [ROW], [MINE], bound=BOUND),
    )  # fmt: skip
    assert [isinstance(one, Forbidden) for one in results] == [False, False, True, False, False]


def test_a_bound_without_a_filter_is_an_owner_and_nothing_else(replica: Replica, log: Log) -> None:
    """Of keys for some collections: what they write is not judged by what is stored, nor bounded by that."""
    own = Bound(b"", 5)
    [opened] = done(replica, log, OpenSession(7, owner=5))
    mine = [Session(opened.index, seq, 0) for seq in range(1, 5)]
    many = put([f"n{n}" for n in range(1500)], [ROW] * 1500, bound=own, session=mine[0])
    assert replica.validate(many) == many
    results = done(
        replica,
        log,
        many,
        put(["theirs"], [ROW], [MINE], bound=own, session=mine[1]),
        Patch("c", ["theirs"], Change(set=[("tenant", b'"b"')]), bound=own, session=mine[2]),
        Delete("c", ["bare"], bound=Bound(b"", 6), session=mine[3]),
        ChangeWhere("c", FILTER, None, bound=own, return_ids=True),
    )
    assert [getattr(result, "count", None) for result in results] == [1500, 1, 1, None, 1]
    assert isinstance(results[3], SessionExpired)
    assert results[4].ids == ["mine"]


def test_a_session_is_its_owners(replica: Replica, log: Log, tmp_path: Path) -> None:
    opened = done(replica, log, OpenSession(7, 5), OpenSession(7), OpenSession(7, 6), OpenSession(7, 5))
    assert len({one.index for one in opened}) == 3
    assert opened[0] == opened[3]
    mine = Session(opened[0].index, 1, 1)
    first = put(["new"], [ROW], [MINE], bound=BOUND, session=mine)
    for at in range(2):
        if at:
            replica.checkpoint()
            replica.close()
            replica = open_replica(tmp_path)
        again, other, unbound = done(
            replica, log, first,
            put(["new"], [ROW], [MINE], bound=Bound(FILTER, 6), session=mine),
            put(["new"], [ROW], [MINE], session=mine),
        )  # fmt: skip
        assert isinstance(again, WriteResult)
        assert isinstance(other, SessionExpired)
        assert isinstance(unbound, SessionExpired)
        assert str(other) == str(unbound)


# --- reads -----------------------------------------------------------------------------------------------------------
def test_reads_show_what_matches(replica: Replica) -> None:
    request = SearchRequest(collection="c", vector=floats(ROW), k=10, bound=FILTER)
    assert replica.search(request).ids == ["mine"]
    assert replica.search(msgspec.structs.replace(request, filter=b'{"tenant":"b"}')).ids == []
    assert replica.search(msgspec.structs.replace(request, bound=b"", filter=b'{"tenant":"b"}')).ids == ["theirs"]
    with pytest.raises(Forbidden):
        replica.search(msgspec.structs.replace(request, explain=True))
    assert [one.id for one in replica.get("c", ["theirs", "mine", "bare"], False, bound=FILTER)] == ["mine"]
    assert replica.count_matching("c", b"", bound=FILTER)[0] == 1
    assert replica.count_matching("c", b'{"tenant":"b"}', bound=FILTER)[0] == 0


@pytest.mark.parametrize("breakout", [b'{}],"$and":[{}', b'{"tenant":"a"}, {}', b'{"$or":[{},{}]}', b"{}"])
def test_no_filter_of_a_caller_gets_around_the_bound(replica: Replica, breakout: bytes) -> None:
    try:
        found = replica.search(
            SearchRequest(collection="c", vector=floats(ROW), k=10, filter=breakout, bound=FILTER)
        ).ids
    except NeedleError as error:
        assert isinstance(error, InvalidArgument)
    else:
        assert found == ["mine"]


@pytest.mark.parametrize("older", [False, True])
def test_a_page_tells_no_id_of_others(replica: Replica, log: Log, monkeypatch: pytest.MonkeyPatch, older: bool) -> None:
    """Where a page ends is told by an id: that of the last document looked at would be another tenant's. older: all
    have to be looked at, since they are newer than what the page begins with."""
    if older:
        view = replica.view
        monkeypatch.setattr(replica._reads, "_view", lambda: view)
    monkeypatch.setattr(reads, "SCAN_LOOKS", 3)
    names = [f"x{n:02}" for n in range(40)]
    own = {"x01", "x02", "x19", "x38"}
    done(replica, log, put(names, [ROW] * 40, [MINE if name in own else THEIRS for name in names]))
    replica.save()
    reached: str | None = ""
    seen: list[str] = []
    while reached is not None:
        page = replica.scan(Page("c", b"", reached, 10, False, bound=FILTER))
        assert page.reached is None or page.reached in own | {"mine"}
        seen += [one.id for one in page.documents]
        reached = page.reached
    assert seen == ["mine", *sorted(own)]
    assert replica.scan(Page("c", b"", "x38", 10, False, bound=FILTER)).reached is None


def test_a_page_has_what_is_stored_though_the_view_is_older(replica: Replica, log: Log, monkeypatch: Any) -> None:
    """Documents are read as they are now, indexes of fields are of a moment before: what was written between counts,
    and of what became another tenant's in between nothing is shown."""
    done(replica, log, put(["x", "y"], [ROW] * 2, [MINE, THEIRS]))
    older = replica.view
    done(replica, log, put(["x", "y", "z"], [ROW] * 3, [THEIRS, MINE, MINE]))
    replica.save()
    monkeypatch.setattr(replica._reads, "_view", lambda: older)
    for filter_json in (b"", b'{"tenant":{"$in":["a","b"]}}'):
        page = replica.scan(Page("c", filter_json, "", 10, True, bound=FILTER))
        assert [(one.id, one.metadata, len(one.vector)) for one in page.documents] == [
            (name, b'{"tenant": "a"}', 12) for name in ("mine", "y", "z")
        ]


def test_a_scan_of_little_looks_at_no_more(replica: Replica, log: Log, monkeypatch: Any) -> None:
    done(replica, log, put([f"x{n:04}" for n in range(9000)], [ROW] * 9000, [THEIRS] * 8999 + [MINE]))
    looked = []

    def evaluated(node: Any, metadata: Any, id_: Any) -> bool:
        looked.append(metadata)
        return evaluate(node, metadata, id_)

    monkeypatch.setattr(reads, "evaluate", evaluated)
    assert [one.id for one in replica.scan(Page("c", b"", "", 10, False, bound=FILTER)).documents] == ["mine", "x8999"]
    assert len(looked) == 2

    def over() -> None:
        raise DeadlineExceeded("over")

    with pytest.raises(DeadlineExceeded):
        replica.scan(Page("c", b"", "", 10, False, bound=FILTER), None, over)


def test_conditions_hold_for_what_is_visible(replica: Replica, log: Log) -> None:
    (refused,) = done(replica, log, Delete("c", ["mine", "theirs"], matches=b'{"tenant":"x"}', bound=BOUND))
    assert isinstance(refused, ConditionFailed)
    assert refused.details["id"] == "mine"
