"""What a simulated cluster has for its catalog and its several shards: truth, ownership, workload, faults, churn."""
