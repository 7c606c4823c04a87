"""How two ends of a connection show each other that they know the same secret, without saying it.

Each sends a nonce, and the HMAC-SHA256 of both nonces and both names under the secret, for its own side: what was heard
on one connection proves nothing on another, and what one side said cannot be said back to it. It does not protect what
follows: who can change the packets of a connection can take it over once it stands.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Sequence
from typing import Final

import msgspec

from needle.base.errors import Unauthenticated

NONCE_BYTES: Final = 32
CALLER: Final = "caller"
NODE: Final = "node"


def new_nonce() -> bytes:
    """One that nobody can foretell."""
    return os.urandom(NONCE_BYTES)


class Exchange(msgspec.Struct, frozen=True, array_like=True):
    """What a proof is about. caller, node: the names that the two ends say; "" of a client. *_nonce: of each."""

    cluster_id: str
    caller: str
    node: str
    caller_nonce: bytes
    node_nonce: bytes

    def proof(self, secret: str, side: str) -> bytes:
        """By the side CALLER or NODE."""
        said = msgspec.msgpack.encode(("needle hello", side, self))
        return hmac.digest(secret.encode(), said, hashlib.sha256)

    def proven(self, secrets: Sequence[str], side: str, proof: bytes) -> str:
        """Which of the secrets `side` has proved to know. Raises Unauthenticated if it is none."""
        if len(self.caller_nonce) != NONCE_BYTES or len(self.node_nonce) != NONCE_BYTES:
            raise Unauthenticated("the hello has no nonce of 32 bytes")
        found = [secret for secret in secrets if hmac.compare_digest(self.proof(secret, side), proof)]
        if not found:
            raise Unauthenticated(
                "the two sides have different secrets: cluster_secret must be the same on all nodes of the cluster"
            )
        return found[0]
