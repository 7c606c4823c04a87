"""`python -m proof.restore_drill [--minutes 3] [--seed 1]`: do backups and the archive bring back what was there?

Documents of two collections are written, one by one and in batches, patched and deleted on real processes, while
backups are made every 30 seconds by processes of which every second one is killed with -9, the logs are archived by a
process that is killed with -9 again and again, nodes are killed, one or all at a time, leaders step down, shards come
and go, replicas move. Then each backup, and the archive at many instants, is taken out, and some of them are restored
into running clusters of other shards and nodes, by a command that is killed, too. All is judged by a model: of each
document there is a state that was acknowledged before, or was under way then, with the vector of that write; nothing
that was asked for later, and no id twice.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from proof.checkers.violation import Violation
from proof.restore_drill.run import LONG, SHORT, Drill


def main(arguments: list[str] | None = None) -> int:
    """0 if all that came back was right."""
    parser = argparse.ArgumentParser(prog="python -m proof.restore_drill", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--every", type=float, default=30.0, help="seconds between backups")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--short", action="store_true", help="ten seconds of faults, and restores into one other cluster"
    )
    options = parser.parse_args(arguments)
    plan = SHORT if options.short else LONG._replace(seconds=options.minutes * 60, every=options.every)
    with tempfile.TemporaryDirectory(prefix="needle-drill-") as directory:
        try:
            sys.stdout.write(asyncio.run(Drill(Path(directory), plan, options.seed, _say).run()) + "\n")
        except Violation as violation:
            sys.stdout.write(f"VIOLATION {violation}\n")
            return 1
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
