"""`needle bulk-load`: Parquet becomes files of documents and of indexes, on many workers, and these are handed to the
cluster by reference (docs/adr/0119)."""
