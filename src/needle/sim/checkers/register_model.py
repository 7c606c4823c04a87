"""The sequential specification of one document: a register that is absent or holds a version and a unique value.

Pure. A state is (tag, version); ("", 0) is absent. The version of a write whose answer was lost is UNKNOWN until some
answer reveals it.
"""

from __future__ import annotations

from needle.sim.history import Operation

State = tuple[str, int]
ABSENT: State = ("", 0)
UNKNOWN = -1


class RegisterModel:
    """Steps of one key's register. `versions` is what answers revealed: tag -> version."""

    def __init__(self, operations: list[Operation]) -> None:
        self.conflict = ""
        self._versions: dict[str, int] = {}
        for op in operations:
            if op.outcome != "ok":
                continue
            tag = op.seen if op.kind == "get" else op.tag if op.kind in ("put", "insert", "cas") else ""
            if tag and self._versions.setdefault(tag, op.version) != op.version:
                self.conflict = f"value {tag} was reported with versions {self._versions[tag]} and {op.version}"
        self._known = set(self._versions.values())

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
            return state if self._refused(version, op) else None
        if op.existed is not None and op.existed != present:
            return None
        if op.kind == "delete":
            return ABSENT
        if op.kind == "insert" and present:
            return None
        if op.kind == "cas" and version != op.expected:
            return None
        return op.tag, op.version

    def _silent(self, state: State, op: Operation) -> State:
        version = state[1]
        if op.kind == "delete":
            return ABSENT
        if (op.kind == "insert" and version != 0) or (op.kind == "cas" and version != op.expected):
            return state
        return op.tag, self._versions.get(op.tag, UNKNOWN)

    def _refused(self, version: int, op: Operation) -> bool:
        if op.kind == "cas" and op.version == op.expected:
            return False
        if op.kind == "insert" and op.version == 0:
            return False
        return version == op.version or (version == UNKNOWN and op.version != 0 and op.version not in self._known)
