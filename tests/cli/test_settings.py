"""Precedence of a node's settings: command line, environment, file, defaults."""

from pathlib import Path

import pytest

from needle.base.errors import ConfigError
from needle.cli.settings import from_environment, merge, read_file, resolve

FILE = {
    "node_id": "a",
    "cluster_nodes": ["a=127.0.0.1:1"],
    "data_dir": "from-file",
    "election_timeout": 1.0,
    "snapshot_threshold": 5,
    "segments": {"seal_rows": 7, "build_threads": 2},
}


def test_each_place_overrides_the_next() -> None:
    environment = {"NEEDLE_ELECTION_TIMEOUT": "2.5", "NEEDLE_SNAPSHOT_THRESHOLD": "6", "HOME": "/root"}
    config = resolve(FILE, environment, {"snapshot_threshold": 8, "data_dir": None})
    assert config.snapshot_threshold == 8  # command line
    assert config.election_timeout == 2.5  # environment
    assert config.data_dir == "from-file"
    assert config.heartbeat_interval == 0.050  # default


def test_tables_are_merged_by_key() -> None:
    config = resolve(FILE, {"NEEDLE_SEGMENTS_SEAL_ROWS": "9", "NEEDLE_INDEX_EF_SEARCH": "33"}, {})
    assert (config.segments.seal_rows, config.segments.build_threads) == (9, 2)
    assert config.index.ef_search == 33
    assert resolve(FILE, {"NEEDLE_JOIN": "True"}, {}).join and not resolve(FILE, {"NEEDLE_JOIN": "false"}, {}).join
    assert merge({"t": {"a": 1}}, {"t": {"a": 2, "b": 3}}, {"t": None}) == {"t": {"a": 2, "b": 3}}


def test_lists_are_separated_by_commas() -> None:
    environment = {"NEEDLE_CLUSTER_NODES": "a=h:1, b=h:2,", "NEEDLE_NODE_ID": "b"}
    config = resolve(FILE, environment, {})
    assert list(config.cluster_nodes) == ["a=h:1", "b=h:2"] and config.node_id == "b"


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"NEEDLE_ELECTION_TIMEOUT": "soon"}, "NEEDLE_ELECTION_TIMEOUT = 'soon' is not allowed: a number"),
        ({"NEEDLE_DIMENSIONS": "2.5"}, "NEEDLE_DIMENSIONS = '2.5' is not allowed: a whole number"),
        ({"NEEDLE_ELECTION_TIMOUT": "1"}, "NEEDLE_ELECTION_TIMOUT = '1' is not allowed: a known setting"),
        ({"NEEDLE_JOIN": "yes"}, "NEEDLE_JOIN = 'yes' is not allowed: true or false"),
        ({"NEEDLE_SEGMENTS": "1"}, "a known setting"),
    ],
)
def test_variables_that_cannot_be_meant_are_refused(environment: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_environment(environment)
    assert problem in caught.value.message


def test_the_clients_variables_are_not_settings() -> None:
    assert from_environment({"NEEDLE_CLUSTER": "h:1", "NEEDLE_CONFIG": "x"}) == {}


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    with pytest.raises(ConfigError, match=r"node\.toml' cannot be read: No such file"):
        read_file(path)
    path.write_text("node_id = ")
    with pytest.raises(ConfigError, match=r"node\.toml' is not TOML"):
        read_file(path)
    path.write_text('node_id = "n"\n[segments]\nseal_rows = 3\n')
    assert read_file(path) == {"node_id": "n", "segments": {"seal_rows": 3}}
