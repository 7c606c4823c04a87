"""Allow-lists of filters that are asked again, of all collections of a replica, within a bound in bytes.

What is remembered of a filter: which documents below an ordinal matched it, of those that lived at some moment. A
document version keeps its ordinal, its metadata and its id as long as it is stored, and one that died never lives
again. So a later moment's list is what still lives of that, and what came since: only that has to be judged.

Invariant: a list is never taken for a moment before its own: what died in between is missing in it.

Threads: any. It must not know indexes, vectors or SQLite.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

from pyroaring import BitMap

from needle.base.filters.nodes import IDS, Node, compares
from needle.shard.segments.allowed import Allowed

FILTER_BYTES_MAX: Final = 16 << 10
"""A longer filter is not remembered."""
NODE_BYTES: Final = 40
"""A byte of a filter's JSON takes about so many once it is parsed."""

Asked = tuple[bytes, bytes]
"""A filter and a bound (SearchRequest), as JSON."""


Judge = Callable[[Node, BitMap, int], BitMap]
"""Those of some documents that match a filter. The number: how many documents live in all."""


class Moment(NamedTuple):
    """The documents of a collection at one moment. changes: grows with every moment of it. end: all ordinals are below
    this. live: of the documents; made when it is called."""

    changes: int
    end: int
    live: Callable[[], BitMap]


class _Kept(NamedTuple):
    """node: the filter, parsed. changes, end: of the moment that the list is of. list: all that lived and matched."""

    node: Node
    changes: int
    end: int
    list: Allowed

    def nbytes(self, asked: Asked) -> int:
        return self.list.nbytes + NODE_BYTES * sum(map(len, asked))


class AllowLists:
    """See the module. A list is remembered under its owner: one opened collection."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.used = 0
        self._kept: OrderedDict[tuple[object, Asked], _Kept] = OrderedDict()
        self._lock = threading.Lock()

    def find(
        self,
        owner: object,
        asked: Asked,
        moment: Moment,
        parse: Callable[[], Node],
        judge: Judge,
        use: Callable[[Node], object],
    ) -> Allowed:
        """What a filter allows of the documents that live at a moment. use: told of one that is not judged again."""
        with self._lock:
            kept = self._kept.get((owner, asked))
            if kept is not None:
                self._kept.move_to_end((owner, asked))
        if kept is None or kept.changes > moment.changes:
            node = parse() if kept is None else kept.node
            live = moment.live()
            found = Allowed(judge(node, live, len(live)))
        elif kept.changes == moment.changes:
            use(kept.node)
            return kept.list
        else:
            use(kept.node)
            node, found = kept.node, self._since(kept, moment, judge)
        self._keep(owner, asked, _Kept(node, moment.changes, moment.end, found))
        return found

    def peek(self, owner: object, asked: Asked, changes: int) -> Allowed | None:
        """The list of just that moment, if it is remembered."""
        with self._lock:
            kept = self._kept.get((owner, asked))
        return kept.list if kept is not None and kept.changes == changes else None

    @staticmethod
    def _since(kept: _Kept, moment: Moment, judge: Judge) -> Allowed:
        live = moment.live()
        found = kept.list.bitmap & live
        if moment.end > kept.end and (fresh := live & BitMap(range(kept.end, moment.end))):
            found |= judge(kept.node, fresh, len(live))
        return kept.list if found == kept.list.bitmap else Allowed(found)

    def _keep(self, owner: object, asked: Asked, now: _Kept) -> None:
        nbytes = now.nbytes(asked)
        if sum(map(len, asked)) > FILTER_BYTES_MAX or nbytes > self.bytes_max // 4 or _asks_ids(now.node):
            self._drop((owner, asked))
            return
        with self._lock:
            before = self._kept.get((owner, asked))
            if before is not None:
                if before.changes > now.changes:
                    return  # another search has brought it further
                self.used -= before.nbytes(asked)
            self._kept[owner, asked] = now
            self._kept.move_to_end((owner, asked))
            self.used += nbytes
            while self.used > self.bytes_max:
                (_, oldest), gone = self._kept.popitem(last=False)
                self.used -= gone.nbytes(oldest)

    def clear(self) -> None:
        """Forget all of them."""
        with self._lock:
            self._kept.clear()
            self.used = 0

    def _drop(self, key: tuple[object, Asked]) -> None:
        with self._lock:
            if (gone := self._kept.pop(key, None)) is not None:
                self.used -= gone.nbytes(key[1])

    def forget(self, owner: object) -> None:
        """It is closed."""
        with self._lock:
            keys = [key for key in self._kept if key[0] is owner]
        for key in keys:
            self._drop(key)


def _asks_ids(node: Node) -> bool:
    """Whether ids are named: to look these up costs less than to look up which of them came lately."""
    return any(one.op == IDS for one in compares(node))
