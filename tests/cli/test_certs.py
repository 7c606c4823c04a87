"""`needle certs`: what it writes, and what it refuses."""

from __future__ import annotations

import itertools
import os
import ssl
import stat
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509

from needle.base.errors import ConfigError, InvalidArgument, TlsFailed
from needle.base.tls_config import TlsConfig
from needle.cli.app import main
from needle.local.certificates import create_ca, create_node
from needle.server.certificates import Certificates
from needle.server.metrics.node_state import NodeState


def test_a_node_can_use_what_is_made_and_no_other_node_can(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path)
    assert main(["certs", "create-ca", "--out", out]) == 0
    assert main(["certs", "create-node", "node-1", "--host", "10.0.0.1", "--host", "db.example.org", "--out", out]) == 0
    assert main(["certs", "create-client", "shop", "--out", out]) == 0
    assert "node-1.key" in capsys.readouterr().err.replace("\n", "")
    for name in ("ca", "node-1", "shop"):
        assert stat.S_IMODE((tmp_path / f"{name}.key").stat().st_mode) == 0o600
    certificates(tmp_path, "node-1", "node-1").load()
    with pytest.raises(TlsFailed, match=r"'node-2'.*certificate is for 'node-1', 'db.example.org'"):
        certificates(tmp_path, "node-1", "node-2").load()
    with pytest.raises(ConfigError, match=r"tls.certificate = '.*shop.crt' (is refused|cannot be used)"):
        certificates(tmp_path, "shop", "shop").load()
    text = (tmp_path / "shop.crt").read_text()
    (tmp_path / "node-1.crt").write_text(text)
    with pytest.raises(ConfigError, match=r"tls.certificate = .* does not go with tls.key"):
        certificates(tmp_path, "node-1", "node-1").load()


def certificates(
    directory: Path, name: str, node_id: str, ca: Path | None = None, wall: Callable[[], float] = time.time
) -> Certificates:
    files = {"certificate": f"{directory}/{name}.crt", "key": f"{directory}/{name}.key"}
    return Certificates(TlsConfig(mode="require", ca=str(ca or directory / "ca.crt"), **files), node_id, wall)


def test_a_node_tells_when_its_certificate_expires(tmp_path: Path) -> None:
    assert main(["certs", "create-ca", "--out", str(tmp_path)]) == 0
    assert main(["certs", "create-node", "node-1", "--days", "5", "--out", str(tmp_path)]) == 0
    used = certificates(tmp_path, "node-1", "node-1")
    used.load()
    ends = x509.load_pem_x509_certificate((tmp_path / "node-1.crt").read_bytes()).not_valid_after_utc
    assert used.expires == ends.timestamp() > time.time() + 4 * 86400
    node: Any = SimpleNamespace(
        alive=lambda: True, not_ready=lambda: "", host=SimpleNamespace(maintenance=False),
        ports=SimpleNamespace(certificates=used),
    )  # fmt: skip
    shown = {family.name: family.samples for family in itertools.islice(NodeState(node, None).collect(), 4)}
    assert shown["needle_certificate_expiry_timestamp_seconds"][0].value == used.expires


def test_what_ends_with_the_authority_is_told_as_the_nodes_end(tmp_path: Path) -> None:
    """While the authority is changed, the former one counts until it has ended; what is between the node and its
    authority counts, too."""
    old, new, here = tmp_path / "old", tmp_path / "new", tmp_path / "here"
    create_ca(old, "old", 3)
    create_ca(new, "new", 100)
    create_node(here, "node-1", (), 30, new)
    used = certificates(here, "node-1", "node-1", here / "ca.crt")
    (here / "ca.crt").write_bytes((new / "ca.crt").read_bytes())
    used.load()
    assert used.expires == end_of(here / "node-1.crt")
    (here / "ca.crt").write_bytes((new / "ca.crt").read_bytes() + (old / "ca.crt").read_bytes())
    used.load()
    assert used.expires == end_of(old / "ca.crt")
    later = certificates(here, "node-1", "node-1", here / "ca.crt", lambda: time.time() + 4 * 86400)
    later.load()
    assert later.expires == end_of(here / "node-1.crt"), "one that has ended holds nobody up"
    (here / "ca.crt").write_bytes((new / "ca.crt").read_bytes())
    with (here / "node-1.crt").open("ab") as file:
        file.write((old / "ca.crt").read_bytes())
    used.load()
    assert used.expires == end_of(old / "ca.crt")


def test_a_node_notices_that_its_certificate_has_ended(tmp_path: Path) -> None:
    """While it lasts it was found good once: what counts is that it fails a handshake now."""
    create_ca(tmp_path, "ca", 100)
    create_node(tmp_path, "node-1", (), 1, now=datetime.now(UTC) - timedelta(days=1) + timedelta(seconds=4))
    used = certificates(tmp_path, "node-1", "node-1")
    used.load()
    deadline = time.monotonic() + 60
    while not used.expired:
        assert not used.refresh()
        assert time.monotonic() < deadline
    create_node(tmp_path / "new", "node-1", (), 30, tmp_path)
    for name in ("node-1.key", "node-1.crt"):
        (tmp_path / name).write_bytes((tmp_path / "new" / name).read_bytes())
    assert used.refresh() and not used.expired


def test_files_that_a_node_refuses_are_told_of_until_they_fit(tmp_path: Path) -> None:
    create_ca(tmp_path, "ca", 100)
    create_node(tmp_path, "node-1", (), 30)
    used = certificates(tmp_path, "node-1", "node-1")
    used.load()
    before, ends = (tmp_path / "node-1.crt").read_bytes(), used.expires
    (tmp_path / "node-1.crt").write_bytes(
        create_node(tmp_path / "x", "node-2", (), 60, tmp_path).certificate.read_bytes()
    )
    assert not used.refresh() and (used.refused, used.expires) == ("tls.certificate", ends)
    assert not used.refresh() and used.refused, "as long as the files are what they are"
    (tmp_path / "node-1.key").unlink()
    assert not used.refresh() and used.refused == "tls.key"
    create_node(tmp_path / "new", "node-1", (), 50, tmp_path)
    (tmp_path / "node-1.key").write_bytes((tmp_path / "new" / "node-1.key").read_bytes())
    (tmp_path / "node-1.crt").write_bytes(before)
    assert not used.refresh() and used.refused == "tls.certificate"
    (tmp_path / "node-1.crt").write_bytes((tmp_path / "new" / "node-1.crt").read_bytes())
    assert used.refresh() and used.refused == "" and used.expires > ends


def test_a_key_that_everybody_can_read_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    create_ca(tmp_path, "ca", 100)
    create_node(tmp_path, "node-1", (), 30)
    used, key = certificates(tmp_path, "node-1", "node-1"), tmp_path / "node-1.key"
    used.load()
    assert "can read" not in caplog.text
    key.chmod(0o644)
    used.load()
    assert f"every user of this machine can read tls.key = '{key}'" in caplog.text


def test_an_authority_that_ends_beside_the_one_in_use_ends_nothing(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    create_ca(old, "old", 3)
    create_ca(new, "new", 100)
    create_node(tmp_path, "node-1", (), 30, new)
    (tmp_path / "ca.crt").write_bytes((new / "ca.crt").read_bytes() + (old / "ca.crt").read_bytes())
    days = 0
    used = certificates(tmp_path, "node-1", "node-1", wall=lambda: time.time() + days * 86400)
    used.load()
    assert used.expires == end_of(old / "ca.crt")
    days = 4
    assert not used.refresh() and not used.expired
    assert used.expires == end_of(tmp_path / "node-1.crt")


def test_files_that_are_refused_are_told_of_again_and_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log had one line of it, and then the certificate in use ended."""
    create_ca(tmp_path, "ca", 100)
    create_node(tmp_path, "node-1", (), 30)
    hours = 0.0
    used = certificates(tmp_path, "node-1", "node-1", wall=lambda: time.time() + hours * 3600)
    used.load()
    good = (tmp_path / "node-1.crt").read_bytes()
    (tmp_path / "node-1.crt").write_bytes(b"")

    def lines() -> int:
        return caplog.text.count("keeps the certificates it has")

    for later, told in ((0.0, 1), (0.5, 1), (0.6, 2), (0.1, 2), (1.0, 3)):
        hours += later
        assert not used.refresh() and lines() == told
    (tmp_path / "node-1.crt").write_bytes(good)
    assert used.refresh()
    hours = 9.0
    assert not used.refresh() and lines() == 3


def end_of(path: Path) -> float:
    return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()


def test_nothing_that_is_signed_outlives_its_authority(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path)
    assert main(["certs", "create-ca", "--days", "30", "--out", out]) == 0
    capsys.readouterr()
    for kind, name in (("create-node", "node-1"), ("create-client", "shop")):
        assert main(["certs", kind, name, "--days", "31", "--out", out]) == 1
        said = " ".join(capsys.readouterr().err.split())
        assert "--days" in said and "from 1 to 30: the authority expires at 20" in said
        assert not (tmp_path / f"{name}.crt").exists()
        assert main(["certs", kind, name, "--days", "30", "--out", out]) == 0
        assert end_of(tmp_path / f"{name}.crt") <= end_of(tmp_path / "ca.crt")
    with pytest.raises(InvalidArgument, match=r"--days.*none: the authority expires at .*create-ca"):
        create_node(tmp_path, "node-2", (), 1, now=datetime.now(UTC) + timedelta(days=31))


def test_what_is_no_file_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    """A pipe that nobody writes to would keep a thread forever, and with it a node that is told to stop."""
    assert main(["certs", "create-ca", "--out", str(tmp_path)]) == 0
    assert main(["certs", "create-node", "node-1", "--out", str(tmp_path)]) == 0
    used = certificates(tmp_path, "node-1", "node-1")
    used.load()
    key = tmp_path / "node-1.key"
    text = key.read_text()
    key.unlink()
    os.mkfifo(key)
    assert not used.refresh()
    with pytest.raises(ConfigError, match=r"tls.key = '.*node-1.key' is not a file"):
        certificates(tmp_path, "node-1", "node-1").load()
    key.unlink()
    key.write_text(text)
    assert used.refresh()


def test_nothing_is_overwritten_and_errors_say_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path)
    assert main(["certs", "create-node", "node-1", "--out", out]) == 1
    assert "create-ca" in capsys.readouterr().err
    assert main(["certs", "create-ca", "--out", out]) == 0
    before = ssl.PEM_cert_to_DER_cert((tmp_path / "ca.crt").read_text())
    assert main(["certs", "create-ca", "--out", out]) == 1
    assert "is there already" in " ".join(capsys.readouterr().err.split())
    assert ssl.PEM_cert_to_DER_cert((tmp_path / "ca.crt").read_text()) == before
    for wrong in (["n/1"], ["node-1", "--host", "10.0.0.1:5000"], ["node-1", "--days", "0"]):
        assert main(["certs", "create-node", *wrong, "--out", out]) == 1
        assert "is not allowed" in " ".join(capsys.readouterr().err.split())
    monkeypatch.delitem(sys.modules, "needle.local.certificates", raising=False)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    assert main(["certs", "create-ca", "--out", out]) == 1
    assert "needle-vdb[certs]" in " ".join(capsys.readouterr().err.split())
