"""Making certificates: a cluster's own authority, and what it signs for nodes and clients.

Invariant: no file is overwritten, nothing that is signed outlives its authority, and a private key is readable by its
owner alone from the moment it exists. Keys are of the curve P-256: a handshake takes the event loop a tenth of the time
of RSA with 2048 bits. Needs `cryptography`, the extra `certs`.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from math import ceil
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from needle.base.config import check_node_id
from needle.base.errors import ConfigError, invalid

BACKDATED = timedelta(minutes=5)
"""Clocks of other machines may be late."""
DAYS_MAX = 36_500


class Made(NamedTuple):
    """The two files of a certificate."""

    certificate: Path
    key: Path


def create_ca(directory: Path, name: str, days: int, now: datetime | None = None) -> Made:
    """A new authority: ca.crt, which everybody gets, and ca.key, which stays where certificates are made. Raises
    ConfigError if there is one already."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        _builder(subject, subject, key, days, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
    )
    return _write(directory, "ca", builder, key, key)


def create_node(
    directory: Path, node_id: str, hosts: Sequence[str], days: int, ca: Path | None = None, now: datetime | None = None
) -> Made:
    """A node's certificate, for its name and these hosts and addresses. ca: the directory of ca.crt and ca.key, by
    default the same. Raises ConfigError, and InvalidArgument for days after the authority's last."""
    check_node_id("NODE", node_id)
    names: list[x509.GeneralName] = [x509.DNSName(node_id)]
    for host in hosts:
        if not (name := _general_name(host)) or name in names:
            continue
        names.append(name)
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return _signed(directory, ca or directory, node_id, names, purposes, days, now)


def create_client(directory: Path, name: str, days: int, ca: Path | None = None, now: datetime | None = None) -> Made:
    """A client's certificate: it has no DNS name, so no node takes its holder for one. Raises ConfigError."""
    check_node_id("NAME", name)
    return _signed(directory, ca or directory, name, [], [ExtendedKeyUsageOID.CLIENT_AUTH], days, now)


def _general_name(host: str) -> x509.GeneralName | None:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    if not host.isascii() or any(sign in host for sign in " /:@,") or not host:
        raise invalid("--host", host, "a host name or an IP address, without a port")
    return x509.DNSName(host)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    days: int,
    now: datetime | None,
    last: datetime | None = None,
) -> x509.CertificateBuilder:
    """last: when the authority expires, if it is another's; what it signs is refused afterwards."""
    if not 1 <= days <= DAYS_MAX:
        raise invalid("--days", days, f"a whole number from 1 to {DAYS_MAX}")
    begun = now or datetime.now(UTC)
    since, until = begun - BACKDATED, begun + timedelta(days=days)
    if last is not None:
        if days > (left := ceil((last - begun) / timedelta(days=1))):
            raise invalid("--days", days, _up_to(left, last))
        until = min(until, last)  # both were made for as many days, one after the other
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _up_to(left: int, last: datetime) -> str:
    """What is allowed of days with so many left of the authority."""
    expires = f"the authority expires at {last:%Y-%m-%dT%H:%M:%SZ}"
    if left < 1:
        return f"none: {expires}; make another one (`needle certs create-ca`; docs/security.md: changing the authority)"
    return f"a whole number from 1 to {left}: {expires}"


def _signed(
    directory: Path,
    ca: Path,
    name: str,
    names: Sequence[x509.GeneralName],
    purposes: Sequence[x509.ObjectIdentifier],
    days: int,
    now: datetime | None,
) -> Made:
    try:
        issuer = x509.load_pem_x509_certificate((ca / "ca.crt").read_bytes())
        signing = load_pem_private_key((ca / "ca.key").read_bytes(), None)
        if not isinstance(signing, ec.EllipticCurvePrivateKey):
            raise ValueError("ca.key is no key of an elliptic curve")
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"--ca = {str(ca)!r} must hold ca.crt and ca.key, as `needle certs create-ca` makes them: {error}",
            field="ca",
        ) from None
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key())
    builder = (
        _builder(subject, issuer.subject, key, days, now, issuer.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(list(purposes)), critical=False)
        .add_extension(issuer_key, critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(names)), critical=False)
    return _write(directory, name, builder, key, signing)


def _write(
    directory: Path,
    name: str,
    builder: x509.CertificateBuilder,
    key: ec.EllipticCurvePrivateKey,
    signing: ec.EllipticCurvePrivateKey,
) -> Made:
    certificate = builder.sign(signing, hashes.SHA256()).public_bytes(Encoding.PEM)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    made = Made(directory / f"{name}.crt", directory / f"{name}.key")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path in made:
            if path.exists():
                raise ConfigError(f"{path} is there already: move it away, or choose another --out", field="out")
        _create(made.key, private, 0o600)
        _create(made.certificate, certificate, 0o644)
    except OSError as error:
        raise ConfigError(f"cannot write to {directory}: {error}", field="out") from None
    return made


def _create(path: Path, data: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
