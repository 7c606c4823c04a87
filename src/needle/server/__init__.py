"""A node as it runs: the only place that makes adapters. `node` composes, `main` is the process, `ports` what both
stand on; `connecting` makes clients.
"""
