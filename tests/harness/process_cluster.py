"""N real node processes in a temporary directory, shared with the chaos run."""

from needle.local.free_ports import free_ports
from needle.local.process_cluster import NodeProcess, ProcessCluster, wait_for

__all__ = ["NodeProcess", "ProcessCluster", "free_ports", "wait_for"]
