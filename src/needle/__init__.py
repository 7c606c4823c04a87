"""Needle: a distributed, strongly consistent vector database in pure Python. Every write goes through Raft.

`connect` and `connect_sync` make clients; `needle.distributed` holds the embedded cluster; the errors are here too.
Names are loaded when first used, so that importing a small part of the package stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from needle.base.config import RaftConfig, SegmentConfig
    from needle.base.errors import (
        AlreadyExists,
        CollectionExists,
        CollectionNotFound,
        ConfigError,
        ConnectionLost,
        CorruptLog,
        CorruptSegment,
        CorruptSnapshot,
        DeadlineExceeded,
        DiskFailed,
        FrameTooLarge,
        InMaintenance,
        Internal,
        InvalidArgument,
        MembershipChangePending,
        NeedleError,
        NoQuorum,
        NotLeader,
        OutcomeUnknown,
        Overloaded,
        ProposalDropped,
        ProtocolError,
        SessionExpired,
        StaleEpoch,
        StorageError,
        TooStale,
        TransferFailed,
        Unavailable,
        UnsupportedFormat,
        UnsupportedVersion,
        VersionMismatch,
        WrongCluster,
    )
    from needle.base.filters.builder import Filter
    from needle.base.model import (
        CollectionSpec,
        Document,
        Hit,
        IndexParams,
        Metric,
        PeerStatus,
        RaftStatus,
        ReadMode,
        WriteResult,
    )
    from needle.client import Client, PartialHits, ShardedClient, SyncClient, SyncShardedClient
    from needle.connecting import connect, connect_sync
    from needle.distributed import RaftCluster

_ERRORS = (
    *("AlreadyExists", "CollectionExists", "CollectionNotFound", "ConfigError", "ConnectionLost", "CorruptLog"),
    *("CorruptSegment", "CorruptSnapshot", "DeadlineExceeded", "DiskFailed", "FrameTooLarge", "InMaintenance"),
    *("Internal", "InvalidArgument", "MembershipChangePending", "NeedleError", "NoQuorum", "NotLeader"),
    *("OutcomeUnknown", "Overloaded", "ProposalDropped", "ProtocolError", "SessionExpired", "StorageError"),
    *("TooStale", "TransferFailed", "Unavailable", "UnsupportedFormat", "UnsupportedVersion"),
    *("StaleEpoch", "VersionMismatch", "WrongCluster"),
)
_MODEL = ("CollectionSpec", "Document", "Hit", "IndexParams", "Metric", "PeerStatus", "RaftStatus", "ReadMode")

_HOMES: dict[str, str] = {
    **dict.fromkeys(_ERRORS, "needle.base.errors"),
    **dict.fromkeys((*_MODEL, "WriteResult"), "needle.base.model"),
    **dict.fromkeys(("RaftConfig", "SegmentConfig"), "needle.base.config"),
    "Filter": "needle.base.filters.builder",
    **dict.fromkeys(("Client", "PartialHits", "ShardedClient", "SyncClient", "SyncShardedClient"), "needle.client"),
    "RaftCluster": "needle.distributed",
    "connect": "needle.connecting",
    "connect_sync": "needle.connecting",
}

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'needle' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


__all__ = [
    "AlreadyExists",
    "Client",
    "CollectionExists",
    "CollectionNotFound",
    "CollectionSpec",
    "ConfigError",
    "ConnectionLost",
    "CorruptLog",
    "CorruptSegment",
    "CorruptSnapshot",
    "DeadlineExceeded",
    "DiskFailed",
    "Document",
    "Filter",
    "FrameTooLarge",
    "Hit",
    "InMaintenance",
    "IndexParams",
    "Internal",
    "InvalidArgument",
    "MembershipChangePending",
    "Metric",
    "NeedleError",
    "NoQuorum",
    "NotLeader",
    "OutcomeUnknown",
    "Overloaded",
    "PartialHits",
    "PeerStatus",
    "ProposalDropped",
    "ProtocolError",
    "RaftCluster",
    "RaftConfig",
    "RaftStatus",
    "ReadMode",
    "SegmentConfig",
    "SessionExpired",
    "ShardedClient",
    "StaleEpoch",
    "StorageError",
    "SyncClient",
    "SyncShardedClient",
    "TooStale",
    "TransferFailed",
    "Unavailable",
    "UnsupportedFormat",
    "UnsupportedVersion",
    "VersionMismatch",
    "WriteResult",
    "WrongCluster",
    "connect",
    "connect_sync",
]
