"""TLS of a connection: contexts that say why, whose certificate was shown, and failures in words.

Invariant: who refuses a certificate tells the other side why before it closes, and both get an error that names whose
it is. Knows no settings, and no files beyond those it is told to read.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from needle.base.errors import NeedleError, TlsFailed

HANDSHAKE: Final = b"\x16\x03"
"""The first bytes of a TLS connection, a third is 1 or 3. As the length of a first frame they would be over the limit
of a hello, and no method of HTTP begins so: one look tells TLS from both."""
PLAIN_REASONS: Final = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG")
"""What OpenSSL calls an answer that is not TLS."""
ONLY_TLS: Final = (
    "this node speaks TLS only: connect with tls=..., NEEDLE_TLS_CA, or needle --tls-ca; between nodes, with the "
    "settings in [tls] (docs/security.md)"
)
_EXPIRED: Final = 10
"""X509_V_ERR_CERT_HAS_EXPIRED."""
Context = Callable[[], ssl.SSLContext]
"""The one to use for the next connection: certificates may have been replaced."""

_failures: ContextVar[list[ssl.SSLError] | None] = ContextVar("handshake_failures", default=None)


@dataclass(frozen=True, kw_only=True)
class Dial:
    """How connections are opened. by_name: the certificate must have the name that the node says in its hello, instead
    of the host that was dialled. optional: what does not speak TLS is spoken to without. shown: the certificate of this
    side, in words."""

    context: Context
    by_name: bool = False
    optional: bool = False
    shown: str = "none"


@dataclass(frozen=True, kw_only=True)
class Door:
    """How connections are accepted. required: without TLS nobody is, and no node without a certificate of its name.
    shown: as in Dial."""

    context: Context
    required: bool
    shown: str = ""


class _Handshake(ssl.SSLObject):
    """asyncio closes a connection whose handshake failed before what OpenSSL has to say of it is sent. So a failure is
    held back until that has left: first it looks as if more were to be read."""

    outgoing: ssl.MemoryBIO | None = None
    failures: list[ssl.SSLError] | None = None
    _failed: ssl.SSLError | None = None

    def do_handshake(self) -> None:
        if self._failed is not None:
            raise self._failed
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            if self.failures is not None:
                self.failures.append(error)
            if self.outgoing is None or not self.outgoing.pending:
                raise
            self._failed = error
            raise ssl.SSLWantReadError from error


class _Telling(ssl.SSLContext):
    """A context whose connections tell why they fail, to both sides."""

    sslobject_class = _Handshake

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *given: Any, **named: Any) -> ssl.SSLObject:
        made = super().wrap_bio(incoming, outgoing, *given, **named)
        if isinstance(made, _Handshake):
            made.outgoing, made.failures = outgoing, _failures.get()
        return made


def watched() -> list[ssl.SSLError]:
    """The failures of handshakes that the running task begins from now on; `asyncio` may raise another error."""
    found: list[ssl.SSLError] = []
    _failures.set(found)
    return found


def context(
    *, server: bool, ca: str | None, certificate: str = "", key: str = "", ask: ssl.VerifyMode, hostname: bool = False
) -> ssl.SSLContext:
    """ca: a file of certificates, None for the system's. ask: for the other side's certificate. Raises OSError
    (ssl.SSLError is one), ValueError."""
    made = _Telling(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = hostname
    made.verify_mode = ask
    if ca is not None:
        made.load_verify_locations(ca)
    elif ask != ssl.CERT_NONE:
        made.load_default_certs(ssl.Purpose.CLIENT_AUTH if server else ssl.Purpose.SERVER_AUTH)
    if certificate:
        made.load_cert_chain(certificate, key or None, password=_no_password)
    return made


def states_of(paths: Iterable[str]) -> list[tuple[int, int, int] | None]:
    """What tells that a file is another one than before, also behind symbolic links; None for one that is not there."""
    states: list[tuple[int, int, int] | None] = []
    for path in paths:
        try:
            found = os.stat(path)
        except OSError:
            states.append(None)
        else:
            states.append((found.st_ino, found.st_mtime_ns, found.st_size))
    return states


class Rereading:
    """A context made of files, and made again for the connection that comes after they have changed; should that fail,
    the one of before goes on. Raises what `make` raises, the first time."""

    def __init__(self, make: Context, paths: Iterable[str]) -> None:
        self._make, self._paths = make, list(paths)
        self._seen = states_of(self._paths)
        self._made = make()

    def __call__(self) -> ssl.SSLContext:
        if (seen := states_of(self._paths)) != self._seen:
            self._seen = seen
            with suppress(OSError, ValueError):
                self._made = self._make()
        return self._made


def _no_password() -> str:
    """A key with a password would have OpenSSL ask the terminal."""
    raise ValueError("the key is encrypted: nobody is there to be asked for its password")


def names_in(certificate: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The DNS names in a certificate that was verified. Its common name counts for nothing, as for hosts in HTTPS."""
    names = (certificate or {}).get("subjectAltName", ())
    return tuple(name for kind, name in names if kind == "DNS")


def check_caller(door: Door | None, transport: asyncio.BaseTransport | None, node_id: str) -> None:
    """Raises TlsFailed for a node whose certificate is not its own, or that has none where it needs one. node_id: who a
    caller says to be, "" for no node. Its port is not in the message, which is told once to the log."""
    if node_id and transport is not None and door is not None:
        certificate = transport.get_extra_info("peercert")
        if certificate or door.required:
            check_node_name(certificate, node_id, "the caller")


def check_node_name(certificate: Mapping[str, Any] | None, node_id: str, other: str) -> None:
    """Raises TlsFailed unless the certificate that `other` has shown is that of the node it says to be."""
    if not certificate:
        raise TlsFailed(
            f"{other} says to be node {node_id!r} and has shown no certificate: nodes of this cluster need one "
            "(tls.certificate, docs/security.md)"
        )
    names = names_in(certificate)
    if node_id not in names:
        has = ", ".join(map(repr, names[:8])) or "no name"
        raise TlsFailed(
            f"{other} says to be node {node_id!r}, and its certificate is for {has}: a node's certificate has the "
            "node's name among its DNS names (needle certs create-node)"
        )


def is_plain(error: BaseException) -> bool:
    """Whether a handshake failed because the other side answered without TLS."""
    return isinstance(error, ssl.SSLError) and (error.reason or "") in PLAIN_REASONS


def in_words(error: ssl.SSLError, other: str, shown: str) -> NeedleError:
    """What a failed handshake with `other` means. shown: the certificate that this side shows."""
    if isinstance(error, ssl.SSLCertVerificationError):
        said = f"the certificate of {other} is refused: {error.verify_message}"
        return TlsFailed(said, expired=True) if error.verify_code == _EXPIRED else TlsFailed(said)
    reason = error.reason or ""
    words = reason.replace("_", " ").lower() or str(error)
    if is_plain(error):
        return TlsFailed(
            f"{other} does not speak TLS there: leave tls= (NEEDLE_TLS_CA, --tls-ca) out, or give that node the "
            "settings in [tls]"
        )
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return TlsFailed(f"{other} has shown no certificate, and this node asks all for one (tls.client_certificates)")
    if "ALERT" in reason:
        why = words.partition(" alert ")[2] or words
        return TlsFailed(f"{other} refuses TLS with the certificate of this side, {shown}: {why}")
    return TlsFailed(f"TLS with {other} failed: {words}")
