"""python -m proof.alerts.watch HOST:PORT[,HOST:PORT...] --at HOST:PORT: Debian's Prometheus, with the rules as they are
delivered, watches these nodes; until Ctrl-C. What it saw before is deleted: it would miss clusters that are gone.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from needle.base.config import parse_address
from needle.base.errors import ConfigError
from proof.alerts.prometheus import command, configure
from proof.alerts.promtool import RULES

PLACE = Path(__file__).resolve().parents[2] / "build" / "prometheus"
SCRAPE_SECONDS = 5
TOLD = """Prometheus watches {nodes} until Ctrl-C.
a metric: http://{at}/graph?g0.expr=needle_shard_vector_count&g0.tab=0
alerts:   http://{at}/alerts
nodes:    http://{at}/targets"""


def watched(text: str) -> list[str]:
    """The addresses in a list with commas. Raises ArgumentTypeError for what is none."""
    found = [one.strip() for one in text.split(",") if one.strip()]
    if not found:
        raise argparse.ArgumentTypeError("name at least one node: WATCH=127.0.0.1:6001")
    return [address(one) for one in found]


def address(text: str) -> str:
    """The same text. Raises ArgumentTypeError for what is no "host:port"."""
    try:
        parse_address("address", text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def main() -> None:
    """Becomes Prometheus, which says by itself what it misses, such as a free port."""
    parser = argparse.ArgumentParser(prog="python -m proof.alerts.watch")
    parser.add_argument("nodes", type=watched, help="HTTP addresses of nodes, with commas between them")
    parser.add_argument("--at", type=address, required=True, help="where Prometheus answers")
    given = parser.parse_args()
    directory = PLACE / given.at.rpartition(":")[2]
    shutil.rmtree(directory, ignore_errors=True)
    configure(directory, given.nodes, RULES.read_text(encoding="utf-8"), job="needle", every=SCRAPE_SECONDS)
    print(TOLD.format(nodes=", ".join(given.nodes), at=given.at), flush=True)
    words = command(directory, given.at)
    os.execvp(words[0], words)


if __name__ == "__main__":
    main()
