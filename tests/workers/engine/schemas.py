"""Some two hundred JSON schemas, each different in kind, in the shapes of the public JSON-Schema test suite."""

from typing import Any

Schema = dict[str, Any]
S: Schema = {"type": "string"}
I: Schema = {"type": "integer"}  # noqa: E741
B: Schema = {"type": "boolean"}
N: Schema = {"type": "null"}


def obj(properties: dict[str, Any], required: str = "", **more: Any) -> Schema:
    """An object; `required` names the properties that must be there, or * for all."""
    names = list(properties) if required == "*" else required.split()
    return {"type": "object", "properties": properties} | ({"required": names} if names else {}) | more


def arr(items: Any = None, **more: Any) -> Schema:
    return {"type": "array"} | ({} if items is None else {"items": items}) | more


TYPES: list[Schema] = [
    {},
    S,
    I,
    B,
    N,
    {"type": "number"},
    {"type": "object"},
    {"type": "array"},
    {"type": ["string", "null"]},
    {"type": ["integer", "boolean", "array"]},
    {"type": ["object", "number"]},
    {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "T", "description": "d", "type": "string"},
    {"type": "integer", "default": 3, "examples": [1], "deprecated": True, "readOnly": True, "$comment": "c"},
    {"unknown keyword": 1, "type": "boolean"},
]
ENUMS: list[Schema] = [
    {"enum": [1, 2, 3]},
    {"enum": ["red", "amber", "green"]},
    {"enum": [None, True, "x", 4.5, {"a": [1]}, []]},
    {"enum": ["a", "ab", "abc"]},
    {"enum": ["line\nbreak", 'quote"d', "back\\slash", "tab\t", "nul\u0000"]},
    {"enum": ["日本", "Ünï", "😀", "e\u0301"]},
    {"enum": [0, False, "", None]},
    {"enum": ["a", 2, "c"], "type": "string"},
    {"enum": ["a", "bbbb"], "type": "string", "minLength": 2},
    {"enum": [1, 5, 9], "type": "integer", "minimum": 4},
    {"const": "only"},
    {"const": None},
    {"const": 0},
    {"const": -1.5},
    {"const": {"deep": {"list": [1, [2, {"x": False}]]}}},
    {"const": [[], {}, ""]},
    {"const": "你好，世界 👍🏽"},
    {"const": "slash/ and \\ and \u2028"},
]
STRINGS: list[Schema] = [
    *({"type": "string", "minLength": low, "maxLength": high} for low, high in ((0, 0), (1, 1), (3, 5), (10, 12))),
    {"type": "string", "maxLength": 4},
    {"type": "string", "minLength": 20},
    *(
        {"type": "string", "pattern": pattern}
        for pattern in (
            "^a+$",
            "^[0-9]{3}-[0-9]{4}$",
            "^(foo|bar)+$",
            "b",
            "^x",
            "z$",
            "^$",
            '^[^"\\\\]{2,4}$',
            "^[a-z]{1,5}@[a-z]{1,5}\\.[a-z]{2,3}$",
            "^[A-Z][a-z]*( [A-Z][a-z]*){1,2}$",
            "^[一-龥]{2,4}$",
            "^[😀-😎]+$",
            "^#([0-9a-f]{3}|[0-9a-f]{6})$",
            "^\\d{1,3}(,\\d{3})*$",
            "^(?:a|b(?:c|d)){2}$",
            "^v\\d+\\.\\d+\\.\\d+(-[a-z]+)?$",
            '^"quoted"$',
            "^[\\n\\t ]{1,3}$",
        )
    ),
    {"type": "string", "pattern": "^[a-z]*$", "minLength": 4, "maxLength": 6},
    {"type": "string", "pattern": "a", "maxLength": 8},
    *(
        {"type": "string", "format": name}
        for name in ["date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"]
    ),
    {"type": "string", "contentEncoding": "base64"},
]
NUMBERS: list[Schema] = [
    *(
        {"type": kind} | bounds
        for kind in ("integer", "number")
        for bounds in (
            {"minimum": 0},
            {"maximum": -5},
            {"minimum": 10, "maximum": 20},
            {"exclusiveMinimum": 0, "exclusiveMaximum": 7},
            {"minimum": -3, "exclusiveMaximum": 3},
            {"minimum": 99, "maximum": 10001},
            {"minimum": 7, "maximum": 7},
        )
    ),
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "number", "minimum": -0.25, "maximum": 0.75},
    {"type": "number", "exclusiveMinimum": 0.1, "maximum": 0.2},
    {"type": "integer", "minimum": 1.5, "maximum": 4.5},
    {"type": "integer", "multipleOf": 7},
    {"type": "integer", "multipleOf": 5, "minimum": 3, "maximum": 52},
    {"type": "integer", "allOf": [{"multipleOf": 2}, {"multipleOf": 3}]},
    {"type": "number", "multipleOf": 0.5},
    {"minimum": 5, "type": ["number", "null"]},
]
OBJECTS: list[Schema] = [
    obj({"a": S}),
    obj({"a": S}, "a"),
    obj({"a": S, "b": I}, "*", additionalProperties=False),
    obj({"a": S, "b": I, "c": B}, "b", additionalProperties=False),
    obj({"a": S}, "*", additionalProperties=I),
    obj({}, additionalProperties=B),
    obj({}, additionalProperties={"type": "array", "items": I}),
    obj({"a": True, "b": False}, additionalProperties=False),
    obj({}, "x y"),
    obj({"y": I}, "x y", additionalProperties=S),
    {"type": "object", "minProperties": 1},
    {"type": "object", "maxProperties": 1},
    {"type": "object", "minProperties": 1, "maxProperties": 3, "additionalProperties": I},
    obj({}, additionalProperties=False),
    {"type": "object", "patternProperties": {"^n_": I, "^s_": S}, "additionalProperties": False},
    {"type": "object", "patternProperties": {"^[a-c]$": B}, "additionalProperties": False, "minProperties": 1},
    obj({"id": I}, "id", patternProperties={"^x-": S}, additionalProperties=False),
    obj({"with space": I, 'quo"te': I, "back\\slash": I, "": I}, "*"),
    obj({"日本語": S, "😀": I, "é": B}, "*", additionalProperties=False),
    obj({"$ref": S, "type": I, "__proto__": B}, "*", additionalProperties=False),
    obj({"a": obj({"b": obj({"c": obj({"d": I}, "*")}, "*")}, "*")}, "*"),
    obj({"user": obj({"name": S, "mail": {"type": "string", "format": "email"}}, "*"), "ids": arr(I)}, "user"),
    obj({f"p{i}": I for i in range(30)}, additionalProperties=False),
    obj({f"p{i}": {"enum": [i, str(i)]} for i in range(12)}, "*", additionalProperties=False),
    {"properties": {"a": I}, "type": ["object", "string"]},
    {"required": ["a"], "type": "object"},
    obj({"n": {"type": ["integer", "null"]}, "s": {"enum": ["x", None]}}, "*"),
    obj({"when": {"type": "string", "format": "date"}, "amount": {"type": "number", "minimum": 0}}, "*"),
    obj({"answer": {"enum": ["yes", "no"]}, "why": {"type": "string", "maxLength": 40}}, "*"),
    obj({"tags": arr({"enum": ["a", "b"]}, maxItems=3), "open": B}, "tags open", additionalProperties=False),
]
ARRAYS: list[Schema] = [
    arr(S),
    arr(I, minItems=2),
    arr(B, maxItems=2),
    arr(N, minItems=3, maxItems=3),
    arr(maxItems=0),
    arr(I, minItems=1, maxItems=4),
    arr(arr(I)),
    arr(arr(arr(B, maxItems=1), maxItems=2), minItems=1),
    arr(obj({"a": I}, "*", additionalProperties=False)),
    arr(True),
    arr(False),
    arr(prefixItems=[S, I, B]),
    arr(False, prefixItems=[S, I]),
    arr(False, prefixItems=[S, I], minItems=2),
    arr(N, prefixItems=[I]),
    arr(prefixItems=[{"const": "a"}, {"const": "b"}], items={"const": "c"}, minItems=4),
    arr(prefixItems=[I, I, I], maxItems=2),
    arr(False, prefixItems=[arr(I, maxItems=2), obj({"k": S}, "*")], minItems=2),
    arr({"type": ["string", "number"]}, minItems=2, maxItems=5),
    arr({"enum": ["x", "y"]}, minItems=6, maxItems=6),
    arr({"type": "string", "pattern": "^[ab]{2}$"}, minItems=2),
    {"type": ["array", "null"], "items": I, "minItems": 1},
]
COMBINED: list[Schema] = [
    {"anyOf": [S, I]},
    {"anyOf": [N, arr(I), obj({"a": B}, "*")]},
    {"anyOf": [{"type": "string", "maxLength": 2}, {"type": "string", "minLength": 5}]},
    {"anyOf": [{"minimum": 10, "type": "integer"}, {"maximum": -10, "type": "integer"}]},
    {"anyOf": [obj({"a": I}, "a"), obj({"b": I}, "b")]},
    {"anyOf": [{"const": 1}, {"enum": ["x", "y"]}, N]},
    {"type": "string", "anyOf": [{"pattern": "^a"}, {"pattern": "z$"}]},
    {"anyOf": [{"anyOf": [S, N]}, {"anyOf": [B, {"anyOf": [I]}]}]},
    {"oneOf": [S, I, N]},
    {"oneOf": [{"const": "a"}, {"const": "b"}]},
    {"oneOf": [{"type": "integer", "maximum": 0}, B, arr(S)]},
    {"oneOf": [obj({"kind": {"const": "a"}, "x": I}, "*"), obj({"kind": {"const": "b"}, "y": S}, "*")]},
    {
        "oneOf": [
            obj({"kind": {"const": "circle"}, "r": {"type": "number", "minimum": 0}}, "*", additionalProperties=False),
            obj({"kind": {"const": "box"}, "w": I, "h": I}, "*", additionalProperties=False),
            obj({"kind": {"const": "none"}}, "*", additionalProperties=False),
        ]
    },
    {"allOf": [S, {"minLength": 3}, {"maxLength": 6}]},
    {"allOf": [obj({"a": I}, "a"), obj({"b": S}, "b")]},
    {"allOf": [{"minimum": 3}, {"maximum": 9}], "type": "integer"},
    {"allOf": [{"type": ["string", "integer"]}, {"type": ["integer", "null"]}]},
    {"allOf": [{"enum": [1, 2, 3]}, {"enum": [2, 3, 4]}]},
    {"allOf": [{"pattern": "^a"}, {"pattern": "b$"}], "type": "string"},
    {"allOf": [{"anyOf": [S, I]}, {"anyOf": [I, N]}]},
    {"allOf": [{"properties": {"a": {"minimum": 2}}}], **obj({"a": {"type": "integer", "maximum": 5}}, "a")},
    {"type": "array", "allOf": [{"items": I}, {"minItems": 1}, {"maxItems": 3}]},
    obj({"a": {"anyOf": [I, N]}, "b": {"oneOf": [S, arr(S)]}}, "*", additionalProperties=False),
    {"anyOf": [{"type": "object", "required": ["a"]}, {"type": "object", "required": ["b"]}]},
    {"allOf": [True, S, {}]},
    {"anyOf": [False, I]},
]
TREE = obj({"v": I, "kids": arr({"$ref": "#/$defs/tree"})}, "*", additionalProperties=False)
REFERENCES: list[Schema] = [
    {"$defs": {"a": S}, "$ref": "#/$defs/a"},
    {"$defs": {"a": S}, "$ref": "#/$defs/a", "minLength": 4},
    {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/c"}, "c": I}, "$ref": "#/$defs/a"},
    {"definitions": {"p": {"type": "integer", "minimum": 1}}, **obj({"x": {"$ref": "#/definitions/p"}}, "*")},
    {"$defs": {"tree": TREE}, "$ref": "#/$defs/tree"},
    obj({"value": I, "next": {"anyOf": [{"$ref": "#"}, N]}}, "*", additionalProperties=False),
    {
        "$defs": {
            "expr": {"anyOf": [I, {"$ref": "#/$defs/sum"}]},
            "sum": obj({"op": {"enum": ["+", "-"]}, "of": arr({"$ref": "#/$defs/expr"}, minItems=2)}, "*"),
        },
        "$ref": "#/$defs/expr",
    },
    obj({"a": {"$ref": "#/properties/b"}, "b": {"enum": ["x", "y"]}}, "*"),
    {
        "$defs": {"a/b": B, "c%d": I},
        "type": "array",
        "prefixItems": [{"$ref": "#/$defs/a~1b"}, {"$ref": "#/$defs/c%25d"}],
    },
    {"$defs": {"x": {"$anchor": "here", "type": "boolean"}}, "$ref": "#here"},
    {"$id": "http://example.com/root", "$defs": {"a": N}, "$ref": "http://example.com/root#/$defs/a"},
    {"$defs": {"json": {"anyOf": [S, B, N, arr({"$ref": "#/$defs/json"})]}}, "$ref": "#/$defs/json"},
    arr({"$ref": "#/$defs/pair"}, minItems=1, maxItems=3, **{"$defs": {"pair": arr(I, minItems=2, maxItems=2)}}),
    {
        "$defs": {
            "money": obj({"amount": {"type": "number", "minimum": 0}, "currency": {"enum": ["EUR", "USD"]}}, "*")
        },
        **obj({"price": {"$ref": "#/$defs/money"}, "tax": {"anyOf": [{"$ref": "#/$defs/money"}, N]}}, "*"),
    },
    {"$defs": {"base": obj({"id": I}, "id")}, "allOf": [{"$ref": "#/$defs/base"}, obj({"name": S}, "name")]},
]
NESTED: list[Schema] = [  # every kind of value as a member of an object and of a list
    wrap(inner)
    for inner in (
        {"type": "integer", "minimum": 0, "maximum": 100},
        {"enum": ["low", "high"]},
        {"type": "string", "pattern": "^[a-f]{4}$"},
        {"type": "string", "format": "uuid"},
        {"anyOf": [N, {"type": "number"}]},
        arr(B, minItems=1, maxItems=2),
        obj({"x": I, "y": I}, "*", additionalProperties=False),
        {"const": "ß"},
        {"type": "string", "minLength": 2, "maxLength": 3},
    )
    for wrap in (
        lambda inner: obj({"value": inner}, "*", additionalProperties=False),
        lambda inner: arr(inner, minItems=1, maxItems=3),
        lambda inner: {"type": "object", "additionalProperties": inner, "minProperties": 1},
    )
]
SCHEMAS: list[Schema] = [*TYPES, *ENUMS, *STRINGS, *NUMBERS, *OBJECTS, *ARRAYS, *COMBINED, *REFERENCES, *NESTED]

REFUSED: dict[str, Any] = {  # what is said of it -> the schema
    "not JSON": "{'type': 'string'}",
    "NaN": '{"const": NaN}',
    "not a JSON object": "[1]",
    "Unimplemented keys.*not": {"not": S},
    "Unimplemented keys.*if": {"if": S, "then": {"minLength": 3}},
    "Unimplemented keys.*uniqueItems": arr(I, uniqueItems=True),
    "Unimplemented keys.*contains": arr(contains=I),
    "Unimplemented keys.*propertyNames": {"type": "object", "propertyNames": {"maxLength": 2}},
    "Unimplemented keys.*dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "Unimplemented keys.*unevaluatedProperties": {"type": "object", "unevaluatedProperties": False},
    "Unimplemented keys.*dynamicRef": {"$dynamicRef": "#x"},
    "not present in a registry": {"$ref": "https://example.com/person.json"},
    "does not exist": {"$ref": "#/$defs/gone"},
    "Unknown format: postcode": {"type": "string", "format": "postcode"},
    "Invalid type": {"type": "text"},
    "oneOf": {"oneOf": [S, {"type": "string", "minLength": 3}]},
    "greater than maximum": {"type": "integer", "minimum": 5, "maximum": 3},
    "incompatible types": {"allOf": [S, I]},
    "look-around": {"type": "string", "pattern": "(?=a)b"},
    "not disjoint": {"type": "object", "patternProperties": {"^a": S, "b$": S}},
}
