"""The heartbeats of the groups that one node leads go out together.

Each group beats at its own pace, from when its leader was elected. Out of step, the heartbeats of two groups cost every
node twice as many frames, wakes and turns as in step, and nothing else would bring them together (docs/adr/0133).
Invariant: no heartbeat is later than it would be, and none comes before half of its interval. It must not know frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from needle.base.ids import GroupId
from needle.multiraft.group import Group
from needle.raft.state import LEADER

FEW: Final = 4
"""So few groups go along with news of a commit, too, which a leader sends between its heartbeats: that spares a frame.
Of many, which have a frame together anyway, each would beat nearly twice as often because one is written to."""


def beat_along(
    groups: Mapping[GroupId, Group], ticked: Mapping[Group, bool], now: float, interval: float
) -> list[Group]:
    """The groups that are driven early, because others that are led here were `ticked` now. ticked: with whether a
    heartbeat was due. interval: of heartbeats, in seconds."""
    if len(groups) == len(ticked) or not any(group.raft.role is LEADER for group in ticked):
        return []
    if len(groups) > FEW and not any(ticked.values()):
        return []
    soon = now + interval / 2
    along = [one for one in groups.values() if one.raft.role is LEADER and now < one.next_deadline() <= soon]
    for group in along:
        group.tick(now, beat=True)
    return along
