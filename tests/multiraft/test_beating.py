"""Heartbeats of several groups that one node leads: in step soon, never late, never before half of their interval."""

from __future__ import annotations

from typing import Any

import pytest

from needle.multiraft.beating import beat_along
from needle.multiraft.timers import Timers
from needle.raft.messages import Message, MessageType
from raft.harness import HEARTBEAT
from raft.solo import Solo

QUANTUM = HEARTBEAT / 10


class Led:
    """A group that is led here since `since` seconds, whose followers answer at once. sent: when heartbeats were."""

    def __init__(self, number: int, since: float) -> None:
        self.id, self.solo, self.sent = number, Solo(now=100.0 + since), list[float]()
        self.solo.become_leader("b", "c")
        self.raft, self.next_deadline = self.solo.raft, self.solo.raft.next_deadline

    def write(self, now: float) -> None:
        """Commit an entry."""
        self.solo.now = now
        index, _ = self.raft.propose(b"x", now)
        for one in [one for one in self.solo.settle() if one.type == MessageType.APPEND]:
            self.solo.ack(one.to, index, one.round)
        self.solo.settle()

    def tick(self, now: float, beat: bool = False) -> None:
        self.solo.now = now
        self.raft.tick(now, beat)
        out = [one for one in self.solo.settle() if one.type == MessageType.HEARTBEAT]
        if out:
            self.sent.append(now)
        for one in out:
            answer = Message(MessageType.HEARTBEAT_RESP, to="a", frm=one.to, term=one.term, round=one.round)
            self.raft.step(answer, now)
            self.solo.settle()


def driven(groups: dict[int, Any], seconds: float, writes: float = float("inf")) -> set[float]:
    """As the engine does; the instants at which anything was sent. writes: seconds between those of the first group."""
    timers, instants = Timers(QUANTUM), set[float]()
    now = max(group.solo.now for group in groups.values())
    end, written = now + seconds, now + writes
    while now < end:
        for group in groups.values():
            timers.arm(group.id, group.next_deadline())
        fires = max(now + 1e-6, timers.next_fire())
        if written <= fires:
            now, written = max(now, written), written + writes
            groups[0].write(now)
            continue
        now, ticked = fires, {}
        for group in [groups[one] for one in timers.due(now) if groups[one].next_deadline() <= now]:
            ticked[group] = group.raft.heartbeat_due <= now
            group.tick(now)
        beat_along(groups, ticked, now, HEARTBEAT)
        instants |= {now for group in groups.values() if group.sent and group.sent[-1] == now}
    return instants


@pytest.mark.parametrize("phase", (0.0, 0.1, 0.3, 0.49, 0.51, 0.8, 0.97))
def test_heartbeats_of_two_groups_come_in_step(phase: float) -> None:
    groups: dict[int, Any] = {0: Led(0, 0.0), 1: Led(1, phase * HEARTBEAT)}
    instants = driven(groups, 50 * HEARTBEAT)
    assert len(instants) <= 54, "not one for each group"
    for group in groups.values():
        gaps = [after - before for before, after in zip(group.sent, group.sent[1:], strict=False)]
        assert max(gaps) <= HEARTBEAT + 2 * QUANTUM and min(gaps) >= HEARTBEAT / 2 - 1e-9
    assert groups[0].sent[-5:] == groups[1].sent[-5:]


@pytest.mark.parametrize("writes", (0.14, 0.6))
def test_many_groups_do_not_beat_more_often_because_one_is_written_to(writes: float) -> None:
    groups: dict[int, Any] = {number: Led(number, number * HEARTBEAT / 20) for number in range(20)}
    before = {number: len(group.sent) for number, group in groups.items()}
    driven(groups, 50 * HEARTBEAT, writes * HEARTBEAT)
    sent = {number: len(group.sent) - before[number] for number, group in groups.items()}
    assert sent[0] > 70, "its leader tells of commits"
    assert all(45 <= sent[number] <= 52 for number in range(1, 20))


def test_of_two_groups_the_other_one_goes_along_with_news_of_a_commit() -> None:
    groups: dict[int, Any] = {0: Led(0, 0.0), 1: Led(1, 0.4 * HEARTBEAT)}
    instants = driven(groups, 50 * HEARTBEAT, 0.6 * HEARTBEAT)
    assert len(instants) <= 94, "not 115, as if each sent its own"


def test_who_follows_is_left_alone() -> None:
    led, follows = Led(0, 0.0), Led(1, 0.0)
    follows.raft.step(Message(MessageType.HEARTBEAT, to="a", frm="b", term=9), follows.solo.now)
    groups: dict[int, Any] = {0: led, 1: follows}
    now = led.next_deadline()
    led.tick(now)
    leads: dict[Any, bool] = {led: True}
    assert beat_along(groups, leads, now, HEARTBEAT) == []
    assert beat_along({0: groups[0]}, leads, now, HEARTBEAT) == []
    timeout: dict[Any, bool] = {follows: False}
    assert beat_along(groups, timeout, now, HEARTBEAT) == [], "a follower's timeout is no heartbeat"
