"""Every error Needle raises: one tree, each with a code, a message a stranger can act on, and whether a retry is safe.

`retryable` means: the operation had no effect (or repeating it is harmless), so the same call may be sent again.
Errors cross the wire as (code, message, details) and are rebuilt by `from_wire`; an unknown code becomes `Internal`.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, ClassVar

Detail = str | int | float | bool | None


class NeedleError(Exception):
    """Root of the tree. `code` is stable across releases; `details` are machine-readable facts."""

    code: ClassVar[str] = "needle_error"
    retryable: ClassVar[bool] = False
    of_the_node: ClassVar[bool] = False
    """Whether the fault is the asked node's own, so that another replica may well answer a read."""

    def __init__(self, message: str, **details: Detail) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Detail] = details

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"

    def __reduce__(self) -> tuple[Any, ...]:
        return (from_wire, (self.code, self.message, self.details))


# --- the caller's mistakes: nothing changed, the same call will fail again -------------------------------------------
class InvalidArgument(NeedleError):
    """A value that is not allowed. The message names the field, the value and what is allowed."""

    code = "invalid_argument"


class ConfigError(InvalidArgument):
    """A configuration that cannot work."""

    code = "invalid_config"


class UnknownMethod(InvalidArgument):
    """The node has no such call: it is of another release."""

    code = "unknown_method"
    of_the_node = True


class CollectionNotFound(NeedleError):
    """There is no collection of this name."""

    code = "collection_not_found"


class CollectionExists(NeedleError):
    """There is a collection of this name, with other settings or not made by this call."""

    code = "collection_exists"


class DocumentNotFound(NeedleError):
    """There is no document with the id that a search is to be like. `details["id"]` names it."""

    code = "document_not_found"


class AlreadyExists(NeedleError):
    """insert_if_absent found a document with this id. `details["version"]` is its version."""

    code = "already_exists"


class ClusterTooOld(NeedleError):
    """The command is newer than the cluster's version; nothing was changed. `nodes`: those to be upgraded first."""

    code = "cluster_too_old"


class ScanEnded(NeedleError):
    """A consistent scan's state is not kept any more: begin it again, which is safe; the same cursor fails again."""

    code = "scan_ended"


class VersionMismatch(NeedleError):
    """compare_and_set found another version. `details["actual"]` is it; 0 means absent."""

    code = "version_mismatch"


class ConditionFailed(NeedleError):
    """A write with `if_matches` found a document that does not match; nothing was written. `details["id"]` names it."""

    code = "condition_failed"


class RebalanceEnded(NeedleError):
    """A rebalance failed, or was cancelled; the message says why. `details["id"]`, `details["state"]` if known."""

    code = "rebalance_ended"


class KeyReused(NeedleError):
    """Another request was sent with the same idempotency key. This one was not executed."""

    code = "idempotency_key_reused"


class OutcomeForgotten(NeedleError):
    """The request with this idempotency key was executed before, at least in part, when its documents were in other
    shards: what came of it cannot be told any more. It was not executed again."""

    code = "outcome_forgotten"


class Unauthenticated(NeedleError):
    """The caller did not say who it is, or with a key that this cluster does not have (any more)."""

    code = "unauthenticated"


class Forbidden(NeedleError):
    """The caller's key may not do this: its role does not suffice, or it is for other collections."""

    code = "forbidden"


# --- the cluster cannot serve this now: nothing happened, try again --------------------------------------------------
class Unavailable(NeedleError):
    """The cluster cannot serve this now; nothing happened."""

    code = "unavailable"
    retryable = True


class NotLeader(Unavailable):
    """This node does not lead the group. `details["leader"]` names who does, if known."""

    code = "not_leader"


class NoQuorum(Unavailable):
    """No majority of the group's voters answers."""

    code = "no_quorum"


class Overloaded(Unavailable):
    """A bound on queued work is reached; slow down."""

    code = "overloaded"


class TooManyRequests(Overloaded):
    """The API key has used up what it may ask of this node in a second. `details["wait"]`: seconds until there is room
    again; `details["limit"]`: of what: requests, documents or bytes."""

    code = "too_many_requests"


class TooManyFiles(Unavailable):
    """This process may open no more files or connections now (`ulimit -n`). The disk is fine."""

    code = "too_many_files"


class FileAwaited(Unavailable):
    """A log entry names a file that is not on this node yet: it is fetched from the other replicas. A retry is safe."""

    code = "file_awaited"


class OutOfMemory(Unavailable):
    """The node takes as much memory as it may: data is refused, all else goes on. Or the system gives it no more."""

    code = "out_of_memory"


class InMaintenance(Unavailable):
    """The node is in maintenance mode and drains."""

    code = "in_maintenance"


class TransferFailed(Unavailable):
    """Leadership could not be handed over in time; the old leader goes on."""

    code = "transfer_failed"


class LostState(Unavailable):
    """This node's replica lost entries or votes that others count on, or contradicts them: it serves nothing more."""

    code = "lost_state"


class MembershipChangePending(Unavailable):
    """One membership change at a time."""

    code = "membership_change_pending"


class TooStale(Unavailable):
    """An eventual read asked for more freshness than this replica has."""

    code = "too_stale"


class StaleEpoch(Unavailable):
    """The request was routed by another version of the shard map than this node's; `details["version"]` is the
    catalog version that tells better, `details["epoch"]` this node's epoch."""

    code = "stale_epoch"


class ReplicaDamaged(Unavailable):
    """This node's replica found its data damaged, and serves nothing until it has it again; other nodes answer."""

    code = "replica_damaged"


class DeadlineExceeded(Unavailable):
    """A read or an idempotent call did not finish within its timeout."""

    code = "deadline_exceeded"


class ConnectionLost(Unavailable):
    """The connection broke before an answer came; whether a write in flight took effect is unknown to this layer.
    Reads and numbered writes may be repeated; the client does so by itself."""

    code = "connection_lost"


class ClientClosed(ConnectionLost):
    """This client was closed; nothing can be asked with it any more."""

    code = "client_closed"
    retryable = False


# --- a write whose fate is unknown -----------------------------------------------------------------------------------
class OutcomeUnknown(NeedleError):
    """The write may or may not have taken effect. Not safe to repeat blindly: read first, or use compare_and_set."""

    code = "outcome_unknown"


class ProposalDropped(Unavailable):
    """The proposal's log entry was replaced by another leader's: it did not and never will take effect."""

    code = "proposal_dropped"


class SessionExpired(NeedleError):
    """The replicated dedupe table no longer knows this client session, so a repeated write cannot be recognised."""

    code = "session_expired"


class DiskFull(NeedleError):
    """Too little room on the disk for more data: nothing was changed; reads, deletes and drops go on meanwhile."""

    code = "disk_full"
    of_the_node = True


# --- the wire --------------------------------------------------------------------------------------------------------
class ProtocolError(NeedleError):
    """The peer sent something that is not Needle's protocol; the connection is closed."""

    code = "protocol_error"
    of_the_node = True


class UnsupportedVersion(ProtocolError):
    """The peer speaks no version of the protocol that is spoken here."""

    code = "unsupported_version"


class WrongCluster(ProtocolError):
    """The peer belongs to another cluster."""

    code = "wrong_cluster"


class TlsFailed(ProtocolError):
    """One side speaks TLS and the other does not, or a certificate is refused; `details["expired"]`: it has expired."""

    code = "tls_failed"


class FrameTooLarge(ProtocolError):
    """A request or an answer is larger than the limit of `limits.frame_bytes_max`."""

    code = "frame_too_large"


# --- the disk --------------------------------------------------------------------------------------------------------
class StorageError(NeedleError):
    """The disk failed or holds what it should not."""

    code = "storage_error"
    of_the_node = True


class DiskFailed(StorageError):
    """An fsync or write failed. Fatal for the node: a failed fsync is never retried (its data may be gone)."""

    code = "disk_failed"


class CorruptLog(StorageError):
    """A Raft log record fails its checksum."""

    code = "corrupt_log"


class CorruptDocuments(StorageError):
    """The documents that this replica stores are damaged: a page, or a row, is not what was written."""

    code = "corrupt_documents"


class CorruptSegment(StorageError):
    """A segment file is missing, torn or fails its checksum."""

    code = "corrupt_segment"


class CorruptSnapshot(StorageError):
    """A received snapshot fails verification."""

    code = "corrupt_snapshot"


class CorruptBackup(StorageError):
    """A file of a backup is missing, or is not what was written."""

    code = "corrupt_backup"


class RestoreDiffers(StorageError):
    """What was restored is not what the backup holds."""

    code = "restore_differs"


class UnsupportedFormat(StorageError):
    """The data directory was written by another format version, or belongs to another node."""

    code = "unsupported_format"


class Internal(NeedleError):
    """A bug in Needle. Please report it with the message."""

    code = "internal"


def _tree(cls: type[NeedleError]) -> list[type[NeedleError]]:
    return [cls] + [leaf for child in cls.__subclasses__() for leaf in _tree(child)]


def by_code() -> dict[str, type[NeedleError]]:
    """Every class by its code."""
    return {cls.code: cls for cls in _tree(NeedleError)}


def from_wire(code: str, message: str, details: dict[str, Detail] | None = None) -> NeedleError:
    """The error that `code` names, as raised on the other side of the wire."""
    if (cls := by_code().get(code)) is None:
        return Internal(f"{message} (unknown error code {code!r})", **(details or {}))
    return cls(message, **(details or {}))


def invalid(field: str, value: object, allowed: str) -> InvalidArgument:
    """The one way to refuse a value: names the field, shows the value (shortened), says what is allowed."""
    return InvalidArgument(f"{field} = {shown(value)} is not allowed: {allowed}", field=field)


def shown(value: object) -> str:
    """A value, of an enumeration its value, as an error shows it: at most 80 characters, whatever repr() does."""
    try:
        text = repr(value.value if isinstance(value, Enum) else value)
    except Exception:  # noqa: BLE001 - a caller's class: the refusal must come through
        text = f"<{type(value).__qualname__}>"
    return text if len(text) <= 80 else text[:50] + f"... ({len(text)} characters)"


def in_seconds(seconds: float) -> str:
    """A length of time as an error shows it: what is left of a timeout has more digits than anybody wants to read."""
    return f"{max(0.0, seconds):.3g} s" if seconds < 100 else f"{seconds:.0f} s"
