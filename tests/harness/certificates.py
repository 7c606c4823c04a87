"""Certificates for tests, made once a session: of a cluster's authority, of another one, and one that is expired."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from needle.local.certificates import Made, create_ca, create_client, create_node

HOSTS = ("127.0.0.1",)


class Authority:
    """`ca`: the file of the authority; nodes' files by name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        create_ca(directory / "ca", "test", 100)
        create_ca(directory / "other", "another", 100)
        self.ca = str(directory / "ca" / "ca.crt")
        self.nodes = {name: create_node(directory / "ca", name, HOSTS, 50) for name in names(4)}
        self.client = create_client(directory / "ca", "shop", 50)
        long_ago = datetime.now(UTC) - timedelta(days=9)
        self.expired = create_node(directory / "expired", "node-4", HOSTS, 1, directory / "ca", long_ago)
        self.foreign = create_node(directory / "other", "node-4", HOSTS, 50)

    def settings(self, made: Made, mode: str = "require") -> dict[str, Any]:
        """Of a node's [tls]."""
        return {"mode": mode, "certificate": str(made.certificate), "key": str(made.key), "ca": self.ca}


def names(count: int) -> list[str]:
    return [f"node-{n + 1}" for n in range(count)]
