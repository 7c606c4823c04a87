"""A filter becomes the exact set of ordinals that match it, by field indexes where there are some.

What the indexes are sure of (filter_match.py) is taken from them; only what they leave undecided is read, and judged by
the definition (base.filters.nodes.evaluate). So the answer never depends on what is indexed, and a condition on a field
without an index costs as much as the other conditions leave.

A field is indexed when it is first filtered on. If reading what is undecided would cost more, a search that needs the
index makes it, as far as builders.py allows; otherwise it is left to `work`, which the server calls in the background.
What does not fit into the memory there is (index_budget.py) stays without an index. Apply only appends new documents
to a list; searches and `work` take them from there into the indexes that they need. So nothing that a search does
holds up apply, whatever is indexed.

Threads: `add` is apply's; everything else may be called by any. It must not know SQLite, vectors or Raft.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Final

from pyroaring import BitMap

from needle.base.collection_sizes import FieldIndex
from needle.base.errors import StorageError
from needle.base.file_errors import SHORTAGES
from needle.base.filters.nodes import Node, evaluate
from needle.shard.documents.metadata_rows import Stored, decode_rows
from needle.shard.documents.tail import TAIL_BYTES, Tail
from needle.shard.fields.allow_lists import AllowLists
from needle.shard.fields.builders import BeingIndexed, Builders
from needle.shard.fields.field import EMPTY_BYTES, Field, declared_of, least_used, needed, refused
from needle.shard.fields.field_files import FieldFiles, Place, place_of
from needle.shard.fields.field_index import FieldState, Path, merged
from needle.shard.fields.filter_match import Asked, Key, compares, judge, keys_of, placed
from needle.shard.fields.index_budget import IndexBudget
from needle.shard.fields.reader import Reader
from needle.shard.fields.run_making import run_of

log = logging.getLogger("needle.shard")

FIELDS_MAX: Final = 256
"""Indexed fields of a collection; the one that was not asked for longest makes place, first of those that no document
has."""
MERGE_MAX: Final = 1 << 15
"""Larger runs are merged in the background."""
READ_SHARE: Final = 8
"""Undecided documents are read if they are fewer than this part of what an index still lacks, or few (IndexRows)."""
SAMPLE_ROWS: Final = 1000
"""Documents by which it is judged what an index would take."""
LACKING_MAX: Final = 4096


class PayloadIndex:
    """The field indexes of one collection incarnation."""

    def __init__(
        self, stored: Stored, budget: IndexBudget, collection_id: int = 0, files: FieldFiles | None = None
    ) -> None:
        """files: where indexes are kept for the next start; None: nowhere."""
        self._id = collection_id
        self._stored = stored
        self._budget = budget
        self._files = files
        self._fields: dict[Key, Field] = {}
        self._tail = Tail()
        self._end = self._live = 0
        self._reader = Reader(stored, self._tail)
        self._closed = False
        self._lock = threading.Lock()
        """Of the fields' table."""
        self._building = threading.Lock()
        """Held by whoever does a piece of work."""

    def indexed(self) -> list[str]:
        """The fields that have an index of all documents that a search has seen."""
        with self._lock:
            fields = list(self._fields.values())
        return [".".join(one.key[0]) for one in fields if not one.refused and one.state.end >= self._end]

    @property
    def lists(self) -> AllowLists:
        """Of filters that were asked before, of all collections of the replica; this one's are owned by this."""
        return self._budget.lists

    def state_of(self, path: Path) -> FieldState | None:
        """The index of a field's values; None where there is no room for one."""
        with self._lock:
            field = self._fields.get((path, False))
        return None if field is None or field.refused else field.state

    def whole(self, node: Node, end: int) -> bool:
        """Whether each field that a filter needs has an index of the documents below `end`, but for the last few."""
        keys = {key for compare in compares(node) for key in keys_of(compare)}
        with self._lock:
            held = [self._fields.get(key) for key in keys]
        return bool(held) and all(one and not one.refused and one.state.end > end - LACKING_MAX for one in held)

    @property
    def closed(self) -> bool:
        return self._closed

    def bytes_held(self) -> int:
        """Memory that the indexes take."""
        with self._lock:
            return sum(field.nbytes for field in self._fields.values())

    def close(self) -> None:
        """Give the memory back; searches that run get their answers by reading."""
        with self._lock:
            self._closed = True
            fields, self._fields = list(self._fields.values()), {}
        for field in fields:
            self._budget.release(field)
        self._budget.release(self._tail)
        self._budget.forget(self)
        self.lists.forget(self)

    # --- apply -------------------------------------------------------------------------------------------------------
    def add(self, documents: Sequence[tuple[int, bytes]]) -> None:
        """New documents, (ordinal, metadata JSON), ascending; they are stored already. Every one comes here, before a
        view that holds it is published."""
        self._tail.add(documents)

    # --- searches ----------------------------------------------------------------------------------------------------
    def within(
        self,
        node: Node,
        end: int,
        universe: BitMap,
        builders: Builders | None = None,
        go_on: Callable[[], None] = lambda: None,
        *,
        live: int | None = None,
    ) -> BitMap:
        """Those of the ordinals `universe`, all of which are below `end`, whose metadata matches: exactly. builders:
        who may make an index here and now; anybody may without. go_on: called every now and then; what it raises ends
        the work. live: how many documents there are, if these are some of them. Raises StorageError, BeingIndexed."""
        node = placed(node, lambda ids: self._stored.placed(ids, universe))
        fields = self.use(node)
        self._end, self._live = max(self._end, end), len(universe) if live is None else live
        made = False
        while True:
            states = {key: field.state for key, field in fields.items()}
            found = judge(node, Asked(states, end, universe, go_on))
            maybe = found.maybe & universe
            lacking = [one for one in fields.values() if not one.refused and states[one.key].end < end]
            missing = max((end - states[one.key].end for one in lacking), default=0)
            if made or not lacking or len(maybe) <= max(self._budget.rows.few, missing // READ_SHARE):
                break
            self._make(lacking, end, builders, go_on)
            made = True
        for one in lacking:
            one.asked = True
        if lacking or any(one.state.due() or one.bloated(self._live) for one in fields.values()):
            self._budget.ask(self)
        return (found.sure & universe) | (self._decided(node, maybe, go_on) if maybe else BitMap())

    def use(self, node: Node) -> dict[Key, Field]:
        """The fields that a filter needs; they are kept rather than those that were not asked for as lately."""
        fields = self._wanted(key for compare in compares(node) for key in keys_of(compare))
        if fields:
            self._budget.use([*fields.values(), self._tail])
            self._keep_tail()
            self._budget.note([(self._id, *key) for key, one in fields.items() if one.nbytes > 2 * EMPTY_BYTES])
        return fields

    def _make(self, lacking: Sequence[Field], end: int, builders: Builders | None, go_on: Callable[[], None]) -> None:
        """Make the indexes whole. Raises BeingIndexed if others do such work; the background begins meanwhile."""
        try:
            with nullcontext() if builders is None else builders.place(max(end - one.state.end for one in lacking)):
                while self._advance(lacking, end):
                    go_on()
        except BeingIndexed:
            for one in lacking:
                one.asked = True
            self._budget.ask(self)
            raise

    def postings(
        self, key: Key, end: int, live: int, builders: Builders | None, go_on: Callable[[], None]
    ) -> FieldState:
        """The words of a text, or sparse vectors, of all documents below `end` but a few, or those that there is room
        for; the others are for who asks to read (`documents`). The rest as of `within`. Raises BeingIndexed."""
        field = self._wanted([key])[key]
        self._budget.use([field, self._tail])
        self._keep_tail()
        self._end, self._live = max(self._end, end), live
        if not field.refused and end - field.state.end > self._budget.rows.few:
            self._make([field], end, builders, go_on)
        state = field.state
        field.asked = field.asked or state.end < end
        if state.end < end or state.due() or field.bloated(self._live):
            self._budget.ask(self)
        return state

    def _wanted(self, wanted: Iterable[Key]) -> dict[Key, Field]:
        """These fields, in the table from now on."""
        keys, dropped = dict.fromkeys(wanted), list[Field]()
        with self._lock:
            if self._closed:
                return {key: refused(key) for key in keys}
            fields = {key: self._fields.get(key) or Field(key) for key in keys}
            self._fields.update(fields)
            while len(self._fields) > max(FIELDS_MAX, len(fields)) and (other := least_used(self._fields, fields)):
                dropped.append(self._fields.pop(other.key))
        for one in dropped:
            self._budget.release(one)
        for one in fields.values():
            if one.refused and self._budget.worth_trying(one.refused_at, one.needs):
                one.refused = False
        return fields

    def prepare(self, keys: Sequence[Key], end: int, live: int) -> None:
        """Have the background make these indexes of the documents below `end`, though no search asked here. end: of a
        view that is published, so that all of them have been added. live: how many documents it has."""
        with self._lock:
            room = max(0, FIELDS_MAX - len(self._fields))
            absent = [key for key in keys if key not in self._fields][: 0 if self._closed else room]
            self._fields.update({key: Field(key) for key in absent})
            fields = [self._fields[key] for key in keys if key in self._fields]
        self._end, self._live = max(self._end, end), live
        lacking = [one for one in fields if not one.refused and one.state.end < end]
        for one in fields:
            one.used_at = self._budget.uses
        self._tail.used_at = self._budget.uses
        if fields:
            self._keep_tail()
        for one in lacking:
            one.asked = True
        if lacking:
            self._budget.ask(self)

    def declare(self, keys: Collection[Key], end: int, live: int) -> None:
        """Keep the indexes of these fields rather than others, and of no other field. end, live: as in `prepare`."""
        with self._lock:
            if self._closed:
                return
            for key in keys:
                self._fields.setdefault(key, Field(key))
            for key, one in self._fields.items():
                if one.declared != (key in keys):
                    one.declared, one.goal = key in keys, end
            again = [one for one in self._fields.values() if one.declared and one.refused]
        for one in again:
            one.refused = not self._budget.worth_trying(one.refused_at, one.needs, declared=True)
        self.prepare(list(keys), end, live)

    def declared(self) -> dict[str, FieldIndex]:
        """The indexes of declared fields, by path."""
        with self._lock:
            return declared_of(self._fields.values())

    def room(self, path: Path, end: int, live: int, kind: str = "") -> tuple[int, int]:
        """Bytes that an index of this field of `live` documents would take, judged by the last of them, and those that
        there are beside other declared ones. kind: as of `needed`. Blocking."""
        rows = self._stored.between(max(0, end - min(SAMPLE_ROWS, self._reader.rows)), end)
        with self._lock:
            own = [one for key, one in self._fields.items() if key[0] == path and (not kind or key[1] == kind)]
        return needed(path, rows, end, live, kind), self._budget.room(own)

    def _keep_tail(self) -> None:
        if not self._tail.nbytes:
            self._budget.hold(self._tail, 2 * TAIL_BYTES, self._tail.keep)
        if self._closed:
            self._budget.release(self._tail)

    def _decided(self, node: Node, maybe: BitMap, go_on: Callable[[], None]) -> BitMap:
        """Those of `maybe` that match, by the documents themselves."""
        keys = frozenset(compare.path[0] for compare in compares(node))
        return BitMap([at for at, one in self._reader.some(maybe, keys, go_on) if evaluate(node, one, at)])

    def state(self, path: Path) -> FieldState:
        """What is known now of a field's values; nothing, if it has no index."""
        with self._lock:
            held = self._fields.get((path, False))
        return FieldState() if held is None else held.state

    def documents(self, wanted: BitMap, path: Path, go_on: Callable[[], None]) -> Iterator[tuple[int, Any]]:
        """The decoded metadata of these ordinals, in order, with at least what is on the path."""
        return self._reader.some(wanted, frozenset((path[0],)), go_on)

    def several(self, path: Path, end: int) -> BitMap:
        """The ordinals below `end` that may have more than one value: all that the field's index does not know."""
        state = self.state(path)
        return BitMap.union(BitMap(range(state.end, max(end, state.end))), *(run.several() for run in state.runs))

    # --- making indexes ----------------------------------------------------------------------------------------------
    def _advance(self, fields: Sequence[Field], end: int) -> bool:
        """Take the next piece of documents below `end` into those that lack it; False if none lacks anything."""
        with self._building:
            lacking = [one for one in fields if not one.refused and one.state.end < end]
            if not lacking or self._closed:
                return False
            if self._recall(lacking):
                return True
            # Each as it is now: the budget may take a field back at any moment, and a run must follow its own state.
            states = {one: one.state for one in lacking}
            first = min(state.end for state in states.values())
            behind = [one for one in lacking if states[one].end == first]
            rows, upto = self._reader.next(
                first, min([end, *(states[one].end for one in lacking if one not in behind)])
            )
            documents = decode_rows(rows, frozenset(one.key[0][0] for one in behind))
            for one in behind:
                run = run_of(one.key[0], first, upto, rows.ordinals, documents, kind=one.key[1])
                self._hold(one, states[one].with_run(run, MERGE_MAX), one.fresh)
            return True

    def _recall(self, fields: Sequence[Field]) -> bool:
        """Take one that is empty from its files, if there are some. Whether there were."""
        if self._files is None:
            return False
        for one in fields:
            if not one.state.end and (state := self._files.load(self._id, one.key)).end:
                self._hold(one, state, None)
                return True
        return False

    def kept(self) -> list[Place]:
        """Whose files do not make place for others: of the fields that have an index now."""
        with self._lock:
            return [place_of(self._id, one.key) for one in self._fields.values() if one.state.end]

    def save(self, rows_min: int, applied: Callable[[], int], held: Collection[Place]) -> bool:
        """Keep an index to which so many rows have come since it was kept; False if there is none, or no room. applied:
        the index of the view now. held: of all collections, `kept`. Blocking; raises as FieldFiles.save."""
        if self._files is None:
            return False
        with self._lock:
            fields = [] if self._closed else [one for one in self._fields.values() if one.state.found]
        for one in fields:
            runs = self._files.lacks(place_of(self._id, one.key), one.state, rows_min)
            # The index is asked for after the runs were taken: its view has all that they do.
            if runs and self._files.save(self._id, one.key, applied(), runs, held):
                return True
        return False

    def _hold(self, field: Field, state: FieldState, fresh: FieldState | None) -> None:
        """Publish a state of a field, if there is room for it."""
        nbytes = EMPTY_BYTES + state.nbytes + (fresh.nbytes if fresh is not None else 0)
        if not self._budget.hold(field, nbytes, lambda: field.publish(state, fresh)):
            field.refused, field.refused_at = True, self._budget.uses
            field.needs = nbytes * max(self._end, state.end) // max(1, state.end)
            self._budget.release(field)
        elif self._closed:  # meanwhile; it does not wait for who is at work
            self._budget.release(field)

    # --- the background ----------------------------------------------------------------------------------------------
    def work(self) -> bool:
        """One bounded piece: documents that searches found lacking, then merges, then indexes without what was purged.
        False if nothing is left. Blocking."""
        with self._lock:
            fields = [one for one in self._fields.values() if not one.refused]
        try:
            asked = [one for one in fields if one.asked]
            if self._advance(asked, self._end):
                return True
            for one in asked:
                one.asked = False
            return any(self._merge(one) or self._renew(one) for one in fields)
        except (StorageError, *SHORTAGES) as error:
            # The search that needs these documents tells its caller; others need not wait for that.
            log.warning("an index of metadata fields cannot be made: %s", error)
            for one in fields:
                one.asked, one.fresh = False, None
            return False

    def _merge(self, field: Field) -> bool:
        pair = field.state.due()
        if pair is None:
            return False
        run = merged(pair)  # takes long: others go on meanwhile
        with self._building:
            if not self._closed:
                self._hold(field, field.state.with_merged(pair, run), field.fresh)
        return True

    def _renew(self, field: Field) -> bool:
        """Make it again, from what is still stored: rows that no search can see any more are not."""
        if field.fresh is None:
            if not field.bloated(self._live):
                return False
            field.fresh, field.tried = FieldState(), field.state.rows
        with self._building:
            state, fresh = field.state, field.fresh
            if fresh is None or self._closed:
                return False
            if fresh.end >= state.end:
                smaller = fresh.rows < state.rows
                field.tried = min(state.rows, fresh.rows)
                self._hold(field, fresh if smaller else state, None)
                return True
            rows, upto = self._reader.next(fresh.end, state.end)
            documents = decode_rows(rows, frozenset((field.key[0][0],)))
            run = run_of(field.key[0], fresh.end, upto, rows.ordinals, documents, kind=field.key[1])
            self._hold(field, state, fresh.with_run(run, MERGE_MAX))
        return True
