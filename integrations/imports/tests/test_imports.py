"""`needle import` as a process, from what the databases' own libraries wrote."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromadb
import faiss
import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pymilvus import DataType, MilvusClient
from qdrant_client import QdrantClient, models

import needle
from needle.local.process_cluster import ProcessCluster

COUNT, DIMENSIONS = 1200, 16
VECTORS = np.random.default_rng(7).normal(size=(COUNT, DIMENSIONS)).astype(np.float32)
METADATA = [{"n": n, "half": n / 2, "odd": n % 2 == 1, "name": f"é{n}"} for n in range(COUNT)]
IDS = [f"d{n}" for n in range(COUNT)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The addresses of three nodes."""
    started = ProcessCluster(Path(tmp_path_factory.mktemp("cluster")), 3, dimensions=2)
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(started.start())
        yield started.cluster
    finally:
        started.stop()
        loop.close()


def command(cluster: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "needle", "import", *words, "--cluster", cluster, "--json"]


def imported(cluster: str, *words: str, expect: int = 0) -> dict[str, Any]:
    ended = subprocess.run(command(cluster, *words), check=False, capture_output=True, text=True, timeout=100)
    assert ended.returncode == expect, ended.stdout + ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def refused(cluster: str, *words: str) -> str:
    ended = subprocess.run(command(cluster, *words), check=False, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr, ended.stdout + ended.stderr
    return " ".join(ended.stderr.split())


def check(found: dict[str, Any], metric: str, count: int = COUNT) -> None:
    assert (found["metric"], found["dimensions"], found["written"]) == (metric, DIMENSIONS, count)
    verified = found["verified"]
    assert verified["source"] == verified["target"] == count and verified["differences"] == []
    assert verified["source_digest"] == verified["target_digest"] and verified["sample"] == 16
    assert verified["neighbours"] > 0.9


def filled_chroma(client: Any, name: str, space: str, count: int = COUNT) -> None:
    made = client.create_collection(name, configuration={"hnsw": {"space": space}}, embedding_function=None)
    for start in range(0, count, 400):
        part = slice(start, min(start + 400, count))
        made.add(ids=IDS[part], embeddings=VECTORS[part], metadatas=METADATA[part], documents=IDS[part])


def test_chroma_directory_killed_half_way_and_run_again(cluster: str, tmp_path: Path) -> None:
    filled_chroma(chromadb.PersistentClient(str(tmp_path / "db")), "articles", "cosine")
    words = [f"chroma:{tmp_path / 'db'}", "-c", "chroma", "--batch", "20"]
    plan = imported(cluster, *words, "--dry-run")
    assert plan["creates"] and plan["documents"] == COUNT and "verified" not in plan
    assert plan["metadata"]["half"] == "number" and plan["metadata"]["document"] == "string"
    with needle.connect_sync(cluster) as client:
        assert "chroma" not in [one.name for one in client.collections()]
        running = subprocess.Popen(command(cluster, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while running.poll() is None and time.monotonic() < deadline:
            if "chroma" in [one.name for one in client.collections()] and client.count(collection="chroma") > 100:
                break
        os.kill(running.pid, signal.SIGKILL)
        running.communicate()
        held = client.count(collection="chroma")
        assert 100 < held < COUNT
        found = imported(cluster, *words)
        assert found["there"] >= held and found["written"] + found["there"] == COUNT
        check({**found, "written": COUNT}, "cosine")
        assert client.get("d7", collection="chroma").metadata == {**METADATA[7], "document": "d7"}
        again = imported(cluster, *words)
        assert (again["written"], again["there"]) == (0, COUNT)
        client.patch("d7", set={"n": -1}, collection="chroma")
        client.insert("other", VECTORS[0], collection="chroma")
    assert imported(cluster, *words, expect=1)["verified"]["differences"][0].endswith("(--add: they may be)")
    assert imported(cluster, *words, "--add")["verified"]["other"] == 1


def test_chroma_server(cluster: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = [str(Path(sys.executable).with_name("chroma")), "run", "--path", str(tmp_path), "--port", str(port)]
    with subprocess.Popen(serve, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        try:
            deadline = time.monotonic() + 60
            while socket.socket().connect_ex(("127.0.0.1", port)):
                assert running.poll() is None and time.monotonic() < deadline
            filled_chroma(chromadb.HttpClient(port=port), "served", "l2")
            check(imported(cluster, f"chroma:http://127.0.0.1:{port}", "-c", "chroma-server"), "l2")
        finally:
            running.terminate()


def test_qdrant_directory(cluster: str, tmp_path: Path) -> None:
    client = QdrantClient(path=str(tmp_path / "db"))
    one = models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE)
    client.create_collection("plain", vectors_config=one)
    points = [models.PointStruct(id=n, vector=VECTORS[n].tolist(), payload=METADATA[n]) for n in range(COUNT)]
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
    place = f"qdrant:{tmp_path / 'db'}"
    check(imported(cluster, place, "--from-collection", "plain", "-c", "qdrant"), "cosine")
    named = [place, "--from-collection", "named", "-c", "qdrant-named"]
    assert "sparse vectors (words)" in refused(cluster, *named)
    assert "--from-collection; there are: named, plain" in refused(cluster, place)
    found = imported(cluster, *named, "--vector", "b")
    check(found, "dot", 100)
    assert found["mapping"]["vector a"] == found["mapping"]["vector words"] == "left out: --vector names another"


def test_lancedb(cluster: str, tmp_path: Path) -> None:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(VECTORS.ravel()), DIMENSIONS)
    columns = {"id": IDS, "vector": vectors, "n": list(range(COUNT)), "at": pa.array([0] * COUNT, pa.date32())}
    lancedb.connect(tmp_path / "db").create_table("articles", pa.table(columns))
    found = imported(cluster, f"lancedb:{tmp_path / 'db'}", "-c", "lancedb")
    check(found, "l2")
    assert found["metadata"] == {"at": "string", "n": "integer"}


def test_milvus_lite(cluster: str, tmp_path: Path) -> None:
    client = MilvusClient(str(tmp_path / "m.db"))
    schema = client.create_schema(enable_dynamic_field=True)
    schema.add_field("key", DataType.INT64, is_primary=True)
    schema.add_field("place", DataType.FLOAT_VECTOR, dim=DIMENSIONS)
    index = client.prepare_index_params()
    index.add_index("place", index_type="FLAT", metric_type="IP")
    client.create_collection("articles", schema=schema, index_params=index)
    client.insert("articles", [{"key": n, "place": VECTORS[n].tolist(), **METADATA[n]} for n in range(COUNT)])
    client.close()
    check(imported(cluster, f"milvus:{tmp_path / 'm.db'}", "-c", "milvus"), "dot")
    with needle.connect_sync(cluster) as client:
        assert client.get("7", collection="milvus").metadata == METADATA[7]


def test_faiss_and_pickles(cluster: str, tmp_path: Path) -> None:
    index = faiss.IndexFlatL2(DIMENSIONS)
    index.add(VECTORS)
    faiss.write_index(index, str(tmp_path / "index.faiss"))
    (tmp_path / "ids.txt").write_text("\n".join(IDS))
    words = [f"faiss:{tmp_path / 'index.faiss'}", "--ids", str(tmp_path / "ids.txt")]
    check(imported(cluster, *words, "-c", "faiss"), "l2")
    coded = faiss.index_factory(DIMENSIONS, "SQ8")
    coded.train(VECTORS)
    coded.add(VECTORS)
    faiss.write_index(coded, str(tmp_path / "coded.faiss"))
    assert "does not hold the vectors as they were" in refused(cluster, f"faiss:{tmp_path / 'coded.faiss'}")
    (tmp_path / "index.pkl").write_bytes(b"")
    assert "is a pickle" in refused(cluster, f"faiss:{tmp_path}")
    assert "FAISS.load_local" in refused(cluster, str(tmp_path / "index.pkl"))


@pytest.mark.parametrize("suffix", ["jsonl", "npy", "parquet", "arrow"])
def test_files(cluster: str, tmp_path: Path, suffix: str) -> None:
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
    check(imported(cluster, str(path), "-c", suffix, "--metric", "l2"), "l2")
