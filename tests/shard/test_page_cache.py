"""A hint never changes what is read, nor how damage is reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from needle.base.errors import CorruptSegment
from needle.base.model import Metric
from needle.shard.segments import page_cache
from needle.shard.segments.sealed import SealedSegment
from shard.vectors_util import clustered, new_vectors, seal


@pytest.fixture(autouse=True)
def every_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_cache, "HUGE_BYTES", 1)


def test_files_open_as_before(tmp_path: Path) -> None:
    vectors, data = new_vectors(tmp_path, Metric.L2), clustered(3000, 16, 1, normalise=False)
    vectors.append(0, data)
    segment, path = seal(vectors, 0, 2999)
    sealed = SealedSegment(path, segment, vectors.spec)
    assert sealed.vectors(np.arange(3000)).tobytes() == data.tobytes()
    content = Path(path).read_bytes()
    for damaged in (b"", content[:5000], content[:5000] + b"x" + content[5001:]):
        Path(path).unlink()
        Path(path).write_bytes(damaged)
        with pytest.raises(CorruptSegment):
            SealedSegment(path, segment, vectors.spec)
    Path(path).unlink()
    with pytest.raises(CorruptSegment):
        SealedSegment(path, segment, vectors.spec)


def test_filling_and_dropping_keep_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    content = np.random.default_rng(1).bytes(5 << 20)
    path.write_bytes(content)
    page_cache.fill(str(path), len(content))
    with path.open("rb") as file:
        page_cache.drop(file.fileno())
    page_cache.fill(str(path), len(content))
    page_cache.fill(str(tmp_path / "absent"), 1)
    assert path.read_bytes() == content
