"""Which shard owns a document: ring, strategies, epoch-versioned map, and the topology that nodes and clients hold."""
