"""The judgement of a recorded history: broken promises are found, what unknown writes allow is allowed."""

from typing import Any

import pytest

from chaos.script import Written
from proof.chaos.check import FINAL
from proof.chaos.revealed_log import Replayed


class Script(Written):
    """One shard."""

    def __init__(self) -> None:
        super().__init__(1, lambda key: 0)

    def put(self, key: str, tag: str, x: float, index: int, n: int = 0) -> None:
        self.acknowledge(self.begin_put(key, tag, x, n), index)

    def get(self, key: str, version: int, seen: str, applied: int, client: str = "c1", mode: str = "strong") -> None:
        self.read(key, version, seen, applied, mode, client)

    def search(self, applied: int, *hits: tuple[str, int, float, str], k: int = 10, **asked: Any) -> None:
        self.answer(self.begin_search(k, **asked), *hits, applied={0: applied})


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
        (6, [("a", 5, 1.0, "t1")], "['b'] are missing"),
        (6, [("a", 5, 1.0, "t1"), ("b", 6, 2.5, "t2")], "truly 2.0"),
        (6, [("b", 6, 2.0, "t2"), ("a", 5, 1.0, "t1")], "order"),
        (5, [("a", 5, 1.0, "t1")], "before 6 which it had to see"),
        (6, [("a", 5, 1.0, "t1"), ("b", 6, 2.0, "t2"), ("c", 6, 3.0, "t9")], "nobody had written"),
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
    assert "['c'] are missing" in script.broken()


def test_an_unknown_delete_may_hide_a_document_only_after_it_began(script: Script):
    script.lose(script.begin_delete("a"))
    script.search(8, ("b", 6, 2.0, "t2"))
    assert script.check().reads.undetermined == 1
    script.search(9)
    assert "['b'] are missing" in script.broken(), "b is missing, and nothing may have deleted it"


def test_a_document_seen_later_was_not_deleted_before(script: Script):
    script.lose(script.begin_delete("a"))
    script.search(8, ("b", 6, 2.0, "t2"))
    script.get("a", 5, "t1", 12)
    assert "['a'] are missing" in script.broken()


def test_one_value_has_one_version(script: Script):
    script.get("a", 6, "t1", 6, mode="eventual")
    script.get("a", 5, "t1", 6, mode="eventual")
    assert "value t1 was reported with versions 5 and 6" in script.broken()


def test_an_eventual_get_of_a_state_that_never_was(script: Script):
    script.get("a", 0, "", 5, mode="eventual")
    assert "returned version 0" in script.broken()


def test_an_open_delete_may_have_come_before_a_later_overwrite(script: Script):
    script.lose(script.begin_delete("a"))
    script.get("a", 0, "", 8, mode="eventual")
    script.put("a", "t3", 1.0, 12)
    script.get("a", 12, "t3", 14)
    assert script.check().reads.eventual_gets == 1


def test_an_open_delete_has_no_place_where_the_document_was_seen(script: Script):
    script.lose(script.begin_delete("a"))
    script.get("a", 5, "t1", 11, mode="eventual")
    script.get("a", 0, "", 8, mode="eventual")
    script.put("a", "t3", 1.0, 12)
    script.get("a", 12, "t3", 14)
    assert "returned version 0" in script.broken()


def test_replicas_that_differ(script: Script):
    script.get("a", 5, "t1", 6, client=FINAL)
    for node, digest in (("node-1", "x"), ("node-2", "y")):
        script.history.note("replica", node=node, shard=0, applied_index=6, digest=digest, documents={"a": 5})
    assert "equal replicas" in script.broken()


def test_a_replica_without_an_acknowledged_write(script: Script):
    script.get("a", 5, "t1", 6, client=FINAL)
    script.history.note("replica", node="node-1", shard=0, applied_index=6, digest="x", documents={"b": 6})
    assert "node-1 holds version 0 of 'a'" in script.broken()
