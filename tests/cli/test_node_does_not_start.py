"""The chapter "A node does not start" of docs/troubleshooting.md: each cause is made on a real data directory, and the
one line with which the node ends has the code that the page says, and names what the page says that it names."""

from __future__ import annotations

import asyncio
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from harness.page_commands import chapter
from needle.local.free_ports import free_ports
from needle.local.node_process import NodeProcess
from needle.local.process_cluster import ProcessCluster

CHAPTER = chapter("troubleshooting.md", "A node does not start")
ROWS = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", CHAPTER, re.MULTILINE))
FILES = {name: f"/nowhere/{name}" for name in ("certificate", "key", "ca")}


async def ends_with(directory: Path, settings: dict[str, Any], **changed: Any) -> str:
    """What `needle serve` says when it does not start; its exit code is not 0."""
    port, http = free_ports(2)
    elsewhere = {"listen": f"127.0.0.1:{port}", "advertise": f"127.0.0.1:{port}", "http_address": f"127.0.0.1:{http}"}
    node = NodeProcess("changed", directory, {**settings, **elsewhere, **changed}, as_user=True)
    node.log.unlink(missing_ok=True)
    node.start()
    try:
        code = await asyncio.to_thread(node.wait, 90)
    finally:
        if node.running():
            node.signal(signal.SIGKILL)
    said = node.output()
    assert code, said
    assert "Traceback" not in said, said
    return " ".join(said.split())


@pytest.mark.timeout(300)
async def test_each_cause_is_named_by_the_code_of_the_table(tmp_path: Path) -> None:
    async def said(code: str, *names: str, **changed: Any) -> None:
        line = await ends_with(tmp_path, settings, **changed)
        assert code in ROWS, f"the page has no row {code!r}"
        assert f"[{code}]" in line, line
        for name in names:
            assert name in line, (name, line)

    async with ProcessCluster(tmp_path, 1) as cluster:
        node = cluster.nodes["node-1"]
        settings = dict(node.settings)
        await said("storage_error", "in use")
        cluster.terminate("node-1")
        await said("invalid_config", "election_timeout", "0.001", election_timeout=0.001)
        await said("invalid_config", "require_keys", "insecure", listen=f"0.0.0.0:{free_ports(1)[0]}")
        await said("invalid_config", "tls.certificate", "/nowhere/certificate", tls={"mode": "require", **FILES})
        await said("unsupported_format", "other-cluster", cluster_id="other-cluster")
        kept = node.data_dir / "node.json"
        text = kept.read_bytes()
        kept.write_bytes(text[: len(text) // 2])
        await said("storage_error", "node.json")
        kept.write_bytes(text)
        cluster.restart("node-1")
        await cluster.ready()
