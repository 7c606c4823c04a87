"""Searches must not spin on each other's cores."""

from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
import numpy as np
from needle.base.model import Metric
from needle.shard.segments import blas
from needle.shard.segments.scoring import Scan
before = blas.threads()
rows = np.eye(8, dtype=np.float32)
Scan(Metric.DOT, rows[:2], 3, 1.0).add(rows, np.arange(8))
print(before, blas.threads())
"""


def test_a_scan_uses_one_thread() -> None:
    """In a process of its own, where nothing else has set it: NumPy's wheels bring OpenBLAS."""
    environment = {"OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", _SCRIPT], env=environment, capture_output=True, text=True, check=True)
    before, after = done.stdout.split()
    assert int(before) >= 1, "none found, though NumPy's wheels bring it"
    assert after == "1"
