"""Which source the words of a command line name: a file, or KIND:PLACE."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from needle.base.errors import InvalidArgument
from needle.cli.imports.databases import Chroma, LanceDB, Milvus, Qdrant
from needle.cli.imports.files import FaissIndex, RecordFile
from needle.cli.imports.postgres import PgVector
from needle.cli.imports.source import Asked, Source, refuse_pickle
from needle.cli.inputs import SUFFIXES, refuse

KINDS: Final[dict[str, Callable[[Asked], Source]]] = {
    "chroma": Chroma,
    "qdrant": Qdrant,
    "lancedb": LanceDB,
    "milvus": Milvus,
    "pgvector": PgVector,
    "faiss": FaissIndex,
}
_TAKES: Final = {  # options beyond the place
    "chroma": {"collection"},
    "qdrant": {"collection", "vector"},
    "lancedb": {"collection", "vector", "id"},
    "milvus": {"collection", "vector"},
    "pgvector": {"collection", "vector", "id"},
    "faiss": {"ids"},
    "file": set[str](),
}
OPTIONS: Final = {"collection": "--from-collection", "vector": "--vector", "id": "--id", "ids": "--ids"}


def open_source(asked: Asked) -> Source:
    """asked.place: SOURCE as it was written. Raises InvalidArgument for what is no source, ConfigError without its
    library."""
    kind, colon, place = asked.place.partition(":")
    suffix = Path(asked.place).suffix.lower()
    if suffix in (".pkl", ".pickle"):
        raise refuse_pickle(asked.place)
    if not colon or kind not in KINDS:
        if suffix not in SUFFIXES:
            kinds = ", ".join(f"{one}:PLACE" for one in KINDS)
            raise refuse(asked.place, f"neither {kinds}, nor a file that ends in {', '.join(SUFFIXES)}")
        if not Path(asked.place).is_file():
            raise refuse(asked.place, "there is no such file")
        kind, place = "file", asked.place
    for field, option in OPTIONS.items():
        if getattr(asked, field) is not None and field not in _TAKES[kind]:
            raise InvalidArgument(f"{option} says nothing about {kind}: leave it out", field=option)
    if kind == "file":
        return RecordFile(asked)
    return KINDS[kind](asked._replace(place=place))
