"""Which node is restarted next, and which must not be."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from catalog.catalog_util import topology
from needle.base.errors import DeadlineExceeded, InvalidArgument, NeedleError, NoQuorum, Unauthenticated
from needle.base.ids import CATALOG_GROUP, GroupId, NodeId
from needle.base.model import PeerStatus, RaftStatus, WriteResult
from needle.catalog.state import execute
from needle.client import restarting
from needle.client.group import GroupClient
from needle.client.restarting import Restart, _Rolling, _told_to_restart, able, in_order, why_not
from needle.protocol import calls
from needle.protocol.calls import MaintenanceCall
from needle.protocol.catalog_commands import CatalogCommand, MaintainNode
from needle.routing.topology import Topology

NODES = ["node-1", "node-2", "node-3"]


def peer(node: str, *, active: bool = True, lag: int = 0, state: str = "replicate") -> PeerStatus:
    return PeerStatus(
        id=node,
        address="",
        match_index=1,
        state=state,
        recently_active=active,
        is_learner=False,
        lag_entries=lag,
        lag_ms=0.0,
    )


def led(by: str, *peers: PeerStatus, group: GroupId = 1, refused: str = "") -> RaftStatus:
    return RaftStatus(
        node_id=by,
        group=group,
        state="Leader",
        current_term=1,
        commit_index=1,
        last_applied=1,
        first_index=1,
        last_index=1,
        leader=by,
        voters=sorted([by, *(one.id for one in peers)]),
        learners=[],
        peers=list(peers),
        lease_remaining=0.0,
        leader_changes=0,
        refused={refused: "its directory is another"} if refused else {},
    )


def test_the_catalogs_leader_is_the_last_and_those_that_lead_nothing_the_first() -> None:
    groups = {
        CATALOG_GROUP: led("node-1"),
        1: led("node-2"),
        2: led("node-2"),
        3: led("node-3"),
        4: None,
    }
    assert in_order(["node-1", "node-2", "node-3", "node-4"], groups) == ["node-4", "node-3", "node-2", "node-1"]


def test_a_voter_counts_if_it_answers_and_has_the_log() -> None:
    status = led("node-1", peer("node-2", lag=100), peer("node-3", lag=101))
    assert able(status) == {"node-1", "node-2"}
    assert able(led("node-1", peer("node-2", active=False), peer("node-3", state="snapshot"))) == {"node-1"}
    assert able(led("node-1", peer("node-2"), peer("node-3"), refused="node-3")) == {"node-1", "node-2"}


def test_a_node_stays_up_while_a_group_needs_it() -> None:
    now = topology(shards=1, nodes=3)
    whole = led("node-1", peer("node-2"), peer("node-3"))
    groups = {CATALOG_GROUP: led("node-1", peer("node-2"), peer("node-3"), group=CATALOG_GROUP), 1: whole}
    assert [why_not(node, groups, now) for node in NODES] == ["", "", ""]
    groups[1] = led("node-1", peer("node-2"), peer("node-3", active=False))
    assert "no majority" in why_not("node-1", groups, now) and "no majority" in why_not("node-2", groups, now)
    assert why_not("node-3", groups, now) == ""  # it is down: more it cannot cost
    groups[1] = None  # type: ignore[assignment]
    assert "no leader" in why_not("node-3", groups, now)
    assert why_not("node-9", groups, now) == ""
    groups[1] = led("node-1")
    assert "alone" in why_not("node-1", groups, now)


async def test_who_leads_no_more_does_not_speak_for_the_group() -> None:
    """Any node says how a group is, and one that followed since knows nothing of the others."""

    class Group:
        group = 1
        forgotten = 0

        def forget_leader(self) -> None:
            self.forgotten += 1

        async def ask_leader(self, method: str, make_body: Any, timeout: float) -> bytes:
            leading = led("node-2", peer("node-1"), peer("node-3"))
            former = msgspec.structs.replace(led("node-1"), state="Follower")
            return msgspec.msgpack.encode(leading if self.forgotten else former)

    group: Any = Group()
    found = await asyncio.wait_for(GroupClient.leaders_status(group, 10.0), 5)
    assert found.node_id == "node-2" and group.forgotten == 1


def rolling(of: type[_Rolling], *catalog: Any) -> _Rolling:
    """catalog: what it says, one after the other; an error is raised."""
    said = iter(catalog)

    async def confirmed(timeout: float) -> Any:
        answer = next(said)
        if isinstance(answer, Exception):
            raise answer
        return answer

    shards: Any = SimpleNamespace(confirmed=confirmed)
    caller: Any = None
    return of(caller, shards)


async def test_who_gives_a_restart_up_is_told_which_node_may_be_in_maintenance() -> None:
    begun, told = asyncio.Event(), list[str]()

    class Hanging(_Rolling):
        async def _groups(self, *_: Any) -> Any:
            return {}

        async def _may_go(self, *_: Any) -> None:
            pass

        async def _restarted(self, *_: Any) -> Restart:
            begun.set()
            return await asyncio.Future()

    now = topology(shards=1, nodes=3)
    work = asyncio.create_task(rolling(Hanging, now, now).run(lambda *_: None, ["node-2"], told.append, 10))
    await begun.wait()
    work.cancel()  # as Ctrl-C does
    with pytest.raises(asyncio.CancelledError):
        await work
    assert told == ["node-2: given up; if it is in maintenance still, `needle maintenance exit node-2` ends that"]


async def test_while_the_catalog_has_no_leader_a_restart_waits() -> None:
    """Another node died while one was coming back."""
    told = await rolling(_Rolling, NoQuorum("nobody leads it"))._whole("node-1")
    assert told == "the catalog does not say who holds what: nobody leads it"
    with pytest.raises(Unauthenticated):
        await rolling(_Rolling, Unauthenticated("the key was revoked"))._whole("node-1")


class Shared:
    """The catalog, and nodes that do at once what they are told; somebody else's commands can come between."""

    def __init__(self, now: Topology) -> None:
        self.now = now
        shards: Any = SimpleNamespace(
            confirmed=self.confirmed, command=self.command, topology=lambda: self.now, node_at=self.node_at
        )
        caller: Any = SimpleNamespace(call=self.call)
        self.parts = caller, shards

    async def confirmed(self, timeout: float) -> Topology:
        await asyncio.sleep(0)
        return self.now

    async def command(self, command: CatalogCommand, timeout: float) -> WriteResult:
        await asyncio.sleep(0)
        self.now, result = execute(self.now, self.now.version + 1, command)
        if isinstance(result, NeedleError):
            raise result
        return result

    async def node_at(self, address: str) -> str:
        return next(name for name, at in self.now.addresses().items() if at == address)

    async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
        assert method == calls.MAINTENANCE
        await self.command(MaintainNode(await self.node_at(address), calls.decode(body, MaintenanceCall).on), timeout)
        return b""

    def resting(self) -> list[str]:
        return [info.id for info in self.now.nodes if info.maintenance]


class AtOnce(_Rolling):
    """All of them have looked, and found nobody in maintenance, before the first begins. `parties`: how many."""

    parties = 0
    looked: asyncio.Event

    async def _groups(self, *_: Any) -> Any:
        return {}

    async def _may_go(self, node: NodeId, *_: Any) -> None:
        AtOnce.parties -= 1
        if not AtOnce.parties:
            AtOnce.looked.set()
        await AtOnce.looked.wait()

    async def _who(self, node: NodeId) -> Any:
        return None

    async def _anew(self, *_: Any) -> str:
        return ""

    async def _whole(self, *_: Any) -> str:
        return ""


@pytest.mark.parametrize("several", [2, 3])
async def test_of_several_restarts_that_begin_at_once_one_goes_on_and_the_others_are_told(several: int) -> None:
    shared, restarted, told = Shared(topology(shards=1, nodes=5, factor=5)), list[str](), list[str]()
    AtOnce.parties, AtOnce.looked = several, asyncio.Event()

    def restart(node: str, address: str) -> None:
        assert shared.resting() == [node], "one node at a time"
        restarted.append(node)

    rolls = [AtOnce(*shared.parts).run(restart, [f"node-{n}"], told.append, 60) for n in range(1, several + 1)]
    found = await asyncio.wait_for(asyncio.gather(*rolls, return_exceptions=True), 10)
    (done,) = [one for one in found if isinstance(one, list)]
    assert [one.node for one in done] == restarted and shared.resting() == []
    refused = [str(one) for one in found if isinstance(one, InvalidArgument)]
    assert len(refused) == several - 1 and all(restarted[0] in one and "maintenance" in one for one in refused)


async def test_who_was_first_does_not_wait_forever_for_maintenance_that_nobody_gives_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = Shared(topology(shards=1, nodes=5, factor=5))
    AtOnce.parties, AtOnce.looked = 1, asyncio.Event()
    monkeypatch.setattr(restarting, "YIELD_SECONDS", 0.0)
    call = shared.call

    async def interrupted(address: str, method: str, body: bytes, timeout: float) -> bytes:
        if not shared.resting()[1:]:
            await shared.command(MaintainNode("node-3", True), 1)  # an operator's own
        return await call(address, method, body, timeout)

    shared.parts[0].call = interrupted
    with pytest.raises(InvalidArgument, match="node-1 is not restarted, and back: node-3 is in maintenance"):
        await AtOnce(*shared.parts).run(lambda *_: None, ["node-1"], lambda _: None, 60)
    assert shared.resting() == ["node-3"]


async def test_what_never_ends_is_given_up_in_time_and_its_own_timeout_is_its_own() -> None:
    async def hangs(node: NodeId, address: str) -> None:
        await asyncio.Event().wait()

    async def fails(node: NodeId, address: str) -> None:
        raise TimeoutError("of the function itself")

    with pytest.raises(DeadlineExceeded, match="what restarts node-1 has not ended in time; node-1 is in maintenance"):
        await asyncio.wait_for(_told_to_restart(hangs, "node-1", "host:1", 0.01), 60)
    with pytest.raises(TimeoutError, match="of the function itself"):
        await _told_to_restart(fails, "node-1", "host:1", 60)
