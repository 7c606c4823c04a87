"""Making a cluster of its own of the directory of one node: step after step, each of which may be done again.

The plan is on disk before the first of them (`recovery.json`); while it is there no node starts on the directory, and
another run goes on by it. The state machines come first, for what they have cannot be taken back; one transaction of
the log, which gives it its new cluster, is the point from which there is no way back; then the small files.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

import msgspec

from needle.base.errors import InvalidArgument, StorageError
from needle.base.file_errors import os_failure
from needle.base.ids import CATALOG_GROUP, GroupId, shard_group
from needle.multiraft import offline
from needle.multiraft.codec import encode_conf
from needle.multiraft.log.log_records import Identity
from needle.multiraft.ports import Applied
from needle.raft.messages import ConfState
from needle.routing.topology import Topology
from needle.server import files as data_dir
from needle.server.cluster_files import ClusterFile, save_cluster, save_topology
from needle.server.recovery.directory import StoppedNode
from needle.server.recovery.plan import Plan, Survey, recovered
from needle.server.summed import json_with_sum

STEPS: Final = ("planned", "shard", "catalog", "log", "aside", "cluster", "node", "done")
"""Names of failpoints, each after its step."""
ASIDE: Final = "left-behind"
"""Where files of replicas go that the new cluster has nothing to do with: nothing is deleted."""
REMEDY: Final = "Restore that file from a copy of this directory, or the directory as it was before `needle recover`"
Failpoint = Callable[[str], None]


def node_of(directory: str) -> data_dir.NodeFile:
    """Whose directory it is. Raises InvalidArgument if it is no node's."""
    found = data_dir.read_owner(directory) if os.path.isdir(directory) else None
    if found is None or not os.path.isdir(data_dir.log_directory(directory)):
        raise InvalidArgument(
            f"DATA_DIR = {directory!r} is not allowed: the data directory of a node, which has a file "
            f"`{data_dir.NODE_FILE}` and a directory `log`, is",
            field="DATA_DIR",
        )
    return found


def load_plan(directory: str) -> Plan | None:
    """Of a recovery that was begun. Raises StorageError."""
    path = _plan_path(directory)
    data = data_dir.read_file(path)
    return None if data is None else data_dir.read_json(path, data, Plan, REMEDY)


def _plan_path(directory: str) -> str:
    return os.path.join(directory, data_dir.RECOVERY_FILE)


def survey(directory: str) -> Survey:
    """What is in the directory of a node that is stopped, which the caller holds. Blocking."""
    with StoppedNode(directory, node_of(directory).node_id) as node:
        return node.survey()


def begin(directory: str, plan: Plan) -> None:
    """Write the plan down: from now on no node starts on the directory before `carry_out` has come to its end."""
    data_dir.replace_file(_plan_path(directory), json_with_sum(plan))


def carry_out(directory: str, plan: Plan, failpoint: Failpoint = lambda step: None) -> Topology:
    """Do it, or what is left of it; the shape of the new cluster. failpoint: called with each of STEPS. Blocking."""
    failpoint("planned")
    with StoppedNode(directory, plan.node) as node:
        if node.cluster_id not in (plan.former, plan.cluster_id):
            raise StorageError(f"{_plan_path(directory)} is of another directory than this one")
        if node.cluster_id == plan.former:
            _bring_on(node, plan, failpoint)
            identity = Identity(plan.incarnation, ((1, plan.nonce),))
            offline.begin_anew(node.store, plan.cluster_id, identity, plan.groups)
            failpoint("log")
        made = node.catalog().topology
    _put_aside(directory, plan)
    failpoint("aside")
    address = made.addresses()[plan.node]
    save_topology(directory, made)
    data_dir.save_addresses(directory, {})
    save_cluster(directory, ClusterFile(incarnation=plan.incarnation, uid=plan.uid, voters={plan.node: address}))
    failpoint("cluster")
    path = os.path.join(directory, data_dir.NODE_FILE)
    owner = msgspec.structs.replace(node_of(directory), cluster_id=plan.cluster_id)
    data_dir.replace_file(path, json_with_sum(owner))
    failpoint("node")
    _delete(_plan_path(directory))
    failpoint("done")
    return made


def _bring_on(node: StoppedNode, plan: Plan, failpoint: Failpoint) -> None:
    """The state machines to where their groups go on."""
    for shard in plan.shards:
        group = shard_group(shard)
        if not _stands(node, plan, group):
            node.apply_all(group)
            at = plan.groups[group]
            node.machine(group).apply([Applied(at.index, at.term, b"", _alone(plan))])
            node.machine(group).checkpoint()
        failpoint("shard")
    if not _stands(node, plan, CATALOG_GROUP):
        if node.machine(CATALOG_GROUP).applied_index():
            node.apply_all(CATALOG_GROUP)
        at, known = plan.groups[CATALOG_GROUP], node.topology()
        node.catalog().begin_anew(recovered(known, plan), at.index, at.term, _alone(plan))
    failpoint("catalog")


def _alone(plan: Plan) -> bytes:
    return encode_conf(ConfState(voters=(plan.node,)))


def _stands(node: StoppedNode, plan: Plan, group: GroupId) -> bool:
    """Whether that was done by an earlier run."""
    machine, at = node.machine(group), plan.groups[group]
    return (machine.applied_index(), machine.applied_term()) == (at.index, at.term) and machine.conf() == _alone(plan)


def _put_aside(directory: str, plan: Plan) -> None:
    """What is left of replicas that are not gone on from: a new one of the same shard begins without."""
    there = data_dir.shards_directory(directory)
    try:
        names = sorted(os.listdir(there)) if os.path.isdir(there) else []
        for name in names:
            if name.isdecimal() and int(name) not in plan.shards:
                where = os.path.join(directory, f"{ASIDE}-{plan.founding:x}")
                os.makedirs(where, exist_ok=True)
                os.rename(os.path.join(there, name), os.path.join(where, name))
    except OSError as error:
        raise os_failure(error, there) from error


def _delete(path: str) -> None:
    try:
        os.unlink(path)
        handle = os.open(os.path.dirname(path), os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise os_failure(error, path) from error
