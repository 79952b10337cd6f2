"""The API's document for programs, at /openapi.json, and for people, at /docs/api. Both tell nothing about the fleet."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import urlencode

from aiohttp import web
from markupsafe import Markup, escape

from broker.errors import FleetError
from webapp import openapi
from webapp.openai_answers import dump
from webapp.operations import OPERATIONS, Operation
from webapp.state import BROKER, TEMPLATES

Map = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """A field, as its row in a table says it. `name` is the whole way to it: messages[].role."""

    name: str
    kind: str
    limits: str
    default: str
    meaning: str
    needed: bool


@dataclass(frozen=True, slots=True)
class Section:
    """An operation, as its part of the page shows it."""

    operation: Operation
    address: str
    fields: tuple[tuple[str, tuple[Row, ...]], ...]  # of each form of the body, or of the address
    harmless: tuple[tuple[str, tuple[str, ...]], ...]  # where, and which names
    answer: tuple[Row, ...]
    event: tuple[Row, ...]
    refusals: tuple[tuple[str, tuple[str, ...]], ...]  # the status in words, and the codes

    @property
    def example(self) -> str:
        """The example's address, behind the site's own."""
        if not self.operation.parameters:
            return self.address
        path = self.address.format(**self.operation.example)
        return path if path != self.address else f"{path}?{urlencode(self.operation.example)}"

    @property
    def body(self) -> str:
        """The example's body for a shell, in single quotes."""
        return json.dumps(self.operation.example, indent=2, ensure_ascii=False).replace("'", "'\\''")


@dataclass(frozen=True, slots=True)
class Docs:
    """Both forms, made once."""

    document: bytes
    about: tuple[str, ...]  # paragraphs
    sections: tuple[Section, ...]
    errors: tuple[type[FleetError], ...]

    @classmethod
    def load(cls) -> Self:
        """Of the table of operations."""
        document = openapi.document(OPERATIONS)
        kinds = {kind for one in OPERATIONS for kind in one.refusals}
        return cls(
            dump(document),
            tuple(document["info"]["description"].split("\n\n")),
            tuple(_section(one, document["components"]["schemas"]) for one in OPERATIONS),
            tuple(sorted(kinds, key=lambda kind: (kind.status, kind.code))),
        )


DOCS = web.AppKey("docs", Docs)


async def document(request: web.Request) -> web.Response:
    """GET /openapi.json."""
    response = web.Response(body=request.app[DOCS].document, content_type="application/json")
    response.headers["Cache-Control"] = "no-cache"
    response.enable_compression()
    return response


async def page(request: web.Request) -> web.Response:
    """GET /docs/api."""
    origins = request.app[BROKER].config.origins
    secure = request.secure or f"https://{request.host}" in origins
    text = (
        request.app[TEMPLATES]
        .get_template("docs.html")
        .render(
            title="FleetChat's API",
            docs=request.app[DOCS],
            base=f"{'https' if secure else 'http'}://{request.host}",
            marked=marked,
        )
    )
    response = web.Response(text=text, content_type="text/html", headers={"Cache-Control": "no-cache"})
    response.enable_compression()
    return response


def marked(text: str) -> Markup:
    """A text whose `code` is shown as such."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _section(one: Operation, schemas: Map) -> Section:
    bodies = [schemas[kind.__name__] for kind in one.asked]
    by_status: dict[int, list[str]] = {}
    for error in one.refusals:
        by_status.setdefault(error.status, []).append(error.code)
    fields = [
        (body["description"].rstrip(".") if len(bodies) > 1 else "Body", tuple(_rows(body, schemas))) for body in bodies
    ]
    if one.parameters:
        needed = "{" in one.path
        rows = tuple(Row(name, "string", "", "", about, needed) for name, about in one.parameters.items())
        fields = [("In the address", rows)]
    return Section(
        one,
        openapi.address(one.path),
        tuple(fields),
        tuple(dict.fromkeys(found for body in bodies for found in _harmless(body, schemas))),
        tuple(_rows(schemas[one.answer.__name__], schemas, null=True)),
        tuple(_rows(schemas[one.event.__name__], schemas, null=True)) if one.event else (),
        tuple((f"{status} {HTTPStatus(status).phrase}", tuple(codes)) for status, codes in sorted(by_status.items())),
    )


def _rows(schema: Map, schemas: Map, before: str = "", *, null: bool = False) -> Iterator[Row]:
    """A row for each field, and behind it those of the object that it holds; of what may be null only where it matters."""
    for name, field in schema.get("properties", {}).items():
        if "x-harmless" in field:
            continue
        default = json.dumps(field["default"], ensure_ascii=False) if "default" in field else ""
        kinds = dict.fromkeys(_kind(side) for side in (field.get("anyOf", [field]) if null else _sides(field)))
        limits = dict.fromkeys(filter(None, map(_limits, _sides(field))))
        needed = name in schema.get("required", ())
        meaning = field.get("description", "")
        yield Row(before + name, " or ".join(kinds), "; ".join(limits), default, meaning, needed)
        for path, inner in _inner(field, schemas):
            yield from _rows(inner, schemas, f"{before}{name}{path}.", null=null)


def _harmless(schema: Map, schemas: Map, before: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    fields = schema.get("properties", {})
    if names := tuple(name for name, field in fields.items() if "x-harmless" in field):
        yield before, names
    for name, field in fields.items():
        for path, inner in _inner(field, schemas):
            yield from _harmless(inner, schemas, f"{before}{name}{path}.")


def _inner(schema: Map, schemas: Map) -> Iterator[tuple[str, Map]]:
    """The objects that a field may hold, and the way to them."""
    for side in _sides(schema):
        path = ""
        while side.get("type") == "array":
            side, path = side["items"], path + "[]"
        if "$ref" in side:
            yield path, schemas[side["$ref"].rpartition("/")[2]]


def _sides(schema: Map) -> list[Map]:
    return [side for side in schema.get("anyOf", [schema]) if side != {"type": "null"}]


def _kind(schema: Map) -> str:
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return " or ".join(map(json.dumps, schema["enum"]))
    if schema.get("type") == "array":
        inner = dict.fromkeys(map(_kind, _sides(schema["items"])))
        return " or ".join(f"{kind}[]" for kind in inner)
    return "object" if "$ref" in schema else str(schema.get("type", "any"))


def _limits(schema: Map) -> str:
    for least, most, what in (
        ("minimum", "maximum", ""),
        ("minLength", "maxLength", " characters"),
        ("minItems", "maxItems", " entries"),
        ("minProperties", "maxProperties", " entries"),
    ):
        if least in schema and most in schema:
            return f"{_number(schema[least])} to {_number(schema[most])}{what}"
        if least in schema:
            return f"at least {_number(schema[least])}{what}"
        if most in schema:
            return f"up to {_number(schema[most])}{what}"
    return f"matches {schema['pattern']}" if "pattern" in schema else ""


def _number(value: float) -> str:
    """A number as people write it: large ones as powers of two."""
    if isinstance(value, int) and abs(value) > 2**30:
        for more in (0, 1):
            size = abs(value) + more
            if size & (size - 1) == 0:
                return f"{'−' if value < 0 else ''}2^{size.bit_length() - 1}{' − 1' if more else ''}"
    return f"{value:g}" if isinstance(value, float) else str(value)
