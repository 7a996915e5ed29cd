"""Checks a value against the part of JSON Schema that `archid.control.schema` uses.

The daemon checks every request, and the full validator would cost an ICE node memory and start-up
time for a dozen keywords; tests hold this one against `jsonschema`. A keyword that it does not
know is refused when the schema is used, so that a schema can never promise more than is checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from archid.control.shapes import Schema


class Invalid(Exception):
    """A value does not fit its schema; the text says where and why, without a full stop."""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: object) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, float) and value.is_integer()
    )


_TYPES: Final[dict[str, tuple[str, Callable[[object], bool]]]] = {
    "object": ("an object", lambda value: isinstance(value, dict)),
    "array": ("a list", lambda value: isinstance(value, list)),
    "string": ("a text", lambda value: isinstance(value, str)),
    "integer": ("a whole number", _is_integer),
    "number": ("a number", _is_number),
    "boolean": ("true or false", lambda value: isinstance(value, bool)),
    "null": ("null", lambda value: value is None),
}

_KEYWORDS: Final = frozenset(
    {
        "type",
        "properties",
        "required",
        "additionalProperties",
        "items",
        "maxItems",
        "minLength",
        "maxLength",
        "pattern",
        "minimum",
        "maximum",
        "enum",
        "const",
        "anyOf",
    }
)


def check(value: object, schema: Schema, *, where: str = "") -> None:
    """Raise Invalid unless `value` fits `schema`; `where` names the value in the message."""
    unknown = schema.keys() - _KEYWORDS
    if unknown:
        raise ValueError(f"this validator does not know the keyword {min(unknown)}")
    place = where or "the value"
    if "anyOf" in schema:
        _check_any(value, schema["anyOf"], where)
    if "const" in schema and not _same(value, schema["const"]):
        raise Invalid(f"{place} must be {schema['const']!r}")
    if "enum" in schema and not any(_same(value, option) for option in schema["enum"]):
        options = ", ".join(repr(option) for option in schema["enum"])
        raise Invalid(f"{place} must be one of {options}")
    if "type" in schema:
        words, fits = _TYPES[schema["type"]]
        if not fits(value):
            raise Invalid(f"{place} must be {words}")
    if isinstance(value, str):
        _check_text(value, schema, place)
    elif isinstance(value, dict):
        _check_object(value, schema, where)
    elif isinstance(value, list):
        _check_array(value, schema, where, place)
    elif _is_number(value):
        _check_number(value, schema, place)


def _same(value: object, option: object) -> bool:
    return type(value) is type(option) and value == option


def _check_any(value: object, options: list[Schema], where: str) -> None:
    failures: list[Invalid] = []
    for option in options:
        try:
            check(value, option, where=where)
        except Invalid as failure:
            failures.append(failure)
        else:
            return
    raise failures[0]


def _check_text(value: str, schema: Schema, place: str) -> None:
    if len(value) < schema.get("minLength", 0):
        raise Invalid(f"{place} must not be empty")
    if len(value) > schema.get("maxLength", len(value)):
        raise Invalid(
            f"{place} has {len(value)} characters, at most {schema['maxLength']} are allowed"
        )
    if "pattern" in schema and not re.search(schema["pattern"], value):
        raise Invalid(f"{place} does not look like {schema['pattern']}")


def _check_number(value: Any, schema: Schema, place: str) -> None:
    if "minimum" in schema and value < schema["minimum"]:
        raise Invalid(f"{place} must be at least {schema['minimum']}")
    if "maximum" in schema and value > schema["maximum"]:
        raise Invalid(f"{place} must be at most {schema['maximum']}")


def _check_array(value: list[object], schema: Schema, where: str, place: str) -> None:
    if len(value) > schema.get("maxItems", len(value)):
        raise Invalid(f"{place} has {len(value)} items, at most {schema['maxItems']} are allowed")
    for index, item in enumerate(value):
        check(item, schema.get("items", {}), where=f"{where}[{index}]")


def _check_object(value: dict[str, object], schema: Schema, where: str) -> None:
    prefix = f"{where}." if where else ""
    properties: dict[str, Schema] = schema.get("properties", {})
    for key in schema.get("required", ()):
        if key not in value:
            raise Invalid(f"{prefix}{key} is missing")
    for key, item in value.items():
        if key in properties:
            check(item, properties[key], where=f"{prefix}{key}")
        elif schema.get("additionalProperties", True) is False:
            raise Invalid(f"{prefix}{key[:80]} is not known here")
