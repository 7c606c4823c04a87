"""How many elements the lists of a command may have that a caller sends: looked at before it is decoded.

A log decodes whatever an earlier release has accepted, so the types of commands have no bounds. A caller's command of
64 MiB of short ids is decoded for a second, in which nothing else runs in the process, and takes 1.3 GB.
Invariant: what passes costs at most a few times its bytes to decode. It must not know what a command means.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec

from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import InvalidArgument
from needle.protocol.calls import ELEMENTS_MAX
from needle.protocol.commands import FORMAT, Command
from needle.routing.ring import POINTS_MAX
from needle.routing.shard_map import KeyRange

_Kind = type[msgspec.Struct]


def check_lists(data: bytes | memoryview, documents_max: int) -> None:
    """Raises InvalidArgument if the large command in `data` cannot be read with lists that are as long as any may be.
    documents_max: that one write may have. Commands of another format are left for whoever decodes them."""
    if len(data) <= ELEMENTS_MAX or data[: len(FORMAT)] != FORMAT:
        return  # an element has a byte at least
    most = max(ELEMENTS_MAX, documents_max)
    try:
        _looker(most).decode(memoryview(data)[len(FORMAT) :])
    except DECODE_ERRORS as error:
        text = f"the command does not decode, with at most {most} elements in a list: {error}"
        raise InvalidArgument(text, field="command") from None


def prepare(documents_max: int) -> None:
    """Make what `check_lists` needs: 30 ms, which the first large command would take from the event loop."""
    _looker(max(ELEMENTS_MAX, documents_max))


@cache
def _looker(most: int) -> msgspec.msgpack.Decoder[Any]:
    """Decodes as the log does, but for the bounds; vectors are not copied."""
    return msgspec.msgpack.Decoder(Union[tuple(_shape(kind, most) for kind in get_args(Command))])  # noqa: UP007


def _shape(kind: _Kind, most: int) -> _Kind:
    fields = []
    for field in msgspec.structs.fields(kind):
        seen: Any = _seen(field.type, most)
        fields.append((field.name, seen) if field.required else (field.name, seen, None))
    config = kind.__struct_config__
    return msgspec.defstruct(kind.__name__, fields, tag=config.tag, array_like=config.array_like)


def _seen(kind: Any, most: int) -> Any:
    if get_origin(kind) is list:
        bound = max(most, POINTS_MAX) if get_args(kind) == (KeyRange,) else most
        return Annotated[kind, msgspec.Meta(max_length=bound)]
    if kind is bytes:
        return memoryview  # not copied
    inner = [one for one in (kind, *get_args(kind)) if isinstance(one, type) and issubclass(one, msgspec.Struct)]
    return Union[(*(_shape(one, most) for one in inner), None)] if inner else kind
