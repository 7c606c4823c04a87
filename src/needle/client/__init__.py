"""The client: `Client` for asyncio, `SyncClient` for everyone else. `needle.connect` and `connect_sync` make them."""

from needle.client.changes import ScanPage
from needle.client.client import Client
from needle.client.document_calls import Facet, Hits, PartialHits
from needle.client.feed import Change, Changes
from needle.client.feed_sync import SyncChanges
from needle.client.keys import ApiKey, NewApiKey
from needle.client.naming import CollectionDescription
from needle.client.sync import SyncClient

__all__ = [
    "ApiKey",
    "Change",
    "Changes",
    "Client",
    "CollectionDescription",
    "Facet",
    "Hits",
    "NewApiKey",
    "PartialHits",
    "ScanPage",
    "SyncChanges",
    "SyncClient",
]
