"""`needle demo`: a real cluster on this machine, and a story told with it."""
