"""Settings as a schema: a struct whose annotations say of each setting its type and bounds, its docstring the meaning.

Everything about a setting is derived from there: checks on construction, the name in a file, the variable, the option
of the command line, the help, the table in docs/operations.md (needle/cli/reference.py) and the JSON schema.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args, get_origin

import msgspec

from needle.base.errors import ConfigError, invalid

if TYPE_CHECKING:
    Seconds = Any  # a float or a timedelta; always a float once it is checked
else:
    Seconds = float

PREFIX = "NEEDLE_"
_SECRET = re.compile("secret|api_?key|password|token", re.IGNORECASE)


def refuse(name: str, value: object, allowed: str) -> ConfigError:
    """A ConfigError that names the field, the value and what is allowed. What may be a secret, also one under a name
    with a typing error, is not shown: such errors end up in logs."""
    told = f"{len(str(value))} characters" if _SECRET.search(name) else value
    return ConfigError(invalid(name, told, allowed).message, field=name)


def check_whole(name: str, value: object, low: int, high: int) -> int:
    """`value` as a whole number within [low, high], or a ConfigError."""
    if type(value) is not int or not low <= value <= high:
        raise refuse(name, value, f"a whole number from {low} to {high}")
    return value


def required(name: str) -> ConfigError:
    """A ConfigError about a setting that nobody gave."""
    return ConfigError(f"the setting {name} is required, and is not given", field=name)


def unknown(name: str, value: object, known: Iterable[str]) -> ConfigError:
    """A ConfigError about a name that is no setting, with the nearest that is one."""
    names = {one.removeprefix(PREFIX): one for one in known}
    near = difflib.get_close_matches(name.removeprefix(PREFIX), list(names), 1)
    hint = f"did you mean {names[near[0]]}?" if near else "see docs/operations.md"
    return refuse(name, value, f"a known setting; {hint}")


def about(
    low: float | None = None,
    high: float | None = None,
    *,
    allowed: str = "",
    shown: str = "",
    option: str = "",
    **bounds: Any,
) -> msgspec.Meta:
    """What a field's annotation says besides its type. low, high, bounds (of msgspec.Meta): what is allowed; allowed:
    in words, where those do not say it. shown: the default in words. option: of the command line, where it is not the
    path's. What the field means stands in the docstring of its struct, as "name: ..." on lines of its own."""
    return msgspec.Meta(ge=low, le=high, extra={"allowed": allowed, "shown": shown, "option": option}, **bounds)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting. path: its name, after that of its table and a dot if it is in one. kind: int, float, bool, str or
    list (of str). default: msgspec.NODEFAULT if it must be given. allowed, shown: what it may be and its default, in
    words. option: of the command line; of a bool the one that sets it, a slash, and the one that does the opposite."""

    path: str
    type: Any
    kind: type
    default: Any
    description: str
    allowed: str
    shown: str
    option: str

    @property
    def name(self) -> str:
        """The field of its struct."""
        return self.path.rpartition(".")[2]

    @property
    def variable(self) -> str:
        """The environment's variable."""
        return PREFIX + self.path.replace(".", "_").upper()

    @property
    def facts(self) -> str:
        """Default and bounds, for help."""
        shown = "required" if self.shown == "required" else f"default {self.shown}"
        return f"({shown}; {self.allowed})"

    def check(self, value: object, said: str = "", *, text: bool = False) -> Any:
        """`value` as this setting holds it, or a ConfigError. said: what to call the setting then. text: whether value
        is written, as variables are. Lists may be written with commas anywhere."""
        given: Any = value
        if hasattr(value, "total_seconds"):
            given = value.total_seconds()
        elif hasattr(value, "__fspath__"):
            given = value.__fspath__()
        elif self.kind is list and isinstance(value, str):
            given = [part.strip() for part in value.split(",") if part.strip()]
        try:
            return msgspec.convert(given, self.type, strict=not text)
        except msgspec.ValidationError:
            raise refuse(said or self.path, value, self.allowed) from None


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of a table of settings: checked on construction. table: its name in a file, "" at the top."""

    table: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for setting in own_settings(type(self)):
            msgspec.structs.force_setattr(self, setting.name, setting.check(getattr(self, setting.name)))
        for name, kind in tables(type(self)).items():
            value = getattr(self, name)
            try:
                made = value if isinstance(value, kind) else kind(**_named(value))
            except TypeError as error:
                raise refuse(name, value, f"the settings of {kind.__name__} ({error})") from None
            msgspec.structs.force_setattr(self, name, made)


def _named(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else msgspec.structs.asdict(value)


@functools.cache
def tables(of: type[Settings]) -> dict[str, type[Settings]]:
    """The tables in `of`, by name."""
    found = {field.name: field.type for field in msgspec.structs.fields(of)}
    return {name: kind for name, kind in found.items() if isinstance(kind, type) and issubclass(kind, Settings)}


@functools.cache
def own_settings(of: type[Settings]) -> tuple[Setting, ...]:
    """The settings of `of`, those of its tables left out."""
    fields = msgspec.structs.fields(of)
    return tuple(_setting(of, field) for field in fields if field.name not in tables(of))


def all_settings(of: type[Settings]) -> dict[str, Setting]:
    """Every setting of `of` and its tables by path."""
    found = [*own_settings(of), *(setting for kind in tables(of).values() for setting in own_settings(kind))]
    return {setting.path: setting for setting in found}


def json_schema(of: type[Settings]) -> dict[str, Any]:
    """A JSON schema of a file with these settings."""
    made = msgspec.json.schema(of)
    for kind in (of, *tables(of).values()):
        table = made["$defs"][kind.__name__]
        table["description"] = (kind.__doc__ or "").partition("\n")[0]
        for setting in own_settings(kind):
            table["properties"][setting.name]["description"] = setting.description
    return made


def _meanings(of: type[Settings]) -> dict[str, str]:
    """What the docstring says of each field; nothing where Python was told to leave docstrings out."""
    parts = re.split(rf"^({'|'.join(of.__struct_fields__)}): ", inspect.cleandoc(of.__doc__ or ""), flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def _setting(of: type[Settings], field: msgspec.structs.FieldInfo) -> Setting:
    path = f"{of.table}.{field.name}" if of.table else field.name
    annotated = next((part for part in (field.type, *get_args(field.type)) if get_origin(part) is Annotated), None)
    if annotated is None:
        raise TypeError(f"{path} is not described: Annotated[..., about(...)]")
    base, meta = get_args(annotated)
    kind = list if get_origin(base) is Sequence else base
    option = meta.extra["option"] or "--" + path.replace(".", "-").replace("_", "-")
    words = {int: _whole(meta), float: f"a number from {meta.ge} to {meta.le}", bool: "true or false"}
    return Setting(
        path=path,
        type=field.type,
        kind=kind,
        default=field.default,
        description=_meanings(of).get(field.name, ""),
        allowed=meta.extra["allowed"] or words.get(kind, "text"),
        shown=meta.extra["shown"] or _shown(field.default),
        option=f"{option}/--no-{option.removeprefix('--')}" if kind is bool else option,
    )


def _whole(meta: msgspec.Meta) -> str:
    low, high = meta.ge or 0, meta.le or math.inf
    return f"a whole number from {low} to {high}"


def _shown(default: object) -> str:
    if default is msgspec.NODEFAULT:
        return "required"
    if default is None or default in ((), ""):
        return "none"
    return str(default).lower() if isinstance(default, bool) else str(default)
