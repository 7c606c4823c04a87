"""Which nodes hold a group, as the newest topology says, which of them leads it, and which have failed lately.

Invariant: at most one search for the leader runs at a time; all callers share its result. What a node says about the
leader is a hint only: Raft decides, a wrong hint costs one refused request. Knows the RPC call for the leader only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from needle.base.errors import DeadlineExceeded, NeedleError
from needle.base.ids import NodeId, shard_group
from needle.base.parts import Body, Payload
from needle.client.heard import Heard
from needle.protocol import calls
from needle.protocol.calls import GroupCall, LeaderAnswer
from needle.protocol.peer_calls import SHARD_LEADER
from needle.routing.topology import Topology

ASK_SECONDS = 0.5
"""How long a node may take to say who leads."""
SETTLE_SECONDS = 0.05
"""How long to wait for a better answer once one node has named another as leader."""
SUSPECT_SECONDS = 1.0
"""How long a node that failed is tried last."""
TOGETHER_MAX = 4
"""Reads of one moment that go to the same node: it searches them as one batch, for less than one by one."""


class Calling(Protocol):
    """Who asks one address."""

    async def call(self, address: str, method: str, body: Body, timeout: float) -> Payload: ...


class Caller(Calling, Protocol):
    """What a client needs of the network: `rpc.RpcClient`, or the simulator's."""

    def connected(self, address: str) -> bool: ...
    async def connect(self, address: str, timeout: float) -> None: ...
    async def close(self) -> None: ...


class Directory:
    """The nodes that hold the replicas of one shard, or of the catalog."""

    asks = SHARD_LEADER
    """The method by which a node is asked who leads."""

    def __init__(self, caller: Caller, shard: int, topology: Callable[[], Topology], prefer: str | None = None) -> None:
        """shard: -1 for the catalog. prefer: the address to ask first where any replica may answer."""
        self.caller = caller
        self.group = shard_group(shard)
        self._shard = shard
        self._topology = topology
        self._prefer = prefer
        self._listed_of: Topology | None = None
        self._listed: list[str] = []
        self.leader: str | None = None
        """The address of the leader, as far as known."""
        self.term = 0
        """The term of the leader that a node named last; 0 when none has, or when nodes lead in no term."""
        self._search: asyncio.Task[str | None] | None = None
        self._watch: asyncio.Task[bool] | None = None
        self._suspect: dict[str, float] = {}
        self._turn = 0
        self._together = 0
        self._heard = Heard()
        """What each address said when last asked who leads."""

    # --- nodes -------------------------------------------------------------------------------------------------------
    def nodes(self) -> dict[NodeId, str]:
        """Where they are, by id, the preferred leader first."""
        now = self._topology()
        replicas = now.shards[self._shard].replicas if 0 <= self._shard < len(now.shards) else now.catalog
        return {node: address for node in replicas if (address := now.address_of(node)) is not None}

    def addresses(self) -> list[str]:
        """As `nodes`."""
        now = self._topology()
        if now is not self._listed_of:
            self._listed_of = now
            self._listed = list(self.nodes().values())
            self._heard.keep(self._listed)
        return self._listed

    def address_of(self, node: NodeId) -> str | None:
        """Of any node of the cluster."""
        return self._topology().address_of(node)

    def suspect(self, address: str) -> None:
        """`address` failed: try others first for a while."""
        self._suspect[address] = asyncio.get_running_loop().time() + SUSPECT_SECONDS

    def in_turn(self) -> list[str]:
        """Addresses for a read that any replica may answer: the preferred one first, or the next in turn, failing ones
        last. Up to TOGETHER_MAX reads of one turn of the event loop have the same turn."""
        known, prefer = self.addresses(), self._prefer
        if self._together in (0, TOGETHER_MAX):
            if not self._together:
                asyncio.get_running_loop().call_soon(self._next_turn)
            self._turn = (self._turn + 1) % max(1, len(known))
            self._together = 0
        self._together += 1
        order = known[self._turn :] + known[: self._turn]
        if prefer is not None and prefer in order:
            order.remove(prefer)
            order.insert(0, prefer)
        if self._suspect:
            now = asyncio.get_running_loop().time()
            self._suspect = {address: until for address, until in self._suspect.items() if until > now}
            order.sort(key=lambda address: address in self._suspect)
        return order

    def _next_turn(self) -> None:
        self._together = 0

    # --- leaders -----------------------------------------------------------------------------------------------------
    def forget_leader(self, address: str) -> None:
        """`address` does not lead any more; keeps what was learned meanwhile."""
        if self.leader == address:
            self.leader = None

    async def find_leader(self, timeout: float) -> str | None:
        """Ask all nodes at once; the address of the leader, or None if nobody names one in time."""
        search = self._search
        if search is None:
            search = self._search = asyncio.get_running_loop().create_task(self._ask_all())
            search.add_done_callback(self._searched)
        # wait() leaves the search running for the others when this caller is cancelled or its time is up.
        done, _ = await asyncio.wait((search,), timeout=timeout)
        return search.result() if done else None

    def _searched(self, _: object) -> None:
        self._search = None

    async def _ask_all(self) -> str | None:
        loop = asyncio.get_running_loop()
        asked = {loop.create_task(self.ask(address)): address for address in self.addresses()}
        waiting = list(asked)
        began = loop.time()
        deadline = began + ASK_SECONDS
        best: LeaderAnswer | None = None
        said = ""
        try:
            while waiting and (left := deadline - loop.time()) > 0:
                await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                done = [task for task in waiting if task.done()]
                waiting = [task for task in waiting if not task.done()]
                for task in done:
                    answer = task.result()
                    if answer is None or answer.leader is None or (best is not None and answer.term < best.term):
                        continue
                    best, said = answer, asked[task]
                if best is not None and best.leader == best.node_id:
                    break
                if best is not None and self._place(best, said) is not None:
                    deadline = min(deadline, loop.time() + SETTLE_SECONDS)
        finally:
            for task in waiting:
                task.cancel()
        found = None if best is None else self._named(best, said)
        if found is None:
            for address in [asked[task] for task in waiting if not self._heard.since(asked[task], began)]:
                late = DeadlineExceeded(f"no answer from {address} in time", address=address)
                self._heard.failed(address, late, loop.time())
        return found

    def _place(self, answer: LeaderAnswer, said: str) -> str | None:
        """Where the leader is that the node at `said` names: as far as known here, or else by its answer."""
        leader = answer.leader
        return None if leader is None else self.address_of(leader) or answer.addresses.get(leader)

    def _named(self, answer: LeaderAnswer, said: str) -> str | None:
        """The node at `said` names a leader; its address, if anyone knows it."""
        self.leader = self._place(answer, said)
        self.term = max(answer.term, self.term)
        return self.leader

    async def await_leader(self, seconds: float) -> None:
        """Returns when a node has named the leader of a later term than was known, which then is the known one; at the
        latest after `seconds`. Callers share what is asked."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while (left := deadline - loop.time()) > 0:
            watch = self._watch
            if watch is None:
                watch = self._watch = loop.create_task(self._watch_for(left))
                watch.add_done_callback(self._watched)
            done, _ = await asyncio.wait((watch,), timeout=left)
            if done and watch.result():
                return

    def _watched(self, _: object) -> None:
        self._watch = None

    async def _watch_for(self, seconds: float) -> bool:
        """Have every node say when it knows of a later leader; whether one did. Takes all of `seconds` otherwise: nodes
        that do not wait before they answer are not asked over and over."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        known = self.term
        body = calls.encode(GroupCall(self.group, seconds, known))
        asked = {loop.create_task(self._told(address, body, seconds)): address for address in self.addresses()}
        waiting = set(asked)
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    answer = task.result()
                    if answer is not None and answer.leader is not None and answer.term > known:
                        return self._named(answer, asked[task]) is not None
        finally:
            for task in waiting:
                task.cancel()
        await asyncio.sleep(max(0.0, deadline - loop.time()))
        return False

    async def _told(self, address: str, body: bytes, seconds: float) -> LeaderAnswer | None:
        """What the node at `address` says within `seconds`, if anything."""
        try:
            return calls.decode(await self.caller.call(address, self.asks, body, seconds), LeaderAnswer)
        except NeedleError:
            return None  # the next search for the leader says why

    async def ask(self, address: str) -> LeaderAnswer | None:
        """What the node at `address` knows; None if it does not answer (see `explain`)."""
        now = asyncio.get_running_loop().time
        body = calls.encode(GroupCall(self.group, ASK_SECONDS))
        try:
            answer = calls.decode(await self.caller.call(address, self.asks, body, ASK_SECONDS), LeaderAnswer)
        except NeedleError as error:
            self._heard.failed(address, error, now())
            return None
        self._heard.answered(address, answer, now())
        return answer

    def refusal(self) -> NeedleError | None:
        """As `Heard.refusal`."""
        return self._heard.refusal(self.addresses())

    def heard_since(self, since: float) -> bool:
        """Whether any node answered or failed from `since` on, by the event loop's time."""
        return any(self._heard.since(address, since) for address in self.addresses())

    def overloaded(self, since: float) -> NeedleError | None:
        """As `Heard.overloaded`."""
        return self._heard.overloaded(self.addresses(), since)

    def explain(self, since: float) -> str:
        """What the nodes have said from `since` on, by the event loop's time, and why others said nothing: for an error
        message."""
        return self._heard.explain(self.nodes(), self.leader, since)
