"""Giving calls of the binary protocol a name, by which they are found in the logs of nodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from needle.base.errors import invalid
from needle.base.request import ID_MAX, Request, current, is_id


@contextmanager
def request_id(id: str) -> Iterator[None]:
    """The calls that are made inside are called `id` in the logs of nodes, as by HTTP's `x-request-id`. id: 1 to 128
    printable ASCII characters. Raises InvalidArgument for another one."""
    if not isinstance(id, str) or not is_id(id):
        raise invalid("request_id", id, f"1 to {ID_MAX} printable ASCII characters")
    outer = current.get()
    token = current.set(Request(id, outer.trace if outer is not None else ""))
    try:
        yield
    finally:
        current.reset(token)
