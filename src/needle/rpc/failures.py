"""What a request's failure is called, on the wire and in the log. It must not know connections, or methods."""

from __future__ import annotations

import logging

from needle.base.errors import Forbidden, Internal, NeedleError, OutcomeUnknown, StorageError, Unavailable
from needle.base.events import CALLER_REFUSED, tell

log = logging.getLogger("needle.rpc.server_connection")


def named(error: BaseException, remote: str, key: str) -> NeedleError:
    """The error to answer with; what an operator must hear of is told. key: the name of the caller's API key."""
    if not isinstance(error, NeedleError):
        log.error("a request from %s failed", remote, exc_info=error)
        return Internal(f"{type(error).__name__}: {error}")
    if isinstance(error, Internal | StorageError):
        trace = error if isinstance(error, Internal) else None
        log.error("a request from %s failed: %s", remote, error, exc_info=trace)
    elif isinstance(error, Forbidden):
        tell(CALLER_REFUSED, remote=remote, code=error.code, why=error.message, key=key)
    return error


def cancelled(is_droppable: bool) -> NeedleError:
    """What a caller is told whose request did not end before the node stopped: what changes something may go on."""
    if is_droppable:
        return Unavailable("the request was cancelled: the node is stopping")
    return OutcomeUnknown("the node is stopping and gave the request up; it may take effect")
