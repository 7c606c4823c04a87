"""Whether a node's settings would let in everybody from beyond this machine, or be heard by everybody on the way."""

from __future__ import annotations

import ipaddress

from needle.base.config import RaftConfig, parse_address, refuse


def check_exposed(config: RaftConfig) -> None:
    """Raises ConfigError for a node that listens beyond this machine without keys and TLS, and does not say so."""
    if config.insecure or (config.require_keys and config.tls.required):
        return
    missing = [] if config.require_keys else ["require_keys = true"]
    if not config.tls.required:
        missing.append('tls.mode = "require"')
    why = "who reads the network on the way reads keys and documents"
    if not config.require_keys:
        why = "whoever reaches this node may do everything"
    for name, address in (("listen", config.address), ("http_address", config.http_address)):
        host = parse_address(name, address)[0] if address else "localhost"
        if host != "localhost" and not _is_loopback(host):
            raise refuse(
                name,
                address,
                f"an address of this machine alone (127.0.0.1), for {why}: set {' and '.join(missing)} "
                "(docs/security.md), or insecure = true where the network keeps strangers out",
            )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name: what it stands for may change
