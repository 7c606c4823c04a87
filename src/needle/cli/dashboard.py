"""The Grafana dashboard, made from the table of metrics: a row of panels for each part, alerts that fire on top.

Pure: a row of the table becomes a panel, by its kind and unit.
"""

from __future__ import annotations

import json
from typing import Any, Final

from needle.server.metrics.row import CLUSTER_LABEL, Row
from needle.server.metrics.table import PARTS

WIDTH, HEIGHT, ACROSS = 8, 7, 3
UNITS: Final = {"seconds": "s", "milliseconds": "ms", "bytes": "bytes", "ratio": "percentunit", "": "short"}
CHOSEN: Final = f'{CLUSTER_LABEL}="$cluster"'
SOURCE: Final = {"type": "prometheus", "uid": "$source"}
INSTANTS: Final = frozenset({"needle_certificate_expiry_timestamp_seconds"})
"""Drawn as the time that is left."""


def dashboard_file() -> str:
    """deploy/grafana/needle.json."""
    return json.dumps(_dashboard(), indent=1, ensure_ascii=False) + "\n"


def _dashboard() -> dict[str, Any]:
    panels, y = [_alerts_panel()], 8
    for title, rows in PARTS.items():
        panels.append({"type": "row", "title": title, "gridPos": {"h": 1, "w": 24, "x": 0, "y": y}, "panels": []})
        y += 1
        for at, row in enumerate(rows):
            panels.append(_panel(row, at % ACROSS * WIDTH, y + at // ACROSS * HEIGHT))
        y += (len(rows) + ACROSS - 1) // ACROSS * HEIGHT
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    return {
        "title": "Needle",
        "uid": "needle",
        "description": "Made from the program by `python -m needle.cli.watch_files`.",
        "editable": True,
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_source_choice(), _cluster_choice()]},
        "panels": panels,
    }


def _source_choice() -> dict[str, Any]:
    return {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _cluster_choice() -> dict[str, Any]:
    query = f"label_values(needle_node_up, {CLUSTER_LABEL})"
    return {"name": "cluster", "label": "Cluster", "type": "query", "datasource": SOURCE, "query": query, "refresh": 2}


def _alerts_panel() -> dict[str, Any]:
    query = f'ALERTS{{alertname=~"Needle.*",{CHOSEN}}}'
    return {
        "type": "table",
        "title": "Alerts that fire or are about to (docs/alerts.md)",
        "datasource": SOURCE,
        "gridPos": {"h": 8, "w": 24, "x": 0, "y": 0},
        "targets": [{"refId": "A", "expr": query, "instant": True, "format": "table"}],
    }


def _panel(row: Row, x: int, y: int) -> dict[str, Any]:
    per_second = row.kind == "counter"
    unit = UNITS[row.unit]
    if per_second:
        unit = {"s": "percentunit", "bytes": "Bps", "short": "ops"}[unit]
    return {
        "type": "timeseries",
        "title": row.name
        + (", a second" if per_second else ", median and 99th percentile" * (row.kind == "histogram")),
        "description": row.meaning,
        "datasource": SOURCE,
        "gridPos": {"h": HEIGHT, "w": WIDTH, "x": x, "y": y},
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "targets": _queries(row),
    }


def _queries(row: Row) -> list[dict[str, str]]:
    legend = " ".join(f"{{{{{label}}}}}" for label in ("instance", *row.labels))
    if row.kind == "histogram":
        by = ", ".join(("instance", "le", *row.labels))
        rate = f"sum by ({by}) (rate({row.name}_bucket{{{CHOSEN}}}[$__rate_interval]))"
        shares = {"A": (0.5, "50 %"), "B": (0.99, "99 %")}
        return [
            {"refId": ref, "expr": f"histogram_quantile({share}, {rate})", "legendFormat": f"{legend} {said}"}
            for ref, (share, said) in shares.items()
        ]
    query = f"{row.name}{{{CHOSEN}}}"
    if row.kind == "counter":
        query = f"rate({query}[$__rate_interval])"
    elif row.name in INSTANTS:
        query += " - time()"
    return [{"refId": "A", "expr": query, "legendFormat": legend}]
