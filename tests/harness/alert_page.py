"""docs/alerts.md in tests: what `needle status` tells while an alert is caused, and the commands its section names."""

from __future__ import annotations

import json
import re
import time
from typing import Any

from harness.page_commands import PageCommands, chapter
from needle.client.alerts import ALERTS
from needle.local.published import of_one_cluster

PAGE = "alerts.md"


def commands(alert: str) -> list[str]:
    """What the alert's section has a reader run."""
    return re.findall(r"`(needle [^`]+)`", chapter(PAGE, alert).replace("\n", " "))


class Alerts(PageCommands):
    """Runs the commands that a section names."""

    async def told(self) -> dict[str, str]:
        """Subject of each alert that `needle status` tells; the commands say where it says more."""
        shown: Any = json.loads((await self.line("needle status --json", None)).splitlines()[0])
        for one in shown["conditions"]:
            places = (
                f"/ui#/runbooks/{one['alert'].lower()}",
                ALERTS[one["alert"]].runbook,
            )  # a file if no node tells
            assert one["runbook"].endswith(places)
        return {one["alert"]: one["subject"] for one in shown["conditions"]}

    async def until(self, *alerts: str) -> dict[str, str]:
        """Waits until these are told, or none at all; their subjects."""

        deadline = time.monotonic() + 90
        while True:
            told = await self.told()
            if set(alerts) <= set(told) if alerts else not told:
                return told
            assert time.monotonic() < deadline, f"not {alerts or 'well'}: {told}"

    async def command_of(self, alert: str, command: str, more: str = "", expect: int | None = 0, **named: str) -> str:
        """Runs a command that the section names, with what it leaves to the reader: more words at its end, and others
        for words in capitals."""
        assert command in commands(alert), commands(alert)
        for word, here in named.items():
            command = command.replace(word, here)
        return await self.line(f"{command} {more}", expect)

    async def metric(self, node: str, series: str) -> float:
        """What a node publishes under a name with its labels, without the cluster's."""
        return (await self._published(node))[series]

    async def metrics(self, node: str, name: str) -> float:
        """The sum of what it publishes under a name, whatever the labels."""
        found = await self._published(node)
        return sum(value for series, value in found.items() if series.partition("{")[0] == name)

    async def _published(self, node: str) -> dict[str, float]:
        text = of_one_cluster((await self.cluster.http(node, "/metrics"))[1])
        lines = [line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#")]
        return {series: float(value) for series, _, value in lines}
