"""What the translators refuse, in the same words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

from needle.base.errors import InvalidArgument, invalid
from needle.base.filters.builder import Filter


def refused(where: str, value: object, instead: str) -> InvalidArgument:
    """instead: what may stand there, or what to write in its place."""
    return invalid(where, value, instead)


def bounded(translate: Callable[[Mapping[str, Any]], Filter]) -> Callable[[Mapping[str, Any]], Filter]:
    """A translator that refuses a filter that is nested without end, as one is that holds itself."""

    @wraps(translate)
    def translated(said: Mapping[str, Any]) -> Filter:
        try:
            return translate(said)
        except RecursionError:
            raise InvalidArgument("filter: it is nested too deep to be read", field="filter") from None

    return translated


def flat(where: str, key: str) -> str:
    """`key`, of a database whose metadata is flat. Raises InvalidArgument: "a.b" is one name there, and a path here."""
    if "." in key:
        raise refused(
            where, key, "a name without a dot, which leads into an object here: store the field under another"
        )
    return key


def mapping(where: str, value: object) -> Mapping[str, Any]:
    """`value` as a dict with text keys. Raises InvalidArgument."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise refused(where, value, "a dict with names as keys")
    return value


def only(where: str, value: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Raises InvalidArgument for a key that is not allowed: to pass over it would match more."""
    for key in value:
        if key not in allowed:
            raise refused(where, key, f"one of {', '.join(allowed)}")


def members(where: str, value: object) -> Sequence[Any]:
    """`value` as a list. Raises InvalidArgument."""
    if not isinstance(value, list | tuple):
        raise refused(where, value, "a list")
    return value
