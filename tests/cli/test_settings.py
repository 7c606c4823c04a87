"""Settings: every one in every place, their precedence, and what is refused, by which words."""

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from needle.base.config import SETTINGS, RaftConfig, by_path
from needle.base.errors import ConfigError
from needle.base.former_settings import FORMER_PATHS
from needle.base.index_config import IndexConfig
from needle.base.model import IndexParams
from needle.base.schema import Setting
from needle.cli import create_command, serve_command
from needle.cli.app import main
from needle.server import __main__ as module
from needle.server.cluster_api import ClusterConfig
from needle.server.process import main as process
from needle.server.process.config_file import from_environment, load_config, read_file, resolve

NEEDED = {"node_id": "a", "cluster_nodes": ["a=127.0.0.1:1"], "data_dir": "d"}
FILE = {**NEEDED, "election_timeout": 1.0, "snapshot_threshold": 5, "segments": {"seal_rows": 7, "build_threads": 2}}
TEXTS: dict[str, list[Any]] = {
    "node_id": ["a", "b"],
    "cluster_nodes": [["a=h:1", "b=h:2"], ["a=h:1", "b=h:2", "c=h:3"]],
    "data_dir": ["d", "/var/lib/needle"],
    "cluster_id": ["needle", "7"],
    "listen": ["h:1", "[::1]:5000"],
    "advertise": ["h:1", "[::1]:5000"],
    "reach": [["b=h:1"], ["b=h:1", "c=g:2"]],
    "http_address": ["h:9090"],
    "http_hosts": [["vectors.internal"], ["a.example", "b.example"]],
    "runbooks": ["https://x.org/alerts.html", "http://a:9090/ui#/runbooks/"],
    "metric": ["l2", "dot"],
    "index.kind": ["flat", "hnsw_sq8"],
    "sharding.join": [["h:1"], ["h:1", "g:2"]],
    "sharding.router_modules": [["no_such_module"], ["no_such_module:f", "another"]],
    "sharding.strategy": ["hash", "custom:tenant,region"],
    "sharding.boundaries": [["g"], ["g", "p"]],
    "placement.zone": ["rack-1", "7"],
    "tls.mode": ["off", "accept", "require"],
    "tls.certificate": ["c.crt"],
    "tls.key": ["c.key"],
    "tls.ca": ["/etc/needle/ca.crt"],
    "log.format": ["text", "json"],
    "log.level": ["debug", "info", "warning", "error"],
    "audit.file": ["audit.jsonl", "/var/log/needle/audit.jsonl"],
    "cluster_secret_former": ["f" * 32],
    "cluster_secret": ["s" * 32, "an openssl rand -hex 32 makes one"],
}


def values_of(setting: Setting) -> st.SearchStrategy[Any]:
    """Values that are allowed for a setting, whatever the others are."""
    if setting.path in TEXTS:
        return st.sampled_from(TEXTS[setting.path])
    if setting.kind is bool:
        return st.booleans()
    annotation = next(part for part in (setting.type, *setting.type.__args__) if hasattr(part, "__metadata__"))
    meta = annotation.__metadata__[0]
    low, high = meta.ge, min(meta.le, {"dimensions": 8192}.get(setting.path, meta.le))
    low = {"election_timeout": 0.1, "segments.rows_max": 1000}.get(setting.path, low)
    high = {"heartbeat_interval": 0.05, "segments.seal_rows": 1000, "sharding.replicas": 2}.get(setting.path, high)
    return st.floats(low, high) if setting.kind is float else st.integers(low, high)


def value_at(config: RaftConfig, path: str) -> Any:
    found: Any = config
    for name in path.split("."):
        found = getattr(found, name)
    return list(found) if isinstance(found, tuple) else found


def in_tables(path: str, value: Any) -> dict[str, Any]:
    table, _, name = path.rpartition(".")
    return {table: {name: value}} if table else {name: value}


def on_command_line(setting: Setting, value: Any, monkeypatch: pytest.MonkeyPatch, *before: str) -> RaftConfig:
    """What `needle serve` starts with this option, through the real parser."""
    started: list[RaftConfig] = []
    option = setting.option
    if setting.kind is bool:
        sets, _, unsets = option.partition("/")
        argv = [sets if value else unsets]
    else:
        argv = [part for one in (value if setting.kind is list else [value]) for part in (option, str(one))]
    with monkeypatch.context() as patch:
        patch.setattr(process, "serve", lambda config, secret_file: started.append(config))
        assert main(["serve", *before, *argv]) == 0
    return started[0]


def test_a_settings_file_with_a_secret_in_it_is_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the node, which tells its log if others can read it: the secret of the environment is not in it."""
    told: list[str] = []
    file = tmp_path / "node.json"
    base = {"node_id": "a", "data_dir": "d", "listen": "h:1", "cluster_nodes": ["a=h:1"]}
    monkeypatch.setattr(process, "serve", lambda config, secret_file: told.append(secret_file))
    monkeypatch.setattr(module, "serve", lambda config, *, failpoint, secret_file: told.append(secret_file))
    for more in ({}, {"cluster_secret": "s" * 32}, {"cluster_secret_former": "s" * 32, "cluster_secret": "t" * 32}):
        file.write_text(json.dumps({**base, **more}))
        assert main(["serve", "--config", str(file)]) == 0
        module.main([str(file)])  # python -m needle.server
    assert told == ["", "", *[str(file)] * 4]


@pytest.mark.parametrize("path", SETTINGS)
def test_every_setting_can_be_given_in_every_place(
    path: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    setting = SETTINGS[path]
    base: dict[str, Any] = {"node_id": "a", "data_dir": "d", "listen": "h:1"}
    if path != "sharding.join":
        base["cluster_nodes"] = ["a=h:1", "b=h:2"]
    if path == "require_keys":
        base["cluster_secret"] = "s" * 32
    if path == "tls.mode":
        base |= {"tls.certificate": "c", "tls.key": "k", "tls.ca": "a"}
    file = tmp_path_factory.mktemp("settings") / "node.json"
    bare = tmp_path_factory.mktemp("settings") / "bare.json"
    bare.write_text(json.dumps({name: value for name, value in base.items() if name != path}))

    seen: list[Any] = []

    @settings(max_examples=4)
    @given(value=values_of(setting))
    def check(value: Any) -> None:
        seen.append(value)
        file.write_text(json.dumps(base | in_tables(path, value)))
        assert value_at(load_config(file), path) == value
        variable = ",".join(value) if setting.kind is list else str(value)
        config = resolve(base, {setting.variable: variable}, {})
        assert value_at(config, path) == value and config == load_config(file)

    check()
    for value in (True, False) if setting.kind is bool else seen[-1:]:
        assert value_at(on_command_line(setting, value, monkeypatch, "--config", str(bare)), path) == value


def test_names_are_unambiguous() -> None:
    assert len({setting.variable for setting in SETTINGS.values()}) == len(SETTINGS)
    assert len({setting.option for setting in SETTINGS.values()}) == len(SETTINGS)
    assert len(inspect.signature(serve_command.serve).parameters) == len(SETTINGS) + 1


def test_each_place_overrides_the_next() -> None:
    environment = {"NEEDLE_ELECTION_TIMEOUT": "2.5", "NEEDLE_SNAPSHOT_THRESHOLD": "6", "HOME": "/root"}
    config = resolve(by_path(FILE), environment, {"snapshot_threshold": 8, "data_dir": None})
    assert config.snapshot_threshold == 8  # command line
    assert config.election_timeout == 2.5  # environment
    assert config.data_dir == "d"  # file
    assert config.heartbeat_interval == 0.050  # default


def test_tables_are_merged_by_key() -> None:
    config = resolve(by_path(FILE), {"NEEDLE_SEGMENTS_SEAL_ROWS": "9", "NEEDLE_INDEX_EF_SEARCH": "33"}, {})
    assert (config.segments.seal_rows, config.segments.build_threads) == (9, 2)
    assert config.index == IndexParams(ef_search=33)


def test_the_index_has_the_defaults_of_the_model() -> None:
    assert IndexParams(**msgspec.structs.asdict(IndexConfig())) == IndexParams()


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"NEEDLE_ELECTION_TIMEOUT": "soon"}, "NEEDLE_ELECTION_TIMEOUT = 'soon' is not allowed: a number from 0.002"),
        ({"NEEDLE_DIMENSIONS": "2.5"}, "NEEDLE_DIMENSIONS = '2.5' is not allowed: a whole number from 1"),
        ({"NEEDLE_LIMITS_K_MAX": "0"}, "NEEDLE_LIMITS_K_MAX = '0' is not allowed: a whole number from 1 to 1000000000"),
        ({"NEEDLE_ELECTION_TIMOUT": "1"}, "a known setting; did you mean NEEDLE_ELECTION_TIMEOUT?"),
        ({"NEEDLE_XYZ": "1"}, "NEEDLE_XYZ = '1' is not allowed: a known setting; see docs/operations.md"),
    ],
)
def test_variables_that_cannot_be_meant_are_refused(environment: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_environment(environment)
    assert problem in caught.value.message


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (
            {"segments": {"seal_row": 3}},
            "segments.seal_row = 3 is not allowed: a known setting; did you mean segments.seal",
        ),
        ({"seal_rows": 3}, "did you mean segments.seal_rows?"),
        ({"segments": 3}, "segments = 3 is not allowed: a table of settings"),
        (
            {"segments": {"seal_rows": "3"}},
            "segments.seal_rows = '3' is not allowed: a whole number from 1 to 10000000",
        ),
        ({"segments": {"seal_rows": 9, "rows_max": 8}}, "segments.rows_max = 8 is not allowed: a number from 9"),
        ({"snapshot_threshold": 1.5}, "snapshot_threshold = 1.5 is not allowed: a whole number"),
        ({"join": True}, "join = True is not allowed: left out: a node without cluster_nodes waits"),
        ({"sharded": True}, "sharded = True is not allowed: left out: a node without cluster_nodes waits"),
        ({"reach": ["nowhere"]}, "reach = 'nowhere' is not allowed"),
        ({"sharding": {"replicas": 2}}, "sharding.replicas = 2 is not allowed: a number from 1 to 1"),
        ({"sharding": {"join": ["h:2"]}}, "none beside sharding.join: a node founds or joins"),
        ({"election_timeout": True}, "election_timeout = True is not allowed: a number"),
        ({"election_timeout": float("nan")}, "election_timeout = nan is not allowed: a number"),
        ({"index": {"m": 1}}, "index.m = 1 is not allowed: a whole number from 2 to 256"),
        ({"limits": {"frame_bytes_max": 1}}, "limits.frame_bytes_max = 1 is not allowed: a whole number from 65536"),
        ({"limits": {"dimensions_max": 7}, "dimensions": 8}, "dimensions = 8 is not allowed: a number from 1 to 7"),
        ({"sharding": {"join": ["nowhere"]}}, "sharding.join = 'nowhere' is not allowed: \"host:port\""),
        ({"placement": {"weight": -1}}, "placement.weight = -1 is not allowed: a number from 0 to 1000"),
        ({"metric": "x"}, "metric = 'x' is not allowed: one of cosine, l2, dot"),
        ({"node_id": "a b"}, "node_id = 'a b' is not allowed: 1 to 64 characters"),
        ({"node_id": "z"}, "node_id = 'z' is not allowed: one of the cluster_nodes: a"),
        ({"data_dir": ""}, "data_dir = '' is not allowed: a directory"),
        ({"cluster_nodes": [f"n{n}=h:{n}" for n in range(1, 9)]}, "a list of 1 to 7 nodes"),
        ({"cluster_nodes": []}, "the setting cluster_nodes, or listen of a node that waits or joins, is required"),
        ({"cluster_nodes": [], "sharding": {"shards": 2}}, "the setting cluster_nodes is required"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RaftConfig.from_mapping({**NEEDED, **values})
    assert problem in caught.value.message


def test_python_values_are_checked_alike() -> None:
    with pytest.raises(ConfigError, match=r"index\.m = 1 is not allowed"):
        RaftConfig(node_id="a", cluster_nodes=["a=h:1"], data_dir="d", index=IndexParams(m=1))
    config = RaftConfig(node_id="a", cluster_nodes=["a=h:1"], data_dir="d", index=IndexParams(m=4))
    assert config.index == IndexParams(m=4)


def test_a_node_that_waits_or_joins_needs_no_list_of_nodes() -> None:
    alone: dict[str, Any] = {"node_id": "a", "data_dir": "d", "listen": "h:1"}
    for said in ({}, {"sharding": {}}, {"placement": {"zone": "z"}}, {"sharding": {"join": ["h:2"]}}):
        config = RaftConfig.from_mapping({**alone, **said})
        assert config.founders == {} and config.announced == config.address == "h:1"
    assert resolve(alone, {"NEEDLE_PLACEMENT_ZONE": "z"}, {}).placement.zone == "z"
    assert resolve(alone, {"NEEDLE_SHARDING_JOIN": "h:2,h:3"}, {}).sharding.join == ["h:2", "h:3"]


def test_where_a_node_listens_and_what_it_announces() -> None:
    def both(**values: Any) -> tuple[str, str]:
        config = RaftConfig(node_id="a", data_dir="d", **values)
        return config.address, config.announced

    assert both(cluster_nodes=["a=h:1", "b=h:2"]) == ("h:1", "h:1")
    assert both(cluster_nodes=["a=h:1", "b=h:2"], listen="0.0.0.0:1") == ("0.0.0.0:1", "h:1")
    assert both(listen="0.0.0.0:1", advertise="h:1") == ("0.0.0.0:1", "h:1")
    assert both(advertise="h:1") == ("h:1", "h:1")


def test_former_names_are_still_read() -> None:
    config = RaftConfig.from_mapping({**NEEDED, "sharding": {"zone": "z", "weight": 2}})
    assert (config.placement.zone, config.placement.weight) == ("z", 2.0)
    assert set(FORMER_PATHS.values()) <= set(SETTINGS) and not set(FORMER_PATHS) & set(SETTINGS)


def test_reading_imports_no_module_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user_routing.py").write_text("raise SystemExit('imported while settings are read')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "node.toml"
    path.write_text('node_id = "a"\nlisten = "h:1"\ndata_dir = "d"\n[sharding]\nrouter_modules = ["user_routing:f"]\n')
    assert load_config(path).sharding.router_modules == ["user_routing:f"] and "user_routing" not in sys.modules


def test_the_commands_list_of_routers_is_a_nodes_too() -> None:
    environment = {"NEEDLE_ROUTERS": "m:f, n"}
    file = {**NEEDED, "sharding.router_modules": ["file"]}
    assert resolve(file, environment, {}).sharding.router_modules == ["m:f", "n"]
    over = resolve(file, environment, {"sharding.router_modules": ["option"]})
    assert over.sharding.router_modules == ["option"]


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
    assert read_file(path) == {"node_id": "n", "segments.seal_rows": 3}
    path = tmp_path / "node.json"
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="must hold settings by name"):
        read_file(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        read_file(path)


def test_the_json_schema_has_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    top = schema["$defs"]["RaftConfig"]
    assert sorted(top["required"]) == ["data_dir", "node_id"] and top["additionalProperties"] is False
    found = set()
    for name, said in top["properties"].items():
        inner = schema["$defs"][said["$ref"].rpartition("/")[2]]["properties"] if "$ref" in said else None
        found |= {f"{name}.{setting}" for setting in inner} if inner else {name}
    assert found == set(SETTINGS)
    assert top["properties"]["lease_timeout"]["description"] == SETTINGS["lease_timeout"].description
    assert all(setting.description.endswith(".") for setting in SETTINGS.values())
    assert schema["$defs"]["Limits"]["properties"]["k_max"]["minimum"] == 1


def test_a_cluster_has_one_shard_unless_it_is_told_otherwise_however_it_is_made() -> None:
    by_command = inspect.signature(create_command.create).parameters["shards"].default
    assert by_command == int(SETTINGS["sharding.shards"].shown) == ClusterConfig().shard_count == 1
