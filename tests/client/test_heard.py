"""What an error says of nodes that were asked who leads: nothing that they did not say, and nothing that is old."""

from __future__ import annotations

import pytest

from needle.base.errors import ConnectionLost, Overloaded, WrongCluster, in_seconds
from needle.client.heard import REASON_MAX, Heard
from needle.protocol.calls import LeaderAnswer

NODES = {"n1": "h:1", "n2": "h:2", "n3": "h:3"}


def says(node: str, hinders: str = "", *, maintenance: bool = False) -> LeaderAnswer:
    return LeaderAnswer(node, None, 3, {}, maintenance, None, hinders)


def test_nodes_that_were_not_asked_are_not_said_to_answer() -> None:
    heard = Heard()
    assert heard.explain(NODES, None, 5.0) == "no node has said in this time who leads"
    assert heard.explain(NODES, "h:2", 5.0) == "n2 at h:2 leads, as far as known"
    assert heard.explain(NODES, "h:9", 5.0) == "h:9 leads, as far as known"


def test_what_is_older_than_the_call_counts_for_nothing() -> None:
    heard = Heard()
    for node, address in NODES.items():
        heard.answered(address, says(node), 4.9)
    assert heard.explain(NODES, None, 5.0) == "no node has said in this time who leads"
    heard.answered("h:1", says("n1"), 5.0)
    assert heard.explain(NODES, None, 5.0) == "1 of 3 nodes were heard of in this time"
    heard.failed("h:2", ConnectionLost("down"), 5.1)
    assert heard.explain(NODES, None, 5.0) == (
        "1 of 3 nodes did not answer: n2 at h:2 (down); 2 of 3 nodes were heard of in this time"
    )
    heard.answered("h:3", says("n3"), 5.2)
    assert heard.explain(NODES, None, 5.0) == "1 of 3 nodes did not answer: n2 at h:2 (down)"
    heard.answered("h:2", says("n2"), 5.3)
    assert heard.explain(NODES, None, 5.0) == "all 3 nodes answer, but none leads"
    assert heard.explain(NODES, "h:2", 5.0) == "n2 at h:2 leads, as far as known"


def test_why_a_node_cannot_lead_is_passed_on_within_a_bound() -> None:
    heard = Heard()
    heard.answered("h:1", says("n1", "page 7 is damaged"), 5.0)
    assert heard.explain({"n1": "h:1"}, None, 5.0) == "n1 at h:1 answers but cannot lead: page 7 is damaged"
    heard.answered("h:1", says("n1", maintenance=True), 5.0)
    assert heard.explain({"n1": "h:1"}, None, 5.0) == "n1 at h:1 answers but cannot lead: it is in maintenance"
    heard.answered("h:1", says("n1", "x" * 10_000), 5.0)
    assert len(heard.explain({"n1": "h:1"}, None, 5.0)) < REASON_MAX + 50
    heard.answered("h:1", says("n1"), 5.0)
    assert heard.explain({"n1": "h:1"}, None, 5.0) == "n1 at h:1 answers, but does not lead"


def test_nodes_that_all_have_no_room_are_told_from_nodes_that_are_silent() -> None:
    heard = Heard()
    heard.failed("h:1", Overloaded("48 connections"), 5.0)
    heard.failed("h:2", Overloaded("49 connections"), 5.0)
    assert heard.overloaded(["h:1", "h:2"], 6.0) is None
    found = heard.overloaded(["h:1", "h:2", "h:3"], 5.0)
    assert isinstance(found, Overloaded) and found.message == "48 connections"
    heard.failed("h:3", ConnectionLost("down"), 5.0)
    assert heard.overloaded(["h:1", "h:2", "h:3"], 5.0) is None
    heard.answered("h:3", says("n3"), 5.0)
    assert heard.overloaded(["h:1", "h:2", "h:3"], 5.0) is None


def test_what_is_known_of_addresses_that_are_no_more_is_forgotten() -> None:
    heard = Heard()
    refusal = WrongCluster("theirs")
    heard.failed("h:1", ConnectionLost("down"), 5.0)
    heard.failed("h:2", refusal, 5.0)
    assert heard.refusal(["h:1", "h:2"]) is refusal
    heard.keep(["h:2"])
    assert heard.refusal(["h:1", "h:2"]) is None and heard.refusal(["h:2"]) is refusal


def test_a_refusal_counts_until_something_else_is_heard_of_that_node() -> None:
    heard = Heard()
    heard.failed("h:1", WrongCluster("theirs"), 5.0)
    heard.answered("h:2", says("n2"), 5.0)
    assert heard.refusal(["h:1", "h:2"]) is None
    heard.failed("h:2", ConnectionLost("down"), 6.0)
    assert heard.refusal(["h:1", "h:2"]) is not None
    heard.failed("h:1", ConnectionLost("down"), 7.0)
    assert heard.refusal(["h:1", "h:2"]) is None


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-1.3e-07, "0 s"),
        (0.000999718, "0.001 s"),
        (0.3, "0.3 s"),
        (9.99998, "10 s"),
        (100.2, "100 s"),
        (86400.0, "86400 s"),
    ],
)
def test_a_length_of_time_has_as_many_digits_as_anybody_wants_to_read(seconds: float, shown: str) -> None:
    assert in_seconds(seconds) == shown
