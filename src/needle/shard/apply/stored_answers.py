"""Answers of writes as they are stored for repetitions: a result or an error, as MessagePack. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from needle.base.errors import NeedleError, from_wire
from needle.base.model import WriteResult

ANSWER_BYTES: Final = 160
"""What an answer is counted with, in addition to its own bytes: about what Python and SQLite need for it."""

_encoder = msgspec.msgpack.Encoder()


def pack(result: WriteResult | NeedleError) -> bytes:
    """[version, index, existed, count], perhaps with [ids, reached, upto] behind it, or [code, message, details]."""
    if isinstance(result, NeedleError):
        return _encoder.encode([result.code, result.message, result.details])
    values: tuple[Any, ...] = result.version, result.index, result.existed, result.count
    if result.ids or result.reached != -1 or result.upto != -1:
        values += result.ids, result.reached, result.upto
    return _encoder.encode(values)


def unpack(answer: bytes) -> WriteResult | NeedleError:
    """What `pack` was given."""
    stored = msgspec.msgpack.decode(answer)
    if isinstance(stored[0], str):
        return from_wire(stored[0], stored[1], stored[2])
    ids, reached, upto = stored[4:] or ([], -1, -1)
    version, index, existed, count = stored[:4]
    return WriteResult(version=version, index=index, existed=existed, count=count, ids=ids, reached=reached, upto=upto)
