"""Sizing: the guide's table, and what must hold of any answer. Against a real cluster: tests/cli/test_plan.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from needle import ConfigError, IndexKind
from needle.client.sizing import USED_MAX, document_bytes, index_bytes, plan_size


@pytest.mark.parametrize(
    ("vectors", "shards", "nodes"),
    [
        (1, (1, 1), (3, 3)),
        (9_999_999, (1, 1), (3, 3)),
        (10_000_000, (2, 4), (6, 12)),
        (50_000_000, (2, 4), (6, 12)),
        (99_999_999, (2, 4), (6, 12)),
        (100_000_000, (8, 16), (24, 48)),
        (999_999_999, (8, 16), (24, 48)),
        (1_000_000_000, (16, 4096), (48, 12_288)),
        (10_000_000_000, (16, 4096), (48, 12_288)),
    ],
)
def test_the_rows_of_the_guide(vectors: int, shards: tuple[int, int], nodes: tuple[int, int]) -> None:
    found = plan_size(vectors=vectors, dimensions=768)
    assert shards[0] <= found.shards <= shards[1]
    assert nodes[0] <= found.nodes <= nodes[1]


@pytest.mark.parametrize(
    ("dimensions", "m", "metadata", "index", "documents"),
    [(64, 16, 0, 400, 379), (384, 16, 0, 1680, 2162), (384, 32, 0, 1808, 2161), (384, 16, 1000, 1680, 3495),
     (1536, 16, 0, 6288, 8320)],
)  # fmt: skip
def test_what_was_measured(dimensions: int, m: int, metadata: int, index: int, documents: int) -> None:
    assert index_bytes(dimensions, m) == index
    assert document_bytes(dimensions, metadata, 21) == pytest.approx(documents, rel=0.08)


@given(
    st.integers(1, 10**11), st.integers(1, 4096), st.integers(1, 7), st.integers(0, 60_000), st.integers(2**27, 2**40)
)
def test_what_is_said_fits_into_the_nodes(
    vectors: int, dimensions: int, replicas: int, metadata: int, memory: int
) -> None:
    try:
        found = plan_size(
            vectors=vectors,
            dimensions=dimensions,
            replicas=replicas,
            metadata_bytes=metadata,
            memory_per_node=memory,
            qps=10,
        )
    except ConfigError as error:
        assert "memory_per_node" in error.message
        return
    assert found.memory <= memory * 1.001
    assert found.shards >= found.guide_shards and found.nodes == found.shards * replicas
    assert found.vectors_per_shard * found.shards >= vectors
    assert found.used_disk + found.building <= USED_MAX * found.disk + 1
    assert found.cores > 0 and found.rebuild_seconds > 0


def test_codes_take_less_memory_and_more_disk() -> None:
    found = {kind: plan_size(vectors=10**7, dimensions=768, kind=kind, qps=1) for kind in IndexKind}
    full = found[IndexKind.HNSW]
    for kind in (IndexKind.HNSW_SQ8, IndexKind.HNSW_RABITQ, IndexKind.IVF_PQ):
        assert found[kind].used_memory < 0.4 * full.used_memory
    assert found[IndexKind.HNSW_SQ8].index > full.index
    assert found[IndexKind.FLAT].cores > found[IndexKind.IVF_FLAT].cores > full.cores


def test_more_metadata_takes_more_disk() -> None:
    sizes = [plan_size(vectors=1000, dimensions=8, metadata_bytes=n).documents for n in range(0, 60_000, 97)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


@pytest.mark.parametrize(
    ("field", "value"),
    [("vectors", 0), ("dimensions", 0), ("replicas", 8), ("m", 1), ("metadata_bytes", -1), ("qps", -1.0),
     ("shards", 0), ("memory_per_node", 1), ("network_bits", 0)],
)  # fmt: skip
def test_what_cannot_be_is_refused(field: str, value: float) -> None:
    given_: dict[str, float] = {"vectors": 1000, "dimensions": 8, field: value}
    with pytest.raises(ConfigError, match=field):
        plan_size(**given_)  # type: ignore[arg-type]
