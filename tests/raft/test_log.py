"""Where two logs may still agree: found in few looks, each of which may be a read of the disk."""

from __future__ import annotations

import random

import pytest

from needle.raft.log import RaftLog
from needle.raft.messages import Entry
from raft.harness import MemoryStorage
from raft.solo import entries


def _by_walking(log: RaftLog, index: int, term: int) -> tuple[int, int]:
    """The definition, one entry at a time."""
    index = min(index, log.last_index())
    while index > 0:
        own = log.term(index)
        if own is None:
            return index, 0
        if own <= term:
            return index, own
        index -= 1
    return 0, 0


@pytest.mark.parametrize("seed", range(30))
def test_the_last_entry_of_a_term_or_an_earlier_one_is_found(seed: int) -> None:
    rng = random.Random(seed)
    terms = sorted(rng.randint(1, 9) for _ in range(rng.randint(0, 30)))
    durable = rng.randint(0, len(terms))
    storage = MemoryStorage()
    storage.write(entries(*terms[:durable]))
    storage.compact(rng.randint(0, durable))
    log = RaftLog(storage)
    for entry in entries(*terms[durable:], start=durable + 1):
        log.append(entry)
    for index in range(len(terms) + 3):
        for term in range(11):
            assert log.find_conflict_by_term(index, term) == _by_walking(log, index, term), (index, term)


@pytest.mark.parametrize(
    ("index", "term", "found"), [(1 << 40, 1, (0, 0)), (9999, 3, (5000, 3)), (1 << 40, 9, (10_000, 5))]
)
def test_it_takes_few_looks(monkeypatch: pytest.MonkeyPatch, index: int, term: int, found: tuple[int, int]) -> None:
    """One rejection with a forged hint had a leader read its whole log of the disk: 1.3 s for 100,000 entries."""
    storage = MemoryStorage()
    storage.write(tuple(Entry(at, 3 if at <= 5000 else 5, 0, b"") for at in range(1, 10_001)))
    looks, look = [], storage.term
    monkeypatch.setattr(storage, "term", lambda at: looks.append(at) or look(at))
    assert RaftLog(storage).find_conflict_by_term(index, term) == found
    assert len(looks) <= 20
