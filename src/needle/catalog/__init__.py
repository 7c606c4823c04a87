"""Where data lives: shards, their key ranges, and the nodes that serve them. Pure decisions; it does not know Raft."""
