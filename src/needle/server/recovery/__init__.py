"""A cluster of what one node has, when a majority was lost for good: what `needle recover` does (docs/adr/0077)."""
