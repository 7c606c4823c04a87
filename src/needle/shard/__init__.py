"""One replica's state machine: documents in SQLite, vectors in segments, filters as bitmaps. It does not know Raft."""
