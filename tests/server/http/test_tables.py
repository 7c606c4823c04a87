"""The route table, the OpenAPI document that is made of it, problem documents, session tokens."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from needle.base import errors
from needle.base.errors import InvalidArgument, NeedleError
from needle.routing.jobs import RebalanceConfig
from needle.routing.plans import ShardSplit, Wish
from needle.server.http import openapi, session
from needle.server.http.cluster_bodies import AskedPace, AskedWish, pace_of, wished
from needle.server.http.problems import TITLES, HttpError, problem_of, status_of
from needle.server.http.routes import ROUTES, Route


def tree(kind: type[NeedleError]) -> list[type[NeedleError]]:
    return [kind, *(below for sub in kind.__subclasses__() for below in tree(sub))]


def refs(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [below for key, item in value.items() for below in ([item] if key == "$ref" else refs(item))]
    return [below for item in value for below in refs(item)] if isinstance(value, list) else []


def structs(kind: Any) -> Iterator[type[msgspec.Struct]]:
    """All that a type is made of."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
        for field in msgspec.structs.fields(kind):
            yield from structs(field.type)
    for part in typing.get_args(kind):
        yield from structs(part)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_unknown_fields_are_refused_also_in_objects_within_a_body(route: Route) -> None:
    """`{"wish": {"drian": ["node-2"]}}` would begin a rebalance that empties nothing."""
    assert [kind for kind in structs(route.body) if not kind.__struct_config__.forbid_unknown_fields] == []


def test_what_was_asked_for_is_told_to_the_catalog_in_its_own_types() -> None:
    said = b'{"split": {"shard": 0, "into": 1}, "zones": {"a": "z"}, "drain": ["b"]}'
    asked = msgspec.json.decode(said, type=AskedWish)
    assert wished(asked) == Wish(split=ShardSplit(shard=0, into=1), zones={"a": "z"}, drain=("b",))
    assert pace_of(AskedPace(batch_size=7)) == RebalanceConfig(batch_size=7)
    assert wished(None) is pace_of(None) is None


def test_every_error_has_a_status_and_says_whether_to_retry() -> None:
    for kind in tree(errors.NeedleError):
        error = kind("why")
        status = status_of(error)
        assert status in TITLES
        assert status >= 400
        if kind.retryable:
            assert status in (429, 503, 504), kind
        made = problem_of(error, "id")
        assert (made.code, made.retryable, made.detail) == (kind.code, kind.retryable, "why")
    assert status_of(errors.OutcomeUnknown("?")) == 504
    assert status_of(errors.Internal("?")) == 500


def test_a_problem_names_the_field_once() -> None:
    made = problem_of(errors.invalid("k", 0, "at least 1"), "id")
    assert made.field == "k"
    assert "field" not in made.details
    assert problem_of(HttpError(413, "content_too_large", "too much", field="body"), "id").field == "body"


def test_the_document_says_all_that_is_served() -> None:
    made = json.loads(msgspec.json.encode(openapi.document()))
    assert made["openapi"] == "3.1.0"
    operations = [op for methods in made["paths"].values() for op in methods.values()]
    assert len(operations) == len(ROUTES)
    names = [op["operationId"] for op in operations]
    assert len(set(names)) == len(names)
    for path, methods in made["paths"].items():
        for op in methods.values():
            told = {one["name"] for one in op["parameters"] if one["in"] == "path"}
            assert told == set(re.findall(r"{(\w+)}", path)), path
            assert op["x-role"] in ("reader", "writer", "admin")
            assert op["summary"]
    for ref in refs(made):
        where: Any = made
        for part in ref.removeprefix("#/").split("/"):
            where = where[part]
        assert where


def test_the_document_says_what_generators_need_to_know() -> None:
    """Of a client in another language: which codes there are, and that metadata and filters have any names."""
    made = json.loads(msgspec.json.encode(openapi.document()))
    problem = made["components"]["schemas"]["Problem"]["properties"]
    assert {"outcome_unknown", "idempotency_key_reused", "no_such_path"} <= set(problem["code"]["enum"])
    assert problem["status"]["enum"] == sorted(TITLES)
    with pytest.raises(ValueError, match="documented nowhere"):
        problem_of(HttpError(400, "made_up", "?"), "id")

    def objects(where: Any) -> Iterator[dict[str, Any]]:
        if isinstance(where, dict):
            if where.get("type") == "object":
                yield where
            where = list(where.values())
        if isinstance(where, list):
            for one in where:
                yield from objects(one)

    assert all(one.keys() & {"properties", "additionalProperties"} for one in objects(made["components"]["schemas"]))
    keyed = [
        op for ways in made["paths"].values() for op in ways.values() if "idempotency-key" in str(op["parameters"])
    ]
    assert keyed and all(op["x-role"] == "writer" for op in keyed)


def test_every_example_is_what_its_route_takes() -> None:
    for route in ROUTES:
        if not route.in_query:
            assert msgspec.convert(route.example or {}, route.body) is not None, route.name
        if route.method in ("POST", "PATCH"):
            assert route.example is not None, f"{route.name} has no example"


def test_names_are_in_one_style() -> None:
    made = openapi.document()
    words = re.compile(r"[a-z][a-z0-9_]*")
    for path in made["paths"]:
        for part in path.strip("/").split("/"):
            assert words.fullmatch(part.strip("{}")), path
    for schema in made["components"]["schemas"].values():
        for name in schema.get("properties", {}):
            assert words.fullmatch(name), name


def test_reading_needs_no_more_than_the_reader_and_writing_more() -> None:
    for route in ROUTES:
        if route.method == "GET":
            assert route.role == ("admin" if route.tag == "keys" else "reader"), route.name
        elif route.method in ("PUT", "PATCH", "DELETE"):
            assert route.role != "reader", route.name


def test_a_session_token_holds_what_was_seen() -> None:
    for seen in ({}, {0: 7}, {0: 1, 3: 2**62}):
        assert session.decode(session.encode(seen, 7), 7) == seen
    assert session.decode("", 7) == {}


@pytest.mark.parametrize(
    "token",
    ["!", "AAAA", "gQ", "é", "A" * 100_000, session.encode({0: 5}, 8), "gQAB", session.encode({0: 5}, 7)[:-2] + "__"],
)
def test_a_token_that_is_none_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgument, match="needle-session"):
        session.decode(token, 7)


def numbers(kind: Any, where: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Where a body takes whole numbers."""
    if isinstance(kind, msgspec.inspect.IntType):
        return [where]
    if isinstance(kind, msgspec.inspect.StructType):
        return [one for field in kind.fields for one in numbers(field.type, (*where, field.encode_name))]
    if isinstance(kind, msgspec.inspect.UnionType):
        return [one for option in kind.types for one in numbers(option, where)]
    if isinstance(kind, msgspec.inspect.TupleType):
        return [one for n, item in enumerate(kind.item_types) for one in numbers(item, (*where, str(n)))]
    return []


def test_no_number_is_larger_than_what_nodes_can_say() -> None:
    seen = 0
    for route in ROUTES:
        for where in numbers(msgspec.inspect.type_info(route.body)):
            seen += 1
            if where[0] in ("index", "config", "wish"):
                continue  # structs of the client's, which judges them itself, and of the catalog's
            schema: Any = msgspec.json.schema(route.body)["$defs"]
            field = schema[route.body.__name__]["properties"][where[0]]
            options = [one for part in field.get("anyOf", [field]) for one in part.get("prefixItems", [part])]
            bounds = [one.get("maximum") for one in options if one.get("type") == "integer"]
            assert bounds, (route.name, where)
            assert all(bound is not None and bound < 2**63 for bound in bounds), (route.name, where)
    assert seen > 20
    wish = {"wish": {"replicas": 10**30}}
    for route in ROUTES:
        if "wish" in route.body.__struct_fields__:
            with pytest.raises(msgspec.ValidationError, match="64 bits"):
                msgspec.json.decode(json.dumps(wish).encode(), type=route.body)
