"""`python -m needle.server CONFIG.toml|CONFIG.json [--failpoint NAME:COUNT]`: one node, for tests and supervisors.

With --failpoint the process kills itself (SIGKILL) the COUNT-th time it comes to that place.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from needle.base.errors import NeedleError
from needle.multiraft.failpoints import FAILPOINTS, no_failpoint
from needle.server.catalog import founding
from needle.server.process.config_file import read_file, resolve, secret_file
from needle.server.process.main import EXIT_START, serve

USAGE = "usage: python -m needle.server CONFIG [--failpoint NAME:COUNT]\n"


def kill_at(text: str) -> Callable[[str], None]:
    """A failpoint hook from "name:count"."""
    wanted, _, count = text.partition(":")
    left = int(count or 1)

    def hook(name: str) -> None:
        nonlocal left
        if name == wanted:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def main(arguments: list[str]) -> None:
    """Entry point."""
    if len(arguments) not in (1, 3) or (len(arguments) == 3 and arguments[1] != "--failpoint"):
        sys.stderr.write(USAGE + f"failpoints: {', '.join((*FAILPOINTS, *founding.FAILPOINTS))}\n")
        sys.exit(EXIT_START)
    try:
        values = read_file(path := Path(arguments[0]))
        config = resolve(values, {}, {})
    except NeedleError as error:
        sys.stderr.write(f"needle: {error}\n")
        sys.exit(EXIT_START)
    failpoint = kill_at(arguments[2]) if len(arguments) == 3 else no_failpoint
    serve(config, failpoint=failpoint, secret_file=secret_file(path, values))


if __name__ == "__main__":
    main(sys.argv[1:])
