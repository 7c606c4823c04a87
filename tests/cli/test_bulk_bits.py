"""A bulk load of bits: from a column of bits, or of the bytes that have them, as an export has it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import needle
from cluster.test_bulk_loads import Inline
from needle.base.errors import InvalidArgument
from needle.cli.bulk.loading import Asked, load
from needle.cli.bulk.pieces import pieces_of

BITS = np.random.default_rng(1).integers(0, 2, (200, 64)).astype(np.uint8)
PACKED = np.packbits(BITS, axis=1)


async def loaded(client: needle.Client, rows: np.ndarray, directory: Path) -> None:
    columns = {"id": [f"d{at}" for at in range(len(rows))], "vector": list(rows.astype(np.float32))}
    pq.write_table(pa.table(columns), directory / "a.parquet")
    pieces, width = pieces_of(str(directory / "a.parquet"))
    asked = Asked("c", pieces, width, None, str(directory / "work"), 60.0)
    await load(client, asked, Inline, lambda *_: None)


@pytest.mark.parametrize("rows", [BITS, PACKED])
async def test_bits_and_their_bytes_are_loaded(tmp_path: Path, rows: np.ndarray) -> None:
    async with needle.open(":memory:") as client:
        await client.create_collection("c", dimensions=64, dtype="bit")
        await loaded(client, rows, tmp_path)
        stored = await client.get([f"d{at}" for at in range(len(rows))], collection="c")
        assert [one.vector.tolist() for one in stored] == PACKED.tolist()


async def test_other_lengths_are_refused(tmp_path: Path) -> None:
    async with needle.open(":memory:") as client:
        await client.create_collection("c", dimensions=64, dtype="bit")
        with pytest.raises(InvalidArgument, match="64 dimensions and metric hamming, the source 7 and hamming"):
            await loaded(client, PACKED[:, :7], tmp_path)
        assert await client.count(collection="c") == 0
