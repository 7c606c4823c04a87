"""Who runs the workers of a bulk load: processes of this machine, or a Ray cluster whose machines share the directory.

A worker's call is a function of this package and plain values, its result plain values; files are left in the
directory of the load. An engine runs calls in any order and hands results back in the order of the calls.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from enum import StrEnum
from multiprocessing.connection import wait
from typing import Any, Protocol, TypeVar

from needle.base.errors import ConfigError, NeedleError, Unavailable

T = TypeVar("T")


class EngineName(StrEnum):
    """Who runs the workers."""

    LOCAL = "local"
    RAY = "ray"


class Engine(Protocol):
    """See the module."""

    def map(self, call: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> Iterator[T]:
        """Raises what a call raised."""
        ...

    def close(self) -> None:
        """Give the workers back."""
        ...


def _end_with_parent() -> None:
    """A worker whose command was killed would wait for work forever, or go on in the directory of the next command."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


class LocalEngine:
    """Processes of this machine, which share nothing with this one."""

    def __init__(self, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)

    def map(self, call: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> Iterator[T]:
        """See Engine."""
        try:
            for one in [self._pool.submit(call, *one) for one in arguments]:
                yield one.result()
        except BrokenProcessPool:
            raise Unavailable(
                "a worker process ended before it was done: somebody killed it, or the machine had no more memory. Run "
                "the command again, which goes on behind what is made; with fewer --workers it needs less memory"
            ) from None

    def close(self) -> None:
        """See Engine."""
        self._pool.shutdown(cancel_futures=True)


class RayEngine:
    """Tasks of Ray, of one CPU each. RAY_ADDRESS says which cluster; without it, one is started on this machine."""

    def __init__(self, workers: int) -> None:
        """workers: CPUs of a cluster that is started here."""
        try:
            ray = importlib.import_module("ray")
        except ImportError:
            text = "--engine ray needs a library: pip install 'needle-vdb[bulk]'"
            raise ConfigError(text, field="--engine") from None
        self._ray = ray
        there = os.environ.get("RAY_ADDRESS")
        started = {} if there else {"num_cpus": workers, "include_dashboard": False}
        ray.init(log_to_driver=False, logging_level="ERROR", **started)

    def map(self, call: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> Iterator[T]:
        """See Engine."""
        remote = self._ray.remote(num_cpus=1, max_retries=2)(call)
        waiting = [remote.remote(*one) for one in arguments]
        for one in waiting:
            try:
                yield self._ray.get(one)
            except self._ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, NeedleError):
                    raise error.cause from None
                raise

    def close(self) -> None:
        """See Engine."""
        self._ray.shutdown()


def engine(name: EngineName, workers: int) -> Engine:
    """The one of that name."""
    return RayEngine(workers) if name is EngineName.RAY else LocalEngine(workers)
