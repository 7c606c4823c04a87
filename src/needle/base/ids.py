"""Names of things. A node is a process, a group is a Raft group; ids are never reused."""

NodeId = str
"""A node's name, e.g. "node-1": 1 to 64 characters of [A-Za-z0-9._-]."""

GroupId = int
"""A Raft group's number. 0 is reserved for the cluster catalog; shard n is group n + 1."""

CATALOG_GROUP: GroupId = 0


def shard_group(shard: int) -> GroupId:
    """The Raft group that replicates shard number `shard` (0-based)."""
    return shard + 1


def shard_of_group(group: GroupId) -> int:
    """The shard that a Raft group replicates; -1 for the catalog."""
    return group - 1


def group_name(group: GroupId) -> str:
    """What people call the data that a Raft group replicates."""
    return "the catalog" if group == CATALOG_GROUP else f"shard {group - 1}"
