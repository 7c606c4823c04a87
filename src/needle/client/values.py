"""What callers pass in becomes bytes for the wire; the way back is in answers.py. Pure.

Invariant: bad input raises InvalidArgument that names the field before anything is sent; vectors never become lists of
Python floats."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from needle.base.errors import InvalidArgument, invalid
from needle.base.filters.builder import Filter, field_path
from needle.base.instants import MICROS_MAX, micros
from needle.base.model import INDEX_WORDS, IndexKind, IndexParams, ReadMode, index_named
from needle.base.plain import converted, plain, refused, text
from needle.protocol.commands import AS_IT_IS, NEVER, Change

Vectors = npt.NDArray[np.float32]
Seconds = float | timedelta
"""How long, as callers say it."""
T = TypeVar("T")

_json = msgspec.json.Encoder()
_NUMBERS = (int, float, np.integer, np.floating, np.bool_)
_NUMBER_KINDS = "biuf"
_BYTES = (bytes, bytearray, mmap.mmap)
FLOAT32 = np.dtype("<f4")
TIMEOUT_MAX = 86_400


def as_array(value: Any, field: str, dimensions: int) -> Vectors:
    """`value` as a C-contiguous little-endian float32 array of `dimensions` axes, all numbers finite."""
    if type(value) is np.ndarray and value.dtype == FLOAT32 and value.ndim == dimensions and value.size:
        return _finite(np.ascontiguousarray(value), field)  # the usual case, without the questions below
    shape = "(dimensions,)" if dimensions == 1 else "(documents, dimensions)"
    try:
        given = np.asarray(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise refused(field, value, f"numbers that numpy can make an array of shape {shape} of ({error})") from None
    if given.size and not _holds_numbers(given):
        raise refused(field, value, f"an array of shape {shape} of real numbers; it holds {given.dtype}")
    if given.dtype.kind in "ui" and given.dtype.itemsize == 1 and _holds_bytes(value):
        raise refused(field, value, f"an array of shape {shape} of real numbers, not bytes (np.frombuffer reads them)")
    if given.ndim != dimensions:
        raise invalid(field, given.shape, f"an array of shape {shape}")
    if given.size == 0:
        raise invalid(field, f"an array of shape {given.shape}", "at least one number")
    rows = value if isinstance(value, list | tuple) else ()
    if any(isinstance(row, np.ma.MaskedArray) and np.ma.is_masked(row) for row in (value, *rows)):
        raise refused(field, value, "an array without masked numbers")
    with np.errstate(over="ignore"):
        try:
            array = np.ascontiguousarray(given, dtype=FLOAT32)
        except OverflowError:  # a whole number that no float holds
            array = np.array([_as_float(one) for one in given.flat], FLOAT32).reshape(given.shape)
    return _finite(array, field)


def _as_float(value: Any) -> float:
    """What is too large for any float is infinite, as what is too large for float32 becomes."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _finite(array: Vectors, field: str) -> Vectors:
    finite = np.isfinite(array)
    if np.count_nonzero(finite) != array.size:  # `all` passes through Python first
        bad = np.argwhere(~finite)[0]
        where = f"{field}[{', '.join(str(int(n)) for n in bad)}]"
        raise invalid(where, float(array[tuple(bad)]), "finite float32 numbers (no NaN, no infinity)")
    return array


def _holds_numbers(array: npt.NDArray[Any]) -> bool:
    """Real numbers: text that looks like some, dates, Decimals and complex numbers would be rewritten in silence."""
    if array.dtype.kind != "O":
        return array.dtype.kind in _NUMBER_KINDS
    return all(isinstance(item, _NUMBERS) and not isinstance(item, np.timedelta64) for item in array.flat)


def _holds_bytes(value: Any) -> bool:
    """Bytes, which numpy takes for small numbers where they come as a buffer; or a list of such."""
    if isinstance(value, list | tuple):
        return any(_holds_bytes(item) for item in value)
    return isinstance(value, _BYTES) or (isinstance(value, memoryview) and value.format in ("B", "b", "c"))


def vector_bytes(value: Any, field: str = "vector") -> bytes:
    """One vector as little-endian float32 bytes."""
    usual = type(value) is np.ndarray and value.dtype == FLOAT32 and value.ndim == 1 and value.size
    if usual and b"\0" not in np.isfinite(value).tobytes():
        return value.tobytes()  # type: ignore[no-any-return]  # as below, with fewer steps
    return as_array(value, field, 1).tobytes()


def check_id(value: object, field: str = "id") -> str:
    """A document id: a non-empty string that UTF-8 can encode. The server checks its length."""
    return value if type(value) is str and value and value.isascii() else text(value, field)


def check_name(value: object, field: str = "collection") -> str:
    """A collection's name. The server checks its length."""
    if type(value) is str and value and value.isascii():
        return value
    return text(value, field, "the name of a collection: a non-empty string")


def check_ids(values: Any, field: str = "ids", allowed: str = "a list of strings") -> list[str]:
    """Document ids in an order: a list, a column, an iterator; no mapping and no table, which give names of fields."""
    odd = isinstance(values, str | bytes | bytearray | memoryview | Mapping) or getattr(values, "ndim", 1) != 1
    if odd or not isinstance(values, Iterable):
        raise refused(field, values, allowed)
    listed = list(values)
    if all(type(value) is str for value in listed) and all(listed) and "".join(listed).isascii():
        return listed
    return [check_id(value, f"{field}[{n}]") for n, value in enumerate(listed)]


def one_or_more(ids: Any) -> list[str]:
    """One id or several, in their order."""
    if isinstance(ids, str):
        return [check_id(ids, "ids")]
    return check_ids(ids, "ids", "an id, which is a string, or a list of ids")


def different_ids(ids: Any) -> list[str]:
    """One id or several, each once, at least one."""
    names = list(dict.fromkeys(one_or_more(ids)))
    if not names:
        raise invalid("ids", names, "at least one id")
    return names


def metadata_bytes(value: Any, field: str = "metadata") -> bytes:
    """JSON bytes; b"" for None. What Python's types become is in base.plain."""
    if value is None:
        return b""
    try:
        return _json.encode(plain(field, value))
    except UnicodeEncodeError:
        return _json.encode(converted(field, value))  # which names the string


def expiry(value: Any, field: str = "expires_at") -> int:
    """When a document expires, as in `commands.Change`: AS_IT_IS for None, NEVER for "never"."""
    if value is None:
        return AS_IT_IS
    if isinstance(value, str) and value == "never":
        return NEVER
    written = plain(field, value) if isinstance(value, str) or hasattr(value, "isoformat") else None
    at = micros(written) if isinstance(written, str) else None
    if at is None:
        allowed = 'a datetime with a time zone, or its RFC 3339 text, such as "2030-01-01T00:00:00Z"; or "never"'
        raise refused(field, value, allowed)
    if not 0 < at <= MICROS_MAX:
        raise invalid(field, value, "an instant of the years 1970 to 9999")
    return at


def expiries(value: Any, count: int) -> list[int]:
    """One instant for each of `count` documents, from one for all of them or a list; [] if none is named."""
    if value is None or not count:
        return []
    if not isinstance(value, list | tuple):
        return [expiry(value)] * count
    if len(value) != count:
        raise invalid("expires_at", f"{len(value)} values", f"one value for each of the {count} ids, or one for all")
    made = [expiry(one, f"expires_at[{n}]") for n, one in enumerate(value)]
    return made if any(made) else []


def check_ttl(value: Any, low: float = 0.001) -> float:
    """Seconds that documents live, or a timedelta; the server checks that they are not too many."""
    seconds = value.total_seconds() if hasattr(value, "total_seconds") else value
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not number or not low <= seconds < 2**53:
        least = "0 (for none) or more" if not low else "more than 0"
        raise refused("ttl", value, f"seconds, {least}, or a timedelta")
    return float(seconds)


def filter_bytes(value: Filter | Mapping[str, Any] | None, field: str = "filter") -> bytes:
    """The canonical JSON of a filter; b"" for none. field: the argument's name, for errors."""
    if value is not None and not isinstance(value, Filter | Mapping):
        raise refused(field, value, "a Filter or a dict such as {'field': {'$gt': 1}}")
    return b"" if value is None else Filter.parse(value).to_json()


def field_paths(value: Any) -> tuple[str, ...] | None:
    """Paths of metadata, each once; None for all of it."""
    if value is None:
        return None
    if isinstance(value, str):
        raise refused("fields", value, 'a list of paths such as ["title", "author.name"]')
    paths = tuple(dict.fromkeys(check_ids(value, "fields")))
    for path in paths:
        field_path(path, "fields")
    return paths


def order_by(value: Any, descending: Any) -> tuple[str, bool]:
    """The path of a field in whose order documents are read, "" for None, which is the order of their ids; and whether
    from its greatest value."""
    turned = check_flag(descending, "descending")
    if value is None and turned:
        raise invalid("descending", True, "left out without order_by")
    return "" if value is None else ".".join(field_path(text(value, "order_by"), "order_by")), turned


def change(set: Any, unset: Any, append: Any, remove: Any, expires_at: Any = None) -> Change:
    """A change of metadata's fields, and of when documents expire. The server checks the paths."""
    named = [unset] if isinstance(unset, str) else check_ids(unset, "unset")
    made = Change(
        None,
        [(path, _json_bytes(value, f"set[{path!r}]")) for path, value in _fields("set", set)],
        [text(path, "unset") for path in named],
        [(path, _list_bytes(value, f"append[{path!r}]")) for path, value in _fields("append", append)],
        [(path, _list_bytes(value, f"remove[{path!r}]")) for path, value in _fields("remove", remove)],
        expires=expiry(expires_at),
    )
    if not (made.set or made.unset or made.append or made.remove or made.expires):
        raise InvalidArgument("nothing is to be changed: give set, unset, append, remove or expires_at", field="set")
    return made


def _fields(name: str, value: Any) -> list[tuple[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, Mapping):
        raise refused(name, value, 'a dict such as {"field": value}')
    return [(text(path, name), below) for path, below in value.items()]


def _json_bytes(value: Any, field: str) -> bytes:
    return metadata_bytes(value, field) or b"null"


def _list_bytes(value: Any, field: str) -> bytes:
    if not isinstance(value, list | tuple | np.ndarray):
        raise refused(field, value, "a list of values")
    return metadata_bytes(value, field)


def check_slice(value: Any) -> tuple[int, int]:
    """(which, of how many)."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise refused("slice", value, "(i, n), the i-th of n shares, from 0")
    which, of = check_count(value[0], "slice[0]", 0), check_count(value[1], "slice[1]")
    if which >= of:
        raise invalid("slice", [which, of], "(i, n) with i less than n")
    return which, of


def check_count(value: object, field: str, low: int = 1) -> int:
    """A whole number of at least `low`."""
    if type(value) is int and low <= value < 2**63:
        return value
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool | np.timedelta64)
    if not whole or not low <= value < 2**63:  # type: ignore[operator]
        most = f", and at most {2**63 - 1}" if whole and value > low else ""  # type: ignore[operator]
        raise refused(field, value, f"a whole number of at least {low}{most}")
    return int(value)  # type: ignore[call-overload, no-any-return]


def check_flag(value: object, field: str) -> bool:
    """True or False, nothing else."""
    if value is True or value is False:
        return value
    if not isinstance(value, bool | np.bool_):
        raise refused(field, value, "True or False")
    return bool(value)


def check_timeout(value: object, field: str = "timeout") -> float:
    """Seconds, or a timedelta, as a positive float."""
    if type(value) is float and 0 < value <= TIMEOUT_MAX:
        return value
    seconds = value.total_seconds() if hasattr(value, "total_seconds") else value
    number = isinstance(seconds, int | float | np.integer | np.floating)
    if isinstance(seconds, bool | np.timedelta64):
        number = False
    if isinstance(seconds, np.generic) and number:
        seconds = seconds.item()
    if not number or not 0 < seconds <= TIMEOUT_MAX:  # type: ignore[operator]
        raise refused(field, value, f"seconds, more than 0 and at most {TIMEOUT_MAX}")
    return float(seconds)  # type: ignore[arg-type]


def check_index(value: object) -> IndexParams:
    """An index by its parameters or by words; the usual one for None."""
    if value is None:
        return IndexParams()
    if isinstance(value, str):
        if (named := index_named(value)) is None:
            raise refused("index", value, f"{INDEX_WORDS}, or an IndexParams")
        return named
    if not isinstance(value, IndexParams):
        raise refused("index", value, f"an IndexParams, or in words {INDEX_WORDS}")
    return IndexParams(
        m=check_count(value.m, "index.m"),
        ef_construction=check_count(value.ef_construction, "index.ef_construction"),
        ef_search=check_count(value.ef_search, "index.ef_search"),
        kind=choose(value.kind, IndexKind, "index.kind"),
    )


def choose(value: object, kind: type[T], field: str) -> T:
    """`value` as a member of the enumeration `kind`."""
    if type(value) is kind:
        return value
    try:
        if isinstance(value, str):
            return kind(value)  # type: ignore[call-arg]
        raise ValueError
    except ValueError:
        raise refused(field, value, f"one of {', '.join(map(str, kind))}") from None  # type: ignore[call-overload]


class Reading(NamedTuple):
    """How fresh a read must be. max_staleness: 0 for any. session: as in DocumentCalls.search."""

    mode: ReadMode
    max_staleness: float = 0.0
    session: bool = False


_PLAIN: Mapping[str, Reading] = {mode: Reading(mode) for mode in ReadMode}
"""By the mode, or by the string that it is, too."""


def reading(mode: ReadMode | str, session: bool = False, max_staleness: Seconds | None = None) -> Reading:
    """What a caller asks of a read. Raises InvalidArgument for what only an eventual read can be asked."""
    if session is False and max_staleness is None and isinstance(mode, str) and (plain := _PLAIN.get(mode)):
        return plain  # as most reads are
    wanted = choose(mode, ReadMode, "mode")
    session = check_flag(session, "session")
    if wanted is not ReadMode.EVENTUAL and (session or max_staleness is not None):
        name = "session" if session else "max_staleness"
        raise InvalidArgument(f"{name} is for eventual reads; {wanted.value} reads are fresh anyway", field=name)
    stale = 0.0 if max_staleness is None else check_timeout(max_staleness, "max_staleness")
    return Reading(wanted, stale, session)
