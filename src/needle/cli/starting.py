"""From a file of settings, the environment and options to a node that runs. It must not load what shows things to
users: a node would keep it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from needle.server.process.config_file import read_file, resolve, secret_file


def start(config: Path | None, options: Mapping[str, Any]) -> None:
    """Run one node in the foreground. options: settings by path; one that is None was not given. Raises ConfigError,
    and SystemExit with the node's exit code."""
    file = read_file(config) if config else {}
    found = resolve(file, os.environ, options)
    from needle.server.process.main import serve  # what a node needs takes half a second to load

    serve(found, secret_file=secret_file(config, file))
