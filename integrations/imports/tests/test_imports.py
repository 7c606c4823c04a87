"""`needle import` as a process, from what the databases' own libraries wrote."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import chromadb
import faiss
import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from importing import COUNT, DIMENSIONS, IDS, METADATA, VECTORS, Importing, check, documented
from pymilvus import DataType, MilvusClient
from qdrant_client import QdrantClient, models

import needle

SETTINGS = chromadb.config.Settings(anonymized_telemetry=False)


def filled_chroma(client: Any, name: str, space: str, count: int = COUNT) -> None:
    made = client.create_collection(name, configuration={"hnsw": {"space": space}})
    for start in range(0, count, 400):
        part = slice(start, min(start + 400, count))
        made.add(ids=IDS[part], embeddings=VECTORS[part], metadatas=METADATA[part], documents=IDS[part])


def test_chroma_directory_killed_half_way_and_run_again(imported: Importing, cluster: str, tmp_path: Path) -> None:
    filled_chroma(chromadb.PersistentClient(str(tmp_path / "chroma"), SETTINGS), "articles", "cosine")
    words = [*documented("chroma:./"), "--batch", "20"]
    command = [sys.executable, "-m", "needle", "import"]
    plan = imported(*words, "--dry-run")
    assert plan["creates"] and plan["documents"] == COUNT and "verified" not in plan
    assert plan["metadata"]["half"] == "number" and plan["metadata"]["document"] == "string"
    with needle.connect_sync(cluster) as client:
        assert "articles" not in [one.name for one in client.collections()]
        running = subprocess.Popen(
            [*command, *words, "--cluster", cluster], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        deadline = time.monotonic() + 60
        while running.poll() is None and time.monotonic() < deadline:
            if "articles" in [one.name for one in client.collections()] and client.count(collection="articles") > 100:
                break
        os.kill(running.pid, signal.SIGKILL)
        running.communicate()
        held = client.count(collection="articles")
        assert 100 < held < COUNT
        found = imported(*words)
        assert found["there"] >= held and found["written"] + found["there"] == COUNT
        check({**found, "written": COUNT}, "cosine")
        assert client.get("d7", collection="articles").metadata == {**METADATA[7], "document": "d7"}
        again = imported(*words)
        assert (again["written"], again["there"]) == (0, COUNT)
        client.patch("d7", set={"n": -1}, collection="articles")
        changed = imported(*words)
        assert (changed["written"], changed["there"]) == (1, COUNT - 1)
        client.insert("other", VECTORS[0], collection="articles")
    assert "holds 1201 documents, and the source 1200 ids" in imported.refused(*words)
    assert imported(*words, "--add")["verified"]["other"] == 1


def test_chroma_server(imported: Importing, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = [
        str(Path(sys.executable).with_name("chroma")),
        "run",
        "--path",
        str(tmp_path / "served"),
        "--port",
        str(port),
    ]
    with subprocess.Popen(serve, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        try:
            deadline = time.monotonic() + 60
            while socket.socket().connect_ex(("127.0.0.1", port)):
                assert running.poll() is None and time.monotonic() < deadline
            filled_chroma(chromadb.HttpClient(port=port), "served", "l2")
            words = [word.replace("8000", str(port)) for word in documented("chroma:http:")]
            check(imported(*words), "l2")
        finally:
            running.terminate()


def test_qdrant_directory(imported: Importing, tmp_path: Path) -> None:
    client = QdrantClient(path=str(tmp_path / "qdrant"))
    one = models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE)
    client.create_collection("plain", vectors_config=one)
    points = [models.PointStruct(id=n, vector=VECTORS[n].tolist(), payload=METADATA[n]) for n in range(200)]
    client.upsert("plain", points)
    two = {"a": one, "b": models.VectorParams(size=DIMENSIONS, distance=models.Distance.DOT)}
    sparse = {"words": models.SparseVectorParams()}
    client.create_collection("named", vectors_config=two, sparse_vectors_config=sparse)
    both = [
        models.PointStruct(id=n, vector={"a": VECTORS[0].tolist(), "b": VECTORS[n].tolist()}, payload={"n": n})
        for n in range(100)
    ]
    client.upsert("named", both)
    client.close()
    check(imported(*documented("qdrant:./qdrant --from-collection plain")), "cosine", 200)
    assert "sparse vectors (words)" in imported.refused("qdrant:./qdrant", "--from-collection", "named")
    assert "--from-collection; there are: named, plain" in imported.refused("qdrant:./qdrant")
    found = imported(*documented("qdrant:./qdrant --from-collection named"))
    check(found, "dot", 100)
    assert found["mapping"]["vector a"] == found["mapping"]["vector words"] == "left out: --vector names another"


def test_lancedb(imported: Importing, tmp_path: Path) -> None:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(VECTORS.ravel()), DIMENSIONS)
    columns = {"id": IDS, "vector": vectors, "n": list(range(COUNT)), "at": pa.array([0] * COUNT, pa.date32())}
    lancedb.connect(tmp_path / "lancedb").create_table("articles", pa.table(columns))
    found = imported(*documented("lancedb:"))
    check(found, "l2")
    assert found["metadata"] == {"at": "string", "n": "integer"}
    made = lancedb.connect(tmp_path / "lancedb")
    made.create_table("named", pa.table({**columns, "vector:title": IDS}))
    said = imported.refused("lancedb:./lancedb", "--from-collection", "named", "--collection", "refused")
    assert "its column 'vector:title' cannot become metadata" in said, "it was left out in silence, and called equal"
    made.create_table("keyed", pa.table({**columns, "key": IDS}))
    said = imported.refused("lancedb:./lancedb", "--from-collection", "keyed", "--id", "key", "--collection", "refused")
    assert "its column 'id' cannot become metadata" in said
    until = pa.array([4_102_444_800_000_000] * COUNT, pa.timestamp("us", "UTC"))
    marked = pa.field("expires_at", until.type, metadata={"needle": "instant"})
    table = pa.table(columns).append_column(marked, until)
    made.create_table("expiring", table)
    said = imported.refused("lancedb:./lancedb", "--from-collection", "expiring", "--collection", "refused")
    assert "says when it expires" in said
    for path in (tmp_path / "lancedb" / "articles.lance" / "data").iterdir():
        path.write_bytes(b"damaged")
    said = imported.refused("lancedb:./lancedb", "--from-collection", "articles", "--collection", "tables")
    assert "lancedb: cannot be read: " in said


def test_milvus_lite(imported: Importing, cluster: str, tmp_path: Path) -> None:
    client = MilvusClient(str(tmp_path / "milvus.db"))
    schema = client.create_schema(enable_dynamic_field=True)
    schema.add_field("key", DataType.INT64, is_primary=True)
    schema.add_field("place", DataType.FLOAT_VECTOR, dim=DIMENSIONS)
    index = client.prepare_index_params()
    index.add_index("place", index_type="FLAT", metric_type="IP")
    client.create_collection("articles", schema=schema, index_params=index)
    client.insert("articles", [{"key": n, "place": VECTORS[n].tolist(), **METADATA[n]} for n in range(COUNT)])
    client.close()
    check(imported(*documented("milvus:")), "dot")
    with needle.connect_sync(cluster) as client:
        assert client.get("7", collection="milvus").metadata == METADATA[7]


def test_faiss_and_pickles(imported: Importing, tmp_path: Path) -> None:
    index = faiss.IndexFlatL2(DIMENSIONS)
    index.add(VECTORS)
    faiss.write_index(index, str(tmp_path / "index.faiss"))
    (tmp_path / "ids.txt").write_text("\n".join(IDS))
    check(imported(*documented("faiss:")), "l2")
    coded = faiss.index_factory(DIMENSIONS, "SQ8")
    coded.train(VECTORS)
    coded.add(VECTORS)
    faiss.write_index(coded, str(tmp_path / "coded.faiss"))
    assert "does not hold the vectors as they were" in imported.refused(f"faiss:{tmp_path / 'coded.faiss'}")
    (tmp_path / "index.pkl").write_bytes(b"")
    assert "is a pickle" in imported.refused(f"faiss:{tmp_path}")
    assert "FAISS.load_local" in imported.refused(str(tmp_path / "index.pkl"))


@pytest.mark.parametrize("kind", ["chroma", "qdrant", "milvus"])
def test_another_directory_stays_as_it_is(imported: Importing, tmp_path: Path, kind: str) -> None:
    (tmp_path / "other").mkdir()
    assert "it is not the directory of such a database" in imported.refused(f"{kind}:./other")
    assert list((tmp_path / "other").iterdir()) == []


@pytest.mark.parametrize("suffix", ["jsonl", "npy", "parquet", "arrow"])
def test_files(imported: Importing, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"documents.{suffix}"
    columns = {"id": IDS, "vector": list(VECTORS), "n": list(range(COUNT))}
    if suffix == "jsonl":
        rows = zip(IDS, VECTORS.tolist(), METADATA, strict=True)
        path.write_text("\n".join(json.dumps({"id": id, "vector": v, "metadata": m}) for id, v, m in rows))
    elif suffix == "npy":
        np.save(path, VECTORS)
    elif suffix == "parquet":
        pq.write_table(pa.table(columns), path)
    else:
        with pa.ipc.new_file(path, pa.table(columns).schema) as file:
            file.write(pa.table(columns))
    words = documented("documents.")
    check(imported(path.name, "--collection", suffix, *words[3:]), "l2")
