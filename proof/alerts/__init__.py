"""The alert rules, checked by Prometheus itself: each by series made for it, some by faults of real processes."""
