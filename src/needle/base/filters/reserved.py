"""What documents have besides metadata, and how each is asked for, for callers who filter on it as on a field. Pure.

Metadata may have fields of these names, and then filters find them: nothing here changes what a filter means.
"""

from __future__ import annotations

from typing import Final

_IDS: Final = '{"$ids": [...]}, Filter.ids([...]), asks for documents by their ids'
_NEAR: Final = "max_distance and min_score of a search say how near its hits must be"
ASKED: Final = {
    "id": _IDS,
    "_id": _IDS,
    "ids": _IDS,
    "vector": "no filter is on vectors; `like` and `query` of a search are",
    "distance": _NEAR,
    "score": _NEAR,
    "version": "if_version of a write is the condition on a version",
    "expires_at": "documents are gone when they expire, and no filter asks when that is",
    "metadata": 'a path begins inside of the metadata: "title", not "metadata.title"',
}


def instead(name: str) -> str:
    """What to write where a field's path begins with such a name, "" for others."""
    return ASKED.get(name, "")
