"""The OpenAPI document of the table of operations: request bodies by the models that check them, answers by their types.

What is checked beyond a schema (fields that go together) stands in the fields' descriptions. Knows no HTTP.

Source: OpenAPI 3.1.1; an event stream's schema is that of one event, as 3.1 leaves it and schemathesis reads it.
"""

import re
from collections.abc import Sequence
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Literal

from pydantic import TypeAdapter

from broker.errors import FleetError, RateLimited
from webapp.openai_objects import ErrorAnswer
from webapp.operations import Operation

Map = dict[str, Any]

ABOUT = """\
The protocol of OpenAI's API, for programs that speak it already.

A field that is not known is refused by its name (400, `param`); `null` means absent; a few fields that no answer depends on are accepted \
and do nothing. Bodies are JSON, read by the strict rules of RFC 8259 and RFC 7493: names once, numbers within 64 bits, no NaN, at most 64 levels.

While the fleet has no key, the API is open to programs on the server's own machine. With the first key, every call needs one."""
SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer KEY"},
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
REQUEST_ID = "X-Request-Id"
_NUMBER: Map = {"type": "integer", "minimum": 0}
HEADERS: Map = {
    REQUEST_ID: {
        "description": "The name of the request, yours or ours.",
        "required": True,
        "schema": {"type": "string"},
    },
    "Retry-After": {
        "description": "Seconds until another try makes sense.",
        "required": True,
        "schema": _NUMBER | {"minimum": 1},
    },
    "WWW-Authenticate": {"required": True, "schema": {"const": "Bearer"}},
    **{
        f"x-ratelimit-{what}-{of}": {
            "description": f"{about} of the key's {of} a minute, where they are limited.",
            "schema": schema,
        }
        for of in ("requests", "tokens")
        for what, about, schema in (
            ("limit", "The number", _NUMBER),
            ("remaining", "What is left", _NUMBER),
            ("reset", "Time until nothing is used", {"type": "string", "pattern": r"^\d+\.\d{3}s$"}),
        )
    },
}
LIMITS = tuple(name for name in HEADERS if name.startswith("x-ratelimit-"))
ALSO = {401: ("WWW-Authenticate",), 429: ("Retry-After",), 503: ("Retry-After",)}
PARAMETER = {
    "name": REQUEST_ID,
    "in": "header",
    "description": "A name for the request, for logs: up to 128 printable ASCII characters without blanks; others are replaced.",
    "schema": {"type": "string"},
}


def document(operations: Sequence[Operation]) -> Map:
    """The whole document."""
    kinds = {kind for one in operations for kind in (*one.asked, one.answer, one.event) if kind} | {ErrorAnswer}
    paths: dict[str, Map] = {}
    for one in operations:
        for path, name in one.names.items():
            paths.setdefault(address(path), {})[one.method.lower()] = {"operationId": name} | _operation(one)
    return {
        "openapi": "3.1.0",
        "info": {"title": "FleetChat", "version": version("fleetchat"), "description": ABOUT},
        "servers": [{"url": "/"}],
        "security": [{name: []} for name in SECURITY],
        "paths": paths,
        "components": {
            "schemas": _schemas(kinds),
            "headers": HEADERS,
            "parameters": {REQUEST_ID: PARAMETER},
            "securitySchemes": SECURITY,
        },
    }


def address(path: str) -> str:
    """A path of the router's as OpenAPI writes it: without the patterns of its parameters."""
    return re.sub(r"{(\w+):[^}]*}", r"{\1}", path)


def _operation(one: Operation) -> Map:
    limited = LIMITS if RateLimited in one.refusals else ()
    content: Map = {"application/json": {"schema": _ref(one.answer)}}
    if one.event:
        content["text/event-stream"] = {"schema": _event(one.event)}
    found: Map = {
        "summary": one.summary,
        "description": one.about,
        "parameters": [
            *(
                {
                    "name": name,
                    "in": "path" if f"{{{name}" in one.path else "query",
                    "required": f"{{{name}" in one.path,
                    "description": about,
                    "schema": {"type": "string", "minLength": 1},
                    "example": one.example[name],
                }
                for name, about in one.parameters.items()
            ),
            {"$ref": f"#/components/parameters/{REQUEST_ID}"},
        ],
        "responses": {
            "200": {"description": "The answer.", "headers": _headers(REQUEST_ID, *limited), "content": content},
            **_refusals(one.refusals, limited),
        },
    }
    if one.asked:
        sides = [_ref(kind) for kind in one.asked]
        body = {"schema": sides[0] if len(sides) == 1 else {"anyOf": sides}, "example": dict(one.example)}
        found["requestBody"] = {"required": True, "content": {"application/json": body}}
    return found


def _refusals(errors: Sequence[type[FleetError]], limited: Sequence[str]) -> Map:
    by_status: dict[int, list[type[FleetError]]] = {}
    for error in errors:
        by_status.setdefault(error.status, []).append(error)
    return {
        str(status): {
            "description": f"{HTTPStatus(status).phrase}.\n\n"
            + "\n".join(f"- `{e.code}`: {e.sentence}" for e in found),
            "headers": _headers(REQUEST_ID, *ALSO.get(status, ()), *limited),
            "content": {"application/json": {"schema": _ref(ErrorAnswer)}},
        }
        for status, found in sorted(by_status.items())
    }


def _event(kind: Any) -> Map:
    """One event: an object in JSON, or the mark of the end."""
    document = {"contentMediaType": "application/json", "contentSchema": {"anyOf": [_ref(kind), _ref(ErrorAnswer)]}}
    return {
        "description": f"One event. Its data is a {kind.__name__}, an ErrorAnswer, or [DONE] at the end.",
        "type": "object",
        "properties": {"data": {"type": "string", "anyOf": [{"const": "[DONE]"}, document]}},
        "required": ["data"],
    }


def _headers(*names: str) -> Map:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _ref(kind: Any) -> Map:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _schemas(kinds: set[Any]) -> Map:
    mode: Literal["validation"] = "validation"  # a field without a default is always there, also of what goes out
    inputs = [(kind, mode, TypeAdapter(kind)) for kind in sorted(kinds, key=lambda kind: kind.__name__)]
    _, found = TypeAdapter.json_schemas(inputs, ref_template="#/components/schemas/{model}")
    schemas: Map = _untitled(found["$defs"])
    return schemas


def _untitled(value: Any) -> Any:
    """Without the titles that only repeat a field's name."""
    if isinstance(value, list):
        return [_untitled(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {key: _untitled(inner) for key, inner in value.items() if not (key == "title" and isinstance(inner, str))}
