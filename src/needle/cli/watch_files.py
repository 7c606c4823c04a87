"""Files for those who watch a cluster, made from the tables of metrics, alerts and events:
`python -m needle.cli.watch_files` writes them below the current directory.

A test compares the files with this.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from needle.base.events import EVENTS
from needle.cli.dashboard import dashboard_file
from needle.client.alerts import ROWS, RUNBOOKS, Alert
from needle.server.metrics.row import CLUSTER_LABEL, Row
from needle.server.metrics.table import PARTS

METRICS_HEAD = f"""# Metrics

Made from the program by `python -m needle.cli.watch_files`; do not edit.

A node with `http_address` answers them at `/metrics` ([operations.md](operations.md#probes-and-metrics)). What is a
state is read from the node when it is asked; durations and calls are counted as they happen. Every label takes few
values: shards, nodes, at most 100 collections of a shard, and reasons out of fixed lists. `shard` is the shard's
number; the last column is the module of `src/needle` that knows. Every series of a node that belongs to a cluster
also has the label `{CLUSTER_LABEL}`: `cluster_id`, and eight digits drawn when the cluster was made, as
`needle-1f0c22d4`. By it clusters that one Prometheus watches are kept apart, whatever jobs they are scraped in.

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


_NODES = (
    f"topk(1, last_over_time(needle_runbooks_info{{{CLUSTER_LABEL}=%q}}[1d]) + on (job, instance) group_left () up)"
)
RUNBOOKS_TOLD: Final = (
    f"{{{{ with printf `{_NODES}` $labels.{CLUSTER_LABEL} | query }}}}"
    f"{{{{ . | first | label `address` }}}}{{{{ else }}}}{RUNBOOKS}#{{{{ end }}}}"
)
"""Where the nodes of the alert's cluster say that runbooks are: of a node that answers, if any does."""

RULES_HEAD = """# Made from the program by `python -m needle.cli.watch_files`; do not edit.
# Prometheus' rules for Needle; what to do about each alert is in docs/alerts.md. Each cluster is judged by itself, by
# the label needle_cluster that its nodes give all series: jobs may have any name, and hold several clusters. Nodes also
# name the address of the runbook (their setting `runbooks`).
groups:
  - name: needle
    rules:
"""


def rules_file() -> str:
    """deploy/prometheus/needle.rules.yml. What stands in quotes is JSON, which is YAML."""
    return RULES_HEAD + "".join(map(_rule, (row for row in ROWS if row.expression)))


def _rule(row: Alert) -> str:
    return f"""      - alert: {row.name}
        expr: {json.dumps(row.expression)}
        for: {row.hold}s
        labels:
          severity: {row.severity}
        annotations:
          summary: {json.dumps(row.summary)}
          runbook_url: {json.dumps(RUNBOOKS_TOLD + row.name.lower())}
"""


def alerts_table() -> str:
    """The table of docs/alerts.md."""
    lines = ["| alert | severity | `needle status` says | Prometheus fires |", "|---|---|---|---|"]
    for row in ROWS:
        fires = f"after {row.hold} s" if row.hold else "at once"
        said = row.condition or "nothing"
        lines.append(
            f"| [{row.name}](#{row.name.lower()}) | {row.severity} | {said} | {fires if row.expression else 'never'} |"
        )
    return "\n".join(lines) + "\n"


def alerts_page() -> str:
    """docs/alerts.md with its table made again; the sections are written by hand."""
    text = Path(ALERTS_PAGE).read_text(encoding="utf-8")
    return re.sub(r"^\| alert \|.*?\n(?=\n)", lambda _: alerts_table(), text, count=1, flags=re.DOTALL | re.MULTILINE)


def runbooks_file() -> str:
    """src/needle/server/http/ui/runbooks.json: the sections of docs/alerts.md, for the dashboard."""
    sections = dict(
        re.findall(r"^## (\w+)\n\n(.*?)\n(?=\n## |\Z)", Path(ALERTS_PAGE).read_text("utf-8"), re.DOTALL | re.MULTILINE)
    )
    books = [
        {
            "alert": row.name,
            "severity": row.severity,
            "condition": row.condition,
            "text": [" ".join(paragraph.split()) for paragraph in sections[row.name].split("\n\n")],
        }
        for row in ROWS
    ]
    return json.dumps(books, indent=1, ensure_ascii=False) + "\n"


def events_tables() -> str:
    """The tables of docs/logs.md, one for each part."""
    parts: dict[str, list[str]] = {}
    for event in EVENTS.values():
        text, level = re.sub(r"%\((\w+)\)[^a-z]*[a-z]", r"{\1}", event.text), logging.getLevelName(event.level).lower()
        more = [f"`{field}`" for field in event.fields if f"%({field})" not in event.text]
        fields = f" Also {', '.join(more)}." if more else ""
        parts.setdefault(event.part, []).append(f"| `{event.kind}` | {level} | {event.about}{fields} | {text} |")
    head = "| kind | level | when | text |\n|---|---|---|---|\n"
    return "\n".join(f"### {part}\n\n{head}" + "\n".join(lines) + "\n" for part, lines in parts.items())


def logs_page() -> str:
    """docs/logs.md with its tables of events made again; the rest is written by hand."""
    text = Path(LOGS_PAGE).read_text(encoding="utf-8")
    return re.sub(r"^### .*?(?=^## |\Z)", lambda _: events_tables(), text, count=1, flags=re.DOTALL | re.MULTILINE)


ALERTS_PAGE, LOGS_PAGE = "docs/alerts.md", "docs/logs.md"
FILES: Mapping[str, Callable[[], str]] = {
    "docs/metrics.md": metrics_page,
    ALERTS_PAGE: alerts_page,
    LOGS_PAGE: logs_page,
    "deploy/prometheus/needle.rules.yml": rules_file,
    "deploy/grafana/needle.json": dashboard_file,
    "src/needle/server/http/ui/runbooks.json": runbooks_file,
}


def main() -> None:
    """Write all of them."""
    for name, render in FILES.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
