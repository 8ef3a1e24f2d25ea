"""Tables of settings, written from the schemas."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from blocks.tables import plain, table

COLUMNS = ("Key", "Default", "Range", "Meaning")
Rows = dict[str, list[list[str]]]


def settings(method: str) -> str:
    """Every key of the recipes of a method: one table per section."""
    return "\n\n".join(f"{title}\n\n{table(COLUMNS, lines)}" for title, lines in rows(schema(method)).items())


def own_settings(method: str, against: str = "gca") -> str:
    """The keys whose default, range or meaning is not that of another method, and the sections it lacks."""
    other = rows(schema(against))
    known = {tuple(line) for lines in other.values() for line in lines}
    lines = [line for found in rows(schema(method)).values() for line in found if tuple(line) not in known]
    lacking = [
        f"`{name}`" for name in schema(against).model_fields if name not in schema(method).model_fields
    ]
    text = table(COLUMNS, lines)
    return f"{text}\n\nIt has no section {' and no section '.join(lacking)}." if lacking else text


def schema(method: str) -> type[BaseModel]:
    """The schema of a method's recipes."""
    from leanlabel import methods

    return methods.find(method).Config


def rows(schema: type[BaseModel]) -> Rows:
    """Title of a section -> its lines: key, default, range, meaning."""
    plain_keys, sections = [], {}
    for name, info in schema.model_fields.items():
        variants = [part for part in _flat(info.annotation) if _is_section(part)]
        for variant in variants:
            kind = variant.model_fields.get("kind") if len(variants) > 1 else None
            title = f"`{name}`" if kind is None else f"`{name}` with `{name}.kind: {kind.default}`"
            default = info.default if isinstance(info.default, variant) else None
            lines = list(_lines(name, variant, default))
            sections[f"**{title}**: {_sentence(info)}"] = lines
        if not variants:
            plain_keys.append(_row(name, info, None, name))
    return {"**Top level**": plain_keys, **sections}


def _lines(path: str, section: type[BaseModel], default: BaseModel | None) -> Iterator[list[str]]:
    """The keys of a section, those of a section within it included unless they are the same ones again.

    Of a section within it that has several kinds, such as data within data, keys stand where it is the section itself.
    """
    for key, info in section.model_fields.items():
        yield _row(f"{path}.{key}", info, default, key)
        found = [part for part in _flat(info.annotation) if _is_section(part)]
        several = sum("kind" in part.model_fields for part in found) > 1
        for inner in found:
            if not several and not issubclass(section, inner):
                value = info.get_default(call_default_factory=True)
                yield from _lines(f"{path}.{key}", inner, value if isinstance(value, inner) else None)


def _row(key: str, info: FieldInfo, section: BaseModel | None, name: str) -> list[str]:
    value = getattr(section, name) if section is not None else info.get_default(call_default_factory=True)
    required = info.is_required() and section is None
    sections = isinstance(value, BaseModel)
    default = "required" if required else "the keys below" if sections else f"`{plain(value)}`"
    return [f"`{key}`", default, allowed(info), _sentence(info)]


def _sentence(info: FieldInfo) -> str:
    return " ".join((info.description or "").split())


def allowed(info: FieldInfo) -> str:
    """Legal values of a field: choices, or type and bounds."""
    low, high = "", ""
    for bound in info.metadata:
        for name, sign in (("ge", "≥"), ("gt", ">")):
            low = f"{sign} {plain(getattr(bound, name))}" if hasattr(bound, name) else low
        for name, sign in (("le", "≤"), ("lt", "<")):
            high = f"{sign} {plain(getattr(bound, name))}" if hasattr(bound, name) else high
    bounds = ", ".join(part for part in (low, high) if part)
    kinds = " or ".join(_kind(part) for part in _flat(info.annotation))
    return f"{kinds}, {bounds}" if bounds else kinds


def _kind(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return f"({allowed(FieldInfo.from_annotation(annotation))})"
    if origin is Literal:
        return ", ".join(f"`{plain(value)}`" for value in inner)
    if origin is tuple:
        values = [part for part in inner if part is not Ellipsis]
        word = _kind(values[0])
        return f"list of {word}" if Ellipsis in inner else f"{len(values)} × {word}"
    names = {int: "integer", float: "number", str: "text", bool: "`true`, `false`", type(None): "`null`"}
    return names.get(annotation, "section")


def _flat(annotation: Any) -> Iterator[Any]:
    """Members of a union, tags and annotations taken off."""
    if get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _flat(part)
    elif get_origin(annotation) is Annotated:
        yield from _flat(get_args(annotation)[0])
    else:
        yield annotation


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def names(keys: Iterable[str]) -> str:
    """Keys as a list in a sentence."""
    return ", ".join(f"`{key}`" for key in keys)
