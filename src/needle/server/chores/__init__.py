"""What each replica does on its own, whatever the cluster wants: expiry, comparing, payload indexes, recall."""
