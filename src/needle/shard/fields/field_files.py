"""Field indexes as files beside the documents, so that a restart does not make them again: a file for each run.

A run says of ordinals what their documents hold, and a document with an ordinal never changes: a patch makes a new
one. So a file is right for good, in the state directory that it was written in, as far as the log was applied when it
was written: rows that were purged before are not in it. Its name says what it covers: collection, applied index,
ordinals, rows, size, field. A file of a later applied index than the documents have (a power cut takes the end of
SQLite's log, an operator puts an older file back), or of ordinals that they do not have, is deleted at the opening,
before anything is applied; what is damaged is deleted when it is read. A file that is not there is only work: the index
is made from the documents.

Invariant: a state that `load` returns is what the columns of the documents below its end are that a view of now or
later can see. It must not know documents or views. Any thread may call its methods; all but `end` and `lacks` block.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile
from typing import Final, NamedTuple

import msgspec

from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import StorageError
from needle.base.file_errors import SHORTAGES
from needle.base.sparse import SPARSE_KIND
from needle.shard.disk import ReplicaDisk
from needle.shard.fields import run_format
from needle.shard.fields.field_index import FieldState, Run
from needle.shard.fields.filter_match import Key

log = logging.getLogger("needle.shard")

FAILURES: Final = (StorageError, *SHORTAGES)
_UNREADABLE: Final = (*DECODE_ERRORS, ValueError, KeyError)
_NAME: Final = re.compile(r"(\d+)-(\d+)-(\d+)-(\d+)-(\d+)-(\d+)-([0-9a-f]{32})\.field")
_KEPT_AS: Final[dict[bool | str, str]] = {SPARSE_KIND: f"{SPARSE_KIND}.1"}
"""What earlier releases kept of these kinds is made again: a few more numbers are values of a sparse vector now."""
NEW: Final = ".new"
"""Behind the name of a file that is being written."""
Place = tuple[int, str]
"""A field: the id of its collection, and the digest of its key."""


class FileName(NamedTuple):
    """What a file covers: ordinals of [first, end). field: a digest of the key."""

    collection_id: int
    applied: int
    first: int
    end: int
    rows: int
    size: int
    field: str

    def __str__(self) -> str:
        return "-".join(map(str, self)) + ".field"

    def of(self, run: Run) -> bool:
        """Whether it holds this run: what is purged since then makes another one of the same ordinals."""
        return (self.first, self.end, self.rows) == (run.first, run.end, run.rows)


class FieldFiles:
    """Those of one state directory."""

    def __init__(
        self, directory: str, disk: ReplicaDisk, applied: int, ends: Mapping[int, int], bytes_max: int
    ) -> None:
        """applied: what the documents hold now. ends: of the ordinals of each collection that is there. bytes_max: what
        all files may take. What cannot be read or deleted is left out: no start fails for it."""
        self._directory = directory
        self._disk = disk
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._closed = False
        self._files: dict[Place, tuple[FileName, ...]] = {}
        """Of each field, runs that follow one another from ordinal 0 on."""
        try:
            self._find(applied, ends)
        except FAILURES as error:
            log.warning("field indexes are made again: %s", error)
            self._files = {}

    def _find(self, applied: int, ends: Mapping[int, int]) -> None:
        if not self._disk.exists(self._directory):
            return
        names = self._disk.names(self._directory)
        found: dict[Place, list[FileName]] = {}
        for name in filter(None, map(_parsed, names)):
            if name.applied <= applied and name.first < name.end <= ends.get(name.collection_id, 0):
                found.setdefault((name.collection_id, name.field), []).append(name)
        self._files = {place: chain for place, held in found.items() if (chain := _chain(held))}
        self._shrink()
        used = {str(name) for chain in self._files.values() for name in chain}
        gone = [text for text in names if text not in used]
        for text in gone:
            self._disk.remove(os.path.join(self._directory, text))
        if gone:
            self._disk.sync(self._directory)

    def _shrink(self) -> None:
        """At the opening: within the bound, which may be a lower one than when the files were written."""
        for place in sorted(self._files, key=self._age):
            if self._total() <= self._bytes_max:
                return
            del self._files[place]

    def _total(self) -> int:
        return sum(name.size for chain in self._files.values() for name in chain)

    def _age(self, place: Place) -> int:
        return max(name.applied for name in self._files[place])

    def end(self, place: Place) -> int:
        """Up to which ordinal a field is in files; 0 if it is in none."""
        chain = self._files.get(place)
        return chain[-1].end if chain else 0

    def load(self, collection_id: int, key: Key) -> FieldState:
        """The index of a field as it was saved, as far as its files are whole. Blocking."""
        chain, runs = self._files.get(place_of(collection_id, key), ()), []
        for name in chain:
            run = self._read(name, key)
            if run is None:
                self._cut(chain, name)
                break
            runs.append(run)
        return FieldState(tuple(runs), runs[-1].end if runs else 0)

    def _read(self, name: FileName, key: Key) -> Run | None:
        path = os.path.join(self._directory, str(name))
        why = "it is damaged"
        try:
            data = self._disk.read(path)
            run = run_format.decode(data, name.collection_id, key, name.applied)
            if run is not None and name.of(run):
                return run
        except FAILURES as error:
            why = str(error)
        except _UNREADABLE as error:
            why = f"it cannot be read: {error!r}"
        if not self._closed:
            log.warning("%s: this part of a field index is made again from the documents: %s", path, why)
        return None

    def _cut(self, chain: tuple[FileName, ...], at: FileName) -> None:
        """Forget a file, and what follows it, unless others are there by now."""
        with self._lock:
            place = (at.collection_id, at.field)
            if self._files.get(place) == chain:
                kept = chain[: chain.index(at)]
                self._files.update({place: kept} if kept else {})
                if not kept:
                    del self._files[place]
                self._remove(chain[len(kept) :])

    def lacks(self, place: Place, state: FieldState, rows_min: int) -> list[Run]:
        """The runs that files lack for all that is in the state, but for runs at its end that are shorter than
        `rows_min`; none if less than so many ordinals came to it."""
        runs = list(takewhile(lambda run: run.end - run.first >= rows_min, state.runs))
        if not runs or runs[-1].end - self.end(place) < rows_min:
            return []
        return runs[_alike(self._files.get(place, ()), runs) :]

    def save(
        self, collection_id: int, key: Key, applied: int, runs: Sequence[Run], held: Collection[Place] = ()
    ) -> bool:
        """Keep these runs instead of those from the first one's ordinal on; False if there is no room. applied: an
        index whose view has all documents of the runs. held: which fields do not make place for it. Blocking; raises
        StorageError, DiskFull or TooManyFiles, and then what was kept before stays."""
        place = place_of(collection_id, key)
        with self._lock:
            chain = self._files.get(place, ())
            kept = tuple(name for name in chain if name.end <= runs[0].first)
            if self._closed or (kept[-1].end if kept else 0) != runs[0].first:
                return False
            if not self._room(place, sum(run.nbytes for run in runs) + sum(name.size for name in kept), held):
                return False
            written: list[FileName] = []
            try:
                self._disk.make_directory(self._directory)
                for run in runs:
                    self._write(run, key, collection_id, applied, written)
                self._disk.sync(self._directory)
            except FAILURES:
                self._remove([name for name in written if name not in chain])  # half of them take room, too
                raise
            self._files[place] = (*kept, *written)
            self._remove([name for name in chain[len(kept) :] if name not in written])
            return True

    def _write(self, run: Run, key: Key, collection_id: int, applied: int, written: list[FileName]) -> None:
        parts = run_format.encode(collection_id, key, applied, run)
        field = place_of(collection_id, key)[1]
        name = FileName(collection_id, applied, run.first, run.end, run.rows, run_format.size_of(parts), field)
        path = os.path.join(self._directory, str(name))
        try:
            self._disk.write(path + NEW, *parts)
            self._disk.rename(path + NEW, path)
        except FAILURES:
            self._delete(path + NEW)
            raise
        written.append(name)

    def _room(self, place: Place, size: int, held: Collection[Place]) -> bool:
        """Whether a field of so many bytes fits: who is not in `held` makes place, what was saved longest ago first."""
        others = {at: sum(name.size for name in chain) for at, chain in self._files.items() if at != place}
        over = size + sum(others.values()) - self._bytes_max
        free = sorted((at for at in others if at not in held), key=self._age)
        if over > sum(others[at] for at in free):
            return False
        for at in free:
            if over <= 0:
                return True
            over -= others[at]
            self._remove(self._files.pop(at))
        return True

    def drop_others(self, collections: Collection[int]) -> None:
        """Delete the files of all collections but these. Blocking."""
        with self._lock:
            for place in [place for place in self._files if place[0] not in collections]:
                self._remove(self._files.pop(place))

    def close(self) -> None:
        """From now on nothing is written or deleted; waits for what is being written. The directory may be deleted
        then."""
        with self._lock:
            self._closed = True

    def _remove(self, names: Sequence[FileName]) -> None:
        for name in () if self._closed else names:
            self._delete(os.path.join(self._directory, str(name)))

    def _delete(self, path: str) -> None:
        try:
            self._disk.remove(path)
        except FAILURES as error:
            log.warning("a file of a field index stays until the next start: %s", error)


def place_of(collection_id: int, key: Key) -> Place:
    """Under which place the index of a path, as instants or not, is kept."""
    path = msgspec.msgpack.encode((list(key[0]), _KEPT_AS.get(key[1], key[1])))
    return collection_id, hashlib.blake2b(path, digest_size=16).hexdigest()


def _parsed(text: str) -> FileName | None:
    found = _NAME.fullmatch(text)
    if found is None:
        return None
    collection_id, applied, first, end, rows, size = map(int, found.groups()[:6])
    return FileName(collection_id, applied, first, end, rows, size, found[7])


def _chain(names: Sequence[FileName]) -> tuple[FileName, ...]:
    """Those that follow one another from ordinal 0 on: of several, as a crash may leave them, the longest one."""
    chain: list[FileName] = []
    while here := [name for name in names if name.first == (chain[-1].end if chain else 0)]:
        chain.append(max(here, key=lambda name: (name.end, name.applied)))
    return tuple(chain)


def _alike(chain: Sequence[FileName], runs: Sequence[Run]) -> int:
    """How many runs are kept as they are."""
    pairs = zip(chain, runs, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0].of(pair[1]), pairs))
