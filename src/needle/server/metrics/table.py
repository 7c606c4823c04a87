"""The table of all metrics: what a node publishes is made by it, and so is docs/metrics.md.

Invariant: a metric that is published has a row, and a row is published. Every label takes few values: shards, nodes, at
most 100 collections a shard, names of API keys with rates, and reasons out of fixed lists; never ids or callers.
"""

from __future__ import annotations

from collections.abc import Mapping

from needle.server.metrics.row import Row, counter, gauge, histogram

IN_RATE, BYTES, SECONDS = "ratio", "bytes", "seconds"
TLS = "with TLS"
HTTP = "with `http_address`"
BACKED_UP = "once a backup was made"

PARTS: Mapping[str, tuple[Row, ...]] = {
    "The cluster, as this node sees it (asked every 2 s)": (
        gauge("needle_cluster_healthy", "", "", "1 while every shard has a leader and all its replicas.",
              "server/upkeep/health.py", "needle_cluster_healthy", HTTP),
        gauge("needle_shard_led", "shard", "", "1 while a replica of the shard says that it leads.",
              "server/upkeep/health.py", only=HTTP),
        gauge("needle_shard_missing_replicas", "shard", "", "Replicas that are down, behind, not built yet, or "
              "that the replication factor asks for and the catalog does not; `catalog` of the catalog's.",
              "server/upkeep/health.py", only=HTTP),
        gauge("needle_node_reachable", "node", "", "1 while a node that holds replicas answers; a node in maintenance "
              "that does not answer is left out.", "server/upkeep/health.py", only=HTTP),
        gauge("needle_version_known", "", "", "The version of commands and formats that this node knows.",
              "base/versions.py"),
        gauge("needle_version_cluster", "", "", "The one that the whole cluster is at, as far as this node knows: the "
              "least that its nodes know. Newer ones are used only once it has risen.", "routing/topology.py"),
        gauge("needle_catalog_led", "", "", "1 while this node, which holds the catalog, knows who leads it.",
              "server/node.py", only="that hold the catalog"),
    ),
    "Consensus, for each replica here (`shard=\"catalog\"`: the catalog's)": (
        gauge("raft_term", "shard", "", "Current term.", "raft/state.py", "raft_term"),
        gauge("raft_commit_index", "shard", "", "Last log entry known to be on a majority.", "raft/state.py",
              "raft_commit_index"),
        gauge("raft_apply_index", "shard", "", "Last log entry applied here.", "raft/state.py", "raft_apply_index"),
        counter("raft_leader_changes_total", "shard", "", "Changes of leader seen since the start: should grow rarely.",
                "raft/state.py", "raft_leader_changes"),
        gauge("raft_replication_lag", "shard follower", "", "Entries that a replica lacks; on the leader.",
              "multiraft/status.py", "raft_replication_lag"),
        gauge("raft_replication_lag_seconds", "shard follower", SECONDS, "Age of the oldest entry that a replica "
              "lacks; on the leader.", "multiraft/lag.py"),
        gauge("needle_replication_lag_ms", "shard follower", "milliseconds", "The same in milliseconds; a follower "
              "that is stopped in maintenance is left out.", "multiraft/lag.py", "needle_replication_lag_ms"),
        gauge("raft_lease_seconds", "shard", SECONDS, "What is left of the leader's lease; 0 without one.",
              "raft/lease.py"),
        gauge("needle_shard_leader", "shard node", "", "1 on the node that leads.", "multiraft/status.py",
              "needle_shard_leader"),
        gauge("needle_shard_followers", "shard", "", "Replicas that the leader heard from lately; on the leader.",
              "multiraft/status.py", "needle_shard_followers"),
        gauge("needle_shard_electing", "shard", "", "1 while this replica asks for votes.", "multiraft/status.py"),
        counter("needle_elections_total", "shard reason", "", "Elections that this node began, by reason: the leader "
                "was silent, its connection ended (`leader_gone`), it handed over, or somebody forced one.",
                "raft/causes.py"),
        counter("needle_leader_stepdowns_total", "shard reason", "", "Leadership that this node gave up, by reason.",
                "raft/causes.py"),
        gauge("needle_apply_lag_entries", "shard", "", "Entries that are committed and not applied here.",
              "multiraft/status.py"),
        gauge("needle_proposals_waiting", "shard", "", "Writes that wait here to be on a majority and applied.",
              "multiraft/proposals.py"),
        gauge("needle_snapshot_fetching", "shard", "", "1 while a snapshot is on its way here, or waits to be "
              "installed.", "multiraft/group_snapshots.py"),
        gauge("needle_replica_lost", "shard", "", "1 where the replica lost state that others count on, and stopped.",
              "multiraft/group.py"),
        gauge("needle_replica_damaged", "shard", "", "1 where the replica's data was found damaged, is not served, and "
              "is fetched again from another.", "multiraft/ports.py"),
        gauge("needle_replica_divergence", "shard", "", "Replicas whose digest was not that of most at the last entry "
              "at which they were compared: 0 forever; on the leader. It compares them some seconds after a change. "
              'Those of the catalog have `shard="catalog"`.',
              "server/chores/comparing.py"),
        counter("needle_replica_comparisons_total", "shard", "", "How often the leader compared all its replicas; "
                'of the catalog\'s those with `shard="catalog"`.',
                "server/chores/comparing.py"),
        gauge("needle_unknown_collections", "shard", "", "Collections that the shard holds and the catalog neither "
              "lists nor says were dropped; on the leader.", "server/catalog/collections.py"),
        gauge("needle_backup_archive_lag_seconds", "shard", SECONDS, "How far the archive of the shard's log is "
              "behind; on the leader, once logs were archived.", "server/upkeep/archives.py"),
        gauge("needle_replicas_waiting", "shard", "", "1 while the replicas are not where the catalog wants them; on "
              "the leader. `needle status` says what they wait for.", "server/upkeep/replicas.py"),
    ),
    "Documents, vectors and indexes, for each replica here": (
        gauge("needle_shard_vector_count", "shard", "", "Documents in the shard.", "shard/state_machine.py",
              "needle_shard_vector_count"),
        gauge("needle_collections", "shard", "", "Collections of the shard.", "shard/state_machine.py"),
        gauge("needle_named_vectors", "shard", "", "Named vectors of these. Metrics of index files and of recall call "
              "one `collection/vector`.", "shard/live_collection.py"),
        gauge("needle_documents", "shard collection", "", "Documents of a collection; of the 100 oldest of a shard.",
              "shard/live_collection.py"),
        gauge("needle_ordinals_used_ratio", "shard collection", IN_RATE, "Share of the document versions that a "
              "collection can take that it has taken; of those above one half only.", "shard/held_collections.py"),
        gauge("needle_segments", "shard collection", "", "Index files open; of the 100 oldest collections of a shard.",
              "shard/segments/collection_vectors.py"),
        gauge("needle_index_change_left", "shard collection", "", "Vectors that have no file yet of the index that the "
              "collection is to get; of the 100 oldest collections, while that goes on.", "shard/index_change.py"),
        gauge("needle_segments_building", "shard", "", "Index files that are being built here.",
              "shard/segments/builds.py"),
        counter("needle_segment_events_total", "shard event", "", "Index files built, fetched from another node "
                "(shipped), built because no node had them (rebuilt), brought by a restore (adopted), found corrupt, "
                "not published, deleted.",
                "shard/segments/builds.py"),
        counter("needle_segment_build_seconds_total", "shard", SECONDS, "Time spent on building index files.",
                "shard/segments/builds.py"),
        counter("needle_segment_shipped_bytes_total", "shard", BYTES, "Of index files fetched from other nodes.",
                "shard/segments/builds.py"),
        gauge("needle_field_index_bytes", "shard", BYTES, "Memory of the indexes of metadata fields; at most "
              "`limits.field_index_bytes_max`.", "shard/fields/index_budget.py"),
        counter("needle_field_index_evictions_total", "shard", "", "Such indexes dropped to make room for others; if "
                "it rises all the time, raise the limit.", "shard/fields/index_budget.py"),
    ),
    "Answers": (
        gauge("needle_recall_sampled", "shard collection", "", "Share of the nearest documents that searches found "
              "through the index: of 20 to 200 that were asked again, within an hour. Exact where the vectors that a "
              "search may find have at most 256 MiB as float32 (32 MiB on a node that is busy all the time, which asks "
              "one a minute). Otherwise an estimate: what a search of four times the effort finds, and what is nearer "
              "in a random part of that size, each for as many as the part stands for. Its standard error is about "
              "sqrt(m / (p * n * k)): m is the share that the wider search misses, too, p the part's share of the "
              "vectors, n searches, k hits; under 0.5 it may be told too high.", "server/chores/recall.py"),
        counter("needle_recall_samples_total", "shard", "", "Searches that were asked again; `segments.recall_share` "
                "says how many are.", "server/chores/recall.py"),
    ),
    "Moves": (
        gauge("needle_moves_running", "shard", "", "Moves of key ranges away from the shard that are under way, and of "
              "its replicas (1 while any of them leave); on its leader.", "routing/topology.py"),
        gauge("needle_move_copied_documents", "shard", "", "Documents that moves of key ranges have copied so far; on "
              "the leader.",
              "server/upkeep/mover.py"),
        histogram("needle_move_hold_seconds", "event", SECONDS, "How long a switch of key ranges held writes to them, "
                  "from the freeze to its end: `decided`, `thawed` (the target did not confirm in time, the move "
                  "begins again) or `given_up` (cancelled); on the source's leader.", "server/upkeep/switches.py"),
        histogram("needle_move_arrival_seconds", "", SECONDS, "From the decision of a switch until its target owned "
                  "the keys: so long their writes and all searches wait on. On the source's leader.",
                  "server/upkeep/switches.py"),
        gauge("needle_rebalance_planned_bytes", "", BYTES, "What the rebalance that is under way meant to move when it "
              "began; 0 without one.", "routing/jobs.py"),
        gauge("needle_rebalance_moved_bytes", "", BYTES, "What it has moved.", "routing/jobs.py"),
        gauge("needle_rebalance_waits", "", "", "1 while a rebalance is under way and nothing of it can go on, or a "
              "move of key ranges that this node drives waits; `needle rebalance --status` says for what.",
              "server/upkeep/mover.py"),
        gauge("needle_given_up_replicas", "", "", "Replicas that this node holds no more and whose files are still on "
              "its disk.", "server/upkeep/given_up.py"),
    ),
    "Calls": (
        histogram("needle_request_seconds", "method", SECONDS, "Time to serve a call, by method: `shard_search` and "
                  "the like are what replicas here answer, `search` what this node routes, `http_changes` how long a "
                  "change feed took to begin.", "server/service/dispatch.py"),
        counter("needle_request_errors_total", "method code", "", "Calls answered with an error, by its code.",
                "server/service/dispatch.py"),
        counter("needle_rejected_requests_total", "door reason", "", "Requests and connections that were refused "
                "before anything was done for them, of the binary protocol and of HTTP.", "rpc/server_connection.py"),
        counter("needle_key_refusals_total", "key limit", "", "Requests of an API key refused for its rates, by its "
                "name and by what was used up; of keys with rates.", "server/access.py"),
        histogram("needle_search_seconds", "", SECONDS, "Time of a search in this node's replicas.",
                  "server/service/dispatch.py"),
        counter("needle_writes_total", "", "", "Writes acknowledged by this node as leader.",
                "server/service/dispatch.py"),
        histogram("needle_search_fanout_count", "", "", "To how many shards a search was sent, on the node that routed "
                  "it for its client.", "client/router/stats.py", "needle_search_fanout_count"),
        histogram("needle_search_merge_time_ms", "", "milliseconds", "Time to make one answer of the shards' answers, "
                  "on that node.", "client/router/stats.py", "needle_search_merge_time_ms"),
        gauge("needle_connections", "door", "", "Connections that are open, by door.", "rpc/server.py"),
        gauge("needle_connections_max", "door", "", "How many there may be.", "server/machine/descriptors.py"),
        gauge("needle_rpc_held_bytes", "", BYTES, "Held for clients and nodes: unfinished requests, requests under "
              "way, unread answers.", "rpc/held_bytes.py"),
        counter("needle_rpc_dropped_frames_total", "", "", "Messages to other nodes that were not sent: queue full or "
                "not connected.", "rpc/transport.py"),
    ),
    "The node": (
        gauge("needle_node_up", "", "", "1 while the node does its work.", "server/node.py"),
        gauge("needle_node_ready", "", "", "1 when the node should get traffic.", "server/own_status.py"),
        gauge("needle_node_lost", "", "", "1 where the whole node lost state that others count on, also if its "
              "directory was emptied and it has no replica to say so.", "multiraft/lives.py"),
        gauge("needle_peer_refused", "node", "", "1 for each node that this one does not hear because its directory is "
              "not the one it knew.", "multiraft/lives.py"),
        gauge("needle_maintenance", "", "", "1 in maintenance.", "multiraft/host.py"),
        gauge("needle_runbooks_info", "address", "", "1 at the address behind which an alert's name, in lower case, is "
              "its runbook: of the setting `runbooks`, or of the node's `/ui`. The rules name it.",
              "base/runbooks.py", only=HTTP),
        histogram("needle_fsync_seconds", "", SECONDS, "One durable transaction of the Raft log, of all shards "
                  "together: it is slow where the disk is.", "server/machine/flushes.py"),
        gauge("needle_fsync_under_way_seconds", "", SECONDS, "For how long such a transaction has waited for the disk "
              "by now; 0 for none. It grows while a disk hangs.", "server/machine/flushes.py"),
        gauge("needle_log_bytes", "", BYTES, "The files of the Raft log.", "multiraft/log/wal_store.py"),
        gauge("needle_log_bytes_max", "", BYTES, "What they may take; from three quarters on writes are refused.",
              "multiraft/config.py"),
        counter("needle_raft_events_total", "event", "", "What the Raft host did: turns, durable writes (persists), "
                "applied batches, frames and messages.", "multiraft/counters.py"),
        counter("needle_snapshot_events_total", "event", "", "Snapshots made, offered, fetched, installed, and fetches "
                "that failed.", "multiraft/counters.py"),
        counter("needle_snapshot_bytes_total", "direction", BYTES, "Of snapshots: sent to other nodes, fetched from "
                "them, and reused because they were here already.", "multiraft/snapshots/receiver.py"),
        gauge("needle_disk_free_bytes", "", BYTES, "Room on the disk of `data_dir`.", "server/machine/disk_space.py"),
        gauge("needle_disk_total_bytes", "", BYTES, "Size of that disk.", "server/machine/disk_space.py"),
        gauge("needle_disk_used_bytes", "", BYTES, "What the node's own files take.", "server/machine/disk_space.py"),
        gauge("needle_disk_kept_free_bytes", "", BYTES, "Below this much room data is refused; 0 for never.",
              "server/machine/disk_space.py"),
        gauge("needle_disk_low", "", "", "1 while data is refused for want of room.", "server/machine/disk_space.py"),
        gauge("needle_memory_own_bytes", "", BYTES, "Memory that the process takes, mapped files left out.",
              "server/machine/memory_space.py"),
        gauge("needle_memory_limit_bytes", "", BYTES, "Above so much of it data is refused; 0 for never.",
              "server/machine/memory_space.py"),
        gauge("needle_memory_tight", "", "", "1 while the node saves memory: from seven eighths of the limit on.",
              "server/machine/memory_space.py"),
        gauge("needle_memory_low", "", "", "1 while data is refused for want of memory.",
              "server/machine/memory_space.py"),
        gauge("needle_memory_bytes", "part", BYTES, "Memory by part: `process` is all of it that is in RAM; "
              "`documents` SQLite's pages; `vectors` those that no index file has; `index_files` mapped, of which the "
              "system may keep less in RAM (both of the 100 oldest collections of a shard); "
              "`field_indexes`; `caches` of ids and of what filters allowed; "
              "`change_feeds` what the last entries did, for who reads changes; `requests` held for callers.",
              "server/metrics/node_state.py"),
        gauge("needle_clock_monotonic_seconds", "", SECONDS, "The node's clock for durations, by which leases are "
              "judged: it must run at one rate on all nodes.", "system.py"),
        gauge("needle_clock_error_max_ratio", "", IN_RATE, "The setting `clock_error_max`: how far rates may differ.",
              "base/config.py"),
        gauge("needle_backup_timestamp_seconds", "", SECONDS, "When the last backup began that the cluster was told "
              "of, since 1970.", "routing/topology.py", only=BACKED_UP),
        gauge("needle_certificate_expiry_timestamp_seconds", "", SECONDS, "When the node's certificate expires, or an "
              "authority in tls.ca if that is earlier, since 1970.", "server/certificates.py", only=TLS),
        gauge("needle_certificate_refused", "", "", "1 while changed files of the node's certificates are refused, and "
              "those of before are in use. Of nodes with TLS.", "server/certificates.py", only=TLS),
    ),
    "The event loop (only of `needle serve`)": (
        histogram("needle_loop_lag_seconds", "", SECONDS, "How long the event loop took to come to what was asked of "
                  "it, four times a second.", "server/machine/loop_watch.py"),
        counter("needle_loop_stalls_total", "function", "", "Times something held the loop for over 10 ms of CPU, by "
                "function; at most 200 of them.", "server/machine/loop_watch.py"),
        counter("needle_loop_stall_seconds_total", "function", SECONDS, "CPU time of these, by function.",
                "server/machine/loop_watch.py"),
        gauge("needle_loop_stall_longest_seconds", "", SECONDS, "CPU time of the longest of them.",
              "server/machine/loop_watch.py"),
    ),
}  # fmt: skip

METRICS: Mapping[str, Row] = {row.name: row for rows in PARTS.values() for row in rows}
