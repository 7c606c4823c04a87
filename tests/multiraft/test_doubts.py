"""Contradictions that a peer makes up: looked into, and seldom in the log."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from multiraft.harness import FAST, Cluster
from needle.raft.messages import Doubt, DoubtKind


async def test_a_contradiction_that_comes_again_and_again_is_logged_once_in_a_while(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calm = replace(FAST, election_timeout=1.0)
    async with Cluster(str(tmp_path), nodes=1, config=calm) as cluster:
        node = await cluster.leader()
        group = node.host.engine.groups[0]
        caplog.clear()
        for index in range(10):
            await node.host.engine._inbound._look_into(group, Doubt(DoubtKind.UNKNOWN_MATCH, "n9", 100 + index, 1))
        said = [one.getMessage() for one in caplog.records if "n9" in one.getMessage()]
        assert len(said) == 2, said
        assert "n9 could not be asked about entry 100" in said[1]
        await node.host.engine._inbound._look_into(group, Doubt(DoubtKind.COMMITTED, "n9", 100, 1))
        assert len([one for one in caplog.records if "n9" in one.getMessage()]) == 4
