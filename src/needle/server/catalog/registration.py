"""A node makes itself known to the catalog: when it joins, and when it comes back with another address.

Until the catalog has the new address the node tells it to the others itself: they may need its vote before there is a
leader of the catalog to register with. Those that do not answer where they were may have moved too: then the others and
the configured seeds are asked where they are. Invariants: it announces its own address only; what others say of a third
node is a hint, used when the very node (its id and its data directory's incarnation) answers there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol

from needle.base.errors import InvalidArgument, NeedleError
from needle.base.ids import NodeId
from needle.base.parts import Payload
from needle.client.directory import Caller
from needle.client.shards import ClusterShards
from needle.multiraft.codec import LifeCall, decode_life_answer, encode_body
from needle.multiraft.host import Host
from needle.multiraft.lives import LIFE_METHOD
from needle.protocol import calls, catalog_commands
from needle.protocol.calls import AddressBook
from needle.protocol.peer_calls import WHO, WhoAnswer, WhoCall
from needle.routing.topology import NodeInfo, Topology
from needle.server.ports import NodePorts, Peers

log = logging.getLogger("needle.server")

LOOK_SECONDS = 30.0
RETRY_SECONDS = 1.0
COMMAND_SECONDS = 5.0
ANNOUNCE_SECONDS = 1.0
ANYBODY = 1
"""The nonce of one who asks a node for its life and has none: no life's, and not 0, which is refused."""
PAUSE_SECONDS = 0.01
"""At least: what is left until the next announcement may be less than the event loop's clock can tell, and a wait for
that is over before anything else had its turn."""


class RegisteringNode(Protocol):
    """The node that registers."""

    node_id: NodeId
    host: Host
    peers: Peers
    caller: Caller
    topology: Topology
    ports: NodePorts

    @property
    def shards(self) -> ClusterShards: ...
    def seeds(self) -> list[str]: ...
    def reach(self, node: NodeId) -> str | None: ...
    def learn_address(self, node: NodeId, address: str) -> None: ...
    def info(self) -> NodeInfo: ...
    def now(self) -> float: ...
    async def wait_topology(self, version: int, timeout: float) -> bool: ...


class Registration:
    """See the module."""

    def __init__(self, node: RegisteringNode, fatal: Callable[[NeedleError], None]) -> None:
        """fatal: stops the node."""
        self._node = node
        self._fatal = fatal
        self._announce_at = float("-inf")
        self._patience = RETRY_SECONDS
        self._said_less = False
        """The last registration left out what this node knows, for the cluster could not keep it."""

    async def run(self) -> None:
        """Register whenever the catalog knows something else of this node. Ends when the catalog refuses it."""
        node = self._node
        while not node.host.stopped:
            if node.topology.settings is None:
                await node.wait_topology(1, RETRY_SECONDS)
                continue
            try:
                await self._register()
                pause = max(PAUSE_SECONDS, self._announce_at - node.now())
            except InvalidArgument as error:
                if self._said_less:  # the cluster's version has just risen: next time it says all that it knows
                    pause = RETRY_SECONDS
                else:
                    self._fatal(error)
                    return
            except NeedleError as error:
                log.warning("node %s is not registered yet: %s", node.node_id, error)
                pause = RETRY_SECONDS
            await node.wait_topology(node.topology.version + 1, pause)

    async def _register(self) -> None:
        node = self._node
        known, mine = node.topology.node(node.node_id), node.info()
        moved = known is not None and known.address != mine.address
        if known is not None and moved:
            await self._check_alone(known.address)
        if moved or node.now() >= self._announce_at:
            # Also without having moved: a node that was away while all others moved can ask nobody. The longer it is
            # away the more seldom it is told, and now and then all are, for they may have forgotten.
            silent = await self._announce(mine.address)
            self._announce_at = node.now() + (self._patience if silent else LOOK_SECONDS)
            self._patience = min(LOOK_SECONDS, 2 * self._patience) if silent else RETRY_SECONDS
        self._said_less = mine.knows < node.ports.knows
        if known is None or known.registered_as(mine) != known:
            await node.shards.command(catalog_commands.RegisterNode(mine), COMMAND_SECONDS)

    async def _check_alone(self, before: str) -> None:
        """Raises InvalidArgument if another process that goes by this node's directory answers where the node was."""
        node, call = self._node, encode_body(LifeCall(ANYBODY, None, []))
        try:
            answer = decode_life_answer(bytes(await node.caller.call(before, LIFE_METHOD, call, ANNOUNCE_SECONDS)))
        except NeedleError as error:
            log.debug("no node answers at %s, where this one was: %s", before, error)
            return
        there, mine = answer.life, node.host.engine.lives.identity.life
        if there.incarnation == mine.incarnation and there.nonce != mine.nonce:
            raise InvalidArgument(
                f"node {node.node_id} runs already, at {before}, on the directory that this one is a copy of. Only one "
                "of them may run: stop the other first if this one is to take its place",
                field="data_dir",
            )

    async def _announce(self, address: str) -> set[NodeId]:
        """Tell the others where this node is, and look for those that do not answer; these."""
        node = self._node
        body = calls.encode(AddressBook({node.node_id: address}))
        others = [other for other in node.topology.addresses() if other != node.node_id]
        seeds = [seed for seed in node.seeds() if seed != address]
        answers = await _all(
            [
                *(node.peers.call(other, calls.ADDRESSES, body, ANNOUNCE_SECONDS) for other in others),
                *(node.caller.call(seed, calls.ADDRESSES, body, ANNOUNCE_SECONDS) for seed in seeds),
            ]
        )
        silent = {other for other, answer in zip(others, answers, strict=False) if isinstance(answer, NeedleError)}
        if silent:
            log.debug("nodes %s were not told where %s is", sorted(silent), node.node_id)
            books = [calls.decode(a, AddressBook).addresses for a in answers if not isinstance(a, NeedleError)]
            told = {book[other] for book in books for other in silent & book.keys()}
            await self._look_at({*told, *seeds} - {address, *(node.reach(other) for other in silent)}, silent)
        return silent

    async def _look_at(self, addresses: Iterable[str | None], silent: set[NodeId]) -> None:
        """Learn where those of `silent` are that answer at one of `addresses`."""
        node = self._node
        body, asked = calls.encode(WhoCall()), sorted(address for address in addresses if address)
        answers = await _all(node.caller.call(address, WHO, body, ANNOUNCE_SECONDS) for address in asked)
        for address, answer in zip(asked, answers, strict=True):
            if isinstance(answer, NeedleError):
                continue
            who = calls.decode(answer, WhoAnswer)
            known = node.topology.node(who.node_id)
            if who.node_id in silent and known is not None and known.incarnation == who.incarnation:
                log.info("node %s is at %s now", who.node_id, address)
                node.learn_address(who.node_id, address)


async def _all(asking: Iterable[Coroutine[Any, Any, Payload]]) -> list[Payload | NeedleError]:
    """The answers, or why there is none."""
    answers: list[Payload | NeedleError] = []
    for answer in await asyncio.gather(*asking, return_exceptions=True):
        if isinstance(answer, BaseException) and not isinstance(answer, NeedleError):
            raise answer
        answers.append(answer)
    return answers
