"""Each command of the catalog is executed once: the last identities, with what they were answered. Pure.

Invariants: a command whose identity is known is answered as the first time and changes nothing; one that may have been
forgotten is refused. The latter is told by what its sender had seen: whatever was executed before index `floor` is
forgotten, and who had seen a topology of `floor` or later sent its command for the first time after that.
"""

from __future__ import annotations

from itertools import islice

import msgspec

from needle.base.errors import Detail, NeedleError, SessionExpired, from_wire
from needle.base.model import WriteResult
from needle.catalog.state import execute
from needle.protocol.catalog_commands import decode_identified
from needle.routing.topology import Topology

KEPT_MAX = 512
KEPT_LEAST = 256
MESSAGE_CHARS_MAX = 500


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What a command was answered. code: of the error, "" if there was none."""

    version: int = 0
    index: int = 0
    existed: bool = False
    code: str = ""
    message: str = ""
    field: str = ""

    def told(self) -> WriteResult | NeedleError:
        """As it was told, but for the end of a long message."""
        if not self.code:
            return WriteResult(version=self.version, index=self.index, existed=self.existed)
        details: dict[str, Detail] = {"field": self.field} if self.field else {}
        return from_wire(self.code, self.message, details)


class Executed(msgspec.Struct, frozen=True, array_like=True):
    """answers: by identity, oldest first, at most KEPT_MAX of at most 1 KiB each. floor: see the module."""

    answers: dict[int, Answer] = {}
    floor: int = 0


def execute_once(
    topology: Topology, executed: Executed, index: int, data: bytes
) -> tuple[Topology, Executed, WriteResult | NeedleError]:
    """Apply the encoded command of the entry at `index`. Raises UnsupportedFormat for one that cannot be read."""
    command, identity = decode_identified(data)
    if identity is None:  # of a release that gave none
        changed, result = execute(topology, index, command)
        return changed, executed, result
    known = executed.answers.get(identity.nonce)
    if known is not None:
        return topology, executed, known.told()
    if identity.since < executed.floor:
        text = (
            "the catalog does not know any more whether it has executed this command: its sender had seen version "
            f"{identity.since}, and what was executed before {executed.floor} is forgotten"
        )
        return topology, executed, SessionExpired(text, version=executed.floor)
    changed, result = execute(topology, index, command)
    if isinstance(result, NeedleError) and result.retryable:
        return changed, executed, result  # nothing happened, and its sender was told that it may come again
    answers = {**executed.answers, identity.nonce: _answer(result)}
    floor = executed.floor
    if len(answers) > KEPT_MAX:
        answers = dict(islice(answers.items(), len(answers) - KEPT_LEAST, None))
        # Senders learn the floor as the topology's version: without that nobody's command would be taken any more.
        floor, changed = index, msgspec.structs.replace(changed, version=index)
    return changed, Executed(answers, floor), result


def _answer(result: WriteResult | NeedleError) -> Answer:
    if isinstance(result, WriteResult):
        return Answer(result.version, result.index, result.existed)
    message = result.message
    if len(message) > MESSAGE_CHARS_MAX:
        message = message[:MESSAGE_CHARS_MAX] + "..."
    return Answer(code=result.code, message=message, field=str(result.details.get("field", ""))[:80])
