"""The chapter "A key is not taken" of docs/troubleshooting.md, point by point on real nodes that ask for keys."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.commands import Run
from harness.page_commands import chapter
from needle.local.process_cluster import ProcessCluster, wait_for

CHAPTER = " ".join(chapter("troubleshooting.md", "A key is not taken").split())
SECRET, OTHER = "0123456789abcdef" * 4, "fedcba9876543210" * 4


@pytest.mark.timeout(300)
async def test_each_point_of_the_chapter_is_true(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def says(text: str) -> Callable[..., str]:
        assert text in CHAPTER, f"the page does not say {text!r}"
        return run

    async with ProcessCluster(tmp_path, require_keys=True, cluster_secret=SECRET) as cluster:
        monkeypatch.setenv("NEEDLE_CLUSTER", cluster.cluster)
        monkeypatch.delenv("NEEDLE_API_KEY", raising=False)
        monkeypatch.delenv("NEEDLE_CLUSTER_SECRET", raising=False)
        file = tmp_path / "settings.json"
        file.write_text(json.dumps(cluster.nodes["node-1"].settings))

        async def command(*argv: str, expect: int | None = 0) -> str:
            return await asyncio.to_thread(run, *argv, expect=expect)

        assert "[unauthenticated]" in await command("status", expect=1)
        says("`needle keys list --config FILE`")
        await command("keys", "list", "--config", str(file))
        says("Make another one with `needle keys create` in the same way")
        made = {}
        for role in ("admin", "reader"):
            told = await command("keys", "create", role, "--role", role, "--config", str(file), "--json")
            made[role] = json.loads(told)["key"]
        assert "admin" in await command("keys", "list", "--config", str(file))

        async def taken(role: str) -> bool:
            monkeypatch.setenv("NEEDLE_API_KEY", made[role])
            return "node-1" in await command("status", expect=None)

        await wait_for(lambda: taken("admin"), 60, "the key at all nodes")
        await wait_for(lambda: taken("reader"), 60, "the other one, too")
        says("`forbidden`, or 403: the key is good, and not for this. The message says which role it takes")
        said = await command("doctor", expect=1)
        assert "[forbidden]" in said and "admin" in said
        says("A new line at its end makes another key of it")
        monkeypatch.setenv("NEEDLE_API_KEY", made["admin"] + "\n")
        assert "node-1" not in await command("status", expect=None)

        says('their logs say "different secrets"')
        node = cluster.nodes["node-3"]
        cluster.terminate("node-3")
        node.settings["cluster_secret"] = OTHER
        cluster.restart("node-3")

        async def named() -> bool:
            return any("different secrets" in one.log.read_text() for one in cluster.nodes.values())

        await wait_for(named, 60, "a line of a log that names the secrets")
