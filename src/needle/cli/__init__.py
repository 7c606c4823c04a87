"""The command line, and the demo. Thin: everything it does, a program can do through `needle.connect`."""

import sys


def main() -> None:
    """Entry point of the `needle` script."""
    from needle.cli.app import main as run  # the server's dependencies load only when a command runs

    code = run()
    # Under `python -m`, CPython remembers that Ctrl-C went through code made from a string (a dataclass: any import),
    # even when it was caught, and ends the process by SIGINT, not by exit code 130. The next such code makes it forget.
    exec("")
    sys.exit(code)
