"""From any members to any nodes, a step at a time: what each step may ask for, and that the last one comes."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from needle.catalog.replica_steps import Change, HandOver, Members, Settled, Step, Wait, next_step

NODES = "abcdefg"


def members(
    voters: str, wanted: str, *, learners: str = "", live: str = NODES, caught_up: str | None = None, leader: str = "a"
) -> Members:
    return Members(
        leader=leader,
        voters=frozenset(voters),
        learners=frozenset(learners),
        changing=False,
        wanted=wanted,
        live=set(live) | {leader},
        caught_up=set(voters if caught_up is None else caught_up) | {leader},
    )


def change(voters: Iterable[str], learners: Iterable[str] = ()) -> Change:
    return Change(frozenset(voters), frozenset(learners))


def test_a_lost_replica_is_replaced_by_way_of_a_learner() -> None:
    live = "abd"
    assert next_step(members("abc", "abd", live=live)) == change("abc", "d")
    waiting = next_step(members("abc", "abd", learners="d", live=live))
    assert waiting == Wait("d has not caught up yet")
    assert next_step(members("abc", "abd", learners="d", live=live, caught_up="abd")) == change("abd", "c")
    assert next_step(members("abd", "abd", learners="c", live=live, caught_up="abd")) == change("abd")
    assert next_step(members("abd", "abd", live=live)) == Settled()


def test_nothing_new_begins_while_a_change_is_under_way() -> None:
    now = Members(
        leader="a",
        voters=frozenset("abd"),
        learners=frozenset(),
        changing=True,
        wanted="abd",
        live="abd",
        caught_up="abd",
    )
    assert isinstance(next_step(now), Wait)


def test_a_leader_that_leaves_hands_over_first_to_the_preferred_one() -> None:
    assert next_step(members("abcd", "dbc", caught_up="abcd")) == HandOver("d")
    assert next_step(members("abcd", "dbc", live="abc", caught_up="abcd")) == HandOver("b")


def test_a_leader_that_leaves_does_not_hand_over_to_who_is_in_maintenance() -> None:
    """It would be asked again and again, and refuse."""
    now = members("abcd", "dbc", caught_up="abcd")
    assert next_step(msgspec.structs.replace(now, resting={"d"})) == HandOver("b")
    waiting = next_step(msgspec.structs.replace(now, resting=set("bcd")))
    assert isinstance(waiting, Wait) and "may lead: b (in maintenance), c (in maintenance), d (in" in waiting.why


def test_who_is_in_maintenance_and_waited_for_is_named() -> None:
    now = msgspec.structs.replace(members("abc", "abd", learners="d", caught_up="abcd", live="abc"), resting={"d"})
    assert next_step(now) == Wait("d (in maintenance) does not answer, is lost, or is short of memory")


def test_a_leader_whose_successors_are_all_new_leaves_last() -> None:
    assert next_step(members("abc", "def", learners="def", caught_up=NODES)) == change("adef", "bc")


def test_a_majority_that_does_not_answer_is_not_made_the_voters() -> None:
    step = next_step(members("abc", "ade", learners="de", live="abc", caught_up="abcde"))
    assert isinstance(step, Wait)
    assert "d, e does not answer" in step.why
    step = next_step(members("abc", "ab", live="a", caught_up="abc"))
    assert isinstance(step, Wait)
    assert "no majority" in step.why


def test_a_single_voter_does_not_become_two_on_the_way_to_three() -> None:
    assert isinstance(next_step(members("a", "abc", learners="bc", caught_up="ab")), Wait)
    assert next_step(members("a", "abc", learners="bc", caught_up="abc")) == change("abc")


groups = st.sets(st.sampled_from(NODES), min_size=1, max_size=5)


@st.composite
def anything(draw: st.DrawFn) -> Members:
    voters = draw(groups)
    leader = draw(st.sampled_from(sorted(voters)))
    wanted = draw(groups)
    away, behind = draw(st.sets(st.sampled_from(NODES), max_size=3)), draw(st.sets(st.sampled_from(NODES), max_size=3))
    following = draw(st.sampled_from([wanted, wanted, set(NODES), set()]))  # often the new ones follow already
    return Members(
        leader=leader,
        voters=frozenset(voters),
        learners=frozenset(following - voters),
        changing=draw(st.sampled_from([False, False, False, True])),
        wanted=draw(st.permutations(sorted(wanted))),
        live=set(NODES) - away | {leader},
        caught_up=set(NODES) - behind | {leader},
        resting=draw(st.sets(st.sampled_from(NODES), max_size=3)),
    )


@settings(max_examples=500, deadline=None)
@given(anything())
def test_each_step_is_safe(now: Members) -> None:
    step, able, wanted = next_step(now), set(now.live) & set(now.caught_up), frozenset(now.wanted)
    assert (step == Settled()) == now.settled
    if now.changing:
        assert isinstance(step, Wait)
    if isinstance(step, HandOver):
        assert step.to in now.voters & able - {now.leader} - set(now.resting)
        assert now.leader not in wanted
    if isinstance(step, Change):
        assert (step.voters, step.learners) != (now.voters, now.learners)
        assert not step.voters & step.learners
        assert 2 * len(step.voters & able) > len(step.voters)
        assert step.voters - now.voters <= wanted & able
        assert now.leader in step.voters
        assert len(step.voters) >= min(len(now.voters), len(wanted))
        assert step.voters - wanted <= now.voters  # who is to leave does not come back
        assert step.learners - now.learners <= (wanted & set(now.live)) | now.voters


@settings(deadline=None)
@given(groups, groups, st.data())
def test_whoever_leads_it_ends_where_the_catalog_wants_it(
    before: set[str], after: set[str], data: st.DataObject
) -> None:
    """All answer; learners catch up when they like; leaders change; joint changes end."""
    leader = data.draw(st.sampled_from(sorted(before)))
    voters, learners, caught_up, steps = frozenset(before), frozenset[str](), set(before), 0
    wanted = data.draw(st.permutations(sorted(after)))
    while True:
        now = Members(
            leader=leader,
            voters=voters,
            learners=learners,
            changing=False,
            wanted=wanted,
            live=NODES,
            caught_up=caught_up,
        )
        step: Step = next_step(now)
        if isinstance(step, Settled):
            break
        steps += 1
        assert steps < 40
        if isinstance(step, Wait):
            caught_up |= {min(learners - caught_up)}  # else nothing is waited for
        elif isinstance(step, HandOver):
            leader = step.to
        else:
            voters, learners = step.voters, step.learners
            caught_up &= voters | learners
            if data.draw(st.booleans()):
                leader = data.draw(st.sampled_from(sorted(voters & caught_up)))
    assert voters == frozenset(after)
    assert not learners
