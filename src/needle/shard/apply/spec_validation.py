"""What a collection may be: its settings, its names and those of its vectors. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from needle.base.config import Limits
from needle.base.dtypes import BYTE_BITS, DType
from needle.base.errors import invalid
from needle.base.model import KINDS_OF, CollectionSpec, IndexParams, Metric, VectorSpec, metrics_of
from needle.base.text_checks import check_text
from needle.routing.collection_names import readable

NAME_BYTES_MAX: Final = 255
GIVEN_NAME_BYTES_MAX: Final = NAME_BYTES_MAX - len(f"@{2**64}")
"""Of the names that people give: what the catalog adds must fit too (routing/topology.py, `stored_name`)."""
VECTOR_NAME: Final = re.compile("[A-Za-z0-9_.-]{1,64}")
SPARSE_NAME: Final = re.compile("[A-Za-z0-9_-]{1,64}")
VECTOR_BYTES_MAX: Final = NAME_BYTES_MAX + len(f"/{64 * 'v'}@{2**64}")
MODEL_BYTES_MAX: Final = 128
EF_MAX: Final = 100_000
TTL_MAX: Final = 100 * 366 * 86_400
"""Seconds."""


def check_new(spec: CollectionSpec, limits: Limits) -> None:
    """Refuse a collection that is to be made, with the cluster or later: as `check_spec`, and its name leaves room for
    what shards put behind it."""
    check_name("collection", spec.name, GIVEN_NAME_BYTES_MAX)
    check_spec(spec, limits)


def check_spec(spec: CollectionSpec, limits: Limits) -> None:
    """Refuse a collection that cannot work."""
    name, most = (readable(spec.name), VECTOR_BYTES_MAX) if spec.of else (spec.name, NAME_BYTES_MAX)
    check_name("collection", name, most)
    check_int("dimensions", spec.dimensions, 1, limits.dimensions_max)
    if spec.dtype not in list(DType):
        raise invalid("dtype", spec.dtype, f"one of {', '.join(DType)}")
    check_metric(spec.metric, spec.dtype)
    if spec.dtype is DType.BIT and spec.dimensions % BYTE_BITS:
        raise invalid("dimensions", spec.dimensions, f"a multiple of {BYTE_BITS} for dtype {spec.dtype}")
    check_index(spec.index, spec.dtype)
    check_ttl(spec.ttl)
    if spec.model:
        check_name("model", spec.model, MODEL_BYTES_MAX)
    if spec.text is not None:
        check_text(spec.text)


def check_vectors(vectors: Mapping[str, VectorSpec], limits: Limits) -> None:
    """Refuse named vectors that cannot work."""
    for name, spec in vectors.items():
        if not VECTOR_NAME.fullmatch(name):
            raise invalid("vectors", name, "names of 1 to 64 letters, digits, '_', '-' or '.' (ASCII)")
        check_spec(spec.stored_as(name), limits)


def check_sparse_name(name: str) -> None:
    """Of sparse vectors: a field of metadata, and in no other."""
    if not SPARSE_NAME.fullmatch(name):
        raise invalid("sparse", name, "a name of 1 to 64 letters, digits, '_' or '-' (ASCII)")


def check_metric(metric: Metric, dtype: DType) -> None:
    """Of a collection with vectors of a type."""
    if metric in metrics_of(dtype):
        return
    allowed = f"one of {', '.join(metrics_of(dtype))} for dtype {dtype}"
    if metric is Metric.HAMMING:
        allowed += f"; {metric} is for dtype {DType.BIT}"
    raise invalid("metric", metric, allowed)


def check_index(index: IndexParams, dtype: DType = DType.FLOAT32) -> None:
    """Of a collection with vectors of a type."""
    if index.kind not in KINDS_OF[dtype]:
        of = "" if dtype is DType.FLOAT32 else f" for dtype {dtype}"
        raise invalid("index.kind", index.kind, f"one of {', '.join(KINDS_OF[dtype])}{of}")
    check_int("index.m", index.m, 2, 256)
    check_int("index.ef_construction", index.ef_construction, 1, EF_MAX)
    check_ef_search(index.ef_search)


def check_ttl(value: float) -> None:
    """Of a collection; 0 for none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= TTL_MAX:
        raise invalid("ttl", value, f"seconds, more than 0 and at most {TTL_MAX}")


def check_ef_search(value: int) -> None:
    """Of a collection."""
    check_int("index.ef_search", value, 1, EF_MAX)


def check_name(field: str, name: str, most: int = NAME_BYTES_MAX) -> None:
    """Of a collection, or an alias. most: bytes."""
    if not name or len(utf8(field, name)) > most or not name.isprintable() or name != name.strip():
        raise invalid(field, name, f"1 to {most} bytes of printable text, no space at either end")


def check_int(field: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise invalid(field, value, f"an integer from {low} to {high}")


def utf8(field: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise invalid(field, text, "valid Unicode (no lone surrogates)") from None
