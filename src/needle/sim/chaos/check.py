"""Judge a recorded history, and nothing but it: is it what a correct database could have answered?

Per key: the linearizability checker of the simulation. Searches and eventual gets: its replay of the log. Here the log
is what the answers reveal: an acknowledged write names its index, and a version is the index of the write that made it.
A write of unknown fate whose value nobody ever saw may sit anywhere in the log, or nowhere; it can only hide an older
document, never add a hit. Invariant: what is reported as a violation is one, whatever became of the unknown writes.
It must not know processes or the network.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from typing import Any

import msgspec
import numpy as np

from needle.sim.chaos.history_file import Recorded, Replica
from needle.sim.checkers import linearizability
from needle.sim.checkers.replay import GetSeen, LogModel, ModelDocument, SearchSeen, check_get, check_search
from needle.sim.history import History, Operation
from needle.sim.violation import Violation
from needle.sim.workload import FILTERS, Keep

FINAL = "final"
"""Name of the client that reads everything once more at the end."""
_KEEPS: dict[str, Keep | None] = {json.dumps(filter_, sort_keys=True): keep for filter_, keep in FILTERS}


class Verdict(msgspec.Struct):
    """What was checked. undetermined: searches that a write of unknown fate may have touched; given_up: keys whose
    orders were too many to try."""

    operations: dict[str, int]
    keys: int = 0
    searches: int = 0
    exact: int = 0
    undetermined: int = 0
    eventual_gets: int = 0
    given_up: int = 0
    replicas: int = 0


def check(recorded: Recorded) -> Verdict:
    """Raises Violation with the evidence."""
    history = recorded.history
    verdict = Verdict(dict(sorted(Counter(op.outcome for op in history.operations).items())))
    verdict.given_up = linearizability.check(history)
    verdict.keys = len(history.by_key())
    replay(history, recorded.facts["metric"], verdict)
    _replicas(history, recorded.replicas, verdict)
    return verdict


class RevealedLog(LogModel):
    """The log as the answers reveal it, and the writes that may be anywhere in it."""

    def __init__(self, history: History) -> None:
        super().__init__()
        self.open: dict[str, list[Operation]] = {}
        versions = _versions(history)
        changes: list[tuple[int, str, ModelDocument | None]] = []
        for op in history.operations:
            index = op.index if op.outcome == "ok" else versions.get(op.tag, 0)
            if op.kind not in ("put", "insert", "cas", "delete"):
                continue
            if index and op.outcome != "failed":
                changes.append((index, op.key, _document(op, index)))
            elif op.outcome in ("open", "unknown"):
                self.open.setdefault(op.key, []).append(op)
        changes.sort(key=lambda change: change[0])
        for index, key, document in changes:
            self.write(index, key, document)
        self._unchanged = _unchanged(history)
        self._ordered = changes
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

    def hidden(self, index: int, position: int, shown: set[str]) -> set[str]:
        """Keys that a write of unknown fate, begun before `position`, may have taken out of the state at `index`."""
        return {
            key
            for key, writes in self.open.items()
            if key not in shown
            and any(op.invoked < position for op in writes)
            and self._unchanged.get((key, before := self._changed(key, index)), before) < index
        }

    def _changed(self, key: str, index: int) -> int:
        """The index of the last known write to `key` up to `index`."""
        changes = self._changes.get(key, [])
        place = bisect_right(changes, index, key=lambda change: change[0])
        return changes[place - 1][0] if place else 0


class _View(LogModel):
    """The log as one read may have seen it."""

    def __init__(self, log: RevealedLog, hidden: set[str]) -> None:
        super().__init__()
        self._log, self._hidden = log, hidden

    def at(self, index: int) -> dict[str, ModelDocument]:
        return {key: document for key, document in self._log.at(index).items() if key not in self._hidden}

    def versions(self, key: str, first: int, last: int) -> set[int]:
        return self._log.versions(key, first, last) | ({0} if key in self._hidden else set())


def replay(history: History, metric: str, verdict: Verdict) -> None:
    """Compare every search and eventual get with the log. Raises Violation."""
    log = RevealedLog(history)
    fresh = _Freshness(history)
    reads = [op for op in history.operations if op.kind == "search" and op.outcome == "ok"]
    for op in sorted(reads, key=lambda op: (op.details["applied"], op.id)):
        position = op.returned or 0
        required = fresh.before(op) if op.details["mode"] != "eventual" else op.details["required"]
        applied = op.details["applied"]
        if op.key:
            verdict.eventual_gets += 1
            view = _View(log, log.hidden(log.last_index, position, {op.key} if op.version else set()))
            seen = GetSeen(
                key=op.key,
                version=op.version,
                applied_index=applied,
                latest_index=max(applied, log.last_index),
                required_index=required,
                label=linearizability.describe(op),
            )
            check_get(view, seen)
            continue
        shown = {hit[0] for hit in op.details["hits"]}
        hidden = log.hidden(applied, position, shown)
        verdict.searches += 1
        verdict.exact += op.details["exact"]
        verdict.undetermined += bool(hidden) and not hidden.isdisjoint(log.at(applied))
        check_search(_View(log, hidden), _seen(op, required), metric)


def _seen(op: Operation, required: int) -> SearchSeen:
    details = op.details
    return SearchSeen(
        mode=details["mode"],
        vector=np.array(details["vector"], np.float32),
        k=details["k"],
        keep=_KEEPS[json.dumps(details["filter"], sort_keys=True)],
        exact=details["exact"],
        hits=[(key, version, distance) for key, version, distance, _ in details["hits"]],
        applied_index=details["applied"],
        required_index=required,
        label=f"search #{op.id} by {op.client}",
    )


class _Freshness:
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


def _replicas(history: History, replicas: list[Replica], verdict: Verdict) -> None:
    """At the end all replicas hold the same documents, and those are what strong reads find."""
    verdict.replicas = len(replicas)
    if len({replica.digest for replica in replicas}) > 1:
        raise Violation("equal replicas", f"{[(r.node, r.applied_index, r.digest) for r in replicas]}")
    final = {op.key: op.version for op in history.operations if op.client == FINAL and op.outcome == "ok"}
    for replica in replicas:
        for key, version in final.items():
            held = replica.documents.get(key, 0)
            if held != version:
                raise Violation(
                    "every acknowledged write on every replica",
                    f"{replica.node} holds version {held} of {key!r}, strong reads find {version}",
                    key,
                )


def story(recorded: Recorded, violation: Violation) -> list[str]:
    """What clients did to the key of a violation, in order."""
    return [
        linearizability.describe(op) for op in recorded.history.operations if violation.key and op.key == violation.key
    ]
