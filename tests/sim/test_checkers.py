"""Every checker accepts a good history and refuses a hand-written bad one."""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import apsw
import numpy as np
import pytest

from needle.base.ids import CATALOG_GROUP
from needle.protocol.commands import Change, CreateCollection, Patch
from needle.raft.messages import ConfState
from proof.checkers import linearizability, lives, log_matching, matches
from proof.checkers.committed import Committed, CommittedEntry
from proof.checkers.digests import Digests, rows_of
from proof.checkers.durability import append_ack, vote_granted, write_acknowledged
from proof.checkers.elections import Elections
from proof.checkers.history import History
from proof.checkers.leases import Leases
from proof.checkers.monotone import Monotone, Position
from proof.checkers.replay import GetSeen, LogModel, ModelDocument, SearchSeen, check_get, check_search
from proof.checkers.violation import Violation
from proof.sim.shrink import fewest, smallest
from proof.sim.watch import Watch
from shard.replica_util import Log, open_replica, put, spec


class Script:
    """Writes a history; `begin` and `end` may overlap, `do` does both at once."""

    def __init__(self):
        self.history = History()

    def begin(self, kind, key="k", **fields):
        return self.history.invoke("c", kind, key, 0.0, **fields)

    def end(self, op, outcome="ok", **fields):
        self.history.finish(op, outcome, 0.0, **fields)
        return op

    def do(self, kind, outcome="ok", *, tag="", expected=0, **fields):
        return self.end(self.begin(kind, tag=tag, expected=expected), outcome, **fields)

    def legal(self):
        try:
            linearizability.check(self.history)
        except Violation:
            return False
        return True


@pytest.fixture
def script():
    return Script()


def test_a_sequential_history_of_every_operation_is_legal(script):
    script.do("get")
    script.do("put", tag="a", version=1, existed=False)
    script.do("get", seen="a", version=1)
    script.do("insert", "refused", tag="b", version=1)
    script.do("cas", tag="c", expected=1, version=2)
    script.do("cas", "refused", tag="d", expected=1, version=2)
    script.do("delete", existed=True)
    script.do("delete", existed=False)
    script.do("cas", "refused", tag="e", expected=2, version=0)
    script.do("insert", tag="f", version=9)
    script.do("get", seen="f", version=9)
    assert script.legal()


def test_patches_are_legal_in_any_order_that_answers_allow(script):
    script.do("patch", tag="x", version=0, existed=False)
    script.do("put", tag="a", version=2, existed=False)
    script.do("patch", tag="p", version=3, existed=True)
    script.do("get", seen="a+p", version=3)
    script.do("patch", "refused", tag="q", expected=2, version=3)
    script.do("cas", tag="b", expected=3, version=5)
    script.do("get", seen="b", version=5)
    script.begin("patch", tag="r")  # perhaps it takes effect, perhaps not
    script.do("get", seen="b", version=5)
    script.do("get", seen="b+r", version=7)
    script.do("delete", existed=True)
    script.do("patch", "refused", tag="s", expected=7, version=0)
    assert script.legal()


@pytest.mark.parametrize(
    ("seen", "version"),
    [("a", 2), ("p", 2), ("a+p", 1), ("a", 1)],
    ids=["it is lost", "it loses a field", "it makes no version", "it was never done"],
)
def test_a_patch_that_loses_something_is_refused(script, seen, version):
    script.do("put", tag="a", version=1, existed=False)
    script.do("patch", tag="p", version=2, existed=True)
    script.do("get", seen=seen, version=version)
    assert not script.legal()


def test_a_patch_done_twice_is_refused(script):
    script.do("put", tag="a", version=1, existed=False)
    script.do("patch", tag="p", version=2, existed=True)
    script.do("patch", tag="q", version=3, existed=True)
    script.do("get", seen="a+p", version=4)
    assert not script.legal()


def test_new_vectors_are_legal_in_any_order_that_answers_allow(script):
    script.do("update", tag="u", version=0, existed=False)
    script.do("put", tag="a", version=2, existed=False)
    script.do("update", tag="v", version=3, existed=True)
    script.do("get", seen="a~v", version=3)
    script.do("patch", tag="p", version=4, existed=True)
    script.do("get", seen="a+p~v", version=4)
    script.do("update", tag="w", version=5, existed=True)
    script.do("get", seen="a+p~w", version=5)
    script.begin("update", tag="x")  # perhaps it takes effect, perhaps not
    script.do("get", seen="a+p~w", version=5)
    script.do("get", seen="a+p~x", version=7)
    script.do("put", tag="b", version=9, existed=True)
    script.do("get", seen="b", version=9)
    assert script.legal()


@pytest.mark.parametrize(
    ("seen", "version"),
    [("a+p", 3), ("a~v", 3), ("a+p~v", 2), ("a+p", 2), ("b+p~v", 3)],
    ids=["it is lost", "it loses a field", "it makes no version", "it was never done", "it is another document's"],
)
def test_a_new_vector_that_loses_something_is_refused(script, seen, version):
    script.do("put", tag="a", version=1, existed=False)
    script.do("patch", tag="p", version=2, existed=True)
    script.do("update", tag="v", version=3, existed=True)
    script.do("get", seen=seen, version=version)
    assert not script.legal()


def test_a_stale_read_is_refused(script):
    script.do("put", tag="a", version=1)
    script.do("put", tag="b", version=2)
    script.do("get", seen="a", version=1)
    assert not script.legal()


def test_a_lost_write_is_refused(script):
    script.do("put", tag="a", version=1)
    script.do("get")
    assert not script.legal()


def test_a_read_that_overlaps_a_write_may_see_either_but_not_flip_back(script):
    script.do("put", tag="a", version=1)
    write = script.begin("put", tag="b")
    script.do("get", seen="b", version=2)
    script.do("get", seen="a", version=1)
    script.end(write, version=2)
    assert not script.legal()


def test_an_unknown_write_may_take_effect_late_or_never(script):
    script.do("put", tag="a", version=1)
    script.end(script.begin("put", tag="b"), "unknown")
    script.do("get", seen="a", version=1)
    assert script.legal()
    script.do("get", seen="b", version=2)
    assert script.legal()
    script.do("get", seen="a", version=1)
    assert not script.legal()


def test_an_eventual_read_reveals_the_version_of_an_unknown_write(script):
    script.do("put", "unknown", tag="a")
    script.do("search", seen="a", version=7)
    script.do("cas", tag="b", expected=7, version=8)
    assert script.legal()
    script.do("get", seen="a", version=9)
    assert not script.legal()


def test_an_eventual_read_settles_the_version_of_an_unknown_write(script):
    script.do("put", "unknown", tag="a")
    script.do("search", seen="a", version=7)
    script.do("insert", "refused", tag="b", version=6)
    assert not script.legal()


def test_a_refusal_reveals_the_version_of_an_unknown_write(script):
    script.do("put", tag="z", version=1)
    script.do("put", "unknown", tag="a")
    script.do("insert", "refused", tag="b", version=7)
    script.do("cas", "refused", tag="c", expected=1, version=7)
    script.do("cas", tag="d", expected=7, version=8)
    assert script.legal()


def test_a_refusal_settles_the_version_of_an_unknown_write(script):
    script.do("put", "unknown", tag="a")
    script.do("insert", "refused", tag="b", version=7)
    script.do("insert", "refused", tag="c", version=6)
    assert not script.legal()


def test_an_unknown_compare_and_set_on_an_unknown_version_may_have_taken_effect(script):
    script.do("put", "unknown", tag="a")
    script.do("cas", "unknown", tag="b", expected=7)
    script.do("get", seen="b", version=8)
    assert script.legal()


def test_a_failed_write_that_took_effect_is_refused(script):
    script.do("put", "failed", tag="a")
    script.do("get", seen="a", version=1)
    assert not script.legal()


def test_a_write_executed_twice_is_refused(script):
    script.do("put", tag="a", version=1)
    script.do("put", tag="b", version=2)
    script.do("get", seen="a", version=3)
    assert not script.legal()


def test_two_winners_of_one_compare_and_set_are_refused(script):
    script.do("put", tag="a", version=1)
    one, two = script.begin("cas", tag="b", expected=1), script.begin("cas", tag="c", expected=1)
    script.end(one, version=2)
    script.end(two, version=3)
    assert not script.legal()


def test_two_winners_of_insert_if_absent_are_refused(script):
    script.do("insert", tag="a", version=1)
    script.do("insert", tag="b", version=2)
    assert not script.legal()


def test_a_refusal_without_a_reason_is_refused(script):
    script.do("put", tag="a", version=1)
    script.do("cas", "refused", tag="b", expected=1, version=1)
    assert not script.legal()


def test_a_wrong_existed_flag_is_refused(script):
    script.do("put", tag="a", version=1)
    script.do("put", tag="b", version=2, existed=False)
    assert not script.legal()


def test_an_unknown_compare_and_set_that_cannot_match_has_no_effect(script):
    script.do("put", tag="a", version=1)
    script.end(script.begin("cas", tag="b", expected=7), "unknown")
    script.do("get", seen="b", version=2)
    assert not script.legal()


def test_random_concurrent_histories_of_a_real_register_are_legal_and_a_flipped_read_is_not():
    for seed in range(30):
        rng = random.Random(seed)
        script = Script()
        state, version, running = ("", 0), 0, []
        for n in range(60):
            if running and (len(running) > 4 or rng.random() < 0.5):
                op, answer = running.pop(rng.randrange(len(running)))
                script.end(op, "unknown" if op.kind == "put" and rng.random() < 0.15 else "ok", **answer)
            kind = rng.choice(["put", "get", "delete"])
            op = script.begin(kind, tag=f"t{n}" if kind == "put" else "")
            existed = state[1] != 0
            if kind == "put":
                version += 1
                state = (f"t{n}", version)
                answer = {"version": version, "existed": existed}
            elif kind == "delete":
                state, answer = ("", 0), {"existed": existed}
            else:
                answer = {"seen": state[0], "version": state[1]}
            running.append((op, answer))
        for op, answer in running:
            script.end(op, "ok", **answer)
        assert script.legal()
        script.do("put", tag="last", version=version + 1)
        script.do("get", seen=state[0], version=state[1])
        assert not script.legal()


def test_history_lines_are_ordered_events(script):
    write = script.begin("put", tag="a")
    script.do("get")
    script.end(write, version=1)
    assert [line.split('"type": "')[1].split('"')[0] for line in script.history.to_json_lines()] == [
        "invoke",
        "invoke",
        "ok",
        "ok",
    ]


def test_elections():
    checker = Elections()
    assert checker.leads(1, "a", 1)
    assert not checker.leads(1, "a", 1)
    assert checker.leads(2, "b", 1)
    assert checker.leads(1, "b", 2)
    assert checker.count == 3
    with pytest.raises(Violation, match="one leader per term"):
        checker.leads(1, "a", 2)
    checker.voted(1, "b", 1, "a")
    checker.voted(1, "b", 1, "a")
    checker.voted(1, "b", 2, "c")
    with pytest.raises(Violation, match="one vote per term"):
        checker.voted(1, "b", 1, "c")


def position(**changes):
    return Position(**{"term": 2, "snapshot": 1, "applied": 3, "commit": 4, "last": 5, **changes})


@pytest.mark.parametrize("bad", [{"commit": 6}, {"applied": 5, "commit": 4}, {"snapshot": 5, "last": 9}, {"commit": 2}])
def test_indices_out_of_order_are_refused(bad):
    with pytest.raises(Violation, match="monotone"):
        Monotone().observe(1, "a", 1, position(**bad))


@pytest.mark.parametrize("back", [{"term": 1}, {"commit": 3}, {"applied": 2}])
def test_indices_never_go_back_within_an_incarnation(back):
    checker = Monotone()
    checker.observe(1, "a", 1, position())
    with pytest.raises(Violation, match="went back"):
        checker.observe(1, "a", 1, position(**back))


def test_a_restart_may_forget_what_was_not_durable_but_not_a_durable_term():
    checker = Monotone()
    checker.observe(1, "a", 1, position())
    checker.booted(1, "a", 1)
    checker.observe(1, "a", 2, position(term=1, applied=1, commit=1))
    checker.booted(1, "a", 2)
    with pytest.raises(Violation, match="forgot term"):
        checker.observe(1, "a", 3, position(term=1))


def test_a_replica_that_is_opened_again_may_apply_again_but_keeps_its_durable_term():
    checker = Monotone()
    checker.observe(1, "a", 1, position())
    checker.closed(1, "a", 1)
    checker.booted(1, "a", 2)
    checker.observe(1, "a", 1, position(applied=1))
    checker.closed(1, "a", 1)
    with pytest.raises(Violation, match="forgot term"):
        checker.observe(1, "a", 1, position(term=1))


def test_committed_entries_are_the_same_everywhere():
    checker = Committed()
    checker.apply(1, "a", 1, 1, CommittedEntry(1, b"x", "ok"), None)
    checker.apply(1, "b", 1, 1, CommittedEntry(1, b"x", "ok"), None)
    with pytest.raises(Violation, match="apply order"):
        checker.apply(1, "a", 1, 3, CommittedEntry(1, b"z", "ok"), None)
    with pytest.raises(Violation, match="state machine safety"):
        checker.apply(1, "c", 1, 1, CommittedEntry(2, b"y", "ok"), None)
    with pytest.raises(Violation, match="deterministic apply"):
        checker.apply(1, "d", 1, 1, CommittedEntry(1, b"x", "other"), None)


def test_an_incarnation_continues_where_its_disk_says():
    checker = Committed()
    for index in (1, 2):
        checker.apply(1, "a", 1, index, CommittedEntry(1, b"x", "ok"), None)
    checker.opened(1, "a", 2, 1)
    checker.apply(1, "a", 2, 2, CommittedEntry(1, b"x", "ok"), None)


def test_leader_completeness():
    checker = Committed()
    checker.apply(1, "a", 1, 1, CommittedEntry(1, b"x", "ok"), None)
    checker.elected(1, "b", 1, {1: 1}.get, 2)
    checker.elected(1, "b", 2, {}.get, 2)
    with pytest.raises(Violation, match="leader completeness"):
        checker.elected(1, "b", 1, {}.get, 2)


def test_log_matching():
    log_matching.check(1, {"a": {1: (1, 10), 2: (1, 20), 3: (2, 30)}, "b": {1: (1, 10), 2: (1, 20), 3: (3, 31)}})
    with pytest.raises(Violation, match="log matching"):
        log_matching.check(1, {"a": {1: (1, 10), 2: (2, 20)}, "b": {1: (1, 11), 2: (2, 20)}})
    with pytest.raises(Violation, match="log matching"):
        log_matching.check(1, {"a": {2: (2, 20)}, "b": {2: (2, 21)}})


class Core:
    """The state of a Raft core, as far as the checker of matches looks at it."""

    def __init__(self, role, term, terms, **matches):
        self.role, self.term = SimpleNamespace(name=role), term
        self.log = SimpleNamespace(term=terms.get, last_index=lambda: max(terms, default=0))
        self.progress = {node: SimpleNamespace(match=match) for node, match in matches.items()}


@pytest.mark.parametrize(
    ("follower", "match", "fine"),
    [
        ({1: 1, 2: 2, 3: 2}, 3, True),
        ({3: 2}, 2, True),  # compacted: committed, so checked by others
        ({1: 1, 2: 2}, 3, False),
        ({1: 1, 2: 2, 3: 1}, 3, False),
    ],
)
def test_a_match_is_in_the_followers_log(follower, match, fine):
    leader = Core("LEADER", 2, {1: 1, 2: 2, 3: 2}, a=3, b=match)
    rotten: set[str] = set()
    for term in (3, 2):
        cores = {"a": leader, "b": Core("FOLLOWER", term, follower)}
        if fine or term == 3:  # a follower that has left the term owes the old leader nothing
            matches.check(1, cores, rotten)
        else:
            with pytest.raises(Violation, match="match is real"):
                matches.check(1, cores, rotten)
            matches.check(1, cores, {"b"})


def test_durability():
    append_ack(1, "a", 5, 5)
    vote_granted(1, "a", 2, "b", (2, "b"))
    write_acknowledged(1, 5, [["a", "b", "c"]], {"a": 5, "b": 5, "c": 0}.__getitem__)
    write_acknowledged(1, 5, [["a", "c"], ["a", "b", "c"]], {"a": 5, "b": 5, "c": 0}.__getitem__)
    with pytest.raises(Violation, match="acknowledged entry 6"):
        append_ack(1, "a", 6, 5)
    with pytest.raises(Violation, match="granted"):
        vote_granted(1, "a", 2, "b", (1, "b"))
    with pytest.raises(Violation, match="no majority"):
        write_acknowledged(1, 5, [["a", "b", "c", "d"]], {"a": 5, "b": 5, "c": 0, "d": 0}.__getitem__)


@pytest.mark.parametrize(
    ("voters", "outgoing", "held"),
    [("acd", "abc", True), ("acd", "", False), ("bde", "abc", True), ("cde", "acd", False)],
)
def test_while_joint_a_majority_of_either_half_may_have_committed(voters, outgoing, held):
    """A write is held by a and b. When its client hears of it, the leader may have begun to change from the voters of
    whom they are a majority to others, or back."""
    raft = SimpleNamespace(conf=ConfState(voters=tuple(voters), voters_outgoing=tuple(outgoing)))
    leader = SimpleNamespace(groups=lambda: {1: SimpleNamespace(raft=raft)})
    fleet = SimpleNamespace(leader=lambda group: "a", nodes={"a": leader})
    holds = {"a": 5, "b": 5, "c": 0, "d": 0, "e": 0}.__getitem__
    observer = SimpleNamespace(
        committed=SimpleNamespace(on_new=None),
        write_acknowledged=lambda group, index, sets: write_acknowledged(group, index, sets, holds),
    )
    watch = Watch(SimpleNamespace(fleet=fleet, observer=observer, guard=lambda action: action()))
    if held:
        watch.acknowledged(1, 5)
    else:
        with pytest.raises(Violation, match="no majority"):
            watch.acknowledged(1, 5)


def test_a_lease_must_be_over_before_a_higher_term_commits():
    checker = Leases()
    assert checker.is_new_term(1, 2)
    assert not checker.is_new_term(1, 2)
    assert checker.is_new_term(1, 3)
    checker.check(1, 3, [("a", 2, 0.0), ("b", 3, 1.0)])
    with pytest.raises(Violation, match="a leads group 1 in term 2"):
        checker.check(1, 3, [("a", 2, 0.1), ("b", 3, 1.0)])


def test_digests():
    checker = Digests()
    checker.observe(1, "a", 5, "x")
    checker.observe(1, "b", 5, "x")
    checker.observe(1, "b", 6, "y")
    with pytest.raises(Violation, match="equal replicas"):
        checker.observe(1, "c", 6, "z")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE vectors SET vector = zeroblob(12)",
        "DELETE FROM vectors",
        "UPDATE documents SET metadata = CAST('{}' AS BLOB)",
        "UPDATE ids SET expires = 7",
        "UPDATE ids SET version = 7",
    ],
)
def test_the_digest_of_rows_sees_all_of_a_document_whose_metadata_was_changed(tmp_path: Path, change: str) -> None:
    """Its vector is in the row of an earlier version."""
    replica, log = open_replica(tmp_path), Log()
    replica.apply(log.add(CreateCollection(spec()), put(["a"], [[1, 2, 3]], [{"n": 1}])))
    replica.apply(log.add(Patch("c", ["a"], Change(set=[("n", b"2")]))))
    whole = rows_of(replica)
    assert rows_of(replica) == whole
    with closing(apsw.Connection(replica._store.path)) as connection:
        connection.execute(change)
    assert rows_of(replica) != whole
    replica.close()


def log_of_points():
    model = LogModel()
    for index, (key, x) in enumerate([("a", 0.0), ("b", 1.0), ("c", 2.0)], start=1):
        model.write(index, key, ModelDocument(index, np.array([x, 0], np.float32), {"odd": index % 2}))
    model.write(4, "a", None)
    return model


def seen(hits, *, at=4, **changes):
    fields = {"mode": "strong", "vector": np.array([0, 0]), "k": 2, "keep": None, "exact": True}
    return SearchSeen(**{**fields, "hits": hits, "applied_index": at, "required_index": 0, "label": "#1", **changes})


def test_a_search_equals_the_replayed_log():
    model = log_of_points()
    check_search(model, seen([("b", 2, 1.0), ("c", 3, 2.0)]), "l2")
    check_search(model, seen([("a", 1, 0.0), ("b", 2, 1.0)], at=3), "l2")
    check_search(model, seen([("c", 3, 2.0)], keep=lambda metadata: metadata["odd"] == 1), "l2")
    check_search(model, seen([("c", 3, 2.0)], exact=False), "l2")


@pytest.mark.parametrize(
    ("hits", "changes", "why"),
    [
        ([("a", 1, 0.0), ("b", 2, 1.0)], {}, "absent"),
        ([("b", 9, 1.0), ("c", 3, 2.0)], {}, "version 9"),
        ([("b", 2, 1.5), ("c", 3, 2.0)], {}, "truly"),
        ([("c", 3, 2.0), ("b", 2, 1.0)], {}, "order"),
        ([("b", 2, 1.0)], {}, "1 hits"),
        ([("b", 2, 1.0), ("b", 2, 1.0)], {}, "asked for"),
        ([("c", 3, 2.0)], {"k": 1}, "nearer"),
        ([("b", 2, 1.0), ("c", 3, 2.0)], {"keep": lambda metadata: metadata["odd"] == 1}, "filtered"),
        ([("b", 2, 1.0), ("c", 3, 2.0)], {"required_index": 5}, "before 5"),
    ],
)
def test_a_search_that_differs_from_the_log_is_refused(hits, changes, why):
    with pytest.raises(Violation, match=why):
        check_search(log_of_points(), seen(hits, **changes), "l2")


def test_a_get_equals_the_replayed_log():
    def get(key, version, at, latest=None, required=0):
        latest = latest or at
        seen = GetSeen(
            key=key, version=version, applied_index=at, latest_index=latest, required_index=required, label="#"
        )
        check_get(log_of_points(), seen)

    get("a", 1, 3)
    get("a", 0, 4)
    get("a", 1, 3, latest=4)
    get("a", 0, 3, latest=4)
    with pytest.raises(Violation, match="returned version 1"):
        get("a", 1, 4)
    with pytest.raises(Violation, match="returned version 0"):
        get("a", 0, 3)
    with pytest.raises(Violation, match="before 4"):
        get("a", 1, 3, required=4)


def test_shrinking_finds_the_guilty():
    assert set(fewest(range(40), lambda kept: {3, 17, 31} <= set(kept), 200)) == {3, 17, 31}
    assert fewest(range(10), lambda kept: True, 100) == ()
    assert smallest(1000, lambda n: n >= 137, 50) == 137


def test_another_directory_than_the_one_others_remember_leads_nothing_and_hosts_no_shard():
    with pytest.raises(Violation, match="n1 leads group 2"):
        lives.leads("n1", 2)
    assert lives.opened("n1", []) is lives.opened("n1", [CATALOG_GROUP]) is None
    assert "opens the groups [2]" in str(lives.opened("n1", [CATALOG_GROUP, 2]))
