"""Which documents, and named vectors of them, a restore writes in which round."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from needle.backup.around import REAL
from needle.backup.format import CollectionBackup, IndexFile, Piece, PieceRef
from needle.backup.index_restoring import IndexRestoring
from needle.backup.index_rounds import IndexRounds
from needle.backup.store import DirectoryStore
from needle.base.model import CollectionSpec, VectorSpec
from needle.base.vector_hashes import row_hashes
from needle.protocol.named import Named

VECTORS = np.arange(6, dtype=np.float32).reshape(3, 2)


async def test_no_name_comes_without_documents(tmp_path: Path) -> None:
    """All documents of a piece have one name in the first file, and another one in none."""
    store = DirectoryStore(tmp_path)

    def file_of(vectors: Any) -> IndexFile:
        data = row_hashes(vectors).tobytes()
        ref = PieceRef(hashlib.sha256(data).hexdigest(), len(data), 0)
        store.put(ref.name, data)
        return IndexFile(shard=0, checksum=ref.sha256, size=1, nodes=len(vectors), parts=[], hashes=[ref])

    collection = CollectionBackup(
        spec=CollectionSpec(name="books", dimensions=2), fields=(), documents=3, expiring=0, digest="",
        cuts=[(0, 1)], pieces=[PieceRef("0", 1, 3)],
        vectors={name: VectorSpec(dimensions=2) for name in ("first", "later")},
    )  # fmt: skip
    client: Any = None  # nobody is asked
    named = {
        name: IndexRestoring(client, store, REAL, collection, [[file_of(vectors)]], f"books/{name}", vector=name)
        for name, vectors in (("first", VECTORS), ("later", VECTORS + 100))
    }
    documents = IndexRestoring(client, store, REAL, collection, [], "books")
    rounds = IndexRounds(documents, named, "files")
    everyone = [Named(name, [0, 1, 2], VECTORS.tobytes()) for name in named]
    piece = Piece(["a", "b", "c"], [b""] * 3, VECTORS.tobytes(), [], everyone)
    assert rounds.count == 2
    came = []
    for number in range(rounds.count):
        await rounds.begin(number)
        came.append(rounds.part(0, piece))
    assert [one.ids for one in came] == [["a", "b", "c"]] * 2
    assert [one.named for one in came] == [everyone[:1], everyone[1:]]
