"""Exact hits are the same on all replicas, whatever instructions their processors have: each file is searched by
processes in which faiss, NumPy and OpenBLAS are told to do without some."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from itertools import cycle
from pathlib import Path
from typing import Any

import faiss
import msgspec
import numpy as np
import pytest

from needle.base.dtypes import DType, VectorForm
from needle.base.model import KINDS_OF, CollectionSpec, IndexKind, IndexParams, Metric, metrics_of
from needle.shard.plan import PublishedSegment
from needle.shard.segments.builder import build_segment
from needle.shard.segments.scoring import Scan, pair_distances, top_k
from needle.shard.segments.sealed import SealedSegment, segment_file
from shard.vectors_util import clustered

ROWS, WIDTH, K = 4200, 136, 10
"""Lists begin at 4,096 rows; NumPy adds up 128 numbers in another order than more."""
OF_CPUS = {"AVX2": "avx2", "AVX512": "avx512f"}
"""What faiss calls a level, and what Linux calls the instructions."""


class Case(msgspec.Struct):
    """One file. queries: the file that has them."""

    spec: CollectionSpec
    segment: PublishedSegment
    directory: str


def cases(directory: Path) -> list[Case]:
    """A file of each kind and type, and of flat ones of each metric."""
    metrics = {dtype: cycle(metrics_of(dtype)) for dtype in DType}
    wanted = [(dtype, kind, next(metrics[dtype])) for dtype in DType for kind in KINDS_OF[dtype]]
    wanted += [(dtype, IndexKind.FLAT, metric) for dtype in DType for metric in metrics_of(dtype)]
    made = []
    for dtype, kind, metric in dict.fromkeys(wanted):
        spec = CollectionSpec(
            name="c", dimensions=WIDTH, metric=metric, index=IndexParams(kind=kind, ef_construction=40), dtype=dtype
        )
        where = directory / f"{dtype}-{kind}-{metric}"
        where.mkdir()
        segment, _ = build_segment(str(where), 3, 0, ROWS - 1, [(np.arange(ROWS), stored(spec, 1, ROWS))], spec)
        made.append(Case(spec, segment, str(where)))
    return made


def stored(spec: CollectionSpec, seed: int, rows: int) -> np.ndarray:
    data = clustered(rows, WIDTH, seed, normalise=spec.metric is Metric.COSINE and spec.dtype is DType.FLOAT32)
    if spec.dtype is DType.INT8:
        data = np.clip(np.rint(20 * data), -128, 127)
    if spec.dtype is DType.BIT:
        data = data > 0
    return VectorForm(WIDTH, spec.dtype).stored(data)


def answers(case: Case) -> list[str]:
    """What exact searches of one query and of several find, also under a mask, bit by bit. Raises AssertionError unless
    a search of the index tells the distances of these."""
    opened = SealedSegment(os.path.join(case.directory, segment_file(case.segment)), case.segment, case.spec)
    queries = np.load(os.path.join(case.directory, "..", f"{case.spec.dtype}-{case.spec.metric}.npy"))
    told = []
    for asked in (queries[:1], queries):
        for mask in (None, np.arange(ROWS) % 3 == 0, np.arange(ROWS) % 40 == 0):
            scan = Scan(case.spec.metric, asked, K, opened.norm_max)
            opened.scan(scan, mask)
            ordinals, distances = top_k(scan.found, len(asked), K)
            told.append(hashlib.sha256(ordinals.tobytes() + distances.tobytes()).hexdigest())
            found, far = top_k(opened.search(asked, K, 64, mask), len(asked), K)
            for query, names, shown in zip(asked, found, far, strict=True):
                exact = pair_distances(case.spec.metric, query[None], opened.vectors(names))
                assert exact.tobytes() == shown.tobytes(), (case.spec, names)
    return told


def main(directory: str) -> None:
    """In a process of its own: everything that is there, as JSON."""
    found = msgspec.json.decode(Path(directory, "cases.json").read_bytes(), type=list[Case])
    told: dict[str, Any] = {Path(case.directory).name: answers(case) for case in found}
    sys.stdout.write(json.dumps([faiss.SIMDConfig.get_level_name(), told]))


def doing_without() -> dict[str, str]:
    """NumPy without what it chose for this processor, OpenBLAS as for one of 2008."""
    core = np._core._multiarray_umath
    chosen = [name for name in core.__cpu_dispatch__ if core.__cpu_features__.get(name)]
    return {"NPY_DISABLE_CPU_FEATURES": " ".join(chosen), "OPENBLAS_CORETYPE": "Nehalem"}


def levels() -> dict[str, dict[str, str]]:
    """What the environment says, by how it is called here."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    there = ["NONE", *(level for level, flag in OF_CPUS.items() if flag in flags)]
    told = {f"faiss {level}": {"FAISS_SIMD_LEVEL": level} for level in there}
    return told | {
        "NumPy and OpenBLAS of before": doing_without(),
        "all of before": doing_without() | told["faiss NONE"],
    }


@pytest.mark.skipif(sys.platform != "linux", reason="levels are told by /proc/cpuinfo")
def test_exact_hits_are_the_same_bits_on_every_processor(tmp_path: Path) -> None:
    made = cases(tmp_path)
    (tmp_path / "cases.json").write_bytes(msgspec.json.encode(made))
    for case in made:
        spec = case.spec
        np.save(tmp_path / f"{spec.dtype}-{spec.metric}.npy", spec.form.scored(stored(spec, 2, 6)))
    by_level = {}
    for level, environment in levels().items():
        environment = os.environ | environment | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", f"from shard.test_cpu_levels import main; main({str(tmp_path)!r})"]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert ran.returncode == 0, (level, ran.stderr)
        used, by_level[level] = json.loads(ran.stdout)
        assert level.removeprefix("faiss ") == used or not level.startswith("faiss"), "faiss was not told"
    first, *others = by_level.values()
    assert len(first) == len(made) and len(by_level) >= 3
    assert all(other == first for other in others), [
        (level, name) for level, told in by_level.items() for name in told if told[name] != first[name]
    ]
