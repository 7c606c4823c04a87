"""The health check of a container asks the node as the node is set up: any port, with TLS, wherever settings are."""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from harness.certificates import Authority
from needle.base.errors import ConfigError
from needle.local.process_cluster import ProcessCluster
from needle.server.process.probe import config_of

ROOT = Path(__file__).resolve().parents[2]
SERVE = ["needle", "serve", "--node-id", "n", "--listen=h:1", "--data-dir", "d"]


async def ask(*command: str, **variables: str) -> tuple[int, str]:
    """Exit code and words of the health check, with these variables and no others of a node."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NEEDLE_")}
    argv = [sys.executable, "-m", "needle.server.process.probe", *command]
    done = await asyncio.to_thread(
        subprocess.run, argv, env=kept | variables, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stderr


async def test_a_node_with_tls_and_a_port_of_its_own_is_asked(tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "nodes").mkdir()
    cluster = ProcessCluster(tmp_path / "nodes", 1)
    node = cluster.nodes["node-1"]
    node.settings["tls"] = {**authority.settings(authority.nodes["node-1"]), "client_certificates": True}
    cluster.tls = authority.ca
    async with cluster:
        config = str(next((tmp_path / "nodes").rglob("*.toml"), None) or next((tmp_path / "nodes").rglob("*.json")))
        assert await ask(NEEDLE_CONFIG=config) == (0, "")
        code, said = await ask(NEEDLE_CONFIG=config, NEEDLE_TLS_MODE="off")
        assert code == 1 and "answers 400" in said, "it speaks TLS only"
        cluster.kill("node-1")
        code, said = await ask(NEEDLE_CONFIG=config)
        assert code == 1 and f"{node.http} does not answer" in said


def test_settings_come_from_the_command_line_of_the_node_too(tmp_path: Path) -> None:
    file = tmp_path / "node.json"
    file.write_text('{"http_address": "0.0.0.0:7000", "cluster_id": "shop"}')
    made = config_of([*SERVE, "--config", str(file)], {"NEEDLE_CLUSTER_ID": "blog"})
    assert (made.http_address, made.cluster_id) == ("0.0.0.0:7000", "blog")
    options = ["--http-address=0.0.0.0:8080", "--join", "a:1", "--no-http-api"]
    made = config_of([*SERVE, *options], {"NEEDLE_CONFIG": str(file)})
    assert (made.http_address, made.http_api, made.node_id) == ("0.0.0.0:8080", False, "n")


async def test_what_cannot_be_asked_is_said() -> None:
    with pytest.raises(ConfigError, match="node_id"):
        config_of([], {})
    code, said = await ask(NEEDLE_NODE_ID="n", NEEDLE_LISTEN="h:1", NEEDLE_DATA_DIR="d")
    assert code == 1 and "no http_address" in said
    code, said = await ask("0", NEEDLE_NODE_ID="n")
    assert code == 1 and "/proc/0/cmdline" in said


def test_the_image_asks_by_it() -> None:
    (line,) = [line for line in (ROOT / "deploy/docker/Dockerfile").read_text().splitlines() if "probe" in line]
    assert shlex.split(line.replace(",", "")) == ["CMD", "[python", "-m", "needle.server.process.probe", "1]"]
