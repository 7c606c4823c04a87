"""A real Prometheus on this machine, that scrapes the nodes of a test cluster and judges by the product's rules."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from needle.local.free_ports import free_ports

SCRAPE_SECONDS = 1
HOLD_MAX = 60
"""What lasts ten minutes lasts one."""


def with_holds(rules: str, factor: float) -> str:
    """Rules with every `for` cut to HOLD_MAX, and times `factor`, so that a short run sees them fire."""
    return re.sub(r"for: (\d+)s", lambda found: f"for: {round(min(int(found[1]), HOLD_MAX) * factor)}s", rules)


def configure(
    directory: Path, targets: Sequence[str], rules: str, *, tls: Sequence[str] = (), job: str = "db", every: int
) -> None:
    """Writes a configuration into a new directory; see Prometheus. every: seconds between two looks."""
    directory.mkdir(parents=True)
    (directory / "needle.rules.yml").write_text(rules, encoding="utf-8")
    seconds = f"{every}s"
    config = {
        "global": {"scrape_interval": seconds, "scrape_timeout": seconds, "evaluation_interval": seconds},
        "rule_files": ["needle.rules.yml"],
        "scrape_configs": [_scraped(job, targets, "http"), _scraped(f"{job}-tls", tls, "https")],
    }
    (directory / "prometheus.yml").write_text(json.dumps(config), encoding="utf-8")


def command(directory: Path, address: str) -> list[str]:
    """Starts it as it is configured there; it answers at "host:port"."""
    words = ["prometheus", f"--config.file={directory}/prometheus.yml", "--log.level=warn"]
    return [*words, f"--storage.tsdb.path={directory}/data", f"--web.listen-address={address}"]


def _scraped(job: str, targets: Sequence[str], scheme: str) -> dict[str, Any]:
    found = {"job_name": job, "scheme": scheme, "static_configs": [{"targets": list(targets)}]}
    return {**found, "tls_config": {"insecure_skip_verify": True}} if scheme == "https" else found


class Prometheus:
    """Runs from `with` on. targets: "host:port" of /metrics. rules: their text. tls: of targets that ask for it; not
    whether they are who they say."""

    def __init__(self, directory: Path, targets: Sequence[str], rules: str, *, tls: Sequence[str] = ()) -> None:
        self._directory = directory
        configure(directory, targets, rules, tls=tls, every=SCRAPE_SECONDS)
        self._address = f"127.0.0.1:{free_ports(1)[0]}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        words = command(self._directory, self._address)
        with (self._directory / "log").open("wb") as log:
            self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def firing(self) -> dict[str, list[dict[str, str]]]:
        """The alerts that fire, by name: their labels and annotations. Raises OSError while it does not answer."""
        found: dict[str, list[dict[str, str]]] = {}
        for alert in self._ask("/api/v1/alerts")["alerts"]:
            if alert["state"] == "firing":
                told = {**alert["labels"], **alert["annotations"]}
                found.setdefault(told["alertname"], []).append(told)
        return found

    def seen(self, query: str) -> int:
        """How many series a query finds now."""
        return len(self._ask(f"/api/v1/query?query={query}")["result"])

    def value(self, query: str) -> float:
        """Of the one series that a query finds now."""
        (found,) = self._ask("/api/v1/query?" + urllib.parse.urlencode({"query": query}))["result"]
        return float(found["value"][1])

    def _ask(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://{self._address}{path}", timeout=5) as answer:
            return json.load(answer)["data"]
