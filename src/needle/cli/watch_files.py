"""Files for those who watch a cluster, made from the tables of metrics and alerts: `python -m needle.cli.watch_files`
writes them below the current directory.

A test compares the files with this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from needle.server.metrics.row import Row
from needle.server.metrics.table import PARTS

METRICS_HEAD = """# Metrics

Made from the program by `python -m needle.cli.watch_files`; do not edit.

A node with `http_address` answers them at `/metrics` ([operations.md](operations.md#probes-and-metrics)). What is a
state is read from the node when it is asked; durations and calls are counted as they happen. Every label takes few
values: shards, nodes, at most 100 collections of a shard, and reasons out of fixed lists. `shard` is the shard's
number; the last column is the module of `src/needle` that knows.

What to do about them is in [alerts.md](alerts.md); `deploy/grafana/needle.json` draws them.
"""


def metrics_page() -> str:
    """docs/metrics.md."""
    parts = [METRICS_HEAD]
    for title, rows in PARTS.items():
        lines = [f"## {title}", "", "| metric | kind | labels | unit | meaning | source |", "|---|---|---|---|---|---|"]
        parts.append("\n".join([*lines, *map(_metric_line, rows)]) + "\n")
    return "\n".join(parts)


def _metric_line(row: Row) -> str:
    meaning = row.meaning
    if row.guide and row.guide != row.name:
        meaning += f" In the guide: `{row.guide}`."
    if row.only:
        meaning += f" Of nodes {row.only}."
    labels = ", ".join(f"`{label}`" for label in row.labels)
    return f"| `{row.name}` | {row.kind} | {labels} | {row.unit} | {meaning} | `{row.source}` |"


FILES: Mapping[str, Callable[[], str]] = {"docs/metrics.md": metrics_page}


def main() -> None:
    """Write all of them."""
    for name, render in FILES.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
