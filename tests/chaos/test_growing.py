"""A short slice of chaos on real processes while shards and nodes come and go; and that its checks can fail."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chaos.documented import undocumented
from chaos.test_run import lose_a_write
from needle.base.errors import Internal
from proof.chaos.__main__ import main
from proof.chaos.grow_run import GrowRun, table
from proof.chaos.growing import Lives
from proof.chaos.kept import Kept
from proof.chaos.spec import ChaosSpec
from proof.checkers.violation import Violation

STEPS = 4
"""Counted, not timed: a busy machine does the same."""


@pytest.mark.campaign
async def test_chaos_while_the_cluster_grows_and_shrinks(tmp_path: Path) -> None:
    run = GrowRun(ChaosSpec(seed=3, seconds=0.0), tmp_path, steps=STEPS)
    outcome = await run.run()
    assert outcome.failure is None, "\n".join(table(outcome, 0.0))
    assert sum(outcome.steps.values()) >= STEPS and sum(outcome.kills.values()) > 0
    assert outcome.searches > 5
    assert sum(outcome.cuts.values()) > 0
    assert outcome.verdict is not None and outcome.verdict.operations["ok"] > 100

    lines = run.file.read_text().splitlines()
    assert undocumented(lines) == set()
    assert main(["check", str(run.file)]) == 0
    spoiled = tmp_path / "spoiled.jsonl"
    spoiled.write_text("\n".join(lose_a_write(lines)))
    assert main(["check", str(spoiled)]) == 1


class Answers:
    """A client whose searches answer this."""

    def __init__(self, found: list[str] | Exception) -> None:
        self.found = found

    async def search(self, *args: Any, **options: Any) -> list[Any]:
        if isinstance(self.found, Exception):
            raise self.found
        return [SimpleNamespace(id=name) for name in self.found]


@pytest.mark.parametrize(
    ("found", "broken"),
    [
        (["kept-0"], ""),
        (["kept-0", "kept-0"], "nothing twice"),
        ([], "nothing lost"),
        (["kept-0", "kept-1"], "nothing lost"),
        (Internal("broken"), "expected errors"),
    ],
)
async def test_a_search_that_misses_or_doubles_a_kept_document_is_seen(
    found: list[str] | Exception, broken: str
) -> None:
    client: Any = Answers(found)
    kept = Kept(client, 1, random.Random(1))
    if not broken:
        await kept.look()
        assert kept.searches == 1
        return
    with pytest.raises(Violation, match=broken):
        await kept.run()


def test_a_process_that_ended_by_itself_is_seen() -> None:
    node = SimpleNamespace(running=lambda: False, wait=lambda: 3, output=lambda: "why")
    cluster: Any = SimpleNamespace(nodes={"node-1": node})
    with pytest.raises(Violation, match="node-1 ended with 3: why"):
        Lives(cluster, None, random.Random(1), lambda text: None).check()  # type: ignore[arg-type]
