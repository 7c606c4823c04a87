"""Clusters for a browser to look at, with names and documents of somebody who means harm."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from needle.client.client import Client
from needle.client.embedding import WORDLLAMA
from needle.connecting import Credentials, check_tls, connected
from needle.local.certificates import create_ca, create_node
from needle.local.process_cluster import ProcessCluster

SECRET: Final = "0123456789abcdef" * 4
BATCH_BYTES: Final = 1 << 20
BOOKS: Final = "books"
FAR: Final = "far"
"""A collection of vectors whose numbers and distances JavaScript takes for whole numbers that it cannot hold."""
VECTORS: Final = {"a": [1e17, 0.0], "b": [3e17, 0.0]}
NOTES: Final = "notes"
"""A collection of TEXTS."""
TEXTS: Final = {"ants": "ants carry leaves", "sky": "clouds above the mountains", "car": "how to repair an engine"}
HOSTILE: Final = '"><img src=x onerror="window.harmed=1"><script>window.harmed=1</script>'
IDS: Final = (
    HOSTILE,
    "<svg onload=window.harmed=1>",
    "javascript:window.harmed=1",
    "..",
    "../../status?x=1#y",
    "a/b",
    "\u202egnp.exe",
    "line\nbreak\u0000",
    "{{constructor.constructor('window.harmed=1')()}}",
    "\U0001f4a5",
)
BIG: Final = 12345678901234567890
"""More digits than JavaScript's numbers have."""
MANY: Final = 120


async def fill(client: Client) -> None:
    """Collections, documents and an alias with whatever can stand in them."""
    rng = random.Random(5)
    await client.create_collection(BOOKS, dimensions=4, metric="l2")
    await client.create_collection(HOSTILE, dimensions=3)
    await client.set_alias(f"alias {HOSTILE}", BOOKS)
    await client.create_field_index(BOOKS, "year")
    ids = [*IDS, *(f"book-{n:04}" for n in range(MANY))]
    metadatas: list[Any] = [
        {
            "title": HOSTILE,
            HOSTILE: {"__proto__": {"harmed": HOSTILE}, "constructor": HOSTILE},
            "year": 1900 + n,
            "big": BIG,
            "note": r"\u000a is no new line",
        }
        for n in range(len(ids))
    ]
    vectors = [[rng.random() for _ in range(4)] for _ in ids]
    await client.insert_batch(ids=ids, vectors=vectors, metadatas=metadatas, collection=BOOKS)
    await client.create_collection(FAR, dimensions=2, metric="l2")
    await client.insert_batch(ids=list(VECTORS), vectors=list(VECTORS.values()), collection=FAR)
    await client.create_collection(NOTES, model=WORDLLAMA.name)
    await client.insert_batch(ids=list(TEXTS), texts=TEXTS.values(), collection=NOTES)
    for _ in range(40):
        await client.search([rng.random() for _ in range(4)], 3, collection=BOOKS)


class Closed(NamedTuple):
    """A cluster that asks for keys, over TLS."""

    address: str
    reader: str
    of_books: str


@asynccontextmanager
async def closed(directory: Path) -> AsyncIterator[Closed]:
    """One node of such a kind, with a key for all and one for the books only."""
    create_ca(directory / "ca", "test", 10)
    made = create_node(directory / "ca", "node-1", ("127.0.0.1",), 10)
    ca = str(directory / "ca" / "ca.crt")
    tls = {"mode": "require", "certificate": str(made.certificate), "key": str(made.key), "ca": ca}
    settings: dict[str, Any] = {"require_keys": True, "cluster_secret": SECRET, "tls": tls}
    cluster = ProcessCluster(directory, 1, **settings)
    cluster.tls = ca
    async with cluster:
        shown = Credentials(secrets=(SECRET,), dial=check_tls(ca))
        async with await connected([cluster.nodes["node-1"].address], "needle", BATCH_BYTES, shown) as client:
            await fill(client)
            reader = (await client.create_key("all", "reader")).key
            of_books = (await client.create_key("some", "reader", collections=[BOOKS])).key
            yield Closed(f"https://{cluster.nodes['node-1'].http}", reader, of_books)
