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
        "turns",
    )

    def __init__(self) -> None:
        self.turns = self.persists = self.applied_batches = 0
        self.frames_in = self.frames_out = self.messages_in = self.messages_out = self.messages_refused = 0
