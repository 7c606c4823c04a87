"""Some rounds of chaos whose clients speak HTTP: every promise holds, and what is found out would fail the run."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from proof.chaos.__main__ import main, table
from proof.chaos.http_door import Documented
from proof.chaos.http_load import Ledger
from proof.chaos.http_site import HttpSite
from proof.chaos.run import ChaosRun
from proof.chaos.spec import ChaosSpec
from proof.checkers.violation import Violation

ROUNDS = 4
DOCUMENT = {
    "components": {
        "schemas": {"Problem": {"properties": {"status": {"enum": [404, 500]}, "code": {"enum": ["internal", "gone"]}}}}
    }
}


@pytest.mark.campaign
async def test_chaos_through_http(tmp_path: Path) -> None:
    spec = ChaosSpec(seed=3, nodes=3, shards=2, seconds=0.0, rounds=ROUNDS)
    run = ChaosRun(spec, tmp_path, site=HttpSite)
    outcome = await run.run()
    told = "\n".join(table(outcome, 0.0))
    assert outcome.failure is None, told
    verdict = outcome.verdict
    assert verdict is not None and verdict.replicas == 2 * 3 and verdict.operations["ok"] > 100
    assert all(line in told for line in ("memory  ", "open files  ", "words  ", "errors  ")), told
    assert main(["check", str(run.file)]) == 0


@pytest.mark.parametrize(
    ("status", "kind", "body"),
    [
        (404, "text/html", {}),
        (418, "application/problem+json", {"status": 418, "code": "gone"}),
        (404, "application/problem+json", {"status": 404, "code": "made_up"}),
        (404, "application/problem+json", {"status": 500, "code": "gone"}),
        (500, "application/problem+json", {"status": 500, "code": "internal"}),
    ],
)
def test_what_is_not_documented_is_a_violation(status: int, kind: str, body: dict[str, Any]) -> None:
    problem = {"detail": "?", "retryable": False, "request_id": "1", **body}
    with pytest.raises(Violation, match="only documented errors"):
        Documented(DOCUMENT).error("GET /", status, {"content-type": kind}, json.dumps(problem).encode())


@pytest.mark.parametrize(
    ("there", "holds"),
    [
        (["a", "b"], True),
        (["a", "x", "b"], True),
        (["a"], False),
        (["b", "a"], False),
        (["a", "b", "b"], False),
        (["a", "x", "b", "x"], False),
        (["a", "b", "stranger"], False),
    ],
)
async def test_a_word_that_is_lost_or_there_twice_is_a_violation(there: list[str], holds: bool) -> None:
    class Door:
        async def ask(self, *request: Any) -> Any:
            return type("Answer", (), {"json": {"metadata": {"words": there}}})

    door: Any = Door()
    ledger = Ledger(door, random.Random(1))
    ledger.words, ledger.open = {"n": ["a", "b"]}, {"x", "y"}
    if holds:
        await ledger.check(1.0)
        return
    with pytest.raises(Violation, match="executed once"):
        await ledger.check(1.0)
