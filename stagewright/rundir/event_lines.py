"""Writes events as lines of ``events.jsonl``, and checks lines against the class of their event when it reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from stagewright.rundir.event_kinds import KINDS, BadImages, Evaluated, Event
from stagewright.storage.json_text import parse_object

T = TypeVar("T")


class UnknownKind(ValueError):
    """An event of a kind that this version does not know; a later version may have written it."""


def to_json(event: Event) -> dict[str, Any]:
    """Returns the event as plain data, its keys in the file's order: kind, step, its other fields, and ``clock`` with the rest.

    Clock fields that are None or False are left out.
    """
    values = {one: getattr(event, one.name) for one in fields(event) if one.metadata.get("clock")}
    clock = {_key(one): _plain(value) for one, value in values.items() if value is not None and value is not False}
    return {**without_clock(event), "clock": clock}


def without_clock(event: Event) -> dict[str, Any]:
    """Returns the same as :func:`to_json`, without the fields that depend on time and machine."""
    own = {_key(one): _plain(value) for one, value in _written(event) if not one.metadata.get("clock")}
    return {"kind": event.kind, **own}


def _written(value: Any) -> Iterator[tuple[Field[Any], Any]]:
    """The fields of a dataclass with their values, without those that are left out."""
    for one in fields(value):
        own = getattr(value, one.name)
        if own is not None or not one.metadata.get("if_known"):
            yield one, own


def to_line(event: Event) -> bytes:
    """Returns the event as a line of JSON with its newline. Floats that are not finite are ``NaN`` and ``Infinity``, as Python
    reads them."""
    return json.dumps(to_json(event)).encode() + b"\n"


def from_line(line: bytes) -> Event:
    """Returns the event of a line. UnknownKind if this version does not know its kind; ValueError if the line is damaged: not
    JSON, or a field is missing or has another type. Fields that the class does not have are ignored."""
    content = parse_object(line)
    if not isinstance(kind := content.get("kind"), str):
        raise ValueError("no event")
    if _value(int, content.get("step")) < 0:
        raise ValueError("step is below 0")
    clock = _value(dict, content.get("clock", {}))
    if kind not in KINDS:
        raise UnknownKind(kind)
    event = _filled(KINDS[kind], content, clock)
    if isinstance(event, BadImages) and not len(event.rows) == len(event.paths) == len(event.reasons):
        raise ValueError("rows, paths and reasons differ in length")
    if isinstance(event, Evaluated) and event.chosen not in event.results:
        raise ValueError(f"there is no result of the chosen weights, {event.chosen!r}")
    return event


def _key(one: Field[Any]) -> str:
    return str(one.metadata.get("key", one.name))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return {one.name: _plain(own) for one, own in _written(value)} if is_dataclass(value) else value


@cache
def _types(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def _filled(kind: type[T], content: Mapping[str, Any], clock: Mapping[str, Any]) -> T:
    """Makes a ``kind`` with its fields from ``content``, and its clock fields from ``clock``."""
    given: dict[str, Any] = {}
    for one in fields(kind):  # type: ignore[arg-type]
        place = clock if one.metadata.get("clock") else content
        names = [name for name in (_key(one), str(one.metadata.get("formerly"))) if name in place]
        if names:
            given[one.name] = _value(_types(kind)[one.name], place[names[0]])
        elif one.default is MISSING and one.default_factory is MISSING:
            raise ValueError(f"{one.name} is missing")
    return kind(**given)


def _value(kind: Any, value: Any) -> Any:
    """Converts ``value``, read from JSON, to the type ``kind``; ValueError if it has another type."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        fitting = next((one for one in inner if (one is NoneType) == (value is None)), NoneType)
        return _value(fitting, value)
    if origin is tuple and isinstance(value, list):
        return tuple(_value(inner[0], one) for one in value)
    if origin is Mapping and isinstance(value, dict):
        return {name: _value(inner[1], one) for name, one in value.items()}
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict):
        return _filled(kind, value, {})
    plain = origin is None and not is_dataclass(kind)
    if plain and (type(value) is kind or (kind is float and type(value) is int)):
        if type(value) is int and abs(value) >= 2**63:
            raise ValueError("the number is too large")
        return value
    raise ValueError(f"{value!r} is no {kind}")
