"""The command line, and the demo. Thin: everything it does, a program can do through `needle.connect`."""

import sys


def main() -> None:
    """Entry point of the `needle` script."""
    try:
        code = _run()
    except KeyboardInterrupt:  # while modules load, before anything of them could hear it
        sys.stderr.write("interrupted\n")
        code = 130
    # Under `python -m`, CPython remembers that Ctrl-C went through code made from a string (a dataclass: any import),
    # even when it was caught, and ends the process by SIGINT, not by exit code 130. The next such code makes it forget.
    exec("")
    sys.exit(code)


def _run() -> int:
    try:
        # The server's dependencies load only when a command runs; a node does not hold those of the other commands.
        if sys.argv[1:2] == ["serve"]:
            from needle.cli.serving import main as run
        else:
            from needle.cli.app import main as run
        return run()  # which loads more, as far as it is needed
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "needle":
            raise
        sys.exit(f"the needle command needs the server ({error.name} is missing): pip install 'needle-vdb[server]'")
