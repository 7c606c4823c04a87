"""Kept field indexes against a plain reading of the documents: restarts, lost transactions, rotten and lost files,
purges and room that runs out, in any order."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from base.filter_strategies import conditions, documents
from needle.base.errors import DiskFull
from needle.shard.disk import ReplicaDisk
from needle.shard.fields.field_files import FieldFiles
from needle.shard.fields.index_budget import IndexBudget, IndexRows
from needle.shard.fields.payload_index import PayloadIndex
from shard.test_payload_index import PLENTY, Store, brute, parsed


class Memory(ReplicaDisk):
    """A directory in memory. left: files that may still be written."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.left = 1 << 30

    def exists(self, path: str) -> bool:
        return True

    def names(self, directory: str) -> list[str]:
        return sorted(os.path.basename(path) for path in self.held)

    def make_directory(self, path: str) -> None: ...

    def sync(self, path: str) -> None: ...

    def remove(self, path: str) -> None:
        self.held.pop(path, None)

    def rename(self, source: str, target: str) -> None:
        self.held[target] = self.held.pop(source)

    def read(self, path: str) -> bytes:
        return self.held[path]

    def write(self, path: str, *parts: bytes | memoryview) -> None:
        self.left -= 1
        self.held[path] = b"".join(parts)[: None if self.left >= 0 else 9]
        if self.left < 0:
            raise DiskFull("full", path=path)


class Course:
    """One collection whose process starts again and again. past: (documents, dead, purged) by applied index."""

    def __init__(self, bytes_max: int) -> None:
        self.disk, self.store, self.bytes_max = Memory(), Store(), bytes_max
        self.dead = BitMap()
        self.past: list[tuple[int, BitMap, BitMap]] = [(0, BitMap(), BitMap())]
        self.start()

    def start(self) -> None:
        end = len(self.store.rows)
        self.files = FieldFiles("f", self.disk, len(self.past) - 1, {1: end}, self.bytes_max)
        self.budget = IndexBudget(PLENTY, IndexRows(few=0))
        self.index = PayloadIndex(self.store, self.budget, 1, self.files)

    def step(self, what: str, value: Any) -> None:
        if what == "add":
            self.store.append(self.index, *value)
        elif what == "kill":
            self.dead = self.dead | BitMap([one for one in value if one < len(self.store.rows)])
        elif what == "purge":
            self.store.gone = self.dead
        elif what == "work":
            self.budget.work()
        elif what == "save":
            self.disk.left = 1 << 30 if value > 2 else value
            try:
                while self.index.save(value + 1, lambda: len(self.past) - 1, self.index.kept()):
                    pass
            except DiskFull:
                pass
        elif what == "rot" and self.disk.held:
            path = sorted(self.disk.held)[value % len(self.disk.held)]
            data = self.disk.held[path]
            self.disk.held[path] = data[:-value] + bytes([data[-value] ^ 1]) + data[len(data) - value + 1 :]
        elif what == "restart":
            self.start()
        elif what == "lose":  # the last transactions are gone, and others than those come in their place
            self.past = self.past[: max(1, len(self.past) - value)]
            end, self.dead, self.store.gone = self.past[-1]
            del self.store.rows[end:]
            self.start()
        if what in ("add", "kill", "purge"):
            self.past.append((len(self.store.rows), self.dead, self.store.gone))


numbers = st.integers(1, 5)
steps = st.one_of(
    st.tuples(st.just("add"), st.lists(documents, min_size=1, max_size=4)),
    st.tuples(st.just("kill"), st.lists(st.integers(0, 20), max_size=3)),
    st.tuples(st.sampled_from(["purge", "work", "save", "save", "rot", "restart", "restart", "lose"]), numbers),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(steps, min_size=5, max_size=25),
    st.lists(conditions, min_size=1, max_size=3),
    st.sampled_from([0, 6000, PLENTY]),
)
def test_whatever_happens_to_the_files_the_answer_is_what_the_documents_say(
    course: list[tuple[str, Any]], asked: list[dict[str, Any]], bytes_max: int
) -> None:
    run = Course(bytes_max)
    for what, value in course:
        run.step(what, value)
        end = len(run.store.rows)
        for text in asked:
            if (condition := parsed(text)) is not None:
                found = run.index.within(condition.node, end, BitMap(range(end)) - run.dead)
                assert list(found) == brute(run.store, text, end, run.dead), text
        assert sum(map(len, run.disk.held.values())) <= bytes_max or not bytes_max
