"""What a node tells Prometheus, by one table (`table.py`). The only importer of prometheus_client."""
