"""The one reader of a node's settings: command line, then environment, then file, then defaults.

A setting has one name, its path in needle/base/config.py: `segments.seal_rows` is `seal_rows` in the table `[segments]`
of a file, the variable NEEDLE_SEGMENTS_SEAL_ROWS and the option --segments-seal-rows. Reading imports no module that a
setting names: the node does, when it starts.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from needle.base.config import SETTINGS, RaftConfig, by_path
from needle.base.errors import ConfigError
from needle.base.schema import PREFIX, unknown
from needle.routing.loading import ROUTERS_VARIABLE, named_routers

NOT_SETTINGS = frozenset({"NEEDLE_API_KEY", "NEEDLE_CLUSTER", "NEEDLE_CONFIG", ROUTERS_VARIABLE})
ROUTERS = "sharding.router_modules"
SECRETS = ("cluster_secret", "cluster_secret_former")


def load_config(path: Path) -> RaftConfig:
    """The configuration in a file. Raises ConfigError that names the file, or the setting that is wrong."""
    return resolve(read_file(path), {}, {})


def read_file(path: Path) -> dict[str, Any]:
    """The settings in a file by path: TOML, or JSON with the same names when its name ends so. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
        values: Any = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"config = {str(path)!r} cannot be read: {error.strerror}", field="config") from None
    except (ValueError, RecursionError) as error:  # the latter of what is nested too deep
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ConfigError(f"config = {str(path)!r} is not {kind}: {error}", field="config") from None
    if not isinstance(values, dict):
        raise ConfigError(f"config = {str(path)!r} must hold settings by name", field="config")
    return by_path(values)


def secret_file(path: Path | None, values: Mapping[str, Any]) -> str:
    """The file, for whoever warns of one that others can read, if there is a secret among its settings; else ""."""
    return str(path) if path and any(values.get(name) for name in SECRETS) else ""


def from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """The settings among the environment's variables, by path. A NEEDLE_ variable that is no setting is refused: it is
    a typing error, and ignoring it would start a node with other settings than its operator believes."""
    known = {setting.variable: setting for setting in SETTINGS.values()}
    found: dict[str, Any] = {}
    for variable in sorted(environment):
        if not variable.startswith(PREFIX) or variable in NOT_SETTINGS:
            continue
        if variable not in known:
            raise unknown(variable, environment[variable], known)
        found[known[variable].path] = known[variable].check(environment[variable], variable, text=True)
    return found


def resolve(file: Mapping[str, Any], environment: Mapping[str, str], options: Mapping[str, Any]) -> RaftConfig:
    """The configuration of a node. file, options: settings by path; an option that is None was not given. Raises
    ConfigError naming the setting, its value and what is allowed."""
    said = {path: value for path, value in options.items() if value is not None}
    above = {**from_environment(environment), **said}
    config = RaftConfig.from_mapping({**file, **above})
    modules = named_routers(environment)
    if not modules or ROUTERS in above:
        return config
    return RaftConfig.from_mapping({**file, **above, ROUTERS: modules})
