"""A drill: backups and an archive made in chaos, and restores of them, judged by a model."""

from __future__ import annotations

from proof.restore_drill.model import Writers
from proof.restore_drill.run import Drill

__all__ = ["Drill", "Writers"]
