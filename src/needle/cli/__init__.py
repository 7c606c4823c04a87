"""The command line, and the demo. Thin: everything it does, a program can do through `needle.connect`."""

import sys


def main() -> None:
    """Entry point of the `needle` script."""
    from needle.cli.app import main as run  # the server's dependencies load only when a command runs

    sys.exit(run())
