"""The judgement of a recorded history: broken promises are found, what unknown writes allow is allowed."""

import io
from typing import Any

import pytest

from proof.chaos.check import FINAL, Verdict, check
from proof.chaos.history_file import Recorder, read
from proof.chaos.revealed_log import Replayed
from proof.sim.history import Operation
from proof.sim.violation import Violation


class Script:
    """A history written by hand; metric l2, vectors (x, 0), a search asks for what is near (0, 0)."""

    def __init__(self) -> None:
        self.file = io.StringIO()
        self.history = Recorder(self.file, metric="l2")

    def begin_put(self, key: str, tag: str, x: float, n: int = 0) -> Operation:
        details = {"vector": [x, 0.0], "metadata": {"tag": tag, "n": n, "odd": False}}
        return self.history.invoke("c0", "put", key, 0.0, tag=tag, details=details)

    def put(self, key: str, tag: str, x: float, index: int, n: int = 0) -> None:
        op = self.begin_put(key, tag, x, n)
        self.history.finish(op, "ok", 0.0, version=index, index=index)

    def lose(self, op: Operation) -> None:
        self.history.finish(op, "unknown", 0.0, error="outcome_unknown")

    def delete(self, key: str) -> Operation:
        return self.history.invoke("c0", "delete", key, 0.0)

    def get(self, key: str, version: int, seen: str, applied: int, client: str = "c1", mode: str = "strong") -> None:
        kind: Any = "search" if mode == "eventual" else "get"
        op = self.history.invoke(client, kind, key, 0.0, details={"mode": mode, "required": 0})
        op.details["applied"] = applied
        self.history.finish(op, "ok", 0.0, version=version, seen=seen)

    def search(self, applied: int, *hits: tuple[str, int, float, str], k: int = 10, **asked: Any) -> None:
        details = {"mode": "strong", "k": k, "filter": None, "exact": True, "vector": [0.0, 0.0], "required": 0}
        op = self.history.invoke("c1", "search", "", 0.0, details=details | asked)
        op.details |= {"applied": applied, "hits": [list(hit) for hit in hits]}
        self.history.finish(op, "ok", 0.0, version=len(hits), index=applied)

    def check(self) -> Verdict:
        return check(read(self.file.getvalue().splitlines()))

    def broken(self) -> str:
        with pytest.raises(Violation) as caught:
            self.check()
        return str(caught.value)


@pytest.fixture
def script() -> Script:
    made = Script()
    made.put("a", "t1", 1.0, 5)
    made.put("b", "t2", 2.0, 6, n=7)
    return made


def test_right_answers_pass(script: Script):
    script.get("a", 5, "t1", 6)
    script.search(6, ("a", 5, 1.0, "t1"), ("b", 6, 2.0, "t2"))
    script.search(6, ("b", 6, 2.0, "t2"), filter={"n": {"$gte": 5}})
    script.get("b", 0, "", 5, mode="eventual")
    assert script.check().reads == Replayed(searches=2, exact=2, eventual_gets=1)


def test_a_lost_acknowledged_write(script: Script):
    script.get("a", 0, "", 6, client=FINAL)
    assert "linearizability" in script.broken()


@pytest.mark.parametrize(
    ("applied", "hits", "says"),
    [
        (6, [("a", 5, 1.0, "t1")], "1 hits, the log has 2"),
        (6, [("a", 5, 1.0, "t1"), ("b", 6, 2.5, "t2")], "truly 2.0"),
        (6, [("b", 6, 2.0, "t2"), ("a", 5, 1.0, "t1")], "order"),
        (5, [("a", 5, 1.0, "t1")], "before 6 which it had to see"),
        (6, [("a", 5, 1.0, "t1"), ("b", 6, 2.0, "t2"), ("c", 6, 3.0, "t9")], "absent"),
    ],
)
def test_a_wrong_search(script: Script, applied: int, hits: list[tuple[str, int, float, str]], says: str):
    script.search(applied, *hits)
    assert says in script.broken()


def test_a_filter_that_lets_the_wrong_through(script: Script):
    script.search(6, ("a", 5, 1.0, "t1"), ("b", 6, 2.0, "t2"), filter={"n": {"$gte": 5}})
    assert "filtered out" in script.broken()


def test_a_value_nobody_wrote_successfully(script: Script):
    failed = script.begin_put("c", "t3", 3.0)
    script.history.finish(failed, "failed", 0.0, error="not_leader")
    script.search(7, ("a", 5, 1.0, "t1"), ("b", 6, 2.0, "t2"), ("c", 7, 3.0, "t3"))
    assert "absent" in script.broken()


def test_an_unknown_write_may_be_seen_once_or_never_but_not_before_its_place(script: Script):
    script.lose(script.begin_put("c", "t3", 3.0))
    script.search(6, ("a", 5, 1.0, "t1"), ("b", 6, 2.0, "t2"))
    script.search(9, ("a", 5, 1.0, "t1"), ("b", 6, 2.0, "t2"), ("c", 9, 3.0, "t3"))
    assert script.check().reads.undetermined == 0
    script.search(10, ("a", 5, 1.0, "t1"), ("b", 6, 2.0, "t2"))
    assert "the log has 3" in script.broken()


def test_an_unknown_delete_may_hide_a_document_only_after_it_began(script: Script):
    script.lose(script.delete("a"))
    script.search(8, ("b", 6, 2.0, "t2"))
    assert script.check().reads.undetermined == 1
    script.search(9, ("a", 5, 1.0, "t1"))
    assert "hits" in script.broken(), "b is missing, and nothing may have deleted it"


def test_a_document_seen_later_was_not_deleted_before(script: Script):
    script.lose(script.delete("a"))
    script.search(8, ("b", 6, 2.0, "t2"))
    script.get("a", 5, "t1", 12)
    assert "the log has 2" in script.broken()


def test_one_value_has_one_version(script: Script):
    script.get("a", 6, "t1", 6, mode="eventual")
    script.get("a", 5, "t1", 6, mode="eventual")
    assert "value t1 was reported with versions 5 and 6" in script.broken()


def test_an_eventual_get_of_a_state_that_never_was(script: Script):
    script.get("a", 0, "", 5, mode="eventual")
    assert "returned version 0" in script.broken()


def test_an_open_delete_may_have_come_before_a_later_overwrite(script: Script):
    script.lose(script.delete("a"))
    script.get("a", 0, "", 8, mode="eventual")
    script.put("a", "t3", 1.0, 12)
    script.get("a", 12, "t3", 14)
    assert script.check().reads.eventual_gets == 1


def test_an_open_delete_has_no_place_where_the_document_was_seen(script: Script):
    script.lose(script.delete("a"))
    script.get("a", 5, "t1", 11, mode="eventual")
    script.get("a", 0, "", 8, mode="eventual")
    script.put("a", "t3", 1.0, 12)
    script.get("a", 12, "t3", 14)
    assert "returned version 0" in script.broken()


def test_replicas_that_differ(script: Script):
    script.get("a", 5, "t1", 6, client=FINAL)
    for node, digest in (("node-1", "x"), ("node-2", "y")):
        script.history.note("replica", node=node, applied_index=6, digest=digest, documents={"a": 5})
    assert "equal replicas" in script.broken()


def test_a_replica_without_an_acknowledged_write(script: Script):
    script.get("a", 5, "t1", 6, client=FINAL)
    script.history.note("replica", node="node-1", applied_index=6, digest="x", documents={"b": 6})
    assert "node-1 holds version 0 of 'a'" in script.broken()
