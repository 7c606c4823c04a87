"""The one table of routes: what the door serves, and what its OpenAPI document is made of."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

import msgspec

from needle.client.document_calls import Facet
from needle.client.keys import NewApiKey
from needle.routing.stats import RebalanceStats
from needle.server.http import (
    aliases,
    bodies,
    cluster,
    cluster_bodies,
    collection_bodies,
    collections,
    documents,
    events,
    hybrid,
    hybrid_bodies,
    keys,
    searches,
    status,
    vectors,
)
from needle.server.http.bodies import Nothing
from needle.server.http.call import Call

Handler = Callable[[Call], Awaitable[Any]]
NDJSON: Final = "application/x-ndjson"
BASE: Final = "/v1"


class Route(msgspec.Struct, frozen=True):
    """path: with {names}. body: of the request; a GET or a DELETE has it as query parameters. answer: its schema; None
    for lines of JSON, or events. role: who may call it. example: of the body. filtered: it names no collection in its
    path, and its handler leaves out of the answer what the caller's key is not for; else keys for some collections are
    refused. events: server-sent ones."""

    method: str
    path: str
    handler: Handler
    summary: str
    body: type[bodies.Body]
    answer: type | None
    role: Literal["reader", "writer", "admin"]
    example: Any = None
    tag: str = "documents"
    filtered: bool = False
    events: bool = False

    @property
    def name(self) -> str:
        """The operation's id."""
        return self.handler.__name__

    @property
    def in_query(self) -> bool:
        """Whether what it says is in the query."""
        return self.method in ("GET", "DELETE")

    @property
    def keyed(self) -> bool:
        """Whether it takes an idempotency key: it writes documents."""
        return self.role == "writer"

    @property
    def parameters(self) -> list[str]:
        """The names in its path."""
        return re.findall(r"{(\w+)", self.path)


_IN: Final = f"{BASE}/collections/{{collection}}"
_VECTOR: Final = [0.1, 0.2, 0.3, 0.4]

ROUTES: Final = (
    # --- documents: the ones that are called most come first, for paths are compared in this order -------------------
    Route(
        "POST", f"{_IN}/search", searches.search, "The nearest documents", bodies.Search, bodies.Hits, "reader",
        {"vector": _VECTOR, "k": 3, "filter": {"genre": "scifi"}},
    ),
    Route(
        "PUT", f"{_IN}/documents/{{id:path}}", documents.put_document, "Insert or replace a document",
        bodies.PutDocument, bodies.Written, "writer", {"vector": _VECTOR, "metadata": {"genre": "scifi", "year": 1969}},
    ),
    Route(
        "GET", f"{_IN}/documents/{{id:path}}", documents.get_document, "A document",
        bodies.GetDocument, bodies.Document, "reader",
    ),
    Route(
        "PATCH", f"{_IN}/documents/{{id:path}}", documents.patch_document, "Change a document's metadata",
        bodies.PatchDocument, bodies.Written, "writer", {"set": {"year": 1970}},
    ),
    Route(
        "DELETE", f"{_IN}/documents/{{id:path}}", documents.delete_document, "Delete a document",
        Nothing, bodies.Written, "writer",
    ),
    Route(
        "POST", f"{_IN}/insert", documents.insert_documents, "Insert or replace many documents",
        bodies.InsertDocuments, bodies.InsertedDocuments, "writer",
        {"ids": ["a", "b"], "vectors": [_VECTOR, _VECTOR], "metadatas": [{"genre": "scifi"}, None]},
    ),
    Route(
        "POST", f"{_IN}/get", documents.get_documents, "Documents by their ids",
        bodies.GetDocuments, bodies.Documents, "reader", {"ids": ["a", "b"], "with_vectors": False},
    ),
    Route(
        "POST", f"{_IN}/search_many", searches.search_many, "The nearest documents of many vectors",
        bodies.SearchMany, bodies.ManyHits, "reader", {"vectors": [_VECTOR, _VECTOR], "k": 3},
    ),
    Route(
        "POST", f"{_IN}/hybrid_search", hybrid.hybrid_search, "The best documents by a vector and by words",
        hybrid_bodies.HybridSearch, bodies.Hits, "reader", {"vector": _VECTOR, "keywords": "ring world", "k": 3},
    ),
    Route(
        "POST", f"{_IN}/patch", documents.patch_documents, "Change the metadata of documents, by ids or by a filter",
        bodies.PatchDocuments, bodies.Written, "writer", {"filter": {"genre": "scifi"}, "set": {"shelf": 4}},
    ),
    Route(
        "POST", f"{_IN}/update_vectors", vectors.update_vectors, "Give documents other vectors",
        vectors.UpdateVectors, bodies.Written, "writer", {"ids": ["a"], "vectors": [_VECTOR]},
    ),
    Route(
        "POST", f"{_IN}/delete", documents.delete_documents, "Delete documents, by ids or by a filter",
        bodies.DeleteDocuments, bodies.Written, "writer", {"filter": {"year": {"$lt": 1950}}, "dry_run": True},
    ),
    Route(
        "POST", f"{_IN}/count", documents.count, "How many documents match",
        bodies.Count, bodies.Counted, "reader", {"filter": {"genre": "scifi"}},
    ),
    Route(
        "POST", f"{_IN}/facet", documents.facet, "How many documents have each value of a field",
        bodies.CountValues, Facet, "reader", {"field": "genre", "filter": {"year": {"$gte": 1970}}},
    ),
    Route(
        "POST", f"{_IN}/scan", documents.scan, "Documents page by page, in the order of their ids",
        bodies.Scan, bodies.Page, "reader", {"limit": 100},
    ),
    Route(
        "POST", f"{_IN}/export", documents.export, "All documents, one JSON object a line",
        bodies.Export, None, "reader", {},
    ),
    Route(
        "GET", f"{_IN}/changes", events.changes, "Each change, as it is committed, as server-sent events",
        events.ReadChanges, None, "reader", events=True,
    ),
    Route(
        "POST", f"{_IN}/watch", events.watch, "Each document that comes near a vector, as server-sent events",
        events.Watch, None, "reader", {"vector": _VECTOR, "max_distance": 0.3}, events=True,
    ),
    # --- collections -------------------------------------------------------------------------------------------------
    Route(
        "GET", f"{BASE}/collections", collections.list_collections, "All collections",
        collection_bodies.ListCollections, collection_bodies.Collections, "reader", tag="collections", filtered=True,
    ),
    Route(
        "POST", f"{BASE}/collections", collections.create_collection, "Create a collection",
        collection_bodies.CreateCollection, collection_bodies.Collection, "admin", {"name": "books", "dimensions": 4},
        "collections",
    ),
    Route(
        "GET", _IN, collections.describe_collection, "A collection", Nothing, collection_bodies.Collection, "reader",
        tag="collections",
    ),
    Route(
        "PATCH", _IN, collections.alter_collection, "Change what may be changed of a collection",
        collection_bodies.AlterCollection, collection_bodies.Collection, "admin", {"ttl": 86400}, "collections",
    ),
    Route(
        "DELETE", _IN, collections.drop_collection, "Delete a collection and all its documents",
        Nothing, bodies.Written, "admin", tag="collections",
    ),
    Route(
        "PUT", f"{_IN}/field_indexes/{{field:path}}", collections.create_field_index,
        "Keep an index of a field of metadata", Nothing, bodies.Written, "admin", tag="collections",
    ),
    Route(
        "DELETE", f"{_IN}/field_indexes/{{field:path}}", collections.drop_field_index,
        "Keep an index of a field only while searches filter on it", Nothing, bodies.Written, "admin",
        tag="collections",
    ),
    Route(
        "PUT", f"{_IN}/vectors/{{vector}}", vectors.add_vector, "Let documents have a further vector, of this name",
        collection_bodies.AddVector, bodies.Written, "admin", {"dimensions": 4}, "collections",
    ),
    Route(
        "DELETE", f"{_IN}/vectors/{{vector}}", vectors.drop_vector, "Take a named vector from all documents",
        Nothing, bodies.Written, "admin", tag="collections",
    ),
    Route(
        "PUT", f"{_IN}/sparse/{{name}}", vectors.add_sparse, "Find documents by the sparse vectors in a field",
        Nothing, bodies.Written, "admin", tag="collections",
    ),
    Route(
        "DELETE", f"{_IN}/sparse/{{name}}", vectors.drop_sparse, "Find no documents by the sparse vectors in a field",
        Nothing, bodies.Written, "admin", tag="collections",
    ),
    Route(
        "GET", f"{BASE}/aliases", aliases.list_aliases, "All aliases",
        Nothing, aliases.Aliases, "reader", tag="collections", filtered=True,
    ),
    Route(
        "PUT", f"{BASE}/aliases/{{alias}}", aliases.set_alias, "Have another name lead to a collection",
        aliases.SetAlias, aliases.Alias, "admin", {"collection": "books"}, "collections",
    ),
    Route(
        "DELETE", f"{BASE}/aliases/{{alias}}", aliases.remove_alias, "Remove an alias; its collection stays",
        Nothing, aliases.Removed, "admin", tag="collections",
    ),
    # --- keys --------------------------------------------------------------------------------------------------------
    Route(
        "POST", f"{BASE}/keys", keys.create_key, "Make an API key, which is shown this once",
        keys.CreateKey, NewApiKey, "admin", {"name": "shop", "role": "reader", "collections": ["books"]}, "keys",
    ),
    Route("GET", f"{BASE}/keys", keys.list_keys, "The names and roles of all API keys", Nothing, keys.Keys, "admin",
          tag="keys"),
    Route(
        "PUT", f"{BASE}/keys/{{key}}/limits", keys.limit_key, "How much a key may ask of each node in a second",
        keys.LimitKey, keys.Changed, "admin", {"requests": 100}, "keys",
    ),
    Route(
        "DELETE", f"{BASE}/keys/{{key}}", keys.revoke_key, "Take an API key back", Nothing, keys.Changed, "admin",
        tag="keys",
    ),
    # --- the cluster -------------------------------------------------------------------------------------------------
    Route(
        "GET", f"{BASE}/cluster", cluster.cluster, "The cluster and its health",
        Nothing, cluster_bodies.ClusterView, "reader", tag="cluster",
    ),
    Route(
        "GET", f"{BASE}/status", status.status, "All replicas and nodes, and the alerts that hold now",
        status.AskStatus, status.StatusView, "reader", tag="cluster",
    ),
    Route(
        "GET", f"{BASE}/history", status.history, "What the cluster did in the last hour, as this node saw it",
        status.AskHistory, status.HistoryView, "reader", tag="cluster",
    ),
    Route(
        "GET", f"{BASE}/nodes", cluster.nodes, "The nodes", Nothing, cluster_bodies.Nodes, "reader", tag="cluster"
    ),
    Route(
        "PUT", f"{BASE}/nodes/{{node}}/maintenance", cluster.enter_maintenance, "Have a node lead nothing",
        cluster_bodies.EnterMaintenance, cluster_bodies.Done, "admin", {}, "cluster",
    ),
    Route(
        "DELETE", f"{BASE}/nodes/{{node}}/maintenance", cluster.exit_maintenance, "Have a node back in service",
        Nothing, cluster_bodies.Done, "admin", tag="cluster",
    ),
    Route(
        "PUT", f"{BASE}/nodes/{{node}}/drain", cluster.drain, "Have other nodes take over what a node holds",
        cluster_bodies.DrainNode, cluster_bodies.StartedRebalance, "admin", {}, "cluster",
    ),
    Route(
        "DELETE", f"{BASE}/nodes/{{node}}/drain", cluster.undrain, "Use a node again that was to be emptied",
        Nothing, cluster_bodies.Done, "admin", tag="cluster",
    ),
    Route(
        "PUT", f"{BASE}/nodes/{{node}}/zone", cluster.zone, "Have a node be in this zone, its failure domain",
        cluster_bodies.SetZone, cluster_bodies.Done, "admin", {"zone": "a"}, "cluster",
    ),
    Route(
        "PUT", f"{BASE}/nodes/{{node}}/weight", cluster.weight, "Have a node's share of the replicas be so large",
        cluster_bodies.SetWeight, cluster_bodies.Done, "admin", {"weight": 2.0}, "cluster",
    ),
    Route(
        "POST", f"{BASE}/nodes/{{node}}/replace", cluster.replace_node, "Have another node hold all that a node holds",
        cluster_bodies.ReplaceNode, cluster_bodies.Replacing, "admin", {"by": "node-4", "timeout": 600}, "cluster",
    ),
    Route(
        "DELETE", f"{BASE}/nodes/{{node}}", cluster.remove_node, "Have the cluster forget a node that holds nothing",
        Nothing, cluster_bodies.Done, "admin", tag="cluster",
    ),
    Route(
        "GET", f"{BASE}/restart_plan", cluster.restart_plan, "In which order to restart nodes, and what is against it",
        Nothing, cluster_bodies.RestartPlan, "reader", tag="cluster",
    ),
    Route(
        "GET", f"{BASE}/shards", cluster.shards, "The shards and who leads them",
        Nothing, cluster_bodies.Shards, "reader", tag="cluster",
    ),
    Route(
        "GET", f"{BASE}/shards/{{shard}}/leader", cluster.leader, "Who leads a shard, or the catalog (shard `catalog`)",
        Nothing, cluster_bodies.Leader, "reader", tag="cluster",
    ),
    Route(
        "POST", f"{BASE}/shards/{{shard}}/step_down", cluster.step_down, "Hand over the leadership of a shard",
        cluster_bodies.StepDown, cluster_bodies.Leader, "admin", {"to": "node-2"}, "cluster",
    ),
    Route(
        "POST", f"{BASE}/shards/{{shard}}/force_election", cluster.force_election, "Have a node campaign for a shard",
        cluster_bodies.ForceElection, cluster_bodies.Leader, "admin", {}, "cluster",
    ),
    Route(
        "PUT", f"{BASE}/shards/{{shard}}/replicas", cluster.set_replicas, "Have these nodes hold a shard",
        cluster_bodies.SetReplicas, cluster_bodies.Done, "admin", {"nodes": ["node-1", "node-2", "node-3"]}, "cluster",
    ),
    Route(
        "POST", f"{BASE}/shards/{{shard}}/split", cluster.split_shard, "Have a new shard take half of what one owns",
        cluster_bodies.SplitShard, cluster_bodies.StartedRebalance, "admin", {}, "cluster",
    ),
    Route(
        "POST", f"{BASE}/shards/{{shard}}/move", cluster.move_replica, "Have a node hold a shard in another's place",
        cluster_bodies.MoveReplica, cluster_bodies.StartedRebalance, "admin",
        {"source": "node-1", "target": "node-4"}, "cluster",
    ),
    Route(
        "GET", f"{BASE}/moves", cluster.moves, "Moves of key ranges under way",
        Nothing, cluster_bodies.Moves, "reader", tag="cluster",
    ),
    # --- rebalancing -------------------------------------------------------------------------------------------------
    Route(
        "GET", f"{BASE}/rebalance", cluster.progress, "How far a rebalance is, or how it ended",
        cluster_bodies.WhichRebalance, cluster_bodies.ProgressView, "reader", tag="rebalancing",
    ),
    Route(
        "POST", f"{BASE}/rebalance", cluster.start_rebalance, "Start a rebalance",
        cluster_bodies.StartRebalance, cluster_bodies.StartedRebalance, "admin", {"wish": {"shards": 4}}, "rebalancing",
    ),
    Route(
        "GET", f"{BASE}/rebalance/stats", cluster.stats, "What shards and nodes hold",
        Nothing, RebalanceStats, "reader", tag="rebalancing",
    ),
    Route(
        "POST", f"{BASE}/rebalance/plan", cluster.plan, "What a rebalance would move",
        cluster_bodies.PlanRebalance, cluster_bodies.PlanView, "reader", {"wish": {"shards": 4}}, "rebalancing",
    ),
    Route(
        "PUT", f"{BASE}/replication_factor", cluster.set_replication_factor, "Have each shard have so many replicas",
        cluster_bodies.SetReplication, cluster_bodies.Replicating, "admin", {"replicas": 3}, "rebalancing",
    ),
    Route(
        "POST", f"{BASE}/rebalance/pause", cluster.pause_rebalance, "Start no more moves, and copy no more",
        cluster_bodies.AskRebalance, cluster_bodies.Done, "admin", {}, "rebalancing",
    ),
    Route(
        "POST", f"{BASE}/rebalance/resume", cluster.resume_rebalance, "Go on with a rebalance",
        cluster_bodies.AskRebalance, cluster_bodies.Done, "admin", {}, "rebalancing",
    ),
    Route(
        "POST", f"{BASE}/rebalance/cancel", cluster.cancel_rebalance, "End a rebalance",
        cluster_bodies.AskRebalance, cluster_bodies.Done, "admin", {}, "rebalancing",
    ),
)  # fmt: skip
