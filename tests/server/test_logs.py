"""A node's log is a line for each event, for people or for programs."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from harness.calm import CALM
from needle.base.access import new_key
from needle.base.errors import ConfigError
from needle.base.log_config import LogConfig
from needle.base.request import Request, current
from needle.local.process_cluster import ProcessCluster
from needle.server.process.folding import LINES_MAX, WINDOW_SECONDS
from needle.server.process.logs import TEXT_MAX, write_logs

HOSTILE = "a\nb\r\x1b[2Jc\x85d\u2028e"


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def written(config: LogConfig) -> list[str]:
    stream, log = io.StringIO(), logging.getLogger("needle.test")
    write_logs("n1", config, stream)
    log.debug("quiet")
    log.info("%s asks", HOSTILE, extra={"term": 7})
    logging.getLogger("other").debug("of a library")
    try:
        raise ValueError(f"broken {HOSTILE}")
    except ValueError:
        log.exception("a bug")
    return stream.getvalue().splitlines(keepends=False)


def test_text_is_a_line_for_each_event_whatever_is_in_it() -> None:
    lines = written(LogConfig())
    assert lines[0].split(" ", 1)[1] == "INFO needle.test: a\\x0ab\\x0d\\x1b[2Jc\\x85d\\u2028e asks"
    assert lines[1].endswith("ERROR needle.test: a bug")
    assert lines[-2:] == ["  ValueError: broken a", "  b\\x0d\\x1b[2Jc\\x85d\\u2028e"]
    assert all(line.startswith("  ") for line in lines[2:])


def test_json_has_the_fields_and_what_was_told_beside_the_text() -> None:
    first, second = (json.loads(line) for line in written(LogConfig(format="json")))
    assert first.pop("time").endswith("Z")
    assert first == {"event": f"{HOSTILE} asks", "level": "info", "logger": "needle.test", "node": "n1", "term": 7}
    assert "ValueError: broken" in second["exception"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_key_in_the_wrong_place_is_not_kept(form: Literal["text", "json"]) -> None:
    """As the id of a request, as the name of a collection, and in what a bug stumbled over."""
    key, stream, log = new_key(bytes(range(32))), io.StringIO(), logging.getLogger("needle.test")
    write_logs("n1", LogConfig(format=form), stream)
    token = current.set(Request(key))
    log.warning("search took 3 s: collection %s", key, extra={"collection": key})
    try:
        raise ValueError(f"broken {key}")
    except ValueError:
        log.exception("a bug")
    current.reset(token)
    assert "collection ndl_..." in stream.getvalue()
    assert key not in stream.getvalue()


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("kept", [5, 20, 42])
def test_a_key_across_the_end_of_what_is_kept_is_not_kept_either(form: Literal["text", "json"], kept: int) -> None:
    """Cut first, what was left of it was too short to be taken for a key."""
    key, stream, log = new_key(bytes(range(32))), io.StringIO(), logging.getLogger("needle.test")
    write_logs("n1", LogConfig(format=form), stream)
    text = "x" * (TEXT_MAX - kept) + key
    log.warning("%s", text, extra={"collection": text, "names": [key], "names_by": {key: (key,)}})
    assert key[:5] not in stream.getvalue()


def test_a_line_that_was_held_back_belongs_to_its_own_request() -> None:
    """It is written while another one is served, whose id it had."""
    now, stream, log = 0.0, io.StringIO(), logging.getLogger("needle.test")
    write_logs("n1", LogConfig(format="json"), stream, lambda: now)
    for served in ("first", "second"):
        token = current.set(Request(served))
        for n in range(LINES_MAX + 2 if served == "first" else 1):
            log.info(f"{served}: %s", n)
        current.reset(token)
        now += WINDOW_SECONDS
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(lines) == LINES_MAX + 2
    assert all(line["event"].startswith(line["request"]) for line in lines)


def test_a_level_leaves_out_what_is_below_it_and_libraries_tell_no_details() -> None:
    assert "quiet" in written(LogConfig(level="debug"))[0]
    assert not any("of a library" in line for line in written(LogConfig(level="debug")))
    assert "a bug" in written(LogConfig(level="error"))[0]
    with pytest.raises(ConfigError, match=r"log\.level"):
        LogConfig(level="loud")


def lines_of(cluster: ProcessCluster, name: str) -> list[dict[str, Any]]:
    told = [json.loads(line) for line in cluster.nodes[name].log.read_text().splitlines() if line.startswith("{")]
    return [line for line in told if "kind" in line]


async def test_elections_maintenance_and_stops_leave_their_lines_in_the_logs_of_nodes(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, **CALM, log={"format": "json"}) as cluster, cluster.connect() as client:
        leader = (await client.status()).leader
        assert leader is not None
        cluster.kill(leader)
        await client.insert("a", [1.0] * 8, timeout=30)
        others = [name for name in cluster.nodes if name != leader]
        lines = {name: lines_of(cluster, name) for name in others}
        led = {
            name: line for name in others for line in lines[name]
            if (line["kind"], line.get("group", "")) == ("leader_elected", "shard 0")
        }  # fmt: skip
        (second, won), *_ = led.items()
        assert won["term"] > 1 and won["why"] and won["node"] == second
        third = next(name for name in others if name != second)
        followed = [line for line in lines[third] if line["kind"] == "leader_changed" and line["group"] == "shard 0"]
        assert (followed[-1]["leader"], followed[-1]["term"]) == (second, won["term"])
        cluster.restart(leader)
        await cluster.ready()
        opened = [line for line in lines_of(cluster, leader) if line["kind"] == "replica_opened"]
        assert opened[-1]["group"] == "shard 0" and opened[-1]["term"] >= 1  # the second life has a log
        await client.enter_maintenance_mode(second, timeout=30)
        await client.exit_maintenance_mode(second, timeout=30)
        assert cluster.terminate(third) == 0
        states = [line["state"] for line in lines_of(cluster, second) if line["kind"] == "maintenance"]
        assert states == ["in", "no more in"]
        assert [line["kind"] for line in lines_of(cluster, third)][-1] == "node_stopped"
        kinds = [line["kind"] for line in lines_of(cluster, leader)]
        assert kinds.count("node_started") == 2 and "node_stopping" not in kinds  # it was killed
