"""Collections of bits: what is stored, what is found, what is refused, through each way in (docs/adr/0128)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

import needle
from needle.base.dtypes import DType
from needle.base.errors import InvalidArgument
from needle.base.model import Metric, VectorSpec

ROWS, BITS = 300, 72
"""72: bytes that are no whole words."""


@pytest.fixture
async def client() -> AsyncIterator[needle.Client]:
    async with needle.open(":memory:") as opened:
        yield opened


def bits_of(count: int = ROWS, seed: int = 1, width: int = BITS) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (count, width)).astype(np.uint8)


@pytest.mark.parametrize("width", [8, BITS, 128])
async def test_what_is_given_is_stored_and_counted(client: needle.Client, width: int) -> None:
    await client.create_collection("a", dimensions=width, dtype="bit", metric="hamming")
    bits, names = bits_of(width=width), [f"d{n:03d}" for n in range(ROWS)]
    packed = np.packbits(bits, axis=1)
    await client.insert_batch(ids=names[:100], vectors=packed[:100], collection="a")
    await client.insert_batch(ids=names[100:200], vectors=bits[100:200].astype(bool), collection="a")
    await client.insert_batch(
        [(name, row.tolist()) for name, row in zip(names[200:-2], bits[200:-2], strict=True)], collection="a"
    )
    await client.insert(names[-2], packed[-2].tolist(), collection="a")
    await client.insert(names[-1], np.zeros(width), {"n": 1}, collection="a")  # all zeros have a Hamming distance
    await client.update_vector(names[-1], bits[-1], collection="a")
    stored = await client.get(names, collection="a")
    assert [one.vector.tolist() for one in stored] == packed.tolist()
    query = bits_of(1, 2, width)[0]
    far = (bits != query).sum(axis=1)
    nearest = sorted(range(ROWS), key=lambda n: (far[n], n))[:20]
    for asked in (query, query.astype(bool), np.packbits(query), query.tolist()):
        hits = await client.search(asked, k=20, exact=True, with_vectors=True, collection="a")
        assert [hit.id for hit in hits] == [names[n] for n in nearest]
        assert [hit.distance for hit in hits] == [far[n] for n in nearest]
        assert [hit.score for hit in hits] == [-far[n] for n in nearest]
        assert [hit.vector.tolist() for hit in hits] == [packed[n].tolist() for n in nearest]
    alike = await client.search(like=names[7], k=5, exact=True, collection="a")
    to_it = (bits != bits[7]).sum(axis=1)
    assert [hit.distance for hit in alike] == sorted(np.delete(to_it, 7).tolist())[:5]
    near = await client.search(query, k=ROWS, max_distance=float(far[nearest[3]]), exact=True, collection="a")
    assert len(near) == int((far <= far[nearest[3]]).sum())
    scanned = [one async for one in client.scan(with_vectors=True, collection="a")]
    assert [one.vector.tolist() for one in scanned] == packed.tolist()
    described = await client.describe_collection("a")
    assert (described.dtype, described.metric, described.dimensions) == (DType.BIT, Metric.HAMMING, width)
    assert described.size is not None and described.size.vector_bytes == ROWS * width // 8


async def test_hits_may_be_unlike_each_other(client: needle.Client) -> None:
    await client.create_collection("a", dimensions=16, dtype="bit")  # hamming, without being asked
    near, copy, other = [1] * 15 + [0], [1] * 14 + [0, 0], [1] * 13 + [0] * 3
    other[0] = 0
    await client.insert_batch([("near", near), ("copy", copy), ("other", other)], collection="a")
    plain = await client.search([1] * 16, k=2, collection="a")
    assert [hit.id for hit in plain] == ["near", "copy"]
    apart = await client.search([1] * 16, k=2, diversify=0.9, collection="a")
    assert [hit.id for hit in apart] == ["near", "other"] and [hit.distance for hit in apart] == [1, 4]


BAD: list[tuple[Any, str]] = [
    ([0, 1] * 7 + [2, 0], "0 or 1 (dtype bit)"),
    ([0.5] + [0] * 15, "0 or 1 (dtype bit)"),
    ([-1] + [0] * 15, "0 or 1 (dtype bit)"),
    ([256, 0], "whole numbers from 0 to 255"),
    ([-1, 0], "whole numbers from 0 to 255"),
    ([1.5, 0], "whole numbers from 0 to 255"),
    ([1, 0, 1], "takes 16 bits: so many numbers 0 or 1, or 2 bytes (numpy.packbits)"),
    ([1] * 128, "takes 16 bits: so many numbers 0 or 1, or 2 bytes (numpy.packbits)"),
]


@pytest.mark.parametrize(("vector", "allowed"), BAD)
async def test_what_is_no_bits_is_refused(client: needle.Client, vector: list[float], allowed: str) -> None:
    await client.create_collection("a", dimensions=16, dtype="bit", metric="hamming")
    await client.insert("x", [255, 0], collection="a")
    calls = [
        client.insert("y", vector, collection="a"),
        client.insert_batch([("z", vector), ("y", vector)], collection="a"),
        client.update_vectors(["x"], [vector], collection="a"),
        client.search(vector, k=1, collection="a"),
    ]
    for call in calls:
        with pytest.raises(InvalidArgument) as refused:
            await call
        assert allowed in refused.value.message
    assert [one.id async for one in client.scan(collection="a")] == ["x"]
    (kept,) = await client.get(["x"], collection="a")
    assert kept.vector.tolist() == [255, 0]


async def test_bits_go_with_hamming_and_two_kinds_of_index(client: needle.Client) -> None:
    await client.create_collection("a", dimensions=16, dtype="bit", index="flat")
    await client.create_collection("b", like="a")
    await client.create_collection("c", dimensions=16, dtype="int8")
    await client.create_collection("d", like="c", dtype="bit")
    specs = {spec.name: (spec.dtype, spec.metric) for spec in await client.collections()}
    assert [specs[name] for name in "abd"] == [(DType.BIT, Metric.HAMMING)] * 3
    refused: list[tuple[dict[str, Any], str, str]] = [
        ({"metric": "hamming"}, "metric", "one of cosine, l2, dot for dtype float32; hamming is for dtype bit"),
        ({"metric": "hamming", "dtype": "int8"}, "metric", "for dtype int8; hamming is for dtype bit"),
        ({"dtype": "bit", "metric": "cosine"}, "metric", "one of hamming for dtype bit"),
        ({"dtype": "bit", "dimensions": 12}, "dimensions", "a multiple of 8 for dtype bit"),
        ({"dtype": "bit", "index": "hnsw_sq8"}, "index.kind", "one of flat, hnsw for dtype bit"),
        ({"dtype": "bit", "index": "ivf_flat"}, "index.kind", "one of flat, hnsw for dtype bit"),
    ]
    for how, field, allowed in refused:
        with pytest.raises(InvalidArgument, match=allowed) as error:
            await client.create_collection("e", **{"dimensions": 16} | how)
        assert error.value.details["field"] == field
    with pytest.raises(InvalidArgument, match="one of flat, hnsw for dtype bit"):
        await client.alter_collection("a", index="hnsw_rabitq")
    await client.alter_collection("a", index="hnsw")


async def test_named_vectors_may_be_bits(client: needle.Client) -> None:
    code = VectorSpec(dimensions=16, dtype=DType.BIT, metric=Metric.HAMMING)
    await client.create_collection("a", dimensions=2, vectors={"code": code})
    await client.insert("x", [1, 0], vectors={"code": [255, 0]}, collection="a")
    await client.insert_batch(
        ids=["y", "z"], vectors=[[0, 1], [1, 1]], named_vectors={"code": [[1] * 16, None]}, collection="a"
    )
    await client.update_vector("z", [0] * 16, name="code", collection="a")
    hits = await client.search([1] * 8 + [0] * 8, k=3, vector_name="code", collection="a")
    assert [(hit.id, hit.distance) for hit in hits] == [("x", 0), ("y", 8), ("z", 8)]
    (kept,) = await client.get(["x"], vectors=["code"], collection="a")
    assert kept.vectors is not None and kept.vectors["code"].tolist() == [255, 0]
    with pytest.raises(InvalidArgument, match="0 or 1"):
        await client.update_vector("z", [3] * 16, name="code", collection="a")
    with pytest.raises(InvalidArgument, match="hamming for dtype bit"):
        await client.add_vector("a", "other", VectorSpec(dimensions=16, dtype=DType.BIT))
