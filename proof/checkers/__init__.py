"""One checker per concern. Each takes plain observations, so that hand-written bad histories can test it."""
