"""In which steps a follower applies what is committed: in larger ones than it acknowledges.

An apply costs some 0.2 ms whatever is in it, and nobody waits for a follower's. So what is committed is gathered until
it is `apply_entries`, or `apply_delay` has passed since the first of it was seen.

Invariant: what somebody waits for here is not gathered, nor what a leader has to apply. It must not know what a state
machine stores.
"""

from __future__ import annotations

from typing import Final

from needle.multiraft.config import HostConfig
from needle.multiraft.log.group_log import GroupLog
from needle.raft.raft import Raft
from needle.raft.state import FAR, Role

_FOLLOWER: Final = Role.FOLLOWER
"""By a name of its own: see raft.state.LEADER."""


class ApplySteps:
    """Of one replica. next_deadline: when what is gathered is to be applied; FAR while nothing is."""

    __slots__ = ("_config", "next_deadline")

    def __init__(self, config: HostConfig) -> None:
        self._config = config
        self.next_deadline = FAR

    def stop(self) -> None:
        """Nothing is gathered any more."""
        self.next_deadline = FAR

    def gathers(self, raft: Raft, log: GroupLog, awaited: bool, now: float) -> bool:
        """Whether what is committed is not to be applied yet. log: what is durable of it. awaited: somebody waits for
        something to be applied here."""
        if raft.role is _FOLLOWER and not awaited:
            config, applied = self._config, raft.applied
            waiting = min(raft.commit, log.last_index()) - applied
            if applied < log.start.index:  # a snapshot was installed: the core is about to hear of it
                waiting = 0
            few = 0 < waiting < config.apply_entries and log.sizes.after(applied) < config.apply_waiting_bytes
            if few and now < self.next_deadline:
                self.next_deadline = min(self.next_deadline, now + config.apply_delay)
                return True
        self.next_deadline = FAR
        return False
