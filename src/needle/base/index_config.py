"""How the vectors of the collection `default` are indexed."""

from __future__ import annotations

from typing import Annotated, ClassVar

from needle.base.model import IndexKind, IndexParams
from needle.base.schema import Settings, about

INDEX_KINDS = f"one of {', '.join(IndexKind)}"


class IndexConfig(Settings, frozen=True, kw_only=True):
    """IndexParams as settings. That struct itself has no bounds: what older versions wrote to a log must decode.

    m: Links of a vector in the graph of the collection `default`.
    ef_construction: Candidates that are kept while a vector is put into that graph.
    ef_search: Candidates that a search of that collection's index keeps.
    kind: Which index that collection has (docs/index-selection.md).
    """

    table: ClassVar[str] = "index"

    m: Annotated[int, about(2, 256)] = IndexParams().m
    ef_construction: Annotated[int, about(1, 100_000)] = IndexParams().ef_construction
    ef_search: Annotated[int, about(1, 100_000)] = IndexParams().ef_search
    kind: Annotated[str, about(allowed=INDEX_KINDS, pattern=f"^({'|'.join(IndexKind)})$")] = IndexParams().kind.value
