"""Which nodes there are, which of them leads a group, and which have failed lately.

Invariant: at most one search for a group's leader runs at a time; all callers share its result. What a node says about
the leader is a hint only: Raft decides, a wrong hint costs one refused request. So is what a node says of where others
are: it may not have heard that they moved, and who answers at an address itself is believed over it. Knows the RPC call
for the leader only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

from needle.base.errors import ClientClosed, ConfigError, DeadlineExceeded, NeedleError, ProtocolError
from needle.base.ids import GroupId, NodeId
from needle.base.parts import Body, Payload
from needle.protocol import calls
from needle.protocol.calls import GroupCall, LeaderAnswer

ASK_SECONDS = 0.5
"""How long a node may take to say who leads."""
SETTLE_SECONDS = 0.05
"""How long to wait for a better answer once one node has named another as leader."""
SUSPECT_SECONDS = 1.0
"""How long a node that failed is tried last."""
TOGETHER_MAX = 4
"""Reads of one moment that go to the same node: it searches them as one batch, for less than one by one."""


class Caller(Protocol):
    """What a client needs of the network: `rpc.RpcClient`, or the simulator's."""

    async def call(self, address: str, method: str, body: Body, timeout: float) -> Payload: ...
    def connected(self, address: str) -> bool: ...
    async def connect(self, address: str, timeout: float) -> None: ...
    async def close(self) -> None: ...


class Directory:
    """The nodes of one cluster, learned from seeds."""

    asks = calls.LEADER
    """The method by which a node is asked who leads."""

    def __init__(self, caller: Caller, seeds: Iterable[str]) -> None:
        self.caller = caller
        self._seeds = dict.fromkeys(seeds)
        if not self._seeds:
            raise ConfigError("addresses = [] is not allowed: at least one 'host:port'", field="addresses")
        self._given = list(self._seeds)
        self._lost = False
        """No node named a leader when the nodes were last asked: those that were given are asked too from now on."""
        self._listed_by = 0
        """The term of the leader that listed the nodes last."""
        self._by_node: dict[NodeId, str] = {}
        self._who: dict[str, NodeId] = {}
        """Who answered at each address when it was last asked. What answers no more is not here."""
        self._unsure: dict[str, None] = {}
        """Addresses of nodes that turned out to be elsewhere: asked once who is there now."""
        self._leaders: dict[GroupId, str] = {}
        self._terms: dict[GroupId, int] = {}
        """The term of the leader that was named last."""
        self._searches: dict[GroupId, asyncio.Task[str | None]] = {}
        self._watches: dict[GroupId, asyncio.Task[bool]] = {}
        self._suspect: dict[str, float] = {}
        self._heard: dict[str, float] = {}
        """When each address last answered anything."""
        self._turn = 0
        self._together = 0
        self.failures: dict[str, NeedleError] = {}
        """Why each address did not answer when last asked who leads."""
        self.refusal: NeedleError | None = None
        """Set when a node refused to talk at all (other cluster, other protocol), or this client is closed."""

    # --- nodes -------------------------------------------------------------------------------------------------------
    def addresses(self) -> list[str]:
        """Every known address; those that have not said which node they are come last."""
        return list(dict.fromkeys([*self._by_node.values(), *self._seeds, *self._unsure]))

    def address_of(self, node: NodeId) -> str | None:
        return self._by_node.get(node)

    def nodes(self) -> dict[NodeId, str]:
        """Known nodes and their addresses, by id."""
        return dict(sorted(self._by_node.items()))

    def learn(self, address: str, answer: LeaderAnswer) -> None:
        """A node answered at `address`. Where a node answered itself is kept over what others say, unless nothing
        answers there any more; of several such addresses, one that we were given."""
        node = answer.node_id
        self._seeds.pop(address, None)
        self._unsure.pop(address, None)
        for other in [other for other, at in self._by_node.items() if at == address and other != node]:
            del self._by_node[other]  # it is not there
        self._who[address] = node
        known = self._by_node.get(node)
        if known is None or not self._is_at(node, known) or address in self._given or known not in self._given:
            self._by_node[node] = address
            if known not in (None, address) and known not in self._who:
                self._unsure[str(known)] = None
        for other, told in sorted(answer.addresses.items()):
            if other != node and self._may_be_at(other, told):
                self._by_node[other] = told
        # A leader knows all members and where they are; others may not have heard yet of one that is new.
        if answer.leader == node and node in answer.addresses and answer.term >= self._listed_by:
            self._listed_by = answer.term
            for gone in self._by_node.keys() - answer.addresses.keys():
                del self._by_node[gone]
            kept = {*self.addresses(), *self._given}
            self._who = {there: who for there, who in self._who.items() if there in kept}
            self.failures = {there: why for there, why in self.failures.items() if there in kept}

    def _is_at(self, node: NodeId, address: str | None) -> bool:
        """Whether it answered there itself, and nothing was heard to the contrary."""
        return address is not None and self._who.get(address) == node

    def _may_be_at(self, node: NodeId, told: str) -> bool:
        """Whether to believe another node that says so."""
        return not self._is_at(node, self._by_node.get(node)) and self._who.get(told, node) == node

    def _silent(self, address: str, error: NeedleError) -> None:
        """Nothing came from `address` when it was asked."""
        self.failures[address] = error
        self._unsure.pop(address, None)
        node = self._who.pop(address, None)
        if node is not None and self._by_node.get(node) == address:
            # It may have answered elsewhere too.
            self._by_node[node] = next((there for there, who in self._who.items() if who == node), address)

    def suspect(self, address: str) -> None:
        """`address` failed: try others first for a while."""
        self._suspect[address] = asyncio.get_running_loop().time() + SUSPECT_SECONDS

    def in_turn(self, prefer: str | None = None) -> list[str]:
        """Addresses for a read that any node may answer: the next in turn first (or `prefer`), failing ones last. Up to
        TOGETHER_MAX reads of one turn of the event loop have the same turn."""
        known = self.addresses()
        if self._together in (0, TOGETHER_MAX):
            if not self._together:
                asyncio.get_running_loop().call_soon(self._next_turn)
            self._turn = (self._turn + 1) % len(known)
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
    def known_leader(self, group: GroupId) -> str | None:
        return self._leaders.get(group)

    def term(self, group: GroupId) -> int:
        """The term of the leader that a node named last; 0 when none has, or when nodes lead in no term."""
        return self._terms.get(group, 0)

    def heard(self, address: str) -> None:
        """The node at `address` has answered."""
        self._heard[address] = asyncio.get_running_loop().time()

    def heard_since(self, address: str, moment: float) -> bool:
        """Whether the node at `address` has answered anything since then (loop time)."""
        return self._heard.get(address, float("-inf")) >= moment

    def set_leader(self, group: GroupId, address: str | None) -> None:
        if address is None:
            self._leaders.pop(group, None)
        else:
            self._leaders[group] = address

    def forget_leader(self, group: GroupId, address: str) -> None:
        """`address` does not lead any more; keeps what was learned meanwhile."""
        if self._leaders.get(group) == address:
            del self._leaders[group]

    async def find_leader(self, group: GroupId, timeout: float) -> str | None:
        """Ask all nodes at once; the address of the leader, or None if nobody names one in time."""
        search = self._searches.get(group)
        if search is None:
            search = asyncio.get_running_loop().create_task(self._search(group))
            self._searches[group] = search
            search.add_done_callback(lambda _: self._searches.pop(group, None))
        # wait() leaves the search running for the others when this caller is cancelled or its time is up.
        done, _ = await asyncio.wait((search,), timeout=timeout)
        return search.result() if done else None

    async def _search(self, group: GroupId) -> str | None:
        loop = asyncio.get_running_loop()
        known = dict.fromkeys([*self.addresses(), *(self._given if self._lost else [])])
        asked = {loop.create_task(self.ask(address, group)): address for address in known}
        waiting = list(asked)
        deadline = loop.time() + ASK_SECONDS
        best: LeaderAnswer | None = None
        try:
            while waiting and (left := deadline - loop.time()) > 0:
                await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                done = [task for task in waiting if task.done()]
                waiting = [task for task in waiting if not task.done()]
                for answer in filter(None, (task.result() for task in done)):
                    if answer.leader is not None and (best is None or answer.term >= best.term):
                        best = answer
                if best is not None and best.leader == best.node_id:
                    break
                if best is not None and self._place_of(best.leader, best) is not None:
                    deadline = min(deadline, loop.time() + SETTLE_SECONDS)
        finally:
            for task in waiting:
                task.cancel()
        found = None if best is None or best.leader is None else self._named(group, best.leader, best)
        self._lost = found is None
        if found is None:
            for task in waiting:
                late = DeadlineExceeded(f"no answer from {asked[task]} in time", address=asked[task])
                if asked[task] not in self.failures:
                    self._silent(asked[task], late)
        return found

    def _place_of(self, leader: NodeId | None, answer: LeaderAnswer) -> str | None:
        """Where it is, as far as known here, or else by `answer`; not where another node answered."""
        if leader is None:
            return None
        told = answer.addresses.get(leader)
        return self.address_of(leader) or (told if told is not None and self._may_be_at(leader, told) else None)

    def _named(self, group: GroupId, leader: NodeId, answer: LeaderAnswer) -> str | None:
        """`answer` says that `leader` leads; its address, if anyone knows it."""
        address = self._place_of(leader, answer)
        self.set_leader(group, address)
        self._terms[group] = max(answer.term, self._terms.get(group, 0))
        return address

    async def await_leader(self, group: GroupId, seconds: float) -> None:
        """Returns when a node has named the leader of a later term than was known, which then is the known one; at the
        latest after `seconds`. Callers share what is asked."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while (left := deadline - loop.time()) > 0:
            watch = self._watches.get(group)
            if watch is None:
                watch = self._watches[group] = loop.create_task(self._watch(group, left))
                watch.add_done_callback(lambda _: self._watches.pop(group, None))
            done, _ = await asyncio.wait((watch,), timeout=left)
            if done and watch.result():
                return

    async def _watch(self, group: GroupId, seconds: float) -> bool:
        """Have every node say when it knows of a later leader; whether one did. Takes all of `seconds` otherwise: nodes
        that do not wait before they answer are not asked over and over."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        known = self._terms.get(group, 0)
        body = calls.encode(GroupCall(group, seconds, known))
        waiting = {loop.create_task(self._told(address, body, seconds)) for address in self.addresses()}
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for answer in filter(None, (task.result() for task in done)):
                    if answer.leader is not None and answer.term > known:
                        return self._named(group, answer.leader, answer) is not None
        finally:
            for task in waiting:
                task.cancel()
        await asyncio.sleep(max(0.0, deadline - loop.time()))
        return False

    async def _told(self, address: str, body: bytes, seconds: float) -> LeaderAnswer | None:
        """What the node at `address` says within `seconds`, if anything."""
        try:
            answer = calls.decode(await self.caller.call(address, self.asks, body, seconds), LeaderAnswer)
        except NeedleError:
            return None  # the next search for the leader says why
        self.heard(address)
        return answer

    async def ask(self, address: str, group: GroupId) -> LeaderAnswer | None:
        """What the node at `address` knows; None if it does not answer (see `failures`)."""
        try:
            body = await self.caller.call(address, self.asks, calls.encode(GroupCall(group, ASK_SECONDS)), ASK_SECONDS)
            answer = calls.decode(body, LeaderAnswer)
        except NeedleError as error:
            self._silent(address, error)
            if isinstance(error, ProtocolError | ClientClosed):
                self.refusal = error
            return None
        self.failures.pop(address, None)
        self.heard(address)
        self.learn(address, answer)
        return answer

    def all_failed(self) -> bool:
        """Whether no node answered when last asked."""
        return all(address in self.failures for address in self.addresses())

    def explain(self) -> str:
        """Which nodes did not answer and why, for an error message."""
        known = self.addresses()
        names = {address: node for node, address in self.nodes().items()}
        silent = [
            f"{names.get(address, '?')} at {address} ({self.failures[address].message})"
            for address in known
            if address in self.failures
        ]
        if not silent:
            return f"all {len(known)} nodes answer, but none leads"
        return f"{len(silent)} of {len(known)} nodes did not answer: {'; '.join(silent)}"
