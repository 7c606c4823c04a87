"""What to move in a cluster, in which order, and how far it is. Pure: measurements and the catalog in, moves out."""
