"""`needle serve` without what only the other commands need: a node runs for long, and keeps what was loaded.

Invariant: it is the same command as that of app.py, with the same options, help, errors and exit codes.

With a file of settings and no other options, which is how a node is started where it serves, typer has nothing to do,
and is not loaded: with pydantic, which it brings for options, it holds some 10 MB.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from needle.cli.ending import exit_code
from needle.cli.starting import start


def main() -> int:
    """Run the command line; the exit code."""
    match sys.argv[2:]:
        case []:
            named = os.environ.get("NEEDLE_CONFIG")
            return exit_code(lambda: start(Path(named) if named else None, {}))
        case ["--config", path] if path and not path.startswith("-"):
            return exit_code(lambda: start(Path(path), {}))
        case _:
            from needle.cli.serving_options import serve  # see above

            return exit_code(serve)
