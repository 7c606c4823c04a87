"""A node's configuration from a file: TOML, or JSON when its name ends so."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from needle.base.config import RaftConfig
from needle.base.errors import ConfigError


def load_config(path: Path) -> RaftConfig:
    """The configuration in a file. Raises ConfigError that names the file, or the setting that is wrong."""
    return RaftConfig.from_mapping(load_values(path))


def load_values(path: Path) -> dict[str, Any]:
    """The settings in a file by name. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
        values: dict[str, Any] = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"config = {str(path)!r} cannot be read: {error.strerror}", field="config") from None
    except ValueError as error:
        raise ConfigError(f"config = {str(path)!r} does not parse: {error}", field="config") from None
    if not isinstance(values, dict):
        raise ConfigError(f"config = {str(path)!r} must hold settings by name", field="config")
    return values
