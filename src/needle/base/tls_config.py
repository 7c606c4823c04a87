"""Settings of TLS: part of the one schema of settings (needle/base/config.py)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

from needle.base.errors import ConfigError
from needle.base.schema import Settings, about

MODES: Final = ("off", "accept", "require")
FILE: Final = "a file in PEM format"


class TlsConfig(Settings, frozen=True, kw_only=True):
    """TLS of both doors, and between nodes. Files that change are read again; new connections use them.

    mode: `off`; `accept`: callers with TLS and without are served, and nodes that have none are spoken to without;
        `require`: callers need TLS, and nodes a certificate of their name. Change it node by node (docs/security.md).
    certificate: This node's certificate, by the authority in `tls.ca`, and those between them, if any. It is for the
        node's name, and for the hosts and addresses that clients dial, and good for both ends of a connection.
    key: The private key of `tls.certificate`, which only the node can read.
    ca: The authority that signs the nodes' certificates, and those of clients. While it is being changed: both.
    client_certificates: Whether every caller needs a certificate by `tls.ca`, on both doors, beside its API key.
    """

    table: ClassVar[str] = "tls"

    mode: Annotated[str, about(allowed=f"one of {', '.join(MODES)}", pattern=f"^({'|'.join(MODES)})$")] = "off"
    certificate: Annotated[str, about(allowed=FILE)] = ""
    key: Annotated[str, about(allowed=FILE)] = ""
    ca: Annotated[str, about(allowed=FILE)] = ""
    client_certificates: Annotated[bool, about()] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.on:
            return
        for name in ("certificate", "key", "ca"):
            if not getattr(self, name):
                raise ConfigError(f"tls.mode = {self.mode} needs the setting tls.{name}, {FILE}", field=f"tls.{name}")

    @property
    def on(self) -> bool:
        """Whether TLS is spoken at all."""
        return self.mode != "off"

    @property
    def required(self) -> bool:
        """Whether nothing but TLS is."""
        return self.mode == "require"
