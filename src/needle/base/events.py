"""The table of events that a node tells in its log: the name, how grave it is, the text, and the fields of each.

Programs that read the log go by `kind`, which does not change; people read the text. docs/logs.md is made of this.
Invariant: every event here is told somewhere, with exactly its fields; its text holds no clock, and of what callers
sent nothing but names. Knows no process, and no format.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Final

DEBUG, INFO, WARNING, ERROR, CRITICAL = (
    logging.DEBUG,
    logging.INFO,
    logging.WARNING,
    logging.ERROR,
    logging.CRITICAL,
)
_FIELD = re.compile(r"%\((\w+)\)")
EVENTS: dict[str, Event] = {}
"""All of them by kind, in the order of docs/logs.md."""


class Event:
    """One row. logger: who tells it. text: with `%(field)s` for its fields. more: fields that the text leaves out.
    about: when it is told, for the table."""

    __slots__ = ("about", "fields", "kind", "level", "logger", "part", "text")

    def __init__(self, part: str, kind: str, level: int, text: str, about: str, *more: str) -> None:
        self.kind, self.level, self.text, self.about = kind, level, text, about
        self.part, self.logger = part, logging.getLogger(_LOGGERS[part])
        self.fields = tuple(dict.fromkeys((*_FIELD.findall(text), *more)))
        EVENTS[kind] = self


def tell(event: Event, **fields: object) -> None:
    """A line for what has happened, if anybody wants lines of its level. fields: all of the event's."""
    if event.logger.isEnabledFor(event.level):
        # The text is handed on as it stands in the table: lines of one text are one event, of which a storm is folded.
        event.logger.log(event.level, event.text, fields, extra={"kind": event.kind, **fields})


_RAFT, _DATA, _INDEX, _CLUSTER, _NODE, _CALLS = (
    "Leaders and members",
    "Replicas",
    "Index files",
    "The cluster's shape",
    "The node",
    "Requests",
)
_LOGGERS: Final[Mapping[str, str]] = {
    _RAFT: "needle.multiraft",
    _DATA: "needle.multiraft",
    _INDEX: "needle.shard",
    _CLUSTER: "needle.server",
    _NODE: "needle.server",
    _CALLS: "needle.server",
}

PREVOTE_BEGUN = Event(
    _RAFT, "prevote_begun", INFO,
    "%(group)s: this node asks who would vote for it, after term %(term)d, because %(why)s",
    "No leader is heard. A node that is cut off stays here; one that is not goes on with an election.",
)  # fmt: skip
ELECTION_BEGUN = Event(
    _RAFT, "election_begun", INFO,
    "%(group)s: this node asks for votes in term %(term)d: %(why)s",
    "A majority would vote for it.",
)  # fmt: skip
LEADER_ELECTED = Event(
    _RAFT, "leader_elected", INFO,
    "%(group)s: this node leads in term %(term)d; it asked for votes because %(why)s",
    "It won the election.",
)  # fmt: skip
LEADER_RESIGNED = Event(
    _RAFT, "leader_resigned", INFO,
    "%(group)s: this node leads no more, in term %(term)d: %(why)s",
    "It led, and does not any more.",
)  # fmt: skip
LEADER_CHANGED = Event(
    _RAFT, "leader_changed", INFO,
    "%(group)s: %(leader)s leads in term %(term)d",
    "This replica follows another leader than before.",
)  # fmt: skip
LEADER_MOVED = Event(
    _RAFT, "leader_moved", INFO,
    "%(group)s goes to %(to)s: %(why)s",
    "This node has handed leadership over.",
)  # fmt: skip
MEMBERS_CHANGED = Event(
    _RAFT, "members_changed", INFO,
    "%(group)s has the voters %(voters)s, learners %(learners)s",
    "A change of members is in force, on each member.",
)  # fmt: skip
REPLICA_OPENED = Event(
    _DATA, "replica_opened", INFO,
    "%(group)s: this replica has applied index %(applied)d, its log ends at %(last)d",
    "The node started, or was given the replica. What lies between is applied again.", "term",
)  # fmt: skip
REPLICA_CLOSED = Event(
    _DATA, "replica_closed", INFO,
    "%(group)s: this replica is closed",
    "The node was told to give it up. Not told when the node stops.",
)  # fmt: skip
REPLICA_LOST = Event(
    _DATA, "replica_lost", CRITICAL,
    "%(group)s: this replica does not go on: %(why)s",
    "It lost state that others count on.",
)  # fmt: skip
LOG_DAMAGED = Event(
    _DATA, "log_damaged", WARNING,
    "%(group)s: %(why)s; this replica does not vote until it has fetched from its peers what it lost",
    "Found when the replica was opened. Not told of a shard that comes back to a node which gave it up.",
)  # fmt: skip
LOG_REPAIRED = Event(
    _DATA, "log_repaired", WARNING,
    "%(group)s: the log is repaired; this replica votes again",
    "What `log_damaged` told of is over.",
)  # fmt: skip
DATA_DAMAGED = Event(
    _DATA, "data_damaged", CRITICAL,
    "%(group)s: %(why)s; this replica fetches its data again",
    "Its documents were found damaged.",
)  # fmt: skip
DATA_REPAIRED = Event(
    _DATA, "data_repaired", WARNING,
    "%(group)s: the data of this replica is whole again",
    "What `data_damaged` told of is over.",
)  # fmt: skip
SNAPSHOT_MADE = Event(
    _DATA, "snapshot_made", INFO,
    "%(group)s: a snapshot of index %(index)d was made, %(bytes)d bytes",
    "A member needs entries that the log has no more.",
)  # fmt: skip
SNAPSHOT_SENT = Event(
    _DATA, "snapshot_sent", INFO,
    "%(group)s: the snapshot of index %(index)d is offered to %(to)s",
    "The member fetches what it lacks of it.",
)  # fmt: skip
SNAPSHOT_FAILED = Event(
    _DATA, "snapshot_failed", WARNING,
    "%(group)s: no snapshot from %(peer)s: %(why)s; waiting for its next offer",
    "It could not be fetched, or it was damaged.",
)  # fmt: skip
SNAPSHOT_INSTALLED = Event(
    _DATA, "snapshot_installed", INFO,
    "%(group)s: the snapshot of index %(index)d is installed, %(seconds).3f s after it was here",
    "The replica goes on from that state.",
)  # fmt: skip
INDEX_BUILT = Event(
    _INDEX, "index_built", INFO,
    "%(group)s: an index file of %(collection)s was built: ordinals %(first)d to %(last)d, %(bytes)d bytes, "
    "%(seconds).3f s",
    "By this node; the other replicas will fetch it.", "rows", "own",
)  # fmt: skip
INDEX_ADOPTED = Event(
    _INDEX, "index_adopted", INFO,
    "%(group)s: an index file of %(collection)s came with a restore: ordinals %(first)d to %(last)d, %(bytes)d bytes, "
    "%(seconds).3f s",
    "It has each of their vectors, so none was inserted; the other replicas will fetch it.", "rows",
)  # fmt: skip
INDEX_PUBLISHED = Event(
    _INDEX, "index_published", INFO,
    "%(group)s: the index file of %(collection)s over ordinals %(first)d to %(last)d is published",
    "The shard's log has it, so all replicas search by it.",
)  # fmt: skip
INDEX_STAGED = Event(
    _INDEX, "index_staged", INFO,
    "%(group)s: an index file of %(collection)s over ordinals %(first)d to %(last)d is there for its next index",
    "Searches use it once all are there and the shard has switched.",
)  # fmt: skip
INDEX_SWITCHED = Event(
    _INDEX, "index_switched", INFO,
    "%(group)s: the index of %(collection)s is now %(index)s, not %(former)s: %(told)s",
    "All replicas of the shard went over at one entry of its log. The files of before go.",
)  # fmt: skip
INDEX_KEPT = Event(
    _INDEX, "index_kept", INFO,
    "%(group)s: the index of %(collection)s stays %(index)s",
    "A change of it was taken back before the shard had switched.",
)  # fmt: skip
INDEX_UNPUBLISHED = Event(
    _INDEX, "index_unpublished", WARNING,
    "%(group)s: segment [%(first)d, %(last)d] of %(collection)s not published: %(why)s",
    "It came too late, or no leader took it; it will be built again if it is missing.",
)  # fmt: skip
INDEX_SHIPPED = Event(
    _INDEX, "index_shipped", INFO,
    "%(group)s: the index file of %(collection)s over ordinals %(first)d to %(last)d was fetched from %(peer)s, "
    "%(bytes)d bytes",
    "Built by another node.",
)  # fmt: skip
INDEX_REBUILT = Event(
    _INDEX, "index_rebuilt", WARNING,
    "%(group)s: building segment [%(first)d, %(last)d] of %(collection)s here: nobody offers the published file",
    "Takes this node's CPU; its searches score that range exactly meanwhile.",
)  # fmt: skip
INDEX_DAMAGED = Event(
    _INDEX, "index_damaged", ERROR,
    "%(group)s: segment [%(first)d, %(last)d] of %(collection)s was damaged on disk",
    "It is fetched or built again.",
)  # fmt: skip
MOVE_PHASE = Event(
    _CLUSTER, "move_phase", INFO,
    "move %(move)d of shard %(shard)d to %(target)d is %(phase)s",
    "A range of keys moves; at each change of its state, on who drives it.",
)  # fmt: skip
MOVE_SWITCHED = Event(
    _CLUSTER, "move_switched", INFO,
    "move %(move)d of shard %(shard)d to %(target)d: writes of its keys waited for %(steps)s",
    "How long each step of a switch of key ranges took, on who drove all of it; then the news travels to clients.",
)  # fmt: skip
MOVE_STUCK = Event(
    _CLUSTER, "move_stuck", ERROR,
    "shard %(shard)d: %(why)s",
    "A move that does not go on by itself.", "move",
)  # fmt: skip
REBALANCE_STEP = Event(
    _CLUSTER, "rebalance_step", INFO,
    "rebalance %(rebalance)d: %(step)s",
    "One of its moves begins.",
)  # fmt: skip
REBALANCE_WAITS = Event(
    _CLUSTER, "rebalance_waits", INFO,
    "rebalance %(rebalance)d waits: %(why)s",
    "Nothing is begun until that is over.",
)  # fmt: skip
REBALANCE_ENDED = Event(
    _CLUSTER, "rebalance_ended", INFO,
    "rebalance %(rebalance)d is %(state)s: %(why)s",
    "Done, cancelled or failed.",
)  # fmt: skip
HEALING_BEGUN = Event(
    _CLUSTER, "healing_begun", WARNING,
    "%(node_names)s is gone for %(seconds)g s: rebalance %(rebalance)d rebuilds its replicas elsewhere",
    "After `replace_after`.",
)  # fmt: skip
HEALING_STOPPED = Event(
    _CLUSTER, "healing_stopped", WARNING,
    "%(node_names)s is back: what rebalance %(rebalance)d has not moved yet stays",
    "Before its replicas were all rebuilt.",
)  # fmt: skip
REPLICAS_DIFFER = Event(
    _CLUSTER, "replicas_differ", ERROR,
    "replicas of %(group)s do not hold the same: %(why)s. This is a bug, or memory that is broken: docs/alerts.md, "
    "NeedleReplicaDivergence",
    "The leader compared their digests, by node, at one entry of the log.",
    "index", "digests",
)  # fmt: skip
REPLICAS_EQUAL = Event(
    _CLUSTER, "replicas_equal", WARNING,
    "replicas of %(group)s hold the same again, at index %(index)d",
    "What `replicas_differ` told of is over.",
)  # fmt: skip
CLUSTER_RECOVERED = Event(
    _CLUSTER, "cluster_recovered", WARNING,
    "this cluster was %(why)s",
    "Once at each start of a node, where `needle recover` made the cluster of what one node had.",
)  # fmt: skip
VERSION_RAISED = Event(
    _CLUSTER, "version_raised", WARNING,
    "the cluster is at version %(version)d of commands and formats now",
    "Nodes of older releases are refused from now on.",
)  # fmt: skip
NODE_STARTED = Event(
    _NODE, "node_started", INFO,
    "node %(node_name)s of cluster %(cluster)s listens on %(address)s",
    "It is up; it is ready once its replicas are.",
)  # fmt: skip
NODE_STOPPING = Event(
    _NODE, "node_stopping", INFO,
    "node %(node_name)s stops: %(why)s",
    "It hands leadership over first if it was told to stop.",
)  # fmt: skip
NODE_STOPPED = Event(
    _NODE, "node_stopped", INFO,
    "node %(node_name)s has stopped",
    "Its last line. Without it the process was killed.",
)  # fmt: skip
NODE_FAILED = Event(
    _NODE, "node_failed", CRITICAL,
    "node %(node_name)s stops: %(why)s",
    "Its disk failed, or a bug was found; the exit code is 2.",
)  # fmt: skip
MAINTENANCE = Event(
    _NODE, "maintenance", INFO,
    "node %(node_name)s is %(state)s maintenance",
    "It gives leadership away (`in`), or takes part as before (`no more in`).",
)  # fmt: skip
DISK_LOW = Event(
    _NODE, "disk_low", ERROR,
    "%(directory)s has %(free)d bytes left: writes that need room are refused until there are %(wanted)d",
    "Reads go on.",
)  # fmt: skip
DISK_FILES_LOW = Event(
    _NODE, "disk_files_low", ERROR,
    "%(directory)s has %(wanted)s: writes that need room are refused until then",
    "The inodes of the file system are used up, or nearly. Reads go on.",
)  # fmt: skip
DISK_OK = Event(
    _NODE, "disk_ok", WARNING,
    "%(directory)s has room again: %(free)d bytes",
    "Writes are taken again.",
)  # fmt: skip
MEMORY_TIGHT = Event(
    _NODE, "memory_tight", WARNING,
    "node %(node_name)s takes %(own)d bytes of memory, and refuses data above %(limit)d: it saves memory",
    "It gives back what it only remembers, joins no index files, and gets no new copies of shards.",
)  # fmt: skip
MEMORY_LOW = Event(
    _NODE, "memory_low", ERROR,
    "node %(node_name)s takes %(own)d bytes of memory: data is refused above %(limit)d",
    "Reads and deletes go on.",
)  # fmt: skip
MEMORY_OK = Event(
    _NODE, "memory_ok", WARNING,
    "node %(node_name)s has memory again: it takes %(own)d bytes, and refuses data above %(limit)d",
    "Everything is as before.",
)  # fmt: skip
LOOP_HELD = Event(
    _NODE, "loop_held", WARNING,
    "the event loop was held for %(milliseconds).0f ms of CPU time, by %(function)s",
    "Nothing else ran meanwhile, heartbeats neither.",
)  # fmt: skip
CONNECTION_REFUSED = Event(
    _CALLS, "connection_refused", WARNING,
    "closing the connection from %(remote)s: %(why)s",
    "Of the binary protocol: a wrong API key or secret, another cluster or release, no TLS. Once a minute for each "
    "address and reason.",
    "code",
)  # fmt: skip
CALLER_REFUSED = Event(
    _CALLS, "caller_refused", WARNING,
    "a caller at %(remote)s is refused (%(code)s): %(why)s",
    "Of HTTP: a wrong API key; of both doors: a call that its key may not make.", "key",
)  # fmt: skip
REQUEST_REFUSED = Event(
    _CALLS, "request_refused", WARNING,
    "%(method)s is refused (%(code)s): %(why)s",
    "For want of disk, memory, log or turn, or over a key's rate.",
)  # fmt: skip
SLOW_REQUEST = Event(
    _CALLS, "slow_request", WARNING,
    "%(method)s took %(milliseconds)s ms: %(told)s",
    "A request took longer than `log.slow_request_seconds`.",
    "collection", "filter", "k", "parts", "explain", "key", "code",
)  # fmt: skip
