"""What a text from outside can cost the analyzer."""

from __future__ import annotations

from needle.base.text import TextField
from needle.shard import analysis
from needle.shard.analysis import analyzed

TEXT = TextField(field="body")


def test_heaps_of_marks_on_one_letter_are_cut() -> None:
    assert len(analysis._FOREIGN.sub(analysis._without_heaps, "a" + "\u0301\u0316" * 16_000)) == 31
    assert analyzed("e\u0301tude " + "\u0301" * 5, TEXT) == analyzed("\u00e9tude", TEXT)
    long = "\u4e2d\u6587" * 100
    assert analyzed(long, TEXT) == [long]


def test_long_words_are_not_remembered() -> None:
    before = analysis._stemmed.cache_info().currsize
    analyzed(" ".join("x" * 65 + chr(ord("a") + n) for n in range(20)), TEXT)
    assert analysis._stemmed.cache_info().currsize == before
