"""Where a client begins: the topology of a cluster of which it knows some addresses. It must not know documents."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from needle.base.errors import (
    Forbidden,
    NeedleError,
    NoQuorum,
    Overloaded,
    ProtocolError,
    TlsFailed,
    Unauthenticated,
    UnknownMethod,
    UnsupportedVersion,
    WrongCluster,
)
from needle.client.directory import Caller
from needle.protocol import calls
from needle.protocol.peer_calls import TOPOLOGY, TopologyAnswer, TopologyCall
from needle.routing.topology import Topology

ASK_SECONDS = 1.0
OTHERS_SECONDS = 0.1
"""So long the other nodes are listened to when one has answered: one that was founded again knows a cluster, too."""
PAUSE_SECONDS = 0.02
_REFUSES = (WrongCluster, UnsupportedVersion, TlsFailed, Unauthenticated, Forbidden)
"""What a node says to a client that it does not talk to: it is not silent, whatever others are."""


async def find_topology(caller: Caller, addresses: Iterable[str], timeout: float = ASK_SECONDS) -> Topology | None:
    """The topology of the first node at `addresses` that has one; None when none has one."""
    found = (await _ask_all(caller, addresses, timeout))[0]
    return found if found is not None and found.settings is not None else None


async def find_cluster(caller: Caller, addresses: Sequence[str], timeout: float) -> Topology:
    """As `find_topology`, but asks until a node answers; an empty Topology of a cluster that is not made yet.

    Raises WrongCluster if the nodes belong to two clusters, what they answer if all refuse to talk (_REFUSES), or some
    refuse until the end and the others are silent; Overloaded when all that answer have no room for another connection
    until the end, NoQuorum when none answers in time.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while True:
        found, failures = await _ask_all(caller, addresses, ASK_SECONDS)
        if found is not None:
            return found
        if all(isinstance(error, (ProtocolError, UnknownMethod, *_REFUSES)) for error in failures):
            raise failures[0]
        if loop.time() >= deadline:
            if full := [error for error in failures if isinstance(error, Overloaded)]:
                raise Overloaded(f"no node took the connection within {timeout:g} s: {full[0].message}")
            if refusals := [error for error in failures if isinstance(error, _REFUSES)]:
                raise refusals[0]
            raise NoQuorum(f"no node at {', '.join(addresses)} answered within {timeout:g} s: {failures[0].message}")
        await asyncio.sleep(PAUSE_SECONDS)


async def _ask_all(
    caller: Caller, addresses: Iterable[str], timeout: float
) -> tuple[Topology | None, list[NeedleError]]:
    """The topology of a made cluster, else of one that is not made yet; and why others have none.
    Raises WrongCluster if they belong to two clusters."""
    body = calls.encode(TopologyCall(0))

    async def ask(address: str) -> Topology | NeedleError:
        try:
            return (
                calls.decode(await caller.call(address, TOPOLOGY, body, timeout), TopologyAnswer).topology or Topology()
            )
        except NeedleError as error:
            return error

    loop = asyncio.get_running_loop()
    waiting = {loop.create_task(ask(address)) for address in addresses}
    failures: list[NeedleError] = []
    found: Topology | None = None
    unmade: Topology | None = None
    until = float("inf")
    try:
        while waiting and (left := until - loop.time()) > 0:
            most = None if found is None else left
            done, waiting = await asyncio.wait(waiting, timeout=most, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                answer = task.result()
                if isinstance(answer, NeedleError):
                    failures.append(answer)
                elif answer.settings is not None:
                    if found is not None and found.founding != answer.founding:
                        raise two_clusters(found.founding, answer.founding)
                    if found is None:
                        until = loop.time() + OTHERS_SECONDS
                    found = answer if found is None or answer.version > found.version else found
                else:
                    unmade = answer  # another one may know more
    finally:
        for task in waiting:
            task.cancel()
    return unmade if found is None else found, failures


def two_clusters(one: int, other: int) -> WrongCluster:
    """The refusal of a client that hears of both. one, other: their foundings."""
    return WrongCluster(
        f"nodes at the known addresses belong to two clusters with one cluster_id (foundings {one:x} and {other:x}): a "
        "node was founded again there. Stop it, or connect without its address",
        theirs=other,
        ours=one,
    )
