"""A collection against a plain Python model of it: random documents of any JSON, patches, deletes, instants at which
documents expire, filters with every operator, counts, scans page by page, exact searches. 100,000 comparisons of one
document with one answer."""

from __future__ import annotations

import copy
import json
import math
import random
import tempfile
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from base import filter_reference
from base.filter_strategies import IDS, conditions, documents, paths, scalars, trees
from needle.base.errors import InvalidArgument, NeedleError
from needle.base.filters.builder import Filter
from needle.base.model import SearchRequest, WriteResult
from needle.protocol.commands import (
    AS_IT_IS,
    NEVER,
    Change,
    ChangeWhere,
    CreateCollection,
    Delete,
    Expire,
    Patch,
    UpdateVectors,
)
from needle.shard.documents.projection import projection
from needle.shard.reads import Page
from needle.shard.state_machine import Replica
from shard.replica_util import Log, floats, open_replica, put, spec

ROWS = [[float(x), float(y), 1.0] for x in range(-2, 3) for y in range(-1, 2)]
compared = 0


class Refused(Exception):
    pass


class Model:
    """held: id -> [version, metadata, vector]; expires: when, of those that do and of some that are gone."""

    def __init__(self) -> None:
        self.held: dict[str, list[Any]] = {}
        self.expires: dict[str, int] = {}

    def expire(self, before: int, limit: int) -> int:
        due = sorted((at, id_) for id_, at in self.expires.items() if id_ in self.held and 0 < at <= before)[:limit]
        for _, id_ in due:
            del self.held[id_]
        return len(due)

    def give(self, ids: list[str], said: int) -> None:
        if said:
            self.expires.update({id_: max(said, 0) for id_ in ids if id_ in self.held})

    def matching(self, condition: dict[str, Any]) -> list[str]:
        holds = filter_reference.matches
        return sorted(id_ for id_, (_, metadata, _) in self.held.items() if holds(condition, metadata, id_))

    def patch(self, index: int, ids: list[str], change: dict[str, Any]) -> int:
        made = {id_: patched(self.held[id_][1], change) for id_ in ids if id_ in self.held}
        for id_, metadata in made.items():
            self.held[id_][:2] = [index, metadata]
        return len(made)


def patched(before: Any, change: dict[str, Any]) -> Any:
    """What docs/documents.md says."""
    if "whole" in change:
        return change["whole"]
    if before is not None and not isinstance(before, dict):
        raise Refused
    fields = copy.deepcopy(before) or {}
    for path, value in change.get("set", {}).items():
        level, last = below(fields, path, make=True)
        level[last] = copy.deepcopy(value)
    for path in change.get("unset", []):
        level, last = below(fields, path, make=False)
        level.pop(last, None)
    for path, values in change.get("append", {}).items():
        level, last = below(fields, path, make=True)
        if level.get(last) is not None and not isinstance(level[last], list):
            raise Refused
        level[last] = [*(level.get(last) or []), *copy.deepcopy(values)]
    for path, values in change.get("remove", {}).items():
        level, last = below(fields, path, make=False)
        if level.get(last) is None:
            continue
        if not isinstance(level[last], list):
            raise Refused
        level[last] = [one for one in level[last] if not any(equal(one, value) for value in values)]
    return fields


def below(level: dict[str, Any], path: str, *, make: bool) -> tuple[dict[str, Any], str]:
    *way, last = path.split(".")
    for key in way:
        if not isinstance(level.get(key), dict):
            if not make:
                return {}, last
            if level.get(key) is not None:
                raise Refused
            level[key] = {}
        level = level[key]
    return level, last


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, list | dict) or isinstance(other, list | dict):
        return type(one) is type(other) and exact(one) == exact(other)
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def exact(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def shown(metadata: Any, fields: list[str]) -> Any:
    """The parts of metadata under some paths, none of which holds another."""
    if not isinstance(metadata, dict):
        return None
    left: dict[str, Any] = {}
    for field in fields:
        *way, last = field.split(".")
        source, target = metadata, left
        for key in way:
            if not isinstance(source.get(key), dict):
                break
            source, target = source[key], target.setdefault(key, {})
        else:
            if last in source:
                target[last] = source[last]
    return left


PATHS = ["a", "b", "a.b", "c", "straße", "absent"]


def values_of(metadata: Any, path: str) -> set[str]:
    """What docs/documents.md says: the values that a document has of a field, as JSON."""
    level = [metadata]
    for depth, key in enumerate(path.split(".")):
        spread = [item for one in level for item in (one if isinstance(one, list) and depth else [one])]
        level = [one[key] for one in spread if isinstance(one, dict) and key in one]
    found = [item for one in level for item in (one if isinstance(one, list) else [one])]
    told = set()
    for one in found:
        if isinstance(one, str | bool):
            told.add(exact(one))
        elif isinstance(one, int | float) and (isinstance(one, float) or -(2**63) <= one < 2**64):
            told.add(exact(int(one) if -(2**63) <= one < 2**64 and one == int(one) else one))
    return told


small = st.lists(scalars, min_size=1, max_size=2)
changes = st.one_of(
    st.builds(lambda path, value: {"set": {path: value}}, paths, trees),
    st.builds(lambda path: {"unset": [path]}, paths),
    st.builds(lambda path, values: {"append": {path: values}}, paths, small),
    st.builds(lambda path, values: {"remove": {path: values}}, paths, small),
    st.builds(
        lambda one, two, more: {"set": {"a.a": one}, "append": {"b": more}, "unset": ["c"], "remove": {"straße": two}},
        trees, small, small,
    ),
    st.builds(lambda whole: {"whole": whole}, documents),
)  # fmt: skip
some_ids = st.lists(st.sampled_from(IDS), min_size=1, max_size=4, unique=True)
steps = st.one_of(
    st.tuples(st.just("put"), some_ids, st.lists(documents, min_size=4, max_size=4)),
    st.tuples(st.just("patch"), some_ids, changes, st.none() | conditions),
    st.tuples(st.just("patch"), some_ids, changes, st.none()),
    st.tuples(st.just("vectors"), some_ids),
    st.tuples(st.just("delete"), some_ids, st.none() | conditions),
    st.tuples(st.just("patch_where"), conditions, changes, st.integers(1, 9)),
    st.tuples(st.just("delete_where"), conditions, st.integers(1, 9)),
    st.tuples(st.just("expire"), st.integers(1, 60), st.sampled_from([1, 3, 1000])),
)


def encoded(change: dict[str, Any], expires: int = 0) -> Change:
    pairs = {
        name: [(path, json.dumps(value).encode()) for path, value in change.get(name, {}).items()]
        for name in ("set", "append", "remove")
    }
    whole = json.dumps(change["whole"]).encode() if "whole" in change else None
    return Change(whole=whole, unset=change.get("unset", []), expires=expires, **pairs)


class Both:
    """A replica and the model of it."""

    def __init__(self, directory: str, rng: random.Random) -> None:
        self.replica: Replica = open_replica(directory)
        self.log, self.model, self.rng = Log(), Model(), rng
        self.apply(CreateCollection(spec()))

    def apply(self, command: Any) -> Any:
        (result,) = self.replica.apply(self.log.add(command))
        return result

    def rows(self, count: int) -> list[list[float]]:
        return [self.rng.choice(ROWS) for _ in range(count)]

    def write(self, ids: list[str], metadata: list[Any]) -> None:
        rows, instants = self.rows(len(ids)), [self.rng.choice([0, self.rng.randint(1, 60)]) for _ in ids]
        result = self.apply(put(ids, rows, metadata[: len(ids)], expires=instants if any(instants) else []))
        self.model.expires.update(zip(ids, instants, strict=True))
        for id_, one, row in zip(ids, metadata, rows, strict=False):
            self.model.held[id_] = [result.index, one, row]

    def step(self, kind: str, *given: Any) -> None:
        model = self.model
        if kind == "put":
            self.write(given[0], given[1])
        elif kind == "patch":
            ids, change, condition = given
            said = self.said()

            def patch(index: int) -> int:
                count = model.patch(index, ids, change)
                model.give(ids, said)
                return count

            matches = b"" if condition is None else wire(condition)
            self.judged(Patch("c", ids, encoded(change, said), matches=matches), ids, condition, patch)
        elif kind == "vectors":
            rows = dict(zip(given[0], self.rows(len(given[0])), strict=True))
            said = self.said()
            result = self.apply(UpdateVectors("c", given[0], floats(*rows.values()), expires=said))
            model.give(given[0], said)
            for id_, row in rows.items():
                if id_ in model.held:
                    model.held[id_] = [result.index, model.held[id_][1], row]
        elif kind == "delete":
            ids, condition = given
            self.judged(
                Delete("c", ids, matches=b"" if condition is None else wire(condition)),
                ids,
                condition,
                lambda _: sum(model.held.pop(id_, None) is not None for id_ in ids),
            )
        elif kind == "expire":
            assert self.apply(Expire("c", *given)).count == model.expire(*given)
        elif kind == "patch_where":
            self.where(given[0], given[1], given[2])
        else:
            self.where(given[0], None, given[1])

    def said(self) -> int:
        """When documents expire from a write on: as before, never, or then."""
        return self.rng.choice([AS_IT_IS, AS_IT_IS, NEVER, self.rng.randint(1, 60)])

    def judged(self, command: Any, ids: list[str], condition: Any, change: Any) -> None:
        there = [id_ for id_ in ids if id_ in self.model.held]
        matches = filter_reference.matches
        holds = condition is None or all(matches(condition, self.model.held[id_][1], id_) for id_ in there)
        result = self.apply(command)
        if not holds:
            assert type(result).__name__ == "ConditionFailed"
            return
        self.same(result, change)

    def same(self, result: Any, change: Any) -> None:
        try:
            count = change(len(self.log.entries))
        except Refused:
            assert isinstance(result, InvalidArgument), result
        else:
            assert isinstance(result, WriteResult), result
            assert result.count == count

    def where(self, condition: dict[str, Any], change: dict[str, Any] | None, limit: int) -> None:
        """In parts. Which documents a part takes is in its answer; all together must be those that matched before it,
        in no order that is promised."""
        before, done, after, upto = set(self.model.matching(condition)), set[str](), -1, -1
        how = None if change is None else encoded(change)
        while True:
            result = self.apply(ChangeWhere("c", wire(condition), how, after, upto, limit, return_ids=True))
            if isinstance(result, NeedleError):  # a part is refused whole
                assert isinstance(result, InvalidArgument) and change is not None
                assert any(self.refuses(id_, change) for id_ in before - done)
                return
            assert not done.intersection(result.ids) and len(result.ids) == result.count <= limit
            done.update(result.ids)
            if change is None:
                for id_ in result.ids:
                    del self.model.held[id_]
            else:
                self.model.patch(result.index, result.ids, change)
            after, upto = result.reached, result.upto
            if after < 0:
                assert done == before
                return

    def refuses(self, id_: str, change: dict[str, Any]) -> bool:
        try:
            patched(self.model.held[id_][1], change)
        except Refused:
            return True
        return False

    def check(self, condition: dict[str, Any], fields: list[str]) -> None:
        global compared
        replica, held, wanted = self.replica, self.model.held, self.model.matching(condition)
        filter_json = wire(condition)
        assert replica.count_matching("c", filter_json)[0] == len(wanted)
        scanned, after = [], ""
        of = self.rng.choice([1, 1, 3])
        for which in range(of):
            after = ""
            while after is not None:
                page = Page("c", filter_json, after, self.rng.randint(1, 12), False, (which, of))
                found = replica.scan(page)
                scanned += found.documents
                after = found.reached
        if of == 1:
            assert [one.id for one in scanned] == wanted
        assert sorted(one.id for one in scanned) == wanted
        for one in scanned:
            version, metadata, _ = held[one.id]
            assert one.expires == self.model.expires.get(one.id, 0)
            assert (one.version, exact(json.loads(one.metadata or b"null"))) == (version, exact(metadata))
            left = json.loads(projection(fields)(one.metadata) or b"null")
            assert exact(left) == exact(shown(metadata, fields))
        query, k = self.rng.choice(ROWS), self.rng.choice([1, 5, 100])
        nearest = sorted((math.dist(held[id_][2], query), id_, held[id_][0]) for id_ in wanted)[:k]
        hits = replica.search(
            SearchRequest(collection="c", vector=floats(query), k=k, filter=filter_json, exact=True, with_vectors=True)
        )
        assert list(zip(hits.ids, hits.versions, strict=True)) == [(id_, version) for _, id_, version in nearest]
        assert np.allclose(hits.distances, [distance for distance, _, _ in nearest], atol=1e-6)
        assert hits.vectors == b"".join(floats(held[id_][2]) for id_ in hits.ids)
        self.check_groups(filter_json, wanted, query)
        path, descending = self.rng.choice(PATHS), self.rng.random() < 0.5
        ordered = self.replica.search(
            SearchRequest(
                collection="c", vector=floats(query), k=k, filter=filter_json, exact=True, with_metadata=False,
                order_by=path, descending=descending,
            )
        )  # fmt: skip
        assert ordered.ids == hits.ids and ordered.metadata == []
        for id_, value in zip(ordered.ids, ordered.order, strict=True):
            values = [json.loads(one) for one in values_of(held[id_][1], path)]
            ranks = [(isinstance(one, bool), isinstance(one, str), one) for one in values]
            best = (max if descending else min)(ranks, default=(False, False, None))[2]
            assert exact(value) == exact(best)
        compared += 4 * len(held)

    def check_counts(self, filter_json: bytes, wanted: list[str], path: str) -> None:
        """How many documents have each value."""
        asked = (tuple(path.split(".")), filter_json, b"")
        told, _ = self.replica.reads().value_counts("c", asked, None, lambda: None, None)
        found = [values_of(self.model.held[id_][1], path) for id_ in wanted]
        expected = {value: sum(value in one for one in found) for one in found for value in one}
        assert dict(zip(map(exact, told.values), told.counts, strict=True)) == expected
        assert (told.documents, told.without) == (len(wanted), sum(not one for one in found))

    def check_groups(self, filter_json: bytes, wanted: list[str], query: list[float]) -> None:
        """The k values with the nearest documents, and of each the nearest."""
        held, path, like = self.model.held, self.rng.choice(PATHS), self.rng.choice(["", "", "d03"])
        k, size = self.rng.choice([1, 2, 3, 40]), self.rng.choice([1, 2, 30])
        groups: dict[str, list[tuple[float, str]]] = {}
        for id_ in wanted:
            for value in values_of(held[id_][1], path) if id_ != like else ():
                groups.setdefault(value, []).append((math.dist(held[id_][2], query), id_))
        best = sorted((sorted(members)[:size], value) for value, members in groups.items())
        found = self.replica.search(
            SearchRequest(
                collection="c", vector=floats(query), k=k, filter=filter_json, exact=True, like=like,
                group_by=path, group_size=size,
            )
        )  # fmt: skip
        self.check_counts(filter_json, wanted, path)
        told: dict[str, list[str]] = {}
        for value, id_ in zip(found.groups, found.ids, strict=True):
            told.setdefault(exact(value), []).append(id_)
        firsts = [members[0] for members, _ in best[:k]]
        assert [(members[0]) for members in told.values()] == [id_ for _, id_ in firsts]
        everything = {value: [id_ for _, id_ in members] for members, value in best}
        assert all(everything[value] == members for value, members in told.items()), (told, everything)


def wire(condition: dict[str, Any]) -> bytes:
    return Filter.parse(condition).to_json()


def allowed(condition: dict[str, Any]) -> bool:
    """A bound that is the text of an instant is refused: see docs/filters.md."""
    try:
        Filter.parse(condition)
    except InvalidArgument:
        return False
    return True


@settings(
    max_examples=45,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # an example is too long to be made shorter in time
)
@given(
    st.lists(documents, min_size=len(IDS), max_size=len(IDS)),
    st.lists(steps, min_size=5, max_size=25),
    st.lists(conditions.filter(allowed), min_size=20, max_size=24),
    st.integers(0, 2**32),
)
def compare(metadata: list[Any], todo: list[tuple[Any, ...]], filters: list[dict[str, Any]], seed: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        both = Both(directory, random.Random(seed))
        both.write(IDS, metadata)
        every = max(1, len(todo) // 3)
        for number, step in enumerate(todo):
            if all(allowed(one) for one in step if isinstance(one, dict) and is_condition(step, one)):
                both.step(*step)
            if number % every == 0:
                both.replica.checkpoint()
                for condition in filters[: len(filters) // 4]:
                    both.check(condition, ["a", "b.a", "straße"])
        for condition in filters:
            both.check(condition, ["a.b", "b", "c.a"])
        both.replica.verify()
        both.replica.close()


def is_condition(step: tuple[Any, ...], one: Any) -> bool:
    at = 1 if step[0].endswith("where") else len(step) - 1
    return step[at] is one


def test_a_collection_is_what_a_plain_model_says() -> None:
    while compared < 100_000:  # what hypothesis draws is of any size
        compare()
