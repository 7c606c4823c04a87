"""The places where a crash is interesting: a hook is called with one of these names before or after each step that
makes something durable, so that tests can kill a node exactly there.

Invariant: every name is called by the code somewhere, and no other name is (tests/multiraft/test_failpoints.py).
It must not know what the hook does.
"""

from __future__ import annotations

from collections.abc import Callable

Failpoint = Callable[[str], None]

FAILPOINTS: tuple[str, ...] = (
    "log.before_commit",
    "log.inside_commit",
    "log.after_commit",
    "apply.before",
    "apply.after",
    "bootstrap.after_log",
    "bootstrap.after_apply",
    "repair.before_commit",
    "repair.after_commit",
    "snapshot.after_export",
    "snapshot.after_chunk",
    "snapshot.after_stage",
    "snapshot.after_pending",
    "snapshot.after_install",
    "snapshot.after_reset",
    "compact.before_checkpoint",
    "compact.after_checkpoint",
    "compact.after_commit",
)


def no_failpoint(name: str) -> None:
    """The hook of a node in earnest: does nothing."""
