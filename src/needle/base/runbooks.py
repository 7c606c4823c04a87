"""Where an alert's runbook is. `needle status` and Prometheus' alerts say the same address: both have it from a node.
Pure.
"""

from __future__ import annotations

import ipaddress

from needle.base.config import RaftConfig, parse_address


def runbooks_of(config: RaftConfig) -> str:
    """What the name of an alert, in lower case, is put behind: of the page in `runbooks`, or of the node's own /ui. ""
    where there is neither."""
    if config.runbooks:
        return config.runbooks if "#" in config.runbooks else f"{config.runbooks}#"
    if config.http_address is None or not config.http_api:
        return ""
    host, port = parse_address("http_address", config.http_address)
    if _is_any(host):
        host, _ = parse_address("advertise", config.announced)
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if config.tls.on else 'http'}://{shown}:{port}/ui#/runbooks/"


def _is_any(host: str) -> bool:
    """Whether it stands for all addresses of the machine, and so for none that others could ask."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
