"""What every layer shares: errors, configuration, the data model, and the protocols of time, randomness and threads.

Nothing here does I/O, reads a clock, draws a random number or starts a thread; the import contract in
`pyproject.toml` proves it.
"""
