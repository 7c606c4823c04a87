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
    without_repeats,
)
from needle.base.move_commands import (
    MOVE_COMMANDS,
    Forget,
    Freeze,
    Import,
    Mark,
    MoveCommand,
    Own,
    PrepareMove,
    Release,
)

__all__ = [
    "FORMAT",
    "MOVE_COMMANDS",
    "NO_SESSION",
    "Command",
    "CreateCollection",
    "Delete",
    "DropCollection",
    "Forget",
    "Freeze",
    "Import",
    "Insert",
    "Mark",
    "MoveCommand",
    "OpenSession",
    "Own",
    "PrepareMove",
    "PublishSegment",
    "Release",
    "Session",
    "decode",
    "encode",
    "without_repeats",
]
