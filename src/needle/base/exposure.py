"""Whether a node's settings would let in everybody from beyond this machine."""

from __future__ import annotations

import ipaddress

from needle.base.config import RaftConfig, parse_address, refuse


def check_exposed(config: RaftConfig) -> None:
    """Raises ConfigError for a node that would let in everybody from beyond this machine and does not say so."""
    if config.require_keys or config.insecure:
        return
    for name, address in (("listen", config.address), ("http_address", config.http_address)):
        host = parse_address(name, address)[0] if address else "localhost"
        if host != "localhost" and not _is_loopback(host):
            raise refuse(
                name,
                address,
                "an address of this machine alone (127.0.0.1), for whoever reaches this node may do everything: set "
                "require_keys = true (docs/security.md), or insecure = true where the network keeps strangers out",
            )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name: what it stands for may change
