"""Named vectors of documents that expire come back from backups with the instants that their documents had."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from backup.test_indexes import cluster_of
from backup.test_named_indexes import SEALED, searched
from needle import VectorSpec
from needle import backup as backups
from needle.base.model import Metric
from needle.local.process_cluster import wait_for

ROWS, FIRST = 600, 560
RNG = np.random.default_rng(7)
BOOKS = RNG.standard_normal((ROWS, 16)).astype(np.float32)
TITLES = RNG.standard_normal((ROWS, 8)).astype(np.float32)
IDS = [f"d{n}" for n in range(ROWS)]
LATER = "2090-01-01T00:00:00Z"


@pytest.mark.parametrize("ttl", [0.0, 86_400.0])
async def test_what_index_files_of_a_name_lack_changes_no_instants(tmp_path: Path, ttl: float) -> None:
    """A vector that is given to a document makes it live for as long as the collection says, from then on: the digest
    was another one, so that such a backup could not be restored."""
    store = backups.open_store(str(tmp_path / "target"))
    async with cluster_of(tmp_path / "first", 1, 1, SEALED) as (_, client):
        title = VectorSpec(dimensions=8, metric=Metric.L2)
        await client.create_collection("books", dimensions=16, metric="l2", vectors={"title": title}, ttl=ttl or None)
        for first, end in ((0, FIRST), (FIRST, ROWS)):
            await client.insert_batch(
                ids=IDS[first:end], vectors=BOOKS[first:end], named_vectors={"title": TITLES[first:end]},
                expires_at=["never" if n % 3 else LATER for n in range(first, end)] if not ttl or first else None,
                collection="books",
            )  # fmt: skip
            if not first:
                await wait_for(partial(searched, client, "title", FIRST - 2 * SEALED), 90, "index files of a name")
        made = await backups.create(client, store)
        [collection] = made.manifest.collections
        assert sum(file.nodes for file in collection.named_indexes["title"]) < ROWS
    async with cluster_of(tmp_path / "second", 1, 1, SEALED) as (_, client):
        done = await backups.restore(client, store)
        assert done.digests == {"books": collection.digest}
        assert done.indexed and bool(done.indexed_named) == bool(not ttl) == (done.built == [])
