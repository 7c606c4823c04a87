"""`needle doctor` against real nodes: each finding under its fault, and none without one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import needle
from harness import sick
from harness.certificates import HOSTS, Authority
from needle import Forbidden
from needle.cli.app import main
from needle.client.fitness import Diagnosis, Finding
from needle.client.router.routes import BATCH_BYTES_MAX
from needle.connecting import Credentials, connected
from needle.local.certificates import create_node
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.protocol.catalog_commands import ZoneNode
from proof.sick_nodes import fall_ill

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.alone]  # round trips are measured

Holds = Callable[[Diagnosis], bool]


def names(seen: Diagnosis) -> set[str]:
    return {one.name for one in seen.findings}


async def until(cluster: ProcessCluster, holds: Holds) -> Diagnosis:
    """The first diagnosis of which it holds. A machine that is busy with other things has slow links and disks now and
    then, and these are told, too."""

    async def look() -> Diagnosis | None:
        async with cluster.connect() as client:
            last = await client.doctor()
        if not holds(last):
            raise needle.Unavailable("; ".join(map(str, last.findings)) or "nothing found")
        return last

    found: Diagnosis = await wait_for(look, 90, "the diagnosis")
    return found


def one(seen: Diagnosis, name: str) -> Finding:
    (found,) = [finding for finding in seen.findings if finding.name == name]
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(module_path: Path) -> AsyncIterator[ProcessCluster]:
    async with ProcessCluster(module_path, linked=True) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def well(cluster: ProcessCluster) -> AsyncIterator[ProcessCluster]:
    """All links pass everything before and after."""
    yield cluster
    cluster.heal()


async def restarted(cluster: ProcessCluster, name: str) -> None:
    cluster.terminate(name)
    cluster.restart(name)
    await cluster.ready()


async def test_a_healthy_cluster_has_no_finding(well: ProcessCluster, capsys: pytest.CaptureFixture[str]) -> None:
    seen = await until(well, lambda found: not found.findings)
    assert len(seen.links) == 6 and all(link.p50 for link in seen.links)
    assert all(node.fsync_p50 and node.facts.files and node.clock_rate_error < 0.05 for node in seen.nodes)

    async def plain() -> bool:
        code = await asyncio.to_thread(main, ["doctor", "--links", "--cluster", well.cluster])
        text = capsys.readouterr().out
        return code == 0 and "nothing is wrong" in text and "node-1" in text

    await wait_for(plain, 90, "the command")
    assert not list(well.directory.glob("node-*/probe")), "the file of the probe is deleted"


async def test_a_node_is_probed_by_one_at_a_time(well: ProcessCluster) -> None:
    async with well.connect() as client:
        seen = await asyncio.gather(*(client.doctor() for _ in range(3)))
    refused = [finding for one in seen for finding in one.findings if finding.name == "not-probed"]
    assert len(refused) == 6 and all("is being probed already" in finding.measured for finding in refused)


async def test_a_disk_that_takes_no_small_file_is_told(well: ProcessCluster) -> None:
    taken = well.nodes["node-2"].data_dir / "probe"
    taken.mkdir()
    try:
        seen = await until(well, lambda found: names(found) == {"disk-not-measured"})
    finally:
        taken.rmdir()
    assert one(seen, "disk-not-measured").subject == "the disk of node-2"
    assert [node.fsync_p50 is None for node in seen.nodes] == [False, True, False]


async def test_documents_that_no_backup_holds_are_told(well: ProcessCluster, tmp_path: Path) -> None:
    async with well.connect() as client:
        await client.insert("a", [1.0] * 8)
        seen = await until(well, lambda found: names(found) == {"no-backup"})
        assert (
            one(seen, "no-backup").measured == "1 documents, and neither backup nor archive is told of"
            and not seen.critical
        )
        target = str(tmp_path / "backups")
        assert await asyncio.to_thread(main, ["backup", "create", target, "--cluster", well.cluster]) == 0
        await until(well, lambda found: not found.findings)
        await client.delete("a")


async def test_a_slow_link_is_named(well: ProcessCluster) -> None:
    well.links["node-1", "node-2"].delay = 0.02
    seen = await until(well, lambda found: names(found) == {"link-slow"})
    finding = one(seen, "link-slow")
    assert finding.subject == "node-1 to node-2" and finding.severity == "warning"
    assert finding.allowed == "a round trip of 10 ms in the median"
    assert finding.runbook == "docs/doctor.md#link-slow"


async def test_timeouts_that_are_short_for_the_links_are_told(well: ProcessCluster) -> None:
    for link in (("node-1", "node-2"), ("node-2", "node-1")):
        well.links[link].delay = 0.1
    seen = await until(well, lambda found: names(found) == {"link-slow", "election-timeout", "lease-timeout"})
    assert {finding.subject for finding in seen.findings if finding.name == "election-timeout"} == {
        "election_timeout 1,000 ms of node-1",
        "election_timeout 1,000 ms of node-2",
    }
    assert not seen.critical, "a fifth of the election timeout is enough for now"


async def test_a_link_that_is_cut_is_critical(well: ProcessCluster, capsys: pytest.CaptureFixture[str]) -> None:
    well.links["node-3", "node-2"].cut()
    seen = await until(well, lambda found: "link-cut" in names(found))
    assert one(seen, "link-cut").subject == "node-3 to node-2" and seen.critical
    assert await asyncio.to_thread(main, ["doctor", "--json", "--cluster", well.cluster]) == 1
    assert '"name": "link-cut"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("how", "name", "told"),
    [
        (sick.DESCRIPTORS, "few-descriptors", "of 512 are open"),
        (sick.MAPS, "few-maps", "of 20,000 are taken"),
        (sick.MEMORY, "memory-short", "51 of 1,024 MB can be taken"),
        (sick.PROCESSOR, "cpus-differ", "node-3 has no "),
        (sick.FAST_CLOCK, "clock-rate", "% faster than others"),
        (sick.AHEAD, "clock-offset", "5.0 s ahead of others"),
        (sick.SLOW_DISK, "disk-slow", "in the median"),
        (sick.NEARLY_FULL, "NeedleDiskNearlyFull", "node-3: "),
        (sick.OTHER_RELEASE, "releases-differ", "node-3 has 9.9.9; most have"),
    ],
    ids=lambda value: value if len(value) < 25 else "",
)
async def test_a_machine_that_is_not_fit_is_told(well: ProcessCluster, how: str, name: str, told: str) -> None:
    node = well.nodes["node-3"]
    fall_ill(node, well.directory / name, how)
    try:
        await restarted(well, "node-3")
        finding = one(await until(well, lambda found: names(found) == {name}), name)
        assert told in finding.measured and "node-3" in str(finding)
    finally:
        node.source = None
        await restarted(well, "node-3")


@pytest.mark.parametrize(
    ("changed", "subject", "severity"),
    [({"lease_timeout": 0.3}, "lease_timeout", "critical"), ({"limits": {"k_max": 50}}, "limits.k_max", "warning")],
    ids=["lease_timeout", "k_max"],
)
async def test_settings_that_differ_are_told(
    well: ProcessCluster, changed: dict[str, Any], subject: str, severity: str
) -> None:
    node = well.nodes["node-3"]
    before = dict(node.settings)
    node.settings |= changed
    try:
        await restarted(well, "node-3")
        seen = await until(well, lambda found: names(found) == {"settings-differ"})
    finally:
        node.settings = before
        await restarted(well, "node-3")
    finding = one(seen, "settings-differ")
    assert (finding.subject, finding.severity) == (subject, severity)
    assert finding.measured.startswith("node-3 has ")


async def test_a_node_that_is_down_is_told(well: ProcessCluster) -> None:
    well.kill("node-3")
    try:
        seen = await until(well, lambda found: "NeedleNodeUnreachable" in names(found))
        assert "not-probed" in names(seen) and "link-cut" not in names(seen) and seen.critical
        assert one(seen, "not-probed").subject == "node-3"
    finally:
        well.restart("node-3")
        await well.ready()


async def test_few_replicas_and_few_zones_are_told(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, sharding={"shards": 1, "replicas": 2}) as cluster:
        seen = await until(cluster, lambda found: names(found) == {"few-replicas"})
        assert one(seen, "few-replicas").measured == "2 replicas"
        async with cluster.connect() as client:
            held = client.topology().shards[0].wanted
            other = next(node for node in cluster.nodes if node not in held)
            for node in held:
                await client.change_catalog(ZoneNode(node, "a"))
            seen = await until(cluster, lambda found: "few-zones" in names(found))
            assert one(seen, "few-zones").subject == other, "the others have one"
            await client.change_catalog(ZoneNode(other, "b"))
        seen = await until(cluster, lambda found: names(found) == {"few-replicas", "few-zones"})
        assert one(seen, "few-zones").measured == "its 2 replicas are in 1 of 2 zones"


async def test_a_certificate_that_expires_is_told_and_a_reader_may_not_probe(
    tmp_path: Path, authority: Authority
) -> None:
    secret = "0123456789abcdef" * 4
    cluster = ProcessCluster(tmp_path / "tls", require_keys=True, cluster_secret=secret)
    (tmp_path / "tls").mkdir(exist_ok=True)
    for name, node in cluster.nodes.items():
        days = 5 if name == "node-2" else 50
        made = create_node(tmp_path / "own", name, HOSTS, days, authority.directory / "ca")
        node.settings["tls"] = authority.settings(made)
    cluster.tls = authority.ca
    async with cluster:
        shown = Credentials(secrets=(secret,), dial=needle.connecting.check_tls(authority.ca))
        async with await connected(list(cluster.addresses.values()), "needle", BATCH_BYTES_MAX, shown) as inside:
            keys = {role: (await inside.create_key(role, role)).key for role in ("admin", "reader")}
        async with cluster.connect(api_key=keys["reader"]) as reader:
            assert set(await reader.node_loads()) == set(cluster.nodes)
            with pytest.raises(Forbidden):
                await reader.doctor()
        async with cluster.connect(api_key=keys["admin"]) as admin:

            async def look() -> Finding | None:
                return next((one for one in (await admin.doctor()).findings if "Certificate" in one.name), None)

            finding: Finding = await wait_for(look, 60, "the finding")
    assert finding.measured.startswith("node-2: in ")
    assert finding.allowed == "valid for 14 days or more"
    assert finding.runbook.startswith("https://") and finding.runbook.endswith("/ui#/runbooks/needlecertificateexpires")
