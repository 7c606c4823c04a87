"""Helpers for tests of a replica: a log to feed it, and a model that says what it must hold."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from needle.base.config import Limits, SegmentConfig
from needle.base.model import CollectionSpec, Metric
from needle.base.versions import KNOWN
from needle.multiraft.ports import Applied
from needle.protocol.commands import Command, Insert, OpenSession, Session, encode
from needle.shard.caretaker import Caretaker
from needle.shard.disk import ReplicaDisk
from needle.shard.state_machine import Replica

SEGMENTS = SegmentConfig()


def open_replica(
    directory: Any,
    failpoint: Callable[[str], None] | None = None,
    purge: int = 1,
    commit: int = 1024,
    feed_rows_bytes: int = 0,
    version: Callable[[], int] = lambda: KNOWN,
) -> Replica:
    """commit: rows of one SQLite commit; with 1 no batch waits for it. feed_rows_bytes: what stays for change feeds."""
    return Replica(
        str(directory),
        limits=Limits(commit_rows_max=commit, feed_rows_bytes_max=feed_rows_bytes),
        segments=SEGMENTS,
        disk=ReplicaDisk(),
        failpoint=failpoint or (lambda _: None),
        purge_rows_min=purge,
        version=version,
    )


def spec(name: str = "c", dimensions: int = 3, metric: Metric = Metric.L2) -> CollectionSpec:
    return CollectionSpec(name=name, dimensions=dimensions, metric=metric)


def floats(*rows: Sequence[float]) -> bytes:
    return np.array(rows, "<f4").tobytes()


def put(
    ids: Sequence[str], rows: Sequence[Sequence[float]], metadata: Sequence[Any] | None = None, **kw: Any
) -> Insert:
    values = metadata if metadata is not None else [None] * len(ids)
    encoded = [b"" if value is None else json.dumps(value).encode() for value in values]
    session = kw.pop("session", Session())
    return Insert(kw.pop("collection", "c"), list(ids), floats(*rows), encoded, session=session, **kw)


def caretaker(replica: Replica, interval: float = 3600.0, short: Callable[[], bool] = lambda: False) -> Caretaker:
    """On virtual time (the running loop's), without threads."""

    async def run(call: Callable[..., Any], *arguments: Any) -> Any:
        return call(*arguments)

    pool: Any = SimpleNamespace(run=run)
    clock: Any = SimpleNamespace(monotonic=asyncio.get_running_loop().time)
    return Caretaker(replica, pool, clock, interval, short)


class Log:
    """Committed entries, numbered from 1, in term 1."""

    def __init__(self) -> None:
        self.entries: list[Applied] = []

    def add(self, *commands: Command | None, conf: bytes | None = None) -> list[Applied]:
        new = []
        for command in commands:
            data = b"" if command is None else encode(command)
            new.append(Applied(index=len(self.entries) + 1, term=1, data=data, conf=conf))
            self.entries.append(new[-1])
        return new

    def session(self, replica: Replica, nonce: int = 7) -> int:
        return int(replica.apply(self.add(OpenSession(nonce)))[0].index)
