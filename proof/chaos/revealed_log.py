"""Searches and eventual gets against the log, as far as the answers of a recorded history reveal it.

An acknowledged write names its index, and a version is the index of the write that made it. A write of unknown fate
whose value nobody ever saw may sit anywhere in the log, or nowhere; it can only hide an older document, never add a
hit; it may take a place among the candidates of a search that chooses among them (`doubtful`). Invariant: what is
reported as a violation is one, whatever became of the unknown writes.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np

from proof.checkers import linearizability
from proof.checkers.history import SHAPES, History, Operation
from proof.checkers.replay import GetSeen, LogModel, ModelDocument, check_get
from proof.checkers.scatter import ScatterSeen
from proof.checkers.shaping import Shaping
from proof.checkers.violation import Violation
from proof.sim.workload import FILTERS, Keep

_KEEPS: dict[str, Keep | None] = {json.dumps(filter_, sort_keys=True): keep for filter_, keep in FILTERS}


class RevealedLog(LogModel):
    """The log as the answers reveal it, and the writes that may be anywhere in it."""

    def __init__(self, history: History) -> None:
        super().__init__()
        self.open: dict[str, list[Operation]] = {}
        self._begun: list[tuple[int, int]] = []
        self._later: tuple[list[int], list[int]] | None = None
        versions = _versions(history)
        changes: list[tuple[int, str, ModelDocument | None]] = []
        for op in history.operations:
            index = op.index if op.outcome == "ok" else versions.get(op.tag, 0)
            if op.kind not in ("put", "insert", "cas", "delete"):
                continue
            if index and op.outcome != "failed":
                changes.append((index, op.key, _document(op, index)))
                self._begun.append((index, op.invoked))
            elif op.outcome in ("open", "unknown"):
                self.open.setdefault(op.key, []).append(op)
        changes.sort(key=lambda change: change[0])
        for index, key, document in changes:
            self.write(index, key, document)
        self._unchanged = _unchanged(history)
        self._top = max((max(op.index, op.details.get("applied", 0)) for op in history.operations), default=0)
        self._ordered = changes
        self._indexes = [index for index, _, _ in changes]
        self._now: dict[str, ModelDocument] = {}
        self._applied, self._index = 0, 0

    def at(self, index: int) -> dict[str, ModelDocument]:
        """Documents after entry `index`; the caller may not change them. Fast for ascending indexes."""
        if index < self._index:
            self._now, self._applied = {}, 0
        self._index = index
        while self._applied < len(self._ordered) and self._ordered[self._applied][0] <= index:
            _, key, document = self._ordered[self._applied]
            self._applied += 1
            if document is None:
                self._now.pop(key, None)
            else:
                self._now[key] = document
        return self._now

    def newest(self, position: int) -> int:
        """The highest index of a known write that was begun before `position`; 0 if there is none."""
        return max((index for index, invoked in self._begun if invoked < position), default=0)

    def state_ends(self, first: int, last: int) -> list[int]:
        """The last index of each state that the documents had from entry `first` to entry `last`, in order. The last
        state may end behind every index that an answer names: a write of unknown fate may be there."""
        start = bisect_right(self._indexes, first)
        stop = bisect_right(self._indexes, max(first, last))
        following = self._indexes[stop] if stop < len(self._indexes) else max(first, last, self._top) + 2
        return [index - 1 for index in (*self._indexes[start:stop], following)]

    def hidden(self, index: int, position: int, shown: set[str]) -> set[str]:
        """Keys that a write of unknown fate, begun before `position`, may have taken out of the state at `index`."""
        return {
            key
            for key, writes in self.open.items()
            if key not in shown
            and any(op.invoked < position for op in writes)
            and self._unchanged.get((key, before := self._changed(key, index)), before) < index
        }

    def doubtful(self, index: int, position: int, shown: set[str]) -> int:
        """How many documents more than those that are known there may have been in the state at `index`: those that are
        hidden, and those that a write of unknown fate, begun before `position`, may have put there."""
        known = self.at(index)
        puts = {
            key
            for key, writes in self.open.items()
            if key not in shown and any(op.kind != "delete" and op.invoked < position for op in writes)
        }
        return len(puts | {key for key in self.hidden(index, position, shown) if key in known})

    def absent(self, key: str, first: int, position: int) -> bool:
        """Whether a delete of unknown fate, begun before `position`, may have taken `key` out of some state from entry
        `first` on that was there before `position`: behind a known write, and behind the last answer that showed it,
        there was room for it in the log before the next known write."""
        if not any(op.kind == "delete" and op.invoked < position for op in self.open.get(key, ())):
            return False
        indexes = [index for index, _ in self._changes.get(key, [])]
        end = self._before(position)
        for written, following in pairwise([index for index in (*indexes, end) if index <= end]):
            shown = self._unchanged.get((key, written), written)
            if following - 1 > shown and following > first:
                return True
        return False

    def _before(self, position: int) -> int:
        """An index that no entry had which was there before `position`: the lowest of the writes that began later."""
        if self._later is None:
            by_start = sorted((invoked, index) for index, invoked in self._begun)
            lowest = (
                np.minimum.accumulate([index for _, index in reversed(by_start)])[::-1].tolist() if by_start else []
            )
            self._later = [invoked for invoked, _ in by_start], lowest
        starts, lowest = self._later
        place = bisect_right(starts, position)
        return lowest[place] if place < len(lowest) else self._top + 1_000_000

    def _changed(self, key: str, index: int) -> int:
        """The index of the last known write to `key` up to `index`."""
        changes = self._changes.get(key, [])
        place = bisect_right(changes, index, key=lambda change: change[0])
        return changes[place - 1][0] if place else 0


class View(LogModel):
    """The log as one read may have seen it."""

    def __init__(self, log: RevealedLog, hidden: set[str]) -> None:
        super().__init__()
        self._log, self._hidden = log, hidden

    def at(self, index: int) -> dict[str, ModelDocument]:
        return {key: document for key, document in self._log.at(index).items() if key not in self._hidden}

    def versions(self, key: str, first: int, last: int) -> set[int]:
        return self._log.versions(key, first, last) | ({0} if key in self._hidden else set())


class Replayed(msgspec.Struct):
    """How many reads were compared with the log; exact: of the searches, partial: those that might leave out shards,
    shaped: those by groups, of hits unlike each other, or in the order of a field.
    undetermined: searches that a write of unknown fate may have touched."""

    searches: int = 0
    exact: int = 0
    undetermined: int = 0
    eventual_gets: int = 0
    partial: int = 0
    shaped: int = 0


def eventual_get(log: RevealedLog, op: Operation, required: int) -> None:
    """Compare an eventual get with the log. Raises Violation."""
    applied = op.details["applied"]
    absent = not op.version and log.absent(op.key, applied, op.returned or 0)
    view = View(log, {op.key} if absent else set())
    seen = GetSeen(
        key=op.key,
        version=op.version,
        applied_index=applied,
        latest_index=max(applied, log.last_index),
        required_index=required,
        label=linearizability.describe(op),
    )
    check_get(view, seen)


def search_seen(op: Operation) -> ScatterSeen:
    """A recorded search of all shards, as the checkers want it."""
    details = op.details
    told = details["applied"]
    return ScatterSeen(
        mode=details["mode"],
        vector=np.array(details["vector"], np.float32),
        k=details["k"],
        keep=_KEEPS[json.dumps(details["filter"], sort_keys=True)],
        exact=details["exact"],
        hits=[(key, version, distance) for key, version, distance, _ in details["hits"]],
        applied=None if told is None else {int(shard): index for shard, index in told.items()},
        required={},  # told in another way: see Freshness
        latest={},
        partial=bool(details.get("partial")),
        missing=tuple(details.get("missing", ())),
        label=f"search #{op.id} by {op.client}",
        shaping=msgspec.convert({name: details[name] for name in SHAPES if name in details}, Shaping),
        groups=details.get("groups", ()),
    )


class Freshness:
    """The newest log index that any answer had named before a read began: strong and leased reads must see it."""

    def __init__(self, history: History) -> None:
        answered = sorted(
            (op.returned, max(op.index, op.details.get("applied", 0)))
            for op in history.operations
            if op.returned is not None and op.outcome == "ok"
        )
        self._positions = [position for position, _ in answered]
        self._indexes: Any = np.maximum.accumulate([index for _, index in answered]) if answered else []

    def before(self, op: Operation) -> int:
        place = bisect_right(self._positions, op.invoked)
        return int(self._indexes[place - 1]) if place else 0


def _unchanged(history: History) -> dict[tuple[str, int], int]:
    """Up to which index a document is known to have kept a version: some answer from there showed it."""
    found: dict[tuple[str, int], int] = {}
    for op in history.operations:
        applied = op.details.get("applied", 0)
        shown = [(op.key, op.version)] if op.key and op.version and applied else []
        for known in [*shown, *((key, version) for key, version, _, _ in op.details.get("hits", ()))]:
            found[known] = max(found.get(known, 0), applied)
    return found


def _versions(history: History) -> dict[str, int]:
    """The version of every value that some answer showed: it is also the index of its write."""
    found: dict[str, int] = {}
    for op in history.operations:
        if op.outcome != "ok":
            continue
        shown: list[tuple[str, int]] = [(op.seen, op.version)] if op.seen else []
        shown += [(tag, version) for _, version, _, tag in op.details.get("hits", ())]
        for tag, version in shown:
            if found.setdefault(tag, version) != version:
                raise Violation(
                    "one version a value", f"{tag} was shown with versions {found[tag]} and {version}", op.key
                )
    return found


def _document(op: Operation, index: int) -> ModelDocument | None:
    if op.kind == "delete":
        return None
    return ModelDocument(index, np.array(op.details["vector"], np.float32), op.details["metadata"])
