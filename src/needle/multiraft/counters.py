"""Counters of a Raft host, for metrics."""

from __future__ import annotations


class Counters:
    """What a host has done since it started, for metrics."""

    __slots__ = (
        "applied_batches",
        "frames_in",
        "frames_out",
        "messages_in",
        "messages_out",
        "messages_refused",
        "persists",
        "snapshots_failed",
        "snapshots_fetched",
        "snapshots_installed",
        "snapshots_made",
        "snapshots_offered",
        "turns",
    )

    def __init__(self) -> None:
        self.turns = self.persists = self.applied_batches = 0
        self.snapshots_made = self.snapshots_offered = self.snapshots_fetched = 0
        self.snapshots_installed = self.snapshots_failed = 0
        self.frames_in = self.frames_out = self.messages_in = self.messages_out = self.messages_refused = 0
