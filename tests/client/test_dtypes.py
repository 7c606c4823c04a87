"""Collections of float16 and int8: what is stored, what is found, what is refused, through each way in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

import needle
from needle.base.dtypes import DType
from needle.base.errors import CollectionExists, InvalidArgument

ROWS, WIDTH = 300, 12


@pytest.fixture
async def client() -> AsyncIterator[needle.Client]:
    async with needle.open(":memory:") as opened:
        yield opened


def rows_of(dtype: str, seed: int = 1, count: int = ROWS) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if dtype == "int8":
        return rng.integers(-128, 128, (count, WIDTH)).astype(np.int8)
    return rng.standard_normal((count, WIDTH)).astype(np.float16 if dtype == "float16" else np.float32)


def distances(metric: str, rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Of what is stored, in float64."""
    a, q = rows.astype(np.float64), query.astype(np.float64)
    if metric == "l2":
        return np.sqrt(((a - q) ** 2).sum(axis=1))
    if metric == "dot":
        return -(a @ q)
    return 1 - a @ q / np.sqrt((a * a).sum(axis=1) * (q * q).sum())


@pytest.mark.parametrize("metric", ["cosine", "l2", "dot"])
@pytest.mark.parametrize("dtype", ["float16", "int8"])
async def test_what_is_given_is_stored_and_scored_exactly(client: needle.Client, dtype: str, metric: str) -> None:
    await client.create_collection("a", dimensions=WIDTH, metric=metric, dtype=dtype)
    rows, names = rows_of(dtype), [f"d{n}" for n in range(ROWS)]
    await client.insert_batch(ids=names[:-2], vectors=rows[:-2], collection="a")
    await client.insert(names[-2], rows[-2], collection="a")
    await client.insert(names[-1], [1.0] * WIDTH, {"n": 1}, collection="a")
    await client.update_vector(names[-1], rows[-1].tolist(), collection="a")
    stored = await client.get(names, collection="a")
    assert [one.vector.tolist() for one in stored] == rows.astype(np.float32).tolist()  # also under cosine
    query = np.random.default_rng(2).standard_normal(WIDTH).astype(np.float32)  # queries are not rounded
    far = distances(metric, rows, query)
    hits = await client.search(query, k=20, exact=True, with_vectors=True, collection="a")
    assert [hit.id for hit in hits] == [names[n] for n in np.argsort(far, kind="stable")[:20]]
    np.testing.assert_allclose([hit.distance for hit in hits], np.sort(far)[:20], rtol=2e-6, atol=2e-6)
    by_id = dict(zip(names, rows.astype(np.float32), strict=True))
    assert all((hit.vector == by_id[hit.id]).all() for hit in hits)
    alike = await client.search(like="d7", k=5, collection="a")
    wanted = np.argsort(distances(metric, rows, rows[7]), kind="stable")
    assert [hit.id for hit in alike] == [names[n] for n in wanted if n != 7][:5]
    apart = await client.search(query, k=5, collection="a", diversify=0.7)
    assert apart[0].id == hits[0].id and len(apart) == 5
    scanned = [one async for one in client.scan(with_vectors=True, collection="a", order_by="n")]
    assert all((one.vector == by_id[one.id]).all() for one in scanned)
    described = await client.describe_collection("a")
    assert described.dtype is DType(dtype)
    assert described.size is not None
    assert described.size.vector_bytes == ROWS * WIDTH * (2 if dtype == "float16" else 1)


BAD: list[tuple[str, Any, str]] = [
    ("int8", 1.5, "whole numbers from -128 to 127 (dtype int8)"),
    ("int8", 128, "whole numbers from -128 to 127 (dtype int8)"),
    ("int8", -129, "whole numbers from -128 to 127 (dtype int8)"),
    ("float16", 65520, "numbers from -65504 to 65504 (dtype float16)"),
    ("float16", -1e6, "numbers from -65504 to 65504 (dtype float16)"),
]


@pytest.mark.parametrize(("dtype", "number", "allowed"), BAD)
async def test_what_the_type_cannot_say_is_refused(
    client: needle.Client, dtype: str, number: float, allowed: str
) -> None:
    await client.create_collection("a", dimensions=3, metric="l2", dtype=dtype)
    await client.insert("x", [1, 2, 3], collection="a")
    calls = [
        client.insert("y", [1, number, 2], collection="a"),
        client.insert_batch([("z", [1, 2, 3]), ("y", [1, number, 2])], collection="a"),
        client.update_vectors(["x"], [[1, number, 2]], collection="a"),
    ]
    for n, call in enumerate(calls):
        with pytest.raises(InvalidArgument) as refused:
            await call
        assert allowed in refused.value.message and str(float(number)) in refused.value.message
        assert refused.value.details["field"] == f"vector of {'x' if n == 2 else 'y'!r}[1]"
    assert [one.id async for one in client.scan(collection="a")] == ["x"]
    (kept,) = await client.get(["x"], collection="a")
    assert kept.vector.tolist() == [1, 2, 3]


async def test_rounding_is_to_the_nearest_and_zero_has_no_cosine(client: needle.Client) -> None:
    await client.create_collection("h", dimensions=2, dtype="float16")
    await client.insert("x", [1 / 3, 65519], collection="h")
    (kept,) = await client.get(["x"], collection="h")
    assert kept.vector.tolist() == [float(np.float16(1 / 3)), 65504.0]
    with pytest.raises(InvalidArgument, match="not all zeros as float16"):
        await client.insert("y", [1e-9, 0], collection="h")  # not zero before it is rounded
    with pytest.raises(InvalidArgument, match=r"3 float32 values is not allowed: .* takes 2 float16 values"):
        await client.insert("y", [1, 2, 3], collection="h")
    with pytest.raises(InvalidArgument, match="finite"):
        await client.search([float("nan"), 1], collection="h")


async def test_settings_of_collections(client: needle.Client) -> None:
    await client.create_collection("a", dimensions=4, dtype="int8", index="hnsw_sq8")
    await client.create_collection("b", like="a")
    await client.create_collection("c", like="a", dtype="float32")
    assert [(spec.name, spec.dtype) for spec in await client.collections()][:3] == [
        ("a", DType.INT8), ("b", DType.INT8), ("c", DType.FLOAT32)
    ]  # fmt: skip
    with pytest.raises(InvalidArgument) as refused:
        await client.create_collection("d", dimensions=4, dtype="int4")
    assert refused.value.details["field"] == "dtype"
    for call in (
        client.create_collection("d", dimensions=4, dtype="int8", index="ivf_pq"),
        client.alter_collection("a", index="ivf_flat"),
    ):
        with pytest.raises(InvalidArgument, match="flat, hnsw, hnsw_sq8, hnsw_rabitq for dtype int8"):
            await call
    with pytest.raises(CollectionExists, match="dtype int8, not float16"):
        await client.create_collection("a", dimensions=4, dtype="float16", index="hnsw_sq8", if_absent=True)
