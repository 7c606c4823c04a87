"""What a search asks for, as the wire has it: the usual ones, and those that narrow, group or order their hits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from operator import is_
from typing import Any, NamedTuple

import msgspec
import numpy as np

from needle.base.errors import InvalidArgument, invalid
from needle.base.filters.builder import Filter, field_path
from needle.base.model import SearchRequest
from needle.base.plain import refused, text
from needle.base.sparse import query_of
from needle.base.text import KEYWORDS_BYTES_MAX
from needle.client import values

POOL_MIN, POOL_MAX = 100, 1000
"""Documents of which hits that are unlike each other are chosen: without a wish four times as many as are wanted."""


class Narrow(NamedTuple):
    """What is left of a search's hits, whether they are explained, and grouped; see `search`."""

    fields: Any = None
    max_distance: Any = None
    min_score: Any = None
    offset: Any = 0
    like: Any = None
    explain: Any = False
    group_by: Any = None
    group_size: Any = 1
    diversify: Any = None
    pool: Any = None
    order_by: Any = None
    descending: Any = False
    keywords: Any = None
    vector_name: Any = None
    sparse: Any = None


EVERYTHING = Narrow()


def search_request(
    query: Any,
    k: int,
    filter: Filter | Mapping[str, Any] | None,
    collection: str,
    with_metadata: bool,
    with_vectors: bool,
    exact: bool,
    ef_search: int,
    *,
    narrow: Narrow = EVERYTHING,
) -> SearchRequest:
    """A search as the wire has it. Raises InvalidArgument."""
    by_scores = narrow.keywords is not None or narrow.sparse is not None
    if by_scores:
        _check_by_scores(query, exact, ef_search, narrow)
        query = ()
    if narrow.like is not None and query is not None and values.check_id(narrow.like, "like"):
        raise InvalidArgument("give either a query, or the id of a document that hits are to be like", field="like")
    if narrow.like is None and query is None:
        raise InvalidArgument(
            "give a vector, a text, keywords, a sparse vector, or the id of a document that hits are to be like",
            field="query",
        )
    request = SearchRequest(
        collection=values.check_name(collection),
        vector=b"" if narrow.like is not None or by_scores else values.vector_bytes(query, "query"),
        k=values.check_count(k, "k"),
        filter=b"" if filter is None else values.filter_bytes(filter),
        with_metadata=values.check_flag(with_metadata, "with_metadata"),
        with_vectors=values.check_flag(with_vectors, "with_vectors"),
        exact=values.check_flag(exact, "exact"),
        ef_search=values.check_count(ef_search, "ef_search", 0),
    )
    # By identity: what is only equal to a default, as False to 0, is still to be judged.
    return request if all(map(is_, narrow, EVERYTHING)) else _narrowed(request, narrow)


class Lists(NamedTuple):
    """What the lists of a hybrid search are by; None for what is not asked for."""

    vector: Any = None
    keywords: Any = None
    sparse: Any = None


def hybrid_requests(
    by: Lists,
    pool: int,
    filter: Filter | Mapping[str, Any] | None,
    collection: str,
    with_metadata: bool,
    with_vectors: bool,
    exact: bool,
    ef_search: int,
    narrow: Narrow,
) -> list[SearchRequest]:
    """The searches of a hybrid one, by the vector or by a document that hits are to be like, by words, and by a sparse
    vector, in this order: the first `pool` of each, and one more of those that may have that document. narrow: of all.
    Raises InvalidArgument."""
    asked, found = (filter, collection, with_metadata, with_vectors), list[SearchRequest]()
    if by.vector is not None or narrow.like is not None:
        found.append(search_request(by.vector, pool, *asked, exact, ef_search, narrow=narrow))
    elif exact or ef_search or narrow.vector_name is not None:
        field = "exact" if exact else "ef_search" if ef_search else "vector_name"
        raise invalid(field, "given", "left out where no vector is searched for")
    more = pool + (narrow.like is not None)
    plain = narrow._replace(like=None, vector_name=None)
    for one in (Narrow(keywords=by.keywords), Narrow(sparse=by.sparse)):
        if one.keywords is not None or one.sparse is not None:
            how = plain._replace(keywords=one.keywords, sparse=one.sparse)
            found.append(search_request(None, more, *asked, False, 0, narrow=how))
    if len(found) < 2:
        raise InvalidArgument("give at least two of a vector, keywords and a sparse vector", field="keywords")
    return found


def _narrowed(request: SearchRequest, narrow: Narrow) -> SearchRequest:
    like = "" if narrow.like is None else values.check_id(narrow.like, "like")
    offset = values.check_count(narrow.offset, "offset", 0)
    group_by = "" if narrow.group_by is None else ".".join(field_path(narrow.group_by, "group_by"))
    size = values.check_count(narrow.group_size, "group_size")
    if size > 1 and not group_by:
        raise invalid("group_size", size, "left out without group_by")
    request = msgspec.structs.replace(
        request,
        k=request.k + offset + bool(like and not group_by),
        max_distance=bound_of(narrow.max_distance, "max_distance"),
        min_score=bound_of(narrow.min_score, "min_score"),
        fields=values.field_paths(narrow.fields),
        offset=offset,
        like=like,
        explain=values.check_flag(narrow.explain, "explain"),
        group_by=group_by,
        group_size=size,
        keywords="" if narrow.keywords is None else _keywords(narrow.keywords),
        sparse=None if narrow.sparse is None else query_of(narrow.sparse),
        vector_name="" if narrow.vector_name is None else values.check_name(narrow.vector_name, "vector_name"),
        **_ordered(narrow),
    )
    return _diversified(request, narrow)


def _check_by_scores(query: Any, exact: bool, ef_search: int, narrow: Narrow) -> None:
    """What is about distances, or vectors, means nothing for words and for sparse vectors."""
    beside = {"query": query, "like": narrow.like, "max_distance": narrow.max_distance, "group_by": narrow.group_by,
              "diversify": narrow.diversify, "vector_name": narrow.vector_name, "exact": exact or None, "ef_search":
              ef_search or None}  # fmt: skip
    by = "keywords" if narrow.sparse is None else "sparse"
    finds = "find by words" if narrow.sparse is None else "finds by sparse vectors"
    if narrow.sparse is not None:
        beside["keywords"] = narrow.keywords
    for field, value in beside.items():
        if value is not None:
            shown = "given" if field == "query" else value
            both = "; hybrid_search takes both" if field in ("query", "like", "keywords") else ""
            raise invalid(field, shown, f"left out with {by}, which {finds} and not by a vector{both}")


def _keywords(value: Any) -> str:
    words = text(value, "keywords", "a text that is not empty")
    if len(words.encode()) > KEYWORDS_BYTES_MAX:
        raise invalid("keywords", words, f"at most {KEYWORDS_BYTES_MAX} bytes of UTF-8")
    return words


def _ordered(narrow: Narrow) -> dict[str, Any]:
    order_by, descending = values.order_by(narrow.order_by, narrow.descending)
    if not order_by:
        return {}
    if narrow.group_by is not None:
        raise invalid("order_by", narrow.order_by, "left out with group_by")
    return {"order_by": order_by, "descending": descending}


def _diversified(request: SearchRequest, narrow: Narrow) -> SearchRequest:
    """With a pool of candidates in place of the hits that are wanted, if they are to be unlike each other."""
    weight = bound_of(narrow.diversify, "diversify")
    if weight is None:
        if narrow.pool is not None:
            raise invalid("pool", narrow.pool, "left out without diversify")
        return request
    if request.group_by:
        raise invalid("diversify", weight, "left out with group_by")
    if not 0 <= weight <= 1:
        raise invalid("diversify", weight, "a number from 0, as without it, to 1, as different as can be")
    take = request.k - bool(request.like)
    if take > POOL_MAX:
        raise invalid("k", take, f"with diversify and with offset at most {POOL_MAX}")
    pool = pool_for(take) if narrow.pool is None else values.check_count(narrow.pool, "pool")
    if not take <= pool <= POOL_MAX:
        raise invalid("pool", pool, f"at least k and offset together ({take}), at most {POOL_MAX}")
    return msgspec.structs.replace(
        request,
        k=pool + bool(request.like),
        take=take,
        diversify=weight,
        with_vectors=True,
        bare=not request.with_vectors,
    )


def pool_for(take: int) -> int:
    """Candidates of so many hits, where nobody says how many."""
    return min(POOL_MAX, max(POOL_MIN, 4 * take))


def bound_of(value: Any, field: str) -> float | None:
    """A bound of distances or scores. Raises InvalidArgument."""
    if value is None:
        return None
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool | np.timedelta64)
    try:
        if number and math.isfinite(value):
            return float(value)
    except OverflowError:  # of an int with hundreds of digits
        pass
    raise refused(field, value, "a finite number")
