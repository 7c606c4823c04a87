"""Moving in: a directory that Chroma wrote is copied into a cluster by one command, and compared.

pip install 'needle-vdb[server,import-chroma]' wordllama && python examples/move_in_from_chroma.py 127.0.0.1:7001
"""

import subprocess
import sys
import tempfile

import chromadb
from words import Words, summaries

import needle

cluster, found, words = sys.argv[1], summaries(), Words()
with tempfile.TemporaryDirectory() as directory:
    before = chromadb.PersistentClient(directory).create_collection("modules", metadata={"hnsw:space": "cosine"})
    before.add(
        ids=[one.module for one in found],
        embeddings=words.embed([one.text for one in found]).tolist(),
        documents=[one.text for one in found],
        metadatas=[{"lines": one.lines} for one in found],
    )
    moved = ["import", f"chroma:{directory}", "--from-collection", "modules", "--collection", "moved"]
    subprocess.run([sys.executable, "-m", "needle", *moved, "--cluster", cluster], check=True)

with needle.connect_sync(cluster) as client:
    question = words.embed(["a heap or priority queue"])[0]
    print("nearest in the cluster:", ", ".join(hit.id for hit in client.search(question, k=3, collection="moved")))
