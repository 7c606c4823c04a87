"""Which request with an idempotency key a call belongs to, while it is under way.

Invariant: every write of documents that such a call makes says so to its shard, however often it is sent and however
the request is cut; so a request that is sent again, through another node too, is not executed again (shard/apply/once).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import blake2b

from needle.base.errors import ClusterTooOld
from needle.protocol.commands import Asked, Once
from needle.routing.topology import Topology

_BYTES = 16

asking: ContextVar[Asked | None] = ContextVar("asking", default=None)
"""Of the call that is under way here; None if it has no key."""


@contextmanager
def asked_by(asked: Asked | None) -> Iterator[None]:
    """What is begun inside belongs to this request, or to none."""
    token = asking.set(asked)
    try:
        yield
    finally:
        asking.reset(token)


def asked_for(caller: str, key: str, request: Iterable[bytes]) -> Asked:
    """caller: whose key it is: others may use the same one. request: everything that is asked for, in parts."""
    name = caller.encode()
    whole, all_ = blake2b(b"%d:%b%b" % (len(name), name, key.encode()), digest_size=_BYTES), blake2b(digest_size=_BYTES)
    for part in request:
        all_.update(b"%d:" % len(part))
        all_.update(part)
    return Asked(whole.digest(), all_.digest())


def check_known(now: Topology) -> None:
    """Raises ClusterTooOld while there are nodes that would execute a repetition."""
    if now.cluster_version < Once.SINCE:
        raise ClusterTooOld(
            f"idempotency keys need version {Once.SINCE} of commands and formats, and the cluster is at "
            f"{now.cluster_version}: `needle node list` says which nodes are of an older release",
            needs=Once.SINCE,
            version=now.cluster_version,
        )
