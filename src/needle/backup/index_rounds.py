"""In which order a restore writes documents, and the named vectors of them, so that index files of all come back
(docs/adr/0093).

First come the rounds of the vector without a name, which every document has. A document takes along those of its named
vectors that the first file of their name has, and no other, wherever it has them; when all documents are there, these
files are brought. Then, round by round, the documents are given the named vectors that the next file of their name has,
and at the end those that no file has: so these few are written twice, for the files of a shard get smaller fast.
Invariant: when a file of a name is brought, the vectors of this name that no file serves yet are those that it has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import numpy as np

from needle.backup.around import Around
from needle.backup.format import CollectionBackup, IndexFile, Piece
from needle.backup.index_copying import stored_names
from needle.backup.index_restoring import IndexFilesChanged, IndexRestoring, Rows, part_of
from needle.backup.store import Store
from needle.client import Client
from needle.protocol.named import Named
from needle.routing.topology import Topology

Files = list[list[IndexFile]]


def rounds_of(files: list[IndexFile], collection: CollectionBackup, now: Topology) -> Files:
    """The files of each round; none if they are of a cluster of other shards."""
    serving = sorted(info.shard for info in now.serving)
    if serving != sorted(shard for shard, _ in collection.cuts):
        return []
    rounds: Files = []
    for shard in serving:
        for at, file in enumerate(one for one in files if one.shard == shard):
            if at == len(rounds):
                rounds.append([])
            rounds[at].append(file)
    return rounds


def _fingerprint(rounds: Files, named: Mapping[str, Files]) -> str:
    """Equal for equal files in equal rounds: then what a round wrote can be told again."""
    told = [_told(rounds), {name: _told(named[name]) for name in sorted(named)}] if named else _told(rounds)
    return hashlib.sha256(msgspec.json.encode(told)).hexdigest()


def _told(rounds: Files) -> list[list[tuple[int, str, int]]]:
    return [[(file.shard, file.checksum, file.nodes) for file in files] for files in rounds]


def begin(
    client: Client, store: Store, around: Around, collection: CollectionBackup, now: Topology, note: Mapping[str, Any]
) -> IndexRounds | None:
    """How the index files of a collection can be brought; None if there are none that fit. note: of a restore that was
    broken off, how far it came. Raises IndexFilesChanged if it began with other files."""
    rounds = rounds_of(collection.indexes, collection, now)
    # A vector that is given to a document makes it live for as long as its collection says, from then on.
    brought = {} if collection.spec.ttl else collection.named_indexes
    named = {name: rounds_of(files, collection, now) for name, files in brought.items()}
    info = next((one for one in now.collections if one.spec.name == collection.spec.name), None)
    stored = {} if info is None else stored_names(info)
    named = {name: files for name, files in named.items() if files and name in stored and name in collection.vectors}
    files = _fingerprint(rounds, named)
    if note and note.get("files") != files:
        raise IndexFilesChanged(
            "this restore began with other index files, so that nobody can tell what they served: all documents are "
            "written again"
        )
    if not stored or not (rounds or named):
        return None
    number = int(note["round"]) if note else -1
    documents = IndexRestoring(
        client, store, around, collection, rounds, stored[""], left=dict(note.get("left", ())), begun=number
    )
    left, begun = note.get("left_named", {}), max(0, number - len(rounds)) if note else -1
    return IndexRounds(
        documents,
        {
            name: IndexRestoring(
                client, store, around, collection, files, stored[name], vector=name, left=dict(left.get(name, ())),
                begun=begun,
            )
            for name, files in named.items()
        },
        files,
        max(0, number),
    )  # fmt: skip


class IndexRounds:
    """Of one collection. documents: the files of the vector without a name; named: those of others. begun: the first
    round that is not whole. count: rounds in all."""

    def __init__(
        self, documents: IndexRestoring, named: Mapping[str, IndexRestoring], files: str, begun: int = 0
    ) -> None:
        self._documents, self._named, self._files, self.begun = documents, named, files, begun
        self._whole = len(documents.rounds)  # behind this round all documents are there
        self.count = self._whole + 1 + max((len(one.rounds) for one in named.values()), default=0)
        self._number = 0
        self._holding = AsyncExitStack()

    async def __aenter__(self) -> IndexRounds:
        async with AsyncExitStack() as entering:
            for one in (self._documents, *self._named.values()):
                await entering.enter_async_context(one)
            self._holding = entering.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._holding.aclose()

    @property
    def gives_vectors(self) -> bool:
        """Whether this round gives vectors to documents that are there."""
        return self._number > self._whole

    @property
    def adopted(self) -> tuple[int, int]:
        """Documents, and named vectors, that are served by files that came."""
        return self._documents.adopted, sum(one.adopted for one in self._named.values())

    @property
    def left_out(self) -> list[str]:
        """Why shards build."""
        return [line for one in (self._documents, *self._named.values()) for line in one.left_out]

    def note(self, done: int) -> dict[str, Any]:
        """How far it is: so many pieces of this round were looked through. pieces: for a release that knows no rounds,
        and has to begin again."""
        said = {"pieces": 0, "round": self._number, "of_round": done, "files": self._files}
        left = {name: sorted(one.left.items()) for name, one in self._named.items() if one.left}
        return {**said, "left": sorted(self._documents.left.items()), **({"left_named": left} if left else {})}

    async def begin(self, number: int) -> None:
        """The next round."""
        self._number = number
        if not self.gives_vectors:
            await self._documents.begin(number)
        if number == 0 or self.gives_vectors:
            for one in self._named.values():
                await one.begin(min(max(0, number - self._whole), len(one.rounds)))

    async def end(self) -> None:
        """All of the round is written: bring its files."""
        if self._number < self._whole:
            await self._documents.end(self._number)
        else:
            for one in self._named.values():
                await one.end(self._number - self._whole)

    def part(self, at: int, piece: Piece) -> Piece:
        """What of the piece of that number is of this round; it counts as written from now on."""
        everyone: Rows = np.arange(len(piece.ids))
        if self.gives_vectors:
            named = [self._due(at, one, everyone) for one in piece.named if self._held_back(one)]
            chosen = np.unique(np.concatenate([np.empty(0, np.int64), *(np.array(one.rows) for one in named)]))
        else:
            chosen = everyone[self._documents.chosen(at, everyone, piece.vectors)]
            named = [self._due(at, one, chosen) if self._held_back(one) else one for one in piece.named]
        named = [one for one in named if one.rows]  # as in commands: no name of no document
        return part_of(msgspec.structs.replace(piece, named=named), chosen.astype(np.int64).tolist())

    def _held_back(self, named: Named) -> bool:
        """Whether a document must not take all vectors of this name along."""
        return named.vector in self._named and not self._named[named.vector].given_up

    def _due(self, at: int, named: Named, among: Rows) -> Named:
        """Those of this round, of these documents."""
        rows: Rows = np.array(named.rows, np.int64)
        here = np.isin(rows, among)
        block = np.frombuffer(named.vectors, np.uint8).reshape(len(rows), -1)
        rows, block = rows[here], block[here]
        mine = self._named[named.vector].chosen(at, rows, block.tobytes())
        return Named(named.vector, rows[mine].tolist(), block[mine].tobytes(), named.dtype)
