"""TLS on real nodes: a running cluster is switched over under load, and what has no good certificate stays outside."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from harness.calm import CALM
from harness.certificates import Authority
from needle import Client, NeedleError, TlsFailed
from needle.cli.app import main
from needle.local.certificates import Made, create_node
from needle.local.process_cluster import ProcessCluster, wait_for

VECTOR = [1.0] * 8

# One cluster, which the first test brings from no TLS to TLS alone: these run in this order, in one process.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(module_path: Path) -> AsyncIterator[ProcessCluster]:
    """It begins without TLS; the first test switches it over."""
    async with ProcessCluster(module_path, **CALM) as made:
        yield made


class Load:
    """Writes and reads of one client, one after the other, until `end`. Every failure is the test's."""

    def __init__(self, client: Client, name: str) -> None:
        self._client, self._name = client, name
        self._task = asyncio.ensure_future(self._run())
        self._over = False
        self.done = 0

    async def _run(self) -> None:
        while not self._over:
            document = f"{self._name}-{self.done % 50}"
            await self._client.insert(document, VECTOR, {"n": self.done})
            assert (await self._client.get(document)).metadata["n"] == self.done
            self.done += 1

    async def goes_on(self) -> None:
        """Until some more was done."""
        before = self.done
        await wait_for(lambda: self._moved(before), 60, f"{self._name} going on")

    async def _moved(self, before: int) -> bool:
        if self._task.done():
            self._task.result()
        return self.done > before + 5

    async def end(self) -> None:
        self._over = True
        await self._task


async def restart_all(cluster: ProcessCluster, authority: Authority, mode: str, *loads: Load) -> None:
    """One node after the other, as an operator does."""
    for name in ("node-1", "node-2", "node-3"):
        cluster.nodes[name].settings["tls"] = own(cluster, authority, name, mode)
        assert cluster.terminate(name) == 0
        cluster.restart(name)
        await cluster.ready(name)
        for load in loads:
            await load.goes_on()


def own(cluster: ProcessCluster, authority: Authority, name: str, mode: str) -> dict[str, object]:
    """A node's settings, with files of its own that may be changed."""
    given = authority.nodes[name]
    mine = Made(cluster.directory / f"{name}.crt", cluster.directory / f"{name}.key")
    for source, target in zip(given, mine, strict=True):
        if not target.exists():
            shutil.copy(source, target)
    return authority.settings(mine, mode)


async def test_a_running_cluster_is_switched_over_node_by_node(cluster: ProcessCluster, authority: Authority) -> None:
    async with cluster.connect() as plain:
        load = Load(plain, "plain")
        await restart_all(cluster, authority, "accept", load)
        async with cluster.connect(tls=authority.ca) as client:
            with_tls = Load(client, "tls")
            await with_tls.goes_on()
            await load.goes_on()
            await load.end()
            await restart_all(cluster, authority, "require", with_tls)
            await with_tls.end()
            assert await client.count() == min(load.done, 50) + min(with_tls.done, 50)
        with pytest.raises(TlsFailed, match="speaks TLS only"):
            await cluster.connect()
    cluster.tls = authority.ca
    await cluster.equal_digests()
    assert all("speaks TLS only" in node.output() for node in cluster.nodes.values() if node.name != "node-4")


async def test_http_is_spoken_with_tls_alone(cluster: ProcessCluster, authority: Authority) -> None:
    address, trusting = cluster.nodes["node-1"].http, ssl.create_default_context(cafile=authority.ca)

    def ask(url: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(url, timeout=30, context=trusting) as got:
                return got.status, got.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    assert (await asyncio.to_thread(ask, f"https://{address}/v1/nodes"))[0] == 200
    status, text = await asyncio.to_thread(ask, f"http://{address}/v1/nodes")
    assert status == 400
    assert "https://" in text
    assert "tls_failed" in text
    await wait_for(lambda: said(cluster, "node-1", "plain HTTP from"), 10, "the log's line")


async def said(cluster: ProcessCluster, name: str, words: str) -> bool:
    return words in cluster.nodes[name].output()


async def test_the_commands_speak_tls(
    cluster: ProcessCluster, authority: Authority, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("NEEDLE_TLS_CA", "NEEDLE_TLS_CERTIFICATE", "NEEDLE_TLS_KEY"):
        monkeypatch.setenv(name, "")
    ask = ["count", "--cluster", cluster.cluster]
    assert await asyncio.to_thread(main, ask) == 1
    assert "speaks TLS only" in " ".join(capsys.readouterr().err.split())
    assert await asyncio.to_thread(main, ["--tls-ca", authority.ca, *ask]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEEDLE_TLS_CA", str(authority.foreign.certificate.parent / "ca.crt"))
        assert await asyncio.to_thread(main, ask) == 1
    assert "certificate of 127.0.0.1" in " ".join(capsys.readouterr().err.split())


async def test_a_node_without_a_certificate_of_its_own_never_joins(
    cluster: ProcessCluster, authority: Authority
) -> None:
    name = cluster.add(sharding={"join": [cluster.nodes["node-1"].address]}, cluster_nodes=None)
    node = cluster.nodes[name]
    try:
        cluster.restart(name)
        await wait_for(lambda: said(cluster, name, "speaks TLS only"), 60, "the newcomer being told")
        cluster.kill(name)
        for bad, why in ((authority.expired, "expired"), (authority.foreign, "issuer"), (authority.client, "purpose")):
            node.settings["tls"] = authority.settings(bad)
            cluster.restart(name)
            assert await asyncio.to_thread(node.wait) == 1
            assert f"cannot start: tls.certificate = '{bad.certificate}'" in node.tail(), why
            assert why in node.tail()
        async with cluster.connect() as client:
            assert set((await client.refresh_topology(confirmed=True)).addresses()) == {"node-1", "node-2", "node-3"}
        node.settings["tls"] = authority.settings(authority.nodes[name])
        cluster.restart(name)
        async with cluster.connect() as client:

            async def joined() -> bool:
                return name in (await client.refresh_topology(confirmed=True)).addresses()

            await wait_for(joined, 60, "the node with a certificate joining")
    finally:
        if node.running():
            cluster.kill(name)


async def serial(cluster: ProcessCluster, name: str, authority: Authority) -> bytes:
    """The certificate that a node shows."""
    host, _, port = cluster.nodes[name].http.rpartition(":")
    there = ssl.create_default_context(cafile=authority.ca)
    _, writer = await asyncio.open_connection(host, int(port), ssl=there)
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return bytes(shown)


async def test_changed_certificates_are_used_without_a_restart_and_bad_ones_are_not(
    cluster: ProcessCluster, authority: Authority, tmp_path: Path
) -> None:
    node, used = cluster.nodes["node-2"], Path(cluster.nodes["node-2"].settings["tls"]["certificate"])
    before, pid = await serial(cluster, "node-2", authority), node.pid
    shutil.copy(authority.foreign.certificate, used)
    await wait_for(lambda: said(cluster, "node-2", "keeps the certificates it has"), 60, "the bad file being refused")
    assert await serial(cluster, "node-2", authority) == before
    new = create_node(tmp_path, "node-2", ["127.0.0.1"], 50, Path(authority.ca).parent)
    shutil.copy(new.key, node.settings["tls"]["key"])
    shutil.copy(new.certificate, used)
    await wait_for(lambda: said(cluster, "node-2", "uses changed certificates"), 60, "the new file being used")
    assert await serial(cluster, "node-2", authority) == ssl.PEM_cert_to_DER_cert(new.certificate.read_text())
    assert node.pid == pid
    async with cluster.connect("node-2") as client:
        await client.insert("after", VECTOR)


async def test_a_leader_whose_certificate_expires_makes_way_for_one_that_can_be_reached(
    cluster: ProcessCluster, authority: Authority, tmp_path: Path
) -> None:
    """It kept leading over the connections that were open, and no caller could reach it."""
    name = await cluster.leader()
    node, lasts = cluster.nodes[name], 20
    used = Made(Path(node.settings["tls"]["certificate"]), Path(node.settings["tls"]["key"]))
    good = [path.read_bytes() for path in used]
    ends = datetime.now(UTC) + timedelta(seconds=lasts)
    short = create_node(tmp_path, name, ["127.0.0.1"], 1, Path(authority.ca).parent, ends - timedelta(days=1))
    told = node.output().count("uses changed certificates")
    shutil.copy(short.key, used.key)
    shutil.copy(short.certificate, used.certificate)
    try:
        await wait_for(
            lambda: node.output().count("uses changed certificates") > told, lasts, "the short one being used"
        )

        async def led_by_another() -> bool:
            try:
                async with cluster.connect() as client:
                    assert await client.leader() not in (None, name)
                    await client.insert("expired", VECTOR, timeout=5)
                    seen = await client.health_check()
            except (NeedleError, AssertionError):
                return False
            subjects = [one.subject for one in seen.conditions if one.alert == "NeedleCertificateExpires"]
            assert "NeedleNoLeader" not in {one.alert for one in seen.conditions}
            return any(f"{name}: it has expired" in subject for subject in subjects)

        await wait_for(led_by_another, 90, "a leader that callers reach, and a condition that says what is wrong")
        with pytest.raises(TlsFailed, match="expired") as raised:
            await cluster.connect(name)
        assert raised.value.details["expired"] is True
    finally:
        for path, content in reversed(list(zip(used, good, strict=True))):
            path.write_bytes(content)

    async def as_before() -> bool:
        try:
            async with cluster.connect(name) as client:
                seen = await client.health_check()
        except NeedleError:
            return False
        return "NeedleCertificateExpires" not in {one.alert for one in seen.conditions}

    await wait_for(as_before, 60, "a good certificate being used again")
