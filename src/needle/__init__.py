"""Needle: a distributed, strongly consistent vector database in pure Python. Every write goes through Raft.

`connect` and `connect_sync` make clients; `needle.distributed` holds the embedded cluster; the errors are here too.
Names are loaded when first used, so that importing a small part of the package stays cheap. Type checkers read
`__init__.pyi`, which `needle.cli.api_reference` makes of the table below.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "needle.base.access": "Role",
    "needle.base.collection_sizes": "CollectionSize IndexProgress",
    "needle.base.config": "RaftConfig SegmentConfig",
    "needle.base.errors": (
        "AlreadyExists ClientClosed "
        "ClusterTooOld CollectionExists CollectionNotFound ConditionFailed ConfigError ConnectionLost "
        "CorruptBackup CorruptDocuments CorruptLog CorruptSegment CorruptSnapshot DeadlineExceeded DiskFailed DiskFull "
        "DocumentNotFound FileAwaited Forbidden FrameTooLarge "
        "InMaintenance Internal InvalidArgument KeyReused LostState MembershipChangePending "
        "NeedleError NoQuorum NotLeader OutcomeForgotten OutcomeUnknown OutOfMemory Overloaded ProposalDropped "
        "ProtocolError RebalanceEnded ReplicaDamaged RestoreDiffers ScanEnded SessionExpired StaleEpoch StorageError "
        "TlsFailed TooManyFiles TooManyRequests TooStale "
        "TransferFailed Unauthenticated Unavailable "
        "UnknownMethod UnsupportedFormat UnsupportedVersion VersionMismatch WrongCluster"
    ),
    "needle.base.explain": "SegmentExplanation ShardExplanation Way",
    "needle.base.filters.builder": "Filter",
    "needle.base.model": (
        "CollectionSpec Document Hit IndexKind IndexParams Metric PeerStatus RaftStatus ReadMode VectorSpec WriteResult"
    ),
    "needle.base.sparse": "sparse_vector",
    "needle.base.text": "TextField",
    "needle.client": (
        "ApiKey Change Changes Client CollectionDescription Facet Hits NewApiKey PartialHits ScanPage SyncChanges "
        "SyncClient"
    ),
    "needle.client.hybrid": "RRF",
    "needle.client.naming_requests": "request_id",
    "needle.connecting": "connect connect_sync",
    "needle.distributed": "RaftCluster",
    "needle.embedded": "open open_sync",
}
"""Every public name, by the module that defines it."""

_HOMES = {name: home for home, names in _PUBLIC.items() for name in names.split()}

__version__ = "0.1.0"
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'needle' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(home), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "needle":
            raise
        text = f"needle.{name} needs the server ({error.name} is not installed): pip install 'needle-vdb[server]'"
        raise ModuleNotFoundError(text, name=error.name) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
