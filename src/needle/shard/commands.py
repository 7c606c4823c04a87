"""The replicated commands of a shard. They are defined in `needle.base.commands`, because clients build them too and
may not know this package; this module is where the shard's own code finds them.
"""

from needle.base.commands import (
    FORMAT,
    NO_SESSION,
    Command,
    CreateCollection,
    Delete,
    DropCollection,
    Insert,
    OpenSession,
    PublishSegment,
    Session,
    decode,
    encode,
)

__all__ = [
    "FORMAT",
    "NO_SESSION",
    "Command",
    "CreateCollection",
    "Delete",
    "DropCollection",
    "Insert",
    "OpenSession",
    "PublishSegment",
    "Session",
    "decode",
    "encode",
]
