"""Whether a browser may ask a node that takes callers without a key.

A page of another site cannot read what a node answers, but for one way: its name is made to lead to this machine (DNS
rebinding), and then the browser takes the node for that site. The name that the page has is in the request; so where no
key is asked for, browsers are answered under addresses, `localhost` and the names that the operator gave only.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping

from needle.base.errors import Forbidden

_OF_BROWSERS = (b"sec-fetch-site", b"origin", b"accept-language")
"""The last is the only one that a page's GET over plain HTTP has, under any name but `localhost`. No page can leave it
out, and programs seldom send it."""
_MOZILLA = "mozilla/"


def browsed_host(told: Mapping[bytes, str]) -> str | None:
    """The host that a browser was told to ask, in lower case, without its port; None if it is no browser that asks."""
    said_by_browser = told.get(b"user-agent", "").lower().startswith(_MOZILLA)
    if not said_by_browser and not any(name in told for name in _OF_BROWSERS):
        return None
    host = told.get(b"host", "").strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".")


def check_host(host: str | None, names: Collection[str]) -> None:
    """names: in lower case. Raises Forbidden for a name that might be another site's."""
    if host is None or host == "localhost" or host.endswith(".localhost") or host in names:
        return
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise Forbidden(
            f"a browser asks for {host[:200]!r}, and this node takes callers without a key: open it by its address, or "
            "give the node this name in `http_hosts` if it is its own",
            host=host[:200],
        ) from None
