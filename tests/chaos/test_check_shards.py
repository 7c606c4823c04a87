"""The judgement of a sharded history: two shards, "a.." in shard 0 and "b.." in shard 1, each with its own log."""

from typing import Any

import pytest

from chaos.script import Written
from proof.chaos.check import FINAL
from proof.chaos.revealed_log import Replayed

Hit = tuple[str, int, float, str]
A1, A2, B1, B2 = ("a1", 5, 1.0, "t1"), ("a2", 7, 3.0, "t2"), ("b1", 4, 2.0, "t3"), ("b2", 9, 4.0, "t4")


class Script(Written):
    """Two shards."""

    def __init__(self) -> None:
        super().__init__(2, lambda key: "ab".index(key[0]))

    def put(self, hit: Hit, n: int = 0) -> None:
        self.acknowledge(self.begin_put(hit[0], hit[3], hit[2], n), hit[1])

    def search(self, *hits: Hit, applied: dict[int, int] | None = None, **asked: Any) -> None:
        self.answer(self.begin_search(**asked), *hits, applied=applied)

    def get(self, hit: Hit, applied: int, mode: str = "strong", client: str = "c1") -> None:
        self.read(hit[0], hit[1], hit[3], applied, mode, client)


@pytest.fixture
def script() -> Script:
    made = Script()
    for hit in (A1, A2, B1, B2):
        made.put(hit, n=hit[1])
    return made


@pytest.mark.parametrize("applied", [{0: 7, 1: 9}, None])
def test_right_answers_pass(script: Script, applied: dict[int, int] | None):
    script.search(A1, B1, A2, B2, applied=applied)
    script.search(A1, B1, applied=applied, k=2)
    script.search(A1, A2, B2, applied=applied, filter={"n": {"$gte": 5}})
    script.get(("b1", 4, 2.0, "t3"), 9, mode="eventual")
    assert script.check().reads == Replayed(searches=3, exact=3, eventual_gets=1)


@pytest.mark.parametrize("applied", [{0: 7, 1: 9}, None])
@pytest.mark.parametrize(
    ("hits", "k", "says"),
    [
        ([A1, A2, B1], 10, "not in order"),
        ([A1, B1, A2], 10, "['b2'] are missing"),
        ([B1, A2, B2], 10, "['a1'] are missing"),
        ([A1, A2], 2, "['b1'] are missing"),
        ([A1, A1, B1, A2, B2], 10, "and got"),
        ([A1, B1, A2, B2], 3, "asked for 3"),
        ([A1, B1, A2, ("c1", 3, 5.0, "t9")], 10, "nobody had written"),
        ([A1, B1, ("a2", 7, 2.5, "t2"), B2], 10, "truly 3.0"),
        ([A1, B1, ("a2", 6, 3.0, "t2"), B2], 10, "version 6"),
    ],
)
def test_a_wrong_answer(script: Script, hits: list[Hit], k: int, says: str, applied: dict[int, int] | None):
    script.search(*hits, k=k, applied=applied)
    assert says in script.broken()


RANGES = [[0, "", "62"], [1, "62", "63"], [0, "63", None]]
A_GAPS, B_GAPS = [["", "62"], ["63", None]], [["62", "63"]]


def part(
    script: Script, *hits: Hit, applied: dict[int, int], missing: list[int], gaps: Any, asked: bool = True
) -> None:
    """A search that was answered in part."""
    script.history.note("map", ranges=RANGES)
    op = script.begin_search()
    op.details |= {"partial": asked, "missing": missing, "gaps": gaps}
    script.answer(op, *hits, applied=applied)


def test_a_partial_answer_that_tells_the_truth(script: Script):
    part(script, A1, A2, applied={0: 7}, missing=[1], gaps=B_GAPS)
    part(script, B1, B2, applied={1: 9}, missing=[0], gaps=A_GAPS[::-1])
    part(script, applied={}, missing=[0, 1], gaps=[["", None]])
    part(script, A1, B1, A2, B2, applied={0: 7, 1: 9}, missing=[], gaps=[])
    assert script.check().reads == Replayed(searches=4, exact=4, partial=4)


@pytest.mark.parametrize(
    ("hits", "applied", "missing", "gaps", "says"),
    [
        ([A1], {0: 7}, [1], B_GAPS, "['a2'] are missing"),
        ([A1, A2], {0: 7}, [1], A_GAPS, "names the gaps"),
        ([B1, B2], {1: 9}, [0], A_GAPS[:1], "names the gaps"),
        ([A1, A2], {0: 7}, [1], [], "names the gaps"),
        ([A1, A2], {0: 7}, [], [], "answered by shards [0] of 2"),
        ([A1, B1, A2], {0: 7}, [1], B_GAPS, "leaves out shards [1], and has ['b1']"),
        ([A1, A2], {0: 6}, [1], B_GAPS, "before 7 which it had to see"),
        ([A1, B1, A2, B2], {0: 7, 1: 9}, [], B_GAPS, "names the gaps"),
    ],
)
def test_a_partial_answer_that_does_not(
    script: Script, hits: list[Hit], applied: dict[int, int], missing: list[int], gaps: Any, says: str
):
    part(script, *hits, applied=applied, missing=missing, gaps=gaps)
    assert says in script.broken()


GROUPED = {"of_each": 1, "k": 10}
VARIED = {"diversify": 1.0, "pool": 3, "k": 2}
ORDERED = {"order_by": "n", "descending": True, "k": 3}


@pytest.fixture
def shaped(script: Script) -> Script:
    """Documents a1, b1 and a3 have n 5, 4 and 4."""
    script.put(("a3", 8, 2.5, "t5"), n=4)
    return script


@pytest.mark.parametrize("applied", [{0: 8, 1: 9}, None])
def test_hits_by_groups_unlike_each_other_and_in_order(shaped: Script, applied: dict[int, int] | None):
    a3 = ("a3", 8, 2.5, "t5")
    shaped.search(A1, B1, A2, B2, applied=applied, groups=[5, 4, 7, 9], **GROUPED)
    shaped.search(A1, a3, applied=applied, **VARIED)
    shaped.search(A1, B1, a3, applied=applied, **{**ORDERED, "order_by": "odd"})
    shaped.search(A1, B1, a3, applied=applied, **ORDERED)
    assert shaped.check().reads == Replayed(searches=4, exact=4, shaped=4)


@pytest.mark.parametrize("applied", [{0: 8, 1: 9}, None])
@pytest.mark.parametrize(
    ("hits", "asked", "says"),
    [
        ([A1, B1, A2], {**GROUPED, "groups": [5, 4, 7]}, "['b2'] are missing"),
        ([A1, ("a3", 8, 2.5, "t5"), A2, B2], {**GROUPED, "groups": [5, 4, 7, 9]}, "['b1'] are missing"),
        ([A1, B1, A2, B2], {**GROUPED, "groups": [5, 4, 8, 9]}, "['a2'] are in groups of other values"),
        ([A1, B1, A2, B2], {**GROUPED, "groups": []}, "4 hits are in 0 groups"),
        ([B1, A2], VARIED, "['a1'] are missing"),
        ([B1, A1, ("a3", 8, 2.5, "t5")], ORDERED, "in the order of n"),
        ([A1, B1, A2], ORDERED, "['a3'] are missing"),
    ],
)
def test_hits_of_a_wrong_shape(
    shaped: Script, hits: list[Hit], asked: dict[str, Any], says: str, applied: dict[int, int] | None
):
    shaped.search(*hits, applied=applied, **asked)
    assert says in shaped.broken()


def test_what_is_known_of_the_pool_are_the_documents_of_all_shards(script: Script):
    script.search(A1, B1, applied={0: 7, 1: 9}, **{**VARIED, "pool": 4})
    assert "b2 was worth 3.0" in script.broken()


def test_a_hit_that_is_not_in_the_pool(script: Script):
    script.search(A1, B2, applied={0: 7, 1: 9}, **VARIED)
    assert "b2 at 4.000000 is none of the 3 nearest" in script.broken()


def test_a_write_of_unknown_fate_may_have_taken_a_place_in_the_pool(script: Script):
    script.lose(script.begin_put("b3", "t6", 0.5))
    script.search(A1, B1, applied={0: 7, 1: 9}, **VARIED)
    assert script.check().reads.shaped == 1
    script.search(A1, B1, applied={0: 7, 1: 9}, **{**VARIED, "pool": 5})
    assert "b2 was worth 3.0" in script.broken()


def test_a_document_that_may_be_deleted_leaves_its_place_in_the_pool(script: Script):
    script.lose(script.begin_delete("a2"))
    script.search(A1, B2, applied={0: 8, 1: 9}, **VARIED)
    script.check()
    script.lose(script.begin_delete("b1"))
    script.search(A1, B2, applied={0: 8, 1: 9}, **VARIED)
    assert script.check().reads.shaped == 2


def test_a_shard_is_left_out_on_request_only(script: Script):
    part(script, A1, A2, applied={0: 7}, missing=[1], gaps=B_GAPS, asked=False)
    assert "without being asked to" in script.broken()


def test_each_shard_has_its_own_index(script: Script):
    script.search(A1, B1, B2, applied={0: 6, 1: 9})
    assert "before 7 which it had to see" in script.broken()


def test_a_shard_that_did_not_answer(script: Script):
    script.search(A1, A2, applied={0: 7})
    assert "answered by shards [0] of 2" in script.broken()


def test_an_eventual_search_may_see_an_older_state_of_each_shard_but_not_before_its_session(script: Script):
    script.search(A1, B1, B2, applied={0: 6, 1: 9}, mode="eventual", required={"0": 5})
    assert script.check().reads.searches == 1
    script.search(B1, B2, applied={0: 4, 1: 9}, mode="eventual", required={"0": 5})
    assert "before 5 which it had to see" in script.broken()


def test_through_a_node_some_state_of_each_shard_must_fit(script: Script):
    searching = script.begin_search()
    late = script.begin_put("a3", "t5", 1.5)
    later = script.begin_put("b3", "t6", 2.5)
    script.acknowledge(late, 8)
    script.acknowledge(later, 11)
    script.answer(searching, A1, ("a3", 8, 1.5, "t5"), B1, A2, B2)  # b3 came after its shard had answered
    script.check()
    script.search(A1, ("a3", 8, 1.5, "t5"), B1, A2, B2)  # but this one began afterwards
    assert "['b3'] are missing" in script.broken()


def test_a_state_may_not_be_mixed_of_two(script: Script):
    searching = script.begin_search()
    again, other = script.begin_put("a1", "t5", 1.5), script.begin_put("a2", "t6", 2.5)
    script.acknowledge(again, 8)
    script.acknowledge(other, 10)
    script.answer(searching, A1, B1, ("a2", 10, 2.5, "t6"), B2)
    assert "a1" in script.broken()


def test_what_began_after_the_answer_cannot_have_been_seen(script: Script):
    script.search(A1, ("a3", 8, 1.5, "t5"), B1, A2, B2)
    script.put(("a3", 8, 1.5, "t5"))
    assert "['a3'], which nobody had written" in script.broken()


def test_an_unknown_delete_may_hide_a_document_of_its_shard_only(script: Script):
    script.lose(script.begin_delete("a1"))
    script.search(B1, A2, B2)
    script.search(A1, B1, A2, B2, applied={0: 7, 1: 9}, mode="eventual")
    assert script.check().reads.undetermined == 1
    script.search(A1, A2, B2)
    assert "['b1'] are missing" in script.broken()


def test_replicas_are_compared_shard_by_shard(script: Script):
    for hit in (A1, A2, B1, B2):
        script.get(hit, 9, client=FINAL)
    for node, shard, digest, documents in (
        ("node-1", 0, "x", {"a1": 5, "a2": 7}),
        ("node-2", 0, "x", {"a1": 5, "a2": 7}),
        ("node-2", 1, "y", {"b1": 4, "b2": 9}),
    ):
        script.history.note("replica", node=node, shard=shard, applied_index=9, digest=digest, documents=documents)
    assert script.check().replicas == 3
    script.history.note("replica", node="node-3", shard=1, applied_index=9, digest="y", documents={"b1": 4})
    assert "node-3 holds version 0 of 'b2'" in script.broken()
