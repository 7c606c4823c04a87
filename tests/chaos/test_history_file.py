"""The record of a chaos run: what is written is read back, and what is no history is refused by line."""

import io
import json

import pytest

from chaos.documented import undocumented
from needle.base.errors import InvalidArgument
from proof.chaos.history_file import Recorder, read
from proof.checkers.history import Operation

DOCUMENT = {"vector": [1.0, 0.5], "metadata": {"tag": "c0-1", "n": 3, "odd": True}}


def recorded() -> tuple[Recorder, list[str]]:
    """One operation of each kind of end, an eventual get, a search, and one that stays open."""
    file = io.StringIO()
    history = Recorder(file, seed=1, metric="l2")
    put = history.invoke("c0", "put", "a", 0.1, tag="c0-1", details=dict(DOCUMENT))
    get = history.invoke("c1", "search", "a", 0.2, details={"mode": "eventual", "required": 0})
    history.note("fault", number=0, fault="kill")
    history.finish(put, "ok", 0.3, version=5, index=5, existed=False)
    get.details["applied"] = 5
    history.finish(get, "ok", 0.4, version=5, seen="c0-1")
    cas = history.invoke("c0", "cas", "a", 0.5, tag="c0-2", expected=4, details=dict(DOCUMENT))
    history.finish(cas, "refused", 0.6, version=5, error="version_mismatch")
    lost = history.invoke("c0", "delete", "a", 0.7)
    history.finish(lost, "unknown", 0.8, error="outcome_unknown")
    search = history.invoke(
        "c1", "search", "", 0.9, details={"mode": "strong", "k": 1, "filter": None, "exact": True, "vector": [1.0, 0.0]}
    )
    search.details |= {"applied": 6, "hits": [["a", 5, 0.5, "c0-1"]]}
    history.finish(search, "ok", 1.0, version=1, index=6)
    history.invoke("c0", "insert", "b", 1.1, tag="c0-3", details=dict(DOCUMENT))
    history.note("replica", node="node-1", applied_index=6, digest="d", documents={"a": 5})
    history.note("end")
    return history, file.getvalue().splitlines()


def test_what_is_written_is_read_back():
    history, lines = recorded()
    found = read(lines)
    assert found.history.operations == history.operations
    assert found.facts["metric"] == "l2" and found.complete
    assert found.faults[0]["fault"] == "kill"
    assert found.replicas[0].documents == {"a": 5}


def test_lines_say_what_the_format_promises():
    lines = [json.loads(line) for line in recorded()[1]]
    types = "run invoke invoke fault ok ok invoke fail invoke info invoke ok invoke replica end"
    assert [line["type"] for line in lines] == types.split()
    assert lines[1]["vector"] == [1.0, 0.5] and lines[1]["value"] == "c0-1"
    assert lines[2]["f"] == "get" and lines[2]["mode"] == "eventual"
    assert lines[11]["hits"] == [["a", 5, 0.5, "c0-1"]]


def test_every_field_is_documented():
    assert undocumented(recorded()[1]) == set()
    assert undocumented(['{"type": "surprise", "extra": 1}']) == {"surprise", "extra"}


def test_an_unknown_outcome_stays_open():
    by_kind: dict[str, Operation] = {op.kind: op for op in read(recorded()[1]).history.operations}
    assert by_kind["delete"].outcome == "unknown" and by_kind["delete"].returned is None
    assert by_kind["insert"].outcome == "open" and by_kind["insert"].returned is None


@pytest.mark.parametrize(
    ("line", "spoiled"),
    [
        (2, "no json"),
        (
            2,
            '{"type": "invoke", "id": 9, "process": "c", "f": "put", "key": "a", "value": "", "expected": 0}',
        ),
        (5, '{"type": "ok", "id": 0, "outcome": "failed"}'),
        (6, '{"type": "ok", "id": 77, "outcome": "ok"}'),
        (5, '{"id": 0}'),
    ],
)
def test_a_spoiled_line_is_named(line: int, spoiled: str):
    lines = recorded()[1]
    lines[line - 1] = spoiled
    with pytest.raises(InvalidArgument, match=f"line {line} "):
        read(lines)


def test_another_format_is_refused():
    lines = recorded()[1]
    with pytest.raises(InvalidArgument, match="format"):
        read(lines[1:])
    with pytest.raises(InvalidArgument, match="format"):
        read([lines[0].replace('"format": 2', '"format": 1'), *lines[1:]])
