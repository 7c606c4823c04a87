"""The client: `Client` for asyncio, `SyncClient` for everyone else, and both for sharded clusters with more methods.
`needle.connect` and `connect_sync` make them."""

from needle.client.client import Client
from needle.client.document_calls import PartialHits
from needle.client.sharded import ShardedClient
from needle.client.sync import SyncClient, SyncShardedClient

__all__ = ["Client", "PartialHits", "ShardedClient", "SyncClient", "SyncShardedClient"]
