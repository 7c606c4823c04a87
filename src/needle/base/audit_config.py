"""Settings of the audit log: part of the one schema of settings (needle/base/config.py)."""

from __future__ import annotations

from typing import Annotated, ClassVar

from needle.base.schema import Settings, about


class AuditConfig(Settings, frozen=True, kw_only=True):
    """Who did what to the cluster, and who was refused: docs/security.md.

    file: Where this node writes what it is asked as an administrator, and whom it refuses, as lines of JSON; a relative
        path is meant from `data_dir`. Without it nothing is written.
    bytes_max: Bytes of `audit.file`, before it is renamed to `FILE.1`, that to `FILE.2`, and so on.
    files_max: So many former files are kept.
    """

    table: ClassVar[str] = "audit"

    file: Annotated[str, about(allowed="a file, or a path in `data_dir`")] = ""
    bytes_max: Annotated[int, about(1 << 16, 1 << 40)] = 64 * 1024**2
    files_max: Annotated[int, about(1, 1000)] = 10
