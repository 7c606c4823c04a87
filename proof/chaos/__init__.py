"""Chaos with real processes: the workload and the checkers of the simulation, kill -9, cut links, full disks."""
