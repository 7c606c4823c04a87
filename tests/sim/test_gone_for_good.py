"""A simulated cluster whose machine dies for good makes up for it by itself."""

from __future__ import annotations

from proof.sim.runner import run
from proof.sim.spec import Spec


def test_the_cluster_makes_up_for_a_machine_that_is_gone() -> None:
    spec = Spec(seed=88067, nodes=5, seconds=30.0, sharded=True)
    assert spec.heals
    report, trace = run(spec, keep_trace=True)
    assert report.failure is None
    assert any("gone for good" in line for line in trace)
    assert any(line.endswith("was replaced") for line in trace)
