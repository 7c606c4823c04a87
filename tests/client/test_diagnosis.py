"""What `needle doctor` judges, by answers made up; under real faults: tests/cli/test_doctor.py."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from catalog.catalog_util import topology
from needle.client.clock_readings import ClockFound, Reading, compare
from needle.client.diagnosis import diagnose
from needle.client.fitness import CHECKS, Finding
from needle.protocol.probe_calls import ClockAnswer, Facts, Link, ProbeAnswer

SETTINGS: dict[str, bool | int | float | str | None] = {
    "election_timeout": 1.0,
    "heartbeat_interval": 0.05,
    "lease_timeout": 0.15,
    "clock_error_max": 0.001,
}


def reading(at: float, node: str, rate: float = 1.0, took: float = 0.001, life: int = 1, ahead: float = 0.0) -> Reading:
    return Reading(at, took, ClockAnswer(node, at + ahead, 500 + rate * at, life))


def clocks(**rates: float) -> dict[str, ClockFound]:
    first, last = ({node: reading(at, node, rate) for node, rate in rates.items()} for at in (10.0, 12.0))
    return compare(first, last)


@pytest.mark.parametrize("rates", [{"a": 1.0, "b": 1.02}, {"a": 1.0, "b": 1.02, "c": 1.0}])
def test_of_two_clocks_it_is_told_which_is_off(rates: dict[str, float]) -> None:
    found = clocks(**rates)
    assert found["a"].rate == pytest.approx(0)
    assert found["b"].rate == pytest.approx(0.02)
    assert found["b"].rate_error == pytest.approx(0.001)


@pytest.mark.parametrize("told", [{"node-1": -0.8, "node-2": 0.8}, {"node-1": 0.0, "node-2": 0.8, "node-3": 0.0}])
def test_of_two_wall_clocks_it_is_told_how_far_they_are_apart(told: dict[str, float]) -> None:
    """Measured by their mean, each was off by half, and twice the bound went unseen."""
    ahead = {node: max(0.0, by) for node, by in told.items()}
    first, last = ({node: reading(at, node, ahead=by) for node, by in ahead.items()} for at in (10.0, 12.0))
    found = compare(first, last)
    assert {node: one.offset for node, one in found.items()} == pytest.approx(told)
    assert {one.offset_error for one in found.values()} == {0.001}
    wrong = {f"the wall clock of {node}" for node, by in told.items() if by}
    assert {one.subject for one in findings(of=found) if one.name == "clock-offset"} == wrong


def test_a_node_that_was_started_anew_has_no_rate() -> None:
    assert compare({"a": reading(1, "a", life=1)}, {"a": reading(3, "a", life=2)}) == {}
    assert compare({"a": reading(1, "a")}, {}) == {}


def probe(node: str, **changed: object) -> ProbeAnswer:
    others = [name for name in ("node-1", "node-2", "node-3") if name != node]
    links = [Link(other, [0.001] * 20) for other in others]
    made = ProbeAnswer(node, "1.0", 3, dict(SETTINGS), [0.001] * 100, links, Facts())
    return msgspec.structs.replace(made, **changed)


def findings(
    *probes: ProbeAnswer,
    of: dict[str, ClockFound] | None = None,
    documents: int = 0,
    backed_up: int = 0,
    archived: int = 0,
) -> list[Finding]:
    usual = {node: probe(node) for node in ("node-1", "node-2", "node-3")}
    told = {**usual, **{one.node_id: one for one in probes}}
    now = msgspec.structs.replace(topology(shards=1, nodes=3), backed_up=backed_up, archived=archived)
    return diagnose(now, told, {}, of or {}, [], documents).findings


def test_nothing_is_found_where_all_is_well() -> None:
    assert findings() == []
    assert findings(of={"node-1": ClockFound()}) == [], "nothing is known of its clock"


@pytest.mark.parametrize(("rate", "told"), [(0.0109, False), (0.0111, True), (-0.0111, True)])
def test_a_clock_is_told_of_only_when_the_reading_cannot_be_the_reason(rate: float, told: bool) -> None:
    found = findings(of={"node-1": ClockFound(rate, 0.01, 0.0, 0.0)})
    assert [one.name for one in found] == ["clock-rate"] * told


def test_an_offset_within_its_error_is_none() -> None:
    assert findings(of={"node-1": ClockFound(0, 0, 0.9, 0.5)}) == []
    assert [one.name for one in findings(of={"node-1": ClockFound(0, 0, 0.9, 0.3)})] == ["clock-offset"]


def test_the_election_timeout_is_judged_by_link_and_disk_together() -> None:
    def found(ping: float, fsync: float) -> list[tuple[str, str]]:
        near = probe("node-1", links=[Link("node-2", [ping] * 20)])
        told = findings(near, probe("node-2", fsyncs=[fsync] * 100))
        return [(one.severity, one.name) for one in told if one.subject == "election_timeout 1,000 ms of node-1"]

    assert found(0.05, 0.04) == []
    assert found(0.06, 0.05) == [("warning", "election-timeout")]
    assert found(0.3, 0.3) == [("critical", "election-timeout")]


def test_one_long_fsync_is_enough_if_it_takes_half_of_the_timeout() -> None:
    told = findings(probe("node-2", fsyncs=[*[0.001] * 99, 0.6]))
    assert {one.name for one in told} == {"election-timeout", "disk-slow"}


@pytest.mark.parametrize("reached", [False, True])
def test_a_link_is_cut_if_the_node_behind_it_is_there_for_anybody(reached: bool) -> None:
    other = [Link("node-3", [0.001] * 20 if reached else [], "" if reached else "Connection refused")]
    told = {
        "node-1": probe("node-1", links=[Link("node-2", [0.001] * 20), Link("node-3", [], "Connection refused")]),
        "node-2": probe("node-2", links=[Link("node-1", [0.001] * 20), *other]),
    }
    found = diagnose(topology(shards=1, nodes=3), told, {"node-3": "Connection refused"}, {}, [], 0).findings
    cut = [("link-cut", "node-1 to node-3")] if reached else []
    assert [(one.name, one.subject) for one in found] == [*cut, ("not-probed", "node-3")]


def test_few_files_left_are_critical() -> None:
    told = findings(probe("node-2", facts=Facts(files=9000, files_max=10_000)))
    assert [(one.severity, one.name) for one in told] == [("critical", "few-descriptors")]


def test_documents_without_any_backup_are_told_of() -> None:
    (found,) = findings(documents=1200)
    assert (found.severity, found.name) == ("warning", "no-backup") and found.measured.startswith("1,200 documents")
    assert findings(documents=1200, archived=5) == [], "an archive of the logs is a backup, too"
    assert findings(documents=1200, backed_up=5) == [], "whether it is too old, a condition says"


def test_each_check_has_a_section_in_the_documents() -> None:
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text("utf-8")
    sections = [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]
    assert sections == list(CHECKS)
    for row in CHECKS.values():
        assert f"| [{row.name}](#{row.name}) | {row.severity} | {row.allowed} |" in page
