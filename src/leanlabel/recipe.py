"""Recipes as raw keys: YAML in and out, a base merged in, single keys overridden, every key with its origin.

A recipe is a YAML file. ``base: other/recipe`` starts from another recipe; ``--set a.b=c`` changes single keys.
YAML is read by the rules of version 1.2 where they differ in a way that bites: ``1e-5`` is a number, ``010``
is ten, ``no``, ``1:30`` and dates are words, and a key that appears twice is an error. Aliases, tags, and nesting or
length beyond any recipe are refused: no recipe needs them, and a short file of aliases can stand for gigabytes.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from leanlabel.errors import InputError

KeyPath = tuple[str, ...]

# Far above any recipe; reading takes about half a second for the longest.
_LONGEST = 2**15
_DEEPEST = 40


class _Loader(yaml.SafeLoader):
    """Safe YAML with the 1.2 rules for numbers and booleans, without aliases, tags and endless nesting."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        found = None
        if isinstance(event, yaml.AliasEvent):
            found = f"alias *{event.anchor[:60]}: write it out"
        elif event.tag is not None:
            found = f"tag {event.tag[:60]}: write the value as it is, a word in quotes"
        elif self.depth >= _DEEPEST:
            found = f"sections and lists nested more than {_DEEPEST} deep"
        if found is not None:
            raise yaml.MarkedYAMLError(problem=found, problem_mark=event.start_mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


_OTHER_IN_1_2 = {f"tag:yaml.org,2002:{kind}" for kind in ("float", "bool", "int", "timestamp", "value")}
_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] not in _OTHER_IN_1_2]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"),
    list("-+0123456789"),
)
_Loader.add_constructor(
    "tag:yaml.org,2002:int",
    lambda _, node: int(node.value, {"0o": 8, "0x": 16}.get(node.value[:2], 10)),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf|\.nan)$"
    ),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$", re.IGNORECASE), list("tTfF")
)


@dataclass
class Recipe:
    """Raw keys of a recipe with where each came from.

    Attributes:
        name: name for run folders, such as ``gca/cora``.
        values: nested plain data.
        origins: key path -> "file, line n" or the ``--set`` text.
    """

    name: str
    values: dict[str, Any]
    origins: dict[KeyPath, str] = field(default_factory=dict)


def packaged_recipes() -> dict[str, Path]:
    """Names and files of all recipes that ship with the package, found at any depth."""
    root = Path(str(resources.files("leanlabel") / "recipes"))
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}


def read_recipe(source: str | Path, *, _seen: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe by packaged name or file path and merge it over its ``base``.

    A recipe of another method than its base's takes everything from it but the section ``method``.

    Raises:
        InputError: unknown name (with the nearest), unreadable or malformed YAML (with line), circular base.
    """
    path, name = _find(str(source))
    here = str(path.resolve())
    if here in _seen:
        raise InputError(f"{path}: the recipe is its own base ({' -> '.join([*_seen, here])}).")
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_LONGEST + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}).") from error
    values, lines = _parse(text, path)
    recipe = Recipe(name, values, {key: f"{path}, line {line}" for key, line in lines.items()})
    base = values.pop("base", None)  # merged in here: a complete configuration stands alone
    if base is None:
        return recipe
    if not isinstance(base, str):
        raise InputError(f"{path}: base must be the name or path of a recipe, got {base!r}.")
    beside = path.parent / base
    place = str(beside) if _is_file(beside) else base
    try:
        _find(place)
    except InputError as error:
        raise InputError(f"{recipe.origins[('base',)]}: base: {error.message}", error.suggestion) from error
    parent = read_recipe(place, _seen=(*_seen, here))
    below = dict(parent.values)
    if _other_method(below.get("method"), values.get("method")):
        del below["method"]  # its keys mean nothing to another method
    return Recipe(name, merge(below, values), {**parent.origins, **recipe.origins})


def _other_method(old: Any, new: Any) -> bool:
    return (
        isinstance(old, dict)
        and isinstance(new, dict)
        and new.get("name", old.get("name")) != old.get("name")
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that the system does not take: too long, with a null character
        return False


def _find(source: str) -> tuple[Path, str]:
    path = Path(source)
    try:
        present, folder = path.exists(), path.is_dir()
    except (OSError, ValueError):
        present, folder = False, False
    if path.suffix in (".yaml", ".yml") or (present and not folder):
        if folder or not present:
            raise InputError(
                f"{path}: no such recipe file.", "List the packaged ones with `leanlabel recipes`."
            )
        return path, path.stem
    known = packaged_recipes()
    if source in known:
        return known[source], source
    near = difflib.get_close_matches(source, known, n=1, cutoff=0.4)
    hint = f"Did you mean {near[0]!r}?" if near else "List them with `leanlabel recipes`."
    raise InputError(f"Unknown recipe {source!r}: neither a file nor a packaged recipe.", hint)


def _parse(text: str, path: Path | str) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    if len(text) > _LONGEST:
        raise InputError(f"{path}: longer than {_LONGEST:,} characters, so it is no recipe.")
    try:
        node, values = _load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{where}: not valid YAML ({getattr(error, 'problem', error)}).") from error
    except (ValueError, TypeError) as error:  # such as an integer of 5,000 digits
        raise InputError(f"{path}: not valid YAML ({error}).") from error
    if not isinstance(values, dict) or not isinstance(node, yaml.MappingNode):
        raise InputError(f"{path}: a recipe is a mapping of keys to values, found {type(values).__name__}.")
    lines: dict[KeyPath, int] = {}
    _walk(node, (), lines, path)
    return values, lines


def _load(text: str) -> tuple[yaml.Node | None, Any]:
    """The tree with its lines, and the plain data it stands for."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        values = None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()
    json.dumps(values, ensure_ascii=False).encode()  # what no configuration could hold, half characters too
    return node, values


def _walk(node: yaml.Node | None, prefix: KeyPath, lines: dict[KeyPath, int], path: Path | str) -> None:
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            _walk(item, (*prefix, str(i)), lines, path)
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        here = (*prefix, str(key.value))
        if here in lines:
            raise InputError(
                f"{path}, line {key.start_mark.line + 1}: the key {'.'.join(here)} appears twice "
                f"(first in line {lines[here]})."
            )
        lines[here] = key.start_mark.line + 1
        _walk(value, here, lines, path)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mapping ``below`` with the keys of ``above`` laid over it, section by section."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        replace = not (isinstance(old, dict) and isinstance(value, dict)) or _other_kind(old, value)
        result[key] = value if replace else merge(old, value)  # type: ignore[arg-type]
    return result


def _other_kind(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether ``new`` chooses another variant of a section: then nothing of the old is kept.

    A section of data without a kind is a file.
    """
    return "kind" in new and new["kind"] != old.get("kind", "file")


def override(recipe: Recipe, assignments: Iterable[str]) -> Recipe:
    """Recipe with ``a.b=c`` assignments applied; values are read as YAML scalars or lists.

    An entry of a list of sections is named by its name or its number: ``method.terms.dice.weight=0.5``.

    Raises:
        InputError: every malformed assignment, in one message.
    """
    values, origins, faults = recipe.values, dict(recipe.origins), []
    for text in assignments:
        key, equals, value = text.partition("=")
        said = text if len(text) <= 200 else f"{text[:200]}..."
        path = tuple(part.strip() for part in key.split("."))
        if not equals or not all(path) or len(path) > _DEEPEST:
            faults.append(f"--set {said!r}: write it as key.path=value, for example --set optim.lr=0.01.")
            continue
        try:
            node, parsed = _load(value)
            _walk(node, (), {}, "--set")
        except (yaml.YAMLError, ValueError, TypeError):  # an InputError is a ValueError: a key appears twice
            faults.append(f"--set {said!r}: what stands behind = is not a YAML value.")
            continue
        clash = _scalar_on_the_way(values, path)
        if clash:
            faults.append(f"--set {said!r}: {clash}.")
            continue
        values = _laid(values, path, parsed)
        origins[path] = f"--set {said}"
    if faults:
        raise InputError("\n".join(faults))
    return Recipe(recipe.name, values, origins)


def _laid(values: Any, path: KeyPath, new: Any) -> Any:
    """Values with one key changed; a step into a list of sections names an entry by its number or its name."""
    if isinstance(values, list):
        place = entry_of(values, path[0])
        assert place is not None
        rest = path[1:]
        changed = _laid(values[place], rest, new) if rest else new
        return [*values[:place], changed, *values[place + 1 :]]
    for depth in range(1, len(path)):
        below = _at(values, path[:depth])
        if isinstance(below, list):
            new, path = _laid(below, path[depth:], new), path[:depth]
            break
    for part in reversed(path):
        new = {part: new}
    return merge(values, new)


def _at(values: Any, path: KeyPath) -> Any:
    for part in path:
        values = values.get(part) if isinstance(values, dict) else None
    return values


def entry_of(listed: list[Any], part: str) -> int | None:
    """Place of the entry of a list of sections that is called so, or has this number; None where there is none.

    >>> entry_of([{"name": "dice"}, {"name": "focal"}], "focal"), entry_of([{"name": "dice"}], "0")
    (1, 0)
    """
    named = [place for place, one in enumerate(listed) if isinstance(one, dict) and one.get("name") == part]
    if named:
        return named[0]
    return int(part) if part.isdecimal() and int(part) < len(listed) else None


def _scalar_on_the_way(values: Any, path: KeyPath) -> str | None:
    """What keeps a key path from being laid over the values, in words; None where nothing does."""
    for depth, part in enumerate(path[:-1], start=1):
        if isinstance(values, list):
            return None  # looked at when the list itself was met
        values = values.get(part)
        where = ".".join(path[:depth])
        if values is None:
            return None
        if isinstance(values, list) and any(isinstance(one, dict) for one in values):
            place = entry_of(values, path[depth])
            if place is None:
                names = [str(one.get("name")) for one in values if isinstance(one, dict) and "name" in one]
                known = ", ".join(names) or f"numbers 0 to {len(values) - 1}"
                return f"{where} has no entry {path[depth]!r}, but {known}"
            deeper = path[depth + 1 :]
            if not isinstance(values[place], dict):
                return f"{where}.{path[depth]} is a value, not a section" if deeper else None
            return _scalar_on_the_way(values[place], deeper) if deeper else None
        if not isinstance(values, dict):
            return f"{where} is a value, not a section"
    return None


class _Dumper(yaml.SafeDumper):
    """Block style for sections, flow style for short lists; numbers survive the way back."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers  # quote what the loader would misread
_Dumper.add_representer(
    list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)
)
_Dumper.add_representer(
    float, lambda dumper, data: dumper.represent_scalar("tag:yaml.org,2002:float", _number(data))
)


def _number(value: float) -> str:
    text = repr(value)
    return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(text, text)


def dump(values: Mapping[str, Any]) -> str:
    """Plain data as YAML that reads back equal."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
