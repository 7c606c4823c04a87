"""`needle serve`: one node in the foreground; `needle config schema`: its settings for other programs."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from needle.base.config import SETTINGS, RaftConfig
from needle.base.schema import Setting, json_schema
from needle.cli.starting import start

EXAMPLE = "needle serve --config node-1.toml"


def serve(
    config: Annotated[
        Path | None, typer.Option("--config", envvar="NEEDLE_CONFIG", help="TOML file with this node's settings.")
    ] = None,
    **given: Any,
) -> None:
    """Run one node until it is stopped with SIGTERM or Ctrl-C.

    A setting on the command line wins over the environment (NEEDLE_DATA_DIR, NEEDLE_SEGMENTS_SEAL_ROWS and so on), that
    over the file, that over the default.
    """
    start(config, {path: given[_parameter_name(path)] for path in SETTINGS})


def schema() -> None:
    """Print a JSON schema of a node's settings, as in a file: for editors, and for programs that write such files."""
    sys.stdout.write(json.dumps(json_schema(RaftConfig), indent=2) + "\n")


def _parameter_name(path: str) -> str:
    return path.replace(".", "_")


def _parameter(setting: Setting) -> inspect.Parameter:
    """The option of a setting. Typer reads the options from a function's signature."""
    kind: Any = list[str] if setting.kind is list else setting.kind
    text = f"{setting.description} {setting.facts}"
    return inspect.Parameter(
        _parameter_name(setting.path),
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, typer.Option(setting.option, help=text)],
    )


cast(Any, serve).__signature__ = inspect.Signature(
    [inspect.signature(serve, eval_str=True).parameters["config"], *map(_parameter, SETTINGS.values())]
)
