"""The command line, and the demo. Thin: everything it does, a program can do through `needle.connect`."""

import sys


def main() -> None:
    """Entry point of the `needle` script."""
    try:
        from needle.cli.app import main as run  # the server's dependencies load only when a command runs
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "needle":
            raise
        sys.exit(f"the needle command needs the server ({error.name} is missing): pip install 'needle-vdb[server]'")
    code = run()
    # Under `python -m`, CPython remembers that Ctrl-C went through code made from a string (a dataclass: any import),
    # even when it was caught, and ends the process by SIGINT, not by exit code 130. The next such code makes it forget.
    exec("")
    sys.exit(code)
