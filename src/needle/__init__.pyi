"""Made by `python -m needle.cli.api_reference` from the table in `__init__.py`. Do not edit."""

from needle.base.config import RaftConfig as RaftConfig
from needle.base.config import SegmentConfig as SegmentConfig
from needle.base.errors import AlreadyExists as AlreadyExists
from needle.base.errors import ClientClosed as ClientClosed
from needle.base.errors import CollectionExists as CollectionExists
from needle.base.errors import CollectionNotFound as CollectionNotFound
from needle.base.errors import ConditionFailed as ConditionFailed
from needle.base.errors import ConfigError as ConfigError
from needle.base.errors import ConnectionLost as ConnectionLost
from needle.base.errors import CorruptDocuments as CorruptDocuments
from needle.base.errors import CorruptLog as CorruptLog
from needle.base.errors import CorruptSegment as CorruptSegment
from needle.base.errors import CorruptSnapshot as CorruptSnapshot
from needle.base.errors import DeadlineExceeded as DeadlineExceeded
from needle.base.errors import DiskFailed as DiskFailed
from needle.base.errors import DiskFull as DiskFull
from needle.base.errors import DocumentNotFound as DocumentNotFound
from needle.base.errors import FrameTooLarge as FrameTooLarge
from needle.base.errors import InMaintenance as InMaintenance
from needle.base.errors import Internal as Internal
from needle.base.errors import InvalidArgument as InvalidArgument
from needle.base.errors import LostState as LostState
from needle.base.errors import MembershipChangePending as MembershipChangePending
from needle.base.errors import NeedleError as NeedleError
from needle.base.errors import NoQuorum as NoQuorum
from needle.base.errors import NotLeader as NotLeader
from needle.base.errors import OutcomeUnknown as OutcomeUnknown
from needle.base.errors import OutOfMemory as OutOfMemory
from needle.base.errors import Overloaded as Overloaded
from needle.base.errors import ProposalDropped as ProposalDropped
from needle.base.errors import ProtocolError as ProtocolError
from needle.base.errors import ReplicaDamaged as ReplicaDamaged
from needle.base.errors import SessionExpired as SessionExpired
from needle.base.errors import StaleEpoch as StaleEpoch
from needle.base.errors import StorageError as StorageError
from needle.base.errors import TooManyFiles as TooManyFiles
from needle.base.errors import TooStale as TooStale
from needle.base.errors import TransferFailed as TransferFailed
from needle.base.errors import Unavailable as Unavailable
from needle.base.errors import UnknownMethod as UnknownMethod
from needle.base.errors import UnsupportedFormat as UnsupportedFormat
from needle.base.errors import UnsupportedVersion as UnsupportedVersion
from needle.base.errors import VersionMismatch as VersionMismatch
from needle.base.errors import WrongCluster as WrongCluster
from needle.base.filters.builder import Filter as Filter
from needle.base.model import CollectionSpec as CollectionSpec
from needle.base.model import Document as Document
from needle.base.model import Hit as Hit
from needle.base.model import IndexParams as IndexParams
from needle.base.model import Metric as Metric
from needle.base.model import PeerStatus as PeerStatus
from needle.base.model import RaftStatus as RaftStatus
from needle.base.model import ReadMode as ReadMode
from needle.base.model import WriteResult as WriteResult
from needle.client import Client as Client
from needle.client import CollectionDescription as CollectionDescription
from needle.client import PartialHits as PartialHits
from needle.client import ScanPage as ScanPage
from needle.client import SyncClient as SyncClient
from needle.connecting import connect as connect
from needle.connecting import connect_sync as connect_sync
from needle.distributed import RaftCluster as RaftCluster

__version__: str
__all__: list[str]
_PUBLIC: dict[str, str]
