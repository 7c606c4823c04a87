"""How an error shows a value that is not allowed."""

from __future__ import annotations

from needle.base.errors import invalid, shown
from needle.base.model import IndexKind, Metric


def test_a_member_of_an_enumeration_is_shown_as_its_value() -> None:
    """It was `<Metric.COSINE: 'cosine'>`, which nobody can type."""
    assert shown(Metric.COSINE) == "'cosine'"
    told = invalid("index.kind", IndexKind.IVF_PQ, "hnsw").message
    assert told == "index.kind = 'ivf_pq' is not allowed: hnsw"


def test_a_value_is_cut_whatever_its_class_makes_of_it() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise ValueError

    assert shown(Odd()).endswith("Odd>")
    assert len(shown("x" * 1000)) <= 80
