"""The OpenAPI 3.1 document, made of the route table and the schemas of its structs."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import msgspec

from needle.server.http import idempotency
from needle.server.http.bodies import Document, ExportEnd
from needle.server.http.events import TYPE as EVENTS
from needle.server.http.events import ChangeEvent
from needle.server.http.message import JSON, MSGPACK
from needle.server.http.problems import CODES, CONTENT_TYPE, TITLES, Problem
from needle.server.http.routes import NDJSON, ROUTES, Route

_SCHEMES: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key; `x-role` is the role that it needs."},
    "api-key": {
        "type": "apiKey",
        "in": "header",
        "name": "api-key",
        "description": "The same, by itself.",
    },
}
_KEY: Final = {
    "name": idempotency.NAME,
    "in": "header",
    "required": False,
    "description": "A request that is sent again with the same key is executed once, and answered as the first time.",
    "schema": {"type": "string", "minLength": 1, "maxLength": idempotency.CHARS_MAX, "pattern": "^[ -~]+$"},
}
_LAST_EVENT: Final = {
    "name": "last-event-id",
    "in": "header",
    "required": False,
    "description": "The id of the last event that was read: go on behind it.",
    "schema": {"type": "string"},
}
_REF: Final = "#/components/schemas/{name}"
DESCRIPTION: Final = (
    "Any node answers any request, and asks whoever leads. Writes are acknowledged once a majority has them; reads are "
    "linearizable unless another `mode` is asked for. Errors are problem documents (RFC 9457) with a stable `code`; "
    "`retryable` says whether the same request may be sent again. Bodies are JSON or MessagePack (`content-type`, "
    "`accept`), and may be gzip. `x-request-id` is taken from the request, or made. `needle-session` begins a session "
    "when it is empty, and each answer has the next token: eventual reads with it see what the session wrote."
)


def release() -> str:
    """The version of this package."""
    try:
        return version("needle-vdb")
    except PackageNotFoundError:
        return "0"


def document() -> dict[str, Any]:
    """The whole document, as JSON types."""
    types = {route.body for route in ROUTES} | {route.answer for route in ROUTES if route.answer is not None}
    _, schemas = msgspec.json.schema_components(
        [*sorted(types, key=_named), Problem, Document, ExportEnd, ChangeEvent], ref_template=_REF
    )
    _open(schemas)
    said = schemas["Problem"]["properties"]
    said["code"]["enum"], said["status"]["enum"] = sorted(CODES), sorted(TITLES)
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path.replace(":path", ""), {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Needle", "version": release(), "description": DESCRIPTION},
        "paths": paths,
        "components": {"schemas": schemas, "responses": {"Problem": _problem()}, "securitySchemes": _SCHEMES},
        # {}: without one, as long as the cluster does not require keys.
        "security": [{}, *({name: []} for name in _SCHEMES)],
    }


def _open(schema: Any) -> None:
    """Say of objects whose names are the caller's that they have any: generators take silence for none."""
    if isinstance(schema, dict):
        if schema.get("type") == "object" and not schema.keys() & {"properties", "additionalProperties"}:
            schema["additionalProperties"] = True
        schema = list(schema.values())
    if isinstance(schema, list):
        for one in schema:
            _open(one)


def _named(kind: type) -> str:
    return kind.__name__


def _operation(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in route.parameters
    ]
    if route.keyed:
        parameters.append(_KEY)
    if route.events:
        parameters.append(_LAST_EVENT)
    made: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [route.tag],
        "parameters": parameters,
        "responses": {"200": _answer(route), "default": {"$ref": "#/components/responses/Problem"}},
        "x-role": route.role,
    }
    if route.in_query:
        properties = schemas[_named(route.body)]["properties"]
        parameters += [
            {"name": name, "in": "query", "required": False, "schema": schema} | _exploded(name)
            for name, schema in properties.items()
        ]
    else:
        made["requestBody"] = _body(route, schemas)
    return made


def _exploded(name: str) -> dict[str, Any]:
    return {"style": "form", "explode": False} if name == "fields" else {}


def _body(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    needed = "required" in schemas[_named(route.body)]  # else a PUT may say nothing; see message.headers_of
    schema = {"$ref": _REF.format(name=_named(route.body))}
    return {
        "required": route.method == "POST" or needed,
        "content": {JSON: {"schema": schema, "example": route.example or {}}, MSGPACK: {"schema": schema}},
    }


def _answer(route: Route) -> dict[str, Any]:
    headers = {
        "x-request-id": {"schema": {"type": "string"}},
        "needle-session": {"schema": {"type": "string"}, "description": "If the request had one."},
    }
    if route.events:
        text = (
            "Events `insert`, `update` and `delete`, whose data is as in `ChangeEvent`; `reset` and `ready`, whose "
            "data is {}; and `problem`, the last one of an answer that has broken off, whose data is as in `Problem`. "
            "The `id` of an event is where to go on behind it. Lines that begin with a colon, and events that have an "
            "id only, say that there is nothing new."
        )
        return {"description": text, "headers": headers, "content": {EVENTS: {"schema": {"type": "string"}}}}
    if route.answer is None:
        line = {"oneOf": [{"$ref": _REF.format(name=_named(kind))} for kind in (Document, ExportEnd)]}
        return {
            "description": "One document a line. The last line says that it is complete; without it the answer is not.",
            "headers": headers,
            "content": {NDJSON: {"schema": line}},
        }
    schema = {"$ref": _REF.format(name=_named(route.answer))}
    return {
        "description": "Done.",
        "headers": headers,
        "content": {JSON: {"schema": schema}, MSGPACK: {"schema": schema}},
    }


def _problem() -> dict[str, Any]:
    statuses = ", ".join(f"{status} {title.lower()}" for status, title in sorted(TITLES.items()))
    return {
        "description": f"A problem document. Statuses: {statuses}.",
        "content": {CONTENT_TYPE: {"schema": {"$ref": _REF.format(name="Problem")}}},
    }
