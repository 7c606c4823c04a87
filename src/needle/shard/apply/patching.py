"""What a change of metadata makes of a document's JSON. Pure and deterministic: every replica computes it at apply.

Fields that the change does not name keep their bytes. A path is as in filters: "a.b" is key b of the object under key
a; it never goes into an array. Objects that are missing on the way are made by `set` and `append`; null counts as
missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import InvalidArgument, StorageError
from needle.base.filters.operators import kind
from needle.protocol.commands import Change
from needle.shard.apply.metadata import METADATA_DEPTH_MAX, depth

_objects: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_decode: Final = msgspec.json.decode
_encode: Final = msgspec.json.encode
_MISSING: Final = object()
_EMPTY: Final = (b"", b"null")


def changed(id_: str, data: bytes, change: Change) -> bytes:
    """The metadata after the change; b"" is null. Raises InvalidArgument if it cannot be made, or is too large."""
    made = data if change.whole is None else change.whole
    if change.set or change.unset or change.append or change.remove:
        made = _edited(id_, made, change)
    if len(made) > change.bytes_max:
        raise _refused(id_, f"its metadata would have {len(made)} bytes; at most {change.bytes_max} are allowed")
    if made.count(b"[") + made.count(b"{") > METADATA_DEPTH_MAX and depth(made) > METADATA_DEPTH_MAX:
        raise _refused(id_, f"its metadata would be nested deeper than {METADATA_DEPTH_MAX}")
    return made


def _edited(id_: str, data: bytes, change: Change) -> bytes:
    fields: dict[str, Any] = {}
    if data not in _EMPTY:
        try:
            fields = dict(_objects.decode(data))
        except msgspec.ValidationError:
            raise _refused(id_, "its metadata is not an object, so it has no fields that could be changed") from None
        except DECODE_ERRORS as error:
            raise StorageError(f"stored metadata is not JSON: {error}") from error
    edit = _Edit(id_, fields)
    for path, value in change.set:
        edit.change(path, lambda _, value=value: _decode(value), make=True)  # type: ignore[misc]
    for path in change.unset:
        edit.change(path, lambda _: _MISSING, make=False)
    for path, values in change.append:
        edit.change(path, lambda now, path=path, values=values: _appended(id_, path, now, _decode(values)), make=True)  # type: ignore[misc]
    for path, values in change.remove:
        edit.change(path, lambda now, path=path, values=values: _removed(id_, path, now, _decode(values)), make=False)  # type: ignore[misc]
    return _encode(fields)


class _Edit:
    """Of one document's fields; those under which nothing was changed stay bytes."""

    def __init__(self, id_: str, fields: dict[str, Any]) -> None:
        self._id = id_
        self._fields = fields

    def change(self, path: str, new: Callable[[Any], Any], *, make: bool) -> None:
        """Replace what is at the path by what `new` makes of it. make: also where there is nothing."""
        *way, last = path.split(".")
        level = self._fields
        for key in way:
            below = self._opened(level, key)
            if not isinstance(below, dict):
                if not make:
                    return
                if below is not _MISSING and below is not None:
                    raise _refused(self._id, f"{path!r} goes through {key!r}, which is not an object")
                below = level[key] = {}
            level = below
        now = self._opened(level, last)
        if now is _MISSING and not make:
            return
        value = new(now)
        if value is _MISSING:
            del level[last]
        else:
            level[last] = value

    @staticmethod
    def _opened(level: dict[str, Any], key: str) -> Any:
        value = level.get(key, _MISSING)
        if isinstance(value, msgspec.Raw):
            value = level[key] = _decode(value)
        return value


def _appended(id_: str, path: str, now: Any, values: list[Any]) -> list[Any]:
    if now is _MISSING or now is None:
        return values
    if not isinstance(now, list):
        raise _refused(id_, f"{path!r} is not an array, so nothing can be appended to it")
    return now + values


def _removed(id_: str, path: str, now: Any, values: list[Any]) -> Any:
    if now is None:
        return now
    if not isinstance(now, list):
        raise _refused(id_, f"{path!r} is not an array, so nothing can be removed from it")
    gone = {_key(value) for value in values}
    return [value for value in now if _key(value) not in gone]


def _key(value: Any) -> tuple[str, Any]:
    """Equal for what a filter calls equal: 1 and 1.0 are, 1 and true are not; arrays and objects by their JSON."""
    return ("json", _encode(value, order="sorted")) if isinstance(value, list | dict) else (kind(value), value)


def _refused(id_: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"document {id_[:80]!r} cannot be changed: {why}", field="change", id=id_[:80])


def change_bytes(change: Change) -> int:
    """What a change holds, about."""
    values = sum(len(data) for _, data in [*change.set, *change.append, *change.remove])
    return values + len(change.whole or b"")


def named_paths(change: Change) -> list[str]:
    """The fields that it names."""
    return [*(path for path, _ in change.set), *change.unset, *(path for path, _ in [*change.append, *change.remove])]
