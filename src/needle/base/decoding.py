"""What decoders raise for bytes that are not what they should be: one list for all who decode.

msgspec has an error of its own for most of it, but none for text that is not UTF-8, nor for what is nested deeper than
the stack has room for. Who catches only msgspec's lets the others out as if they were bugs.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from needle.base.errors import InvalidArgument

DECODE_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""How deep may be nested depends on the depth of the call that decodes: the same bytes may be readable in one place and
not in another. What is decoded by each replica for itself must not hold anything that is nested at will."""


def routed_metadata(metadata: bytes) -> Any:
    """The metadata of one document, as a custom routing key is made of it; None for none. Raises InvalidArgument."""
    try:
        return msgspec.json.decode(metadata) if metadata else None
    except DECODE_ERRORS as error:
        raise InvalidArgument(f"metadata is not JSON: {error}", field="metadata") from None
