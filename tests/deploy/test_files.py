"""Compose file, unit and image name settings that a node takes, and give it the time that it needs to stop."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

import needle
from needle.server.process.config_file import from_environment, resolve
from needle.server.process.main import STOP_SECONDS

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text(encoding="utf-8"))
    return loaded


def image_variables() -> dict[str, str]:
    text = (DEPLOY / "docker" / "Dockerfile").read_text(encoding="utf-8")
    return dict(re.findall(r"(NEEDLE_\w+)=(\S+)", text))


def test_each_node_of_the_compose_file_has_settings_that_a_node_takes() -> None:
    services = compose()["services"]
    founders = {one.split("=")[0] for one in services["node-1"]["environment"]["NEEDLE_CLUSTER_NODES"].split(",")}
    assert founders == set(services)
    for name, service in services.items():
        config = resolve({}, image_variables() | service["environment"], {})
        assert config.node_id == name
        assert service["volumes"] == [f"{name}:{config.data_dir}"], "a node without its volume is a lost node"
        assert seconds(service["stop_grace_period"]) > STOP_SECONDS


def test_the_compose_file_opens_nothing_to_the_network() -> None:
    for service in compose()["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_the_image_installs_what_the_project_offers_and_runs_as_nobody() -> None:
    text = (DEPLOY / "docker" / "Dockerfile").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = re.search(r"'\.\[([\w,]+)\]'", text)
    assert extras is not None and set(extras[1].split(",")) <= set(project["optional-dependencies"])
    assert re.search(r"^USER 10001", text, re.MULTILINE), "root by default"
    assert from_environment(image_variables())["data_dir"] == "/var/lib/needle"


def test_the_unit_gives_a_node_more_time_than_it_takes_to_stop() -> None:
    text = (DEPLOY / "systemd" / "needle@.service").read_text(encoding="utf-8")
    found = re.search(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert found is not None and int(found[1]) > STOP_SECONDS


def test_all_say_the_same_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    chart = yaml.safe_load((DEPLOY / "helm" / "needle" / "Chart.yaml").read_text(encoding="utf-8"))
    assert {project["version"], chart["version"], chart["appVersion"]} == {needle.__version__}


def leaves(values: dict[str, Any], above: str = "") -> set[str]:
    found: set[str] = set()
    for name, value in values.items():
        found |= leaves(value, f"{above}{name}.") if isinstance(value, dict) and value else {above + name}
    return found


def told_values() -> set[str]:
    """Of the page's table; `.name` stands behind the one before it."""
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    found: set[str] = set()
    for row in re.findall(r"^\| (`[^|]*) \|", text[text.index("| value | default") :], re.MULTILINE):
        before = ""
        for name in re.findall(r"`([\w.]+)`", row):
            before = before.rpartition(".")[0] + name if name.startswith(".") else name
            found.add(before)
    return found


def test_the_page_names_every_value_of_the_chart_and_no_other() -> None:
    values = yaml.safe_load((DEPLOY / "helm" / "needle" / "values.yaml").read_text(encoding="utf-8"))
    there, told = leaves(values), told_values()
    assert [one for one in there if not any(one == name or one.startswith(f"{name}.") for name in told)] == []
    assert [name for name in told if not any(one == name or one.startswith(f"{name}.") for one in there)] == []


def test_the_page_and_the_chart_tell_the_same_commands_for_certificates() -> None:
    text = (DEPLOY / "helm" / "needle" / "values.yaml").read_text(encoding="utf-8")
    commands = re.findall(r"^#   ((?:needle certs|kubectl create secret) .*)$", text, re.MULTILINE)
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8").splitlines()
    assert len(commands) == 3
    for command in commands:
        assert command.replace("NAMESPACE", "default").replace("NAME", "needle") in page
