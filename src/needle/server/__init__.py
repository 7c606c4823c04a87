"""A node as it runs: the only place that makes adapters. `node` composes, `process` runs it, `ports` is below both."""
