"""A chapter of docs/troubleshooting.md, whose commands are run as they stand there, and what the cluster says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.commands import Run
from harness.page_commands import PageCommands, blocks, chapter
from needle.local.process_cluster import ProcessCluster, wait_for


class Chapter(PageCommands):
    """Its blocks, to be run in their order."""

    def __init__(self, name: str, cluster: ProcessCluster, directory: Path, run: Run) -> None:
        super().__init__(cluster, directory, run)
        self._blocks = blocks(chapter("troubleshooting.md", name))

    async def next(self, *expect: int | None) -> str:
        """Runs the next block; what its lines print. expect: the exit codes of its lines."""
        lines = self._blocks.pop(0).splitlines()
        assert len(lines) == len(expect), lines
        return "\n".join([await self.line(line, code) for line, code in zip(lines, expect, strict=True)])

    def finished(self) -> None:
        assert not self._blocks, self._blocks

    async def shown(self, *words: str) -> Any:
        """What a command prints with --json, whatever its exit code."""
        return json.loads((await self.line(f"needle {' '.join(words)} --json", None)).splitlines()[0])

    async def terms(self, shard: int = 0) -> dict[str, tuple[str, int]]:
        """State and term of each replica that answers, by `needle status`."""
        replicas = [one for one in (await self.shown("status"))["replicas"] if one["shard"] == shard]
        return {
            one["node"]: (one["status"]["state"], one["status"]["current_term"]) for one in replicas if one["status"]
        }

    async def conditions(self) -> list[str]:
        """Names and subjects of those that hold, by `needle status`."""
        return [f"{one['name']}: {one['subject']}" for one in (await self.shown("status"))["conditions"]]

    async def findings(self) -> list[str]:
        """Check and subject of each, by `needle doctor`."""
        return [f"{one['name']}: {one['subject']}" for one in (await self.shown("doctor"))["findings"]]

    async def well(self) -> None:
        """Waits until no condition holds."""

        async def none() -> bool:
            return not await self.conditions()

        await wait_for(none, 90, "a cluster without conditions")
