"""What a row of the table of metrics holds."""

from __future__ import annotations

from typing import Final, NamedTuple

CLUSTER_LABEL: Final = "needle_cluster"
"""Of every series. Not `cluster`: many give that name to what a Prometheus watches, and would hide the node's."""


def cluster_name(cluster_id: str, founding: int) -> str:
    """The value of that label: the name that people gave, and what was drawn when the cluster was made, so that two
    clusters of one name are two."""
    return f"{cluster_id}-{founding & 0xFFFFFFFF:08x}"


class Row(NamedTuple):
    """name: as Prometheus has it. unit: of its values; "" of a number of things, and of yes (1) and no (0). labels: all
    of them take few values, or a bounded number. source: the module that knows, below src/needle. guide: what the
    guide calls it, where it does. only: which nodes have it, where not all do."""

    name: str
    kind: str
    labels: tuple[str, ...]
    unit: str
    meaning: str
    source: str
    guide: str = ""
    only: str = ""


def gauge(name: str, labels: str, unit: str, meaning: str, source: str, guide: str = "", only: str = "") -> Row:
    """labels: separated by blanks."""
    return Row(name, "gauge", tuple(labels.split()), unit, meaning, source, guide, only)


def counter(name: str, labels: str, unit: str, meaning: str, source: str, guide: str = "", only: str = "") -> Row:
    """It only rises while the process runs."""
    return Row(name, "counter", tuple(labels.split()), unit, meaning, source, guide, only)


def histogram(name: str, labels: str, unit: str, meaning: str, source: str, guide: str = "") -> Row:
    """Observed as it happens: `_bucket`, `_sum` and `_count`."""
    return Row(name, "histogram", tuple(labels.split()), unit, meaning, source, guide)
