"""What the door asks of the node behind it."""

from __future__ import annotations

from typing import Any, Protocol

from needle.base.errors import NeedleError
from needle.base.runtime import Rng
from needle.client.router.router import Router as ShardRouter
from needle.client.shards import ClusterShards
from needle.server.access import Access
from needle.server.audit import Audit
from needle.server.http.message import Blocking
from needle.server.service.watched import Watch


class WatchingService(Protocol):
    """watch: what is told of calls that somebody follows."""

    watch: Watch


class DoorNode(Protocol):
    """The node behind the door."""

    access: Access
    caller: Any
    host: Any
    router: ShardRouter

    @property
    def service(self) -> WatchingService: ...
    @property
    def shards(self) -> ClusterShards: ...
    @property
    def rng(self) -> Rng: ...
    @property
    def blocking(self) -> Blocking: ...
    @property
    def audit(self) -> Audit | None: ...
    def alive(self) -> bool: ...
    def observe(self, what: str, seconds: float, error: NeedleError | None) -> None: ...
    def now(self) -> float: ...
