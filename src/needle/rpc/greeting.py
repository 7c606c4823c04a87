"""The hello of one accepted connection: who the caller is, and whether it knows the cluster's secret.

Invariant: a caller that says a nonce is asked to prove the secret before it is admitted; it has one attempt. Does not
know connections.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import msgspec

from needle.base import access
from needle.base.access import Identity
from needle.base.errors import Overloaded
from needle.base.parts import Payload
from needle.rpc.codec import Hello, check_hello, decode
from needle.rpc.handler import Handler, Peer
from needle.rpc.proof import CALLER, NODE, Exchange, new_nonce

PEERS_MAX = 256
"""So many of the connections, a quarter at most, are for other nodes only: clients that take all that they can get must
not keep the members of a cluster apart."""


class Greeted(Protocol):
    """What it needs of the server. hello: the server's own. least: what nodes must know. secrets: see RpcServer."""

    handler: Handler
    hello: Hello
    least: int
    secrets: tuple[str, ...]


class Introduced(NamedTuple):
    """A caller that is admitted. hello: as it was said, but without a node's name where the caller may not do what
    nodes may: with any API key one could say to be the leader, and end. proven: that it knows the secret; then it was
    answered already."""

    hello: Hello
    identity: Identity
    proven: bool

    def peer(self, remote: str) -> Peer:
        """As handlers know it. remote: its "host:port"."""
        said = self.hello
        return Peer(said.node_id, said.incarnation, remote, self.identity, said.within, said.knows)


class Greeting:
    """Of one connection."""

    def __init__(self, server: Greeted, check: Callable[[str], None]) -> None:
        """check: of the node that somebody says to be, by what else is known of the connection; raises TlsFailed."""
        self._server = server
        self._check = check
        self._asked: Exchange | None = None

    def hear(self, payload: Payload, remote: str) -> Introduced | Hello:
        """Who said this hello; or a hello to answer, by which the caller is asked to prove the secret, and says hello
        once more. Raises ProtocolError, TlsFailed or Unauthenticated for who is refused."""
        theirs = decode(payload, Hello)
        check_hello(self._server.hello, theirs, accepting=True, least=self._server.least)
        question = self._question(theirs)
        if question is not None:
            return question
        proven = self._is_proven(theirs)
        self._check(theirs.node_id)
        identity = self._server.handler.admit(theirs.node_id, theirs.key, proven, remote)
        if identity.rank < access.NODE:
            theirs = msgspec.structs.replace(theirs, node_id="", within="")
        return Introduced(theirs, identity, proven)

    def _question(self, theirs: Hello) -> Hello | None:
        secrets = self._server.secrets
        if not secrets or not theirs.nonce or self._asked is not None:
            return None
        mine = self._server.hello
        made = Exchange(mine.cluster_id, theirs.node_id, mine.node_id, theirs.nonce, new_nonce())
        self._asked = made
        return msgspec.structs.replace(mine, nonce=made.node_nonce, proof=made.proof(secrets[0], NODE))

    def _is_proven(self, theirs: Hello) -> bool:
        """Whether the caller knows the cluster's secret; False if it was not asked. Raises Unauthenticated for who was
        and does not."""
        asked, self._asked = self._asked, None
        if asked is None:
            return False
        msgspec.structs.replace(asked, caller=theirs.node_id).proven(self._server.secrets, CALLER, theirs.proof)
        return True


def no_room(known: int, connections_max: int, node_id: str) -> Overloaded | None:
    """Why who says to be this node ("": a client) is not served besides `known` others; None if there is room."""
    kept = min(PEERS_MAX, connections_max // 4)
    if known < (connections_max if node_id else connections_max - kept):
        return None
    return Overloaded(
        f"this node has {known} connections; its limit is {connections_max}, {kept} of them for other nodes"
    )
