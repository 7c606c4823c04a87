"""The sequential specification of one document: a register that is absent or holds a version and a unique value.

Pure. A state is (value, version); ("", 0) is absent. A value is the tag of what was written, then `+` and the tag of
the patch after it, then `~` and that of the vector that it was given after it. The version of a write whose answer was
lost is UNKNOWN until some answer reveals it: also that of an eventual read, which has no place in the order itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from proof.checkers.history import Operation

State = tuple[str, int]
ABSENT: State = ("", 0)
UNKNOWN = -1
CHANGES = ("patch", "update")
"""Kinds of operations that leave the rest of a document as it is."""


class RegisterModel:
    """Steps of one key's register.

    eventual: reads of the same key that promise no order; they reveal versions only. `conflict` says that two answers
    gave one value two versions.
    """

    def __init__(self, operations: Sequence[Operation], eventual: Sequence[Operation] = ()) -> None:
        self.conflict = ""
        self._versions: dict[str, int] = {}
        self._changed: dict[str, int] = {}
        """Versions that patches and new vectors were answered with, by what they add; 0: there was no document."""
        for op in (*operations, *eventual):
            if op.outcome != "ok":
                continue
            if op.kind in CHANGES:
                self._changed[op.tag] = op.version
                continue
            tag = op.tag if op.kind in ("put", "insert", "cas") else op.seen
            if tag and self._versions.setdefault(tag, op.version) != op.version:
                self.conflict = f"value {tag} was reported with versions {self._versions[tag]} and {op.version}"
        for value, version in self._versions.items():
            last = [self._changed.get(tag, version) for tag in _changes_of(value)]
            if last and version not in last and 0 not in last:
                self.conflict = f"value {value} was reported with version {version}, and written with another one"
        self._known = {*self._versions.values(), *self._changed.values()}

    def step(self, state: State, op: Operation) -> State | None:
        """The state after `op` took effect in `state`, or None if it cannot have been answered so there."""
        if op.outcome in ("open", "unknown"):
            return self._silent(state, op)
        version = state[1]
        present = version != 0
        if op.kind == "get":
            fits = (op.seen, op.version) == state if op.seen or op.version else not present
            return state if fits else None
        if op.outcome == "refused":
            return (state[0], op.version) if self._refused(version, op) else None
        if op.existed is not None and op.existed != present:
            return None
        if op.kind == "delete":
            return ABSENT
        if op.kind in CHANGES and not present:
            return None if op.expected else state
        if op.kind in CHANGES:
            fits = not op.expected or self._may_be(version, op.expected)
            return (_after(state[0], op), op.version) if fits else None
        if op.kind == "insert" and present:
            return None
        if op.kind == "cas" and not self._may_be(version, op.expected):
            return None
        return op.tag, op.version

    def _silent(self, state: State, op: Operation) -> State:
        version = state[1]
        if op.kind == "delete":
            return ABSENT
        if op.kind in CHANGES:
            if not version or (op.expected and not self._may_be(version, op.expected)):
                return state
            value = _after(state[0], op)
            return value, self._versions.get(value, UNKNOWN)
        if (op.kind == "insert" and version != 0) or (op.kind == "cas" and not self._may_be(version, op.expected)):
            return state
        return op.tag, self._versions.get(op.tag, UNKNOWN)

    def _refused(self, version: int, op: Operation) -> bool:
        if op.kind in ("cas", *CHANGES) and op.version == op.expected:
            return False
        if op.kind == "insert" and op.version == 0:
            return False
        return self._may_be(version, op.version)

    def _may_be(self, version: int, reported: int) -> bool:
        """An unknown version may be any that no value is known to have."""
        return version == reported or (version == UNKNOWN and reported != 0 and reported not in self._known)


def _after(value: str, op: Operation) -> str:
    """A value after a change. One that loses what was there, or leaves what an earlier change of its kind added, makes
    another."""
    metadata, tilde, vector = value.partition("~")
    if op.kind == "update":
        return f"{metadata}~{op.tag}"
    return f"{metadata.partition('+')[0]}+{op.tag}{tilde}{vector}"


def _changes_of(value: str) -> list[str]:
    """The tags of the patch and of the new vector that a value shows."""
    metadata, _, vector = value.partition("~")
    return [tag for tag in (metadata.partition("+")[2], vector) if tag]
