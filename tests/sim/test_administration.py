"""What the simulated operator may do: the product promises nothing to a group that its operator takes apart."""

import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from needle.base.errors import DeadlineExceeded, NeedleError, OutcomeUnknown
from needle.raft.messages import ConfState
from proof.sim import administration
from proof.sim.administration import end_maintenance
from proof.sim.assigning import Holders, keeps_quorum
from proof.sim.disk_faults import DiskFaults
from proof.sim.spec import Fault


@pytest.mark.parametrize(
    ("voters", "rotten", "kept"),
    [
        (["n2", "n3"], set(), True),
        (["n2", "n3"], {"n2"}, False),  # seed 1855 of 2026-11-23: n1 was removed, then n2 could not start any more
        (["n2", "n3"], {"n1"}, True),
        (["n1", "n2", "n3"], {"n2"}, True),
        (["n1", "n2", "n3"], {"n2", "n3"}, False),
    ],
)
def test_what_remains_has_a_majority_of_good_disks(voters: list[str], rotten: set[str], kept: bool) -> None:
    assert keeps_quorum(voters, rotten) is kept


@pytest.mark.parametrize(("shares_with", "replaceable"), [({"n1", "n2"}, True), (set(), False)])
def test_disks_are_replaced_only_where_others_have_heard_of_them(shares_with: set[str], replaceable: bool) -> None:
    """A node whose replicas all went elsewhere told nobody anything: an older copy of its disks cannot be noticed."""
    fleet: Any = SimpleNamespace(
        spoilt=set(),
        retired=set(),
        machines={"n5": SimpleNamespace(process=object())},
        is_remembered=lambda name, others: True,
    )
    controls: Any = SimpleNamespace(
        may_lose=lambda name: True, finds_others=lambda name: True, sharing=lambda name: shares_with
    )
    unused: Any = SimpleNamespace()
    faults = DiskFaults(1, fleet, controls, unused, Counter())
    assert faults._is_replaceable("n5") is replaceable


async def test_the_end_of_maintenance_is_said_again_until_it_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(administration, "REPEAT_SECONDS", 0.0)
    failures: list[NeedleError] = [DeadlineExceeded("silent"), OutcomeUnknown("its leader is gone")]

    async def leave(name: str, timeout: float) -> None:
        if failures:
            raise failures.pop()

    await end_maintenance(leave, "n1", lambda: False)
    assert not failures
    failures.append(DeadlineExceeded("silent"))
    await end_maintenance(leave, "n1", lambda: True)
    assert failures, "a node that is gone is told nothing"


class Cluster:
    """Three nodes that hold one group; n1 leads it."""

    def __init__(self, *voters: str, rotten: set[str]) -> None:
        names = ("n1", "n2", "n3")
        replica = SimpleNamespace(raft=SimpleNamespace(conf=ConfState(voters=voters)))
        self.fleet: Any = SimpleNamespace(
            retired=set(),
            forgetful=set(),
            spoilt=set(),
            leader=lambda group: "n1",
            nodes={"n1": SimpleNamespace(groups=lambda: {1: replica})},
            observer=SimpleNamespace(rotten=rotten),
        )
        holders = SimpleNamespace(wanted=names, assigned=1)
        now = SimpleNamespace(holders=lambda group: holders, replicas=0)
        truth: Any = SimpleNamespace(
            groups=lambda: [1],
            wanted=lambda group: list(names),
            leaving=lambda group: [],
            topologies=[now, now],
            now=now,
        )
        stage: Any = SimpleNamespace(fleet=self.fleet, trace=SimpleNamespace(tell=lambda text: None))
        self.asked: list[Any] = []
        self.holders = Holders(stage, truth, names, 3, random.Random(1))

    async def change_catalog(self, command: Any, timeout: float) -> None:
        self.asked.append(command)


@pytest.mark.parametrize(("rotten", "shrinks"), [(set(), True), ({"n3"}, False), ({"n1"}, True)])
async def test_a_healthy_node_is_not_taken_while_another_ones_disk_has_rotted(rotten: set[str], shrinks: bool) -> None:
    cluster = Cluster("n1", "n2", "n3", rotten=rotten)
    await cluster.holders.shrink(cluster, "n1", "remove")  # type: ignore[arg-type]
    assert bool(cluster.asked) is shrinks


@pytest.mark.parametrize(
    ("conf", "rotten", "lost"),
    [
        (ConfState(voters=("n1", "n2", "n4")), set(), True),
        (ConfState(voters=("n1", "n2", "n4")), {"n4"}, False),
        (ConfState(voters=("n1", "n2")), set(), False),
        (ConfState(voters=("n1", "n2", "n4"), voters_outgoing=("n1", "n2", "n3")), set(), True),
        (ConfState(voters=("n1", "n2", "n4"), voters_outgoing=("n2", "n3")), set(), False),
    ],
)
def test_during_a_rebalance_a_machine_is_lost_only_where_a_good_majority_stays(
    conf: ConfState, rotten: set[str], lost: bool
) -> None:
    cluster = Cluster("n1", "n2", "n3", rotten=rotten)
    cluster.fleet.nodes["n1"].groups()[1].raft.conf = conf
    assert not cluster.holders.may_lose("n2")
    assert cluster.holders.may_lose("n2", moving=True) is lost


@pytest.mark.parametrize(("voters", "rots"), [(("n1", "n2", "n3"), True), (("n1", "n2"), False)])
async def test_a_disk_rots_only_while_its_group_can_do_without_it(voters: tuple[str, ...], rots: bool) -> None:
    cluster, crashed = Cluster(*voters, rotten=set()), list[str]()
    machine = SimpleNamespace(log_disk=SimpleNamespace(rot=lambda: "a bit"))
    cluster.fleet.machines = {"n2": machine}
    cluster.fleet.rotted = lambda name: None
    cluster.fleet.start = lambda name: None
    cluster.fleet.crash = lambda name, power_cut, why: crashed.append(name)
    controls: Any = SimpleNamespace(may_lose=cluster.holders.may_lose)
    trace: Any = SimpleNamespace(tell=lambda text: None)
    faults = DiskFaults(1, cluster.fleet, controls, trace, Counter())
    await faults._rot(Fault(0, 0.0, "rot", 0.0, "any", 0.5), "n2")
    assert bool(crashed) is rots
