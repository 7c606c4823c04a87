"""Where a node's settings come from: command line, then environment (NEEDLE_*), then file, then defaults. Pure.

Every setting of RaftConfig can be given in each place: a setting `election_timeout` is the TOML key
`election_timeout` and the variable NEEDLE_ELECTION_TIMEOUT; a setting of a table, such as `seal_rows` in `[segments]`,
is NEEDLE_SEGMENTS_SEAL_ROWS. Lists are separated by commas.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec

from needle.base.config import Limits, RaftConfig, SegmentConfig, refuse
from needle.base.errors import ConfigError
from needle.base.model import IndexParams

PREFIX = "NEEDLE_"
NOT_SETTINGS = frozenset({"NEEDLE_CLUSTER", "NEEDLE_CONFIG", "NEEDLE_ROUTERS"})
INTEGERS = frozenset({"snapshot_threshold", "dimensions", "log_bytes_max", "disk_reserve_bytes"})
FLOATS = frozenset({"election_timeout", "heartbeat_interval", "lease_timeout", "clock_error_max"})
FLAGS = frozenset({"join"})
LISTS = frozenset({"cluster_nodes"})
TABLES: dict[str, dict[str, str]] = {
    "segments": {f.name: str(f.type).removesuffix(" | None") for f in fields(SegmentConfig)},
    "limits": {f.name: str(f.type) for f in fields(Limits)},
    "index": {f.name: "int" for f in msgspec.structs.fields(IndexParams)},
}


def read_file(path: Path) -> dict[str, Any]:
    """The settings of a TOML file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config = {str(path)!r} cannot be read: {error.strerror}", field="config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config = {str(path)!r} is not TOML: {error}", field="config") from None


def from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """The settings among the environment's variables. A NEEDLE_ variable that is no setting is refused: it is a
    typing error, and ignoring it would start a node with other settings than its operator believes."""
    settings: dict[str, Any] = {}
    for variable in sorted(environment):
        if not variable.startswith(PREFIX) or variable in NOT_SETTINGS:
            continue
        name, text = variable.removeprefix(PREFIX).lower(), environment[variable]
        table, _, inner = name.partition("_")
        if name in {f.name for f in fields(RaftConfig)} - TABLES.keys():
            settings[name] = _parse(variable, text, _kind(name))
        elif inner in TABLES.get(table, {}):
            settings.setdefault(table, {})[inner] = _parse(variable, text, TABLES[table][inner])
        else:
            raise refuse(variable, text, "a known setting; see `needle serve --help` and docs/operations.md")
    return settings


def named_routers(environment: Mapping[str, str]) -> list[str]:
    """The modules of custom routing callables in NEEDLE_ROUTERS."""
    return [name.strip() for name in environment.get("NEEDLE_ROUTERS", "").split(",") if name.strip()]


def _kind(name: str) -> str:
    for kind, names in (("int", INTEGERS), ("float", FLOATS), ("list", LISTS), ("bool", FLAGS)):
        if name in names:
            return kind
    return "str"


def _parse(variable: str, text: str, kind: str) -> Any:
    try:
        if kind == "int":
            return int(text)
        if kind == "float":
            return float(text)
    except ValueError:
        raise refuse(variable, text, "a whole number" if kind == "int" else "a number") from None
    if kind == "bool":
        if text.lower() not in ("true", "false"):
            raise refuse(variable, text, "true or false")
        return text.lower() == "true"
    return [part.strip() for part in text.split(",") if part.strip()] if kind == "list" else text


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """One mapping of settings; later layers win, tables are merged key by key, None means not given."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            if isinstance(value, Mapping) and isinstance(merged.get(name), Mapping):
                merged[name] = {**merged[name], **value}
            elif value is not None:
                merged[name] = value
    return merged


def resolve(file: Mapping[str, Any], environment: Mapping[str, str], flags: Mapping[str, Any]) -> RaftConfig:
    """The configuration of a node. Raises ConfigError naming the setting, its value and what is allowed."""
    return RaftConfig.from_mapping(merge(file, from_environment(environment), flags))
