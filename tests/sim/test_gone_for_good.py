"""A simulated cluster whose machine dies for good makes up for it by itself."""

from __future__ import annotations

import msgspec
import pytest

from proof.sim.runner import run
from proof.sim.spec import Spec

LOST = ("die", "wipe", "rollback", "rot", "rot-documents", "replace-node", "remove-node")
"""Faults by which a node is gone before."""


@pytest.mark.campaign
def test_the_cluster_makes_up_for_a_machine_that_is_gone() -> None:
    whole = Spec(seed=88080, nodes=5, seconds=30.0, sharded=True)
    assert whole.heals
    others = tuple(fault.number for fault in whole.schedule() if fault.kind not in LOST)
    spec = msgspec.structs.replace(whole, faults=others)
    report, trace = run(spec, keep_trace=True)
    assert report.failure is None
    assert any("gone for good" in line for line in trace)
    assert any(line.endswith("was replaced") for line in trace)
