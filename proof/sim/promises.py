"""What the product promises its clients by the errors that it raises, as the simulation judges them. Pure."""

from __future__ import annotations

from needle.base.errors import (
    ClusterTooOld,
    CollectionNotFound,
    ConnectionLost,
    DiskFull,
    InvalidArgument,
    NeedleError,
    OutcomeForgotten,
    OutcomeUnknown,
    SessionExpired,
    StorageError,
    Unavailable,
)
from needle.base.model import ReadMode


def surely_without_effect(error: NeedleError) -> bool:
    """The client's promise: a write whose fate is open raises OutcomeUnknown, or breaks off with ConnectionLost."""
    refused = (error.retryable and not isinstance(error, ConnectionLost)) or isinstance(error, DiskFull)
    return refused or is_of_the_past(error)


def is_of_the_past(error: NeedleError) -> bool:
    """An instant that has passed on the shard's leader is refused before it is proposed."""
    return isinstance(error, InvalidArgument) and error.details.get("field") == "expires_at"


def may_be_told(error: NeedleError, mode: object) -> bool:
    """Under faults a client may be told that the cluster cannot serve it now; not that it broke. mode: of a read."""
    if is_of_the_past(error):
        return True  # on a node whose clock is ahead
    if isinstance(error, CollectionNotFound) and mode == ReadMode.EVENTUAL:
        return True  # a prefix of the log from before the collection
    if isinstance(error, OutcomeForgotten):
        return mode is None  # of a write with a key, part of which was executed before its range moved
    passing = Unavailable | OutcomeUnknown | SessionExpired | StorageError | DiskFull
    return isinstance(error, passing | ClusterTooOld)  # until the cluster knows that all nodes are of one release
