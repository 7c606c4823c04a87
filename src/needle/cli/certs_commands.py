"""`needle certs`: an authority of the cluster's own, certificates for nodes and clients."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from needle.base.errors import InvalidArgument
from needle.cli.common import notes

if TYPE_CHECKING:
    from needle.local import certificates

Out = Annotated[Path, typer.Option("--out", help="The directory to write to.")]
Days = Annotated[int, typer.Option("--days", help="Days that it is valid, from 1 to 36500.")]
Authority = Annotated[
    Path | None, typer.Option("--ca", help="The directory with ca.crt and ca.key; by default that of --out.")
]


def ca(
    name: Annotated[str, typer.Option("--name", help="What the authority is called.")] = "Needle CA",
    out: Out = Path("certs"),
    days: Days = 3650,
) -> None:
    """Make an authority: ca.crt for all nodes and clients, ca.key to make certificates with. Keep ca.key off the nodes:
    who has it can be any of them."""
    _say(_maker().create_ca(out, name, days))


def node(
    name: Annotated[str, typer.Argument(metavar="NODE", help="The node's name, its node_id.")],
    host: Annotated[
        list[str] | None,
        typer.Option("--host", help="A host name or IP address by which clients reach the node; may be repeated."),
    ] = None,
    out: Out = Path("certs"),
    authority: Authority = None,
    days: Days = 365,
) -> None:
    """Make a node's certificate and key: NODE.crt and NODE.key."""
    _say(_maker().create_node(out, name, host or [], days, authority))


def client(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the client is called.")],
    out: Out = Path("certs"),
    authority: Authority = None,
    days: Days = 365,
) -> None:
    """Make a client's certificate and key, for nodes with tls.client_certificates. What a client may do is said by its
    API key alone."""
    _say(_maker().create_client(out, name, days, authority))


def _maker() -> Any:
    """Imported where it is needed: it needs the extra `certs`."""
    try:
        return importlib.import_module("needle.local.certificates")
    except ImportError:
        raise InvalidArgument(
            "needle certs needs the package cryptography: pip install 'needle-vdb[certs]'; any other tool that makes "
            "X.509 certificates will do too (docs/security.md)"
        ) from None


def _say(made: certificates.Made) -> None:
    notes.print(f"wrote {made.certificate} and {made.key}", markup=False, soft_wrap=True)
