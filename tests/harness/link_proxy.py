"""The proxy for one directed link, shared with the chaos run."""

from needle.local.link_proxy import LinkProxy

__all__ = ["LinkProxy"]
