"""What nodes of one cluster publish, for those who compare it: without the label that says which cluster it is."""

from __future__ import annotations

import re

from needle.server.metrics.row import CLUSTER_LABEL

_LABEL = rf'{CLUSTER_LABEL}="[^"]*"'
_ALONE, _AMONG = re.compile(rf"\{{{_LABEL}\}}"), re.compile(rf"{_LABEL},|,{_LABEL}(?=\}})")


def of_one_cluster(text: str) -> str:
    """A page of /metrics without that label."""
    return _AMONG.sub("", _ALONE.sub("", text))
