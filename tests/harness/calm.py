"""Timeouts of clusters in tests that say who leads, or that nobody else is to.

On a busy machine any step may be late by half a second and more, and a follower that was kept from running so long
elects another. A leader that is killed ends its connections and is replaced as soon as ever (docs/adr/0023); one that
falls silent is after two to four seconds.
"""

from typing import Any, Final

CALM: Final[dict[str, Any]] = {"election_timeout": 2.0, "heartbeat_interval": 0.2}
