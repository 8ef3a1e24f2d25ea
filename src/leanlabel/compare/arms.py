"""The arms of a comparison: every recipe, its variants, and the baselines of its method."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_origin

from pydantic import BaseModel

from leanlabel import methods
from leanlabel.compare.request import PLAIN, Point, Request, reserved, variants
from leanlabel.config import variants as sections
from leanlabel.engine.runfolder import safe_name
from leanlabel.errors import InputError
from leanlabel.methods.resolve import resolve, schema, with_data
from leanlabel.recipe import Recipe, entry_of, merge, override, read_recipe


@dataclass(frozen=True)
class Arm:
    """One way of doing it, run with every seed.

    Attributes:
        name: name in tables and of its folder.
        recipe: raw keys, without the seed of a run.
        source: name of the arm of the recipe that it comes from.
        role: "recipe", "variant", or the name of the baseline in its method.
        supervised: its method learns from labels alone.
    """

    name: str
    recipe: Recipe
    source: str
    role: str
    supervised: bool = False

    @property
    def baseline(self) -> bool:
        """Whether the method added it."""
        return self.role not in ("recipe", "variant")


def arms_of(request: Request, point: Point = PLAIN) -> dict[str, Arm]:
    """All arms by name at one point of a grid or dial, before equal ones are told.

    What makes a variant or a baseline is laid over the point: ``grace`` stays uniform whatever is turned.

    Raises:
        InputError: a mistake in a recipe, in an assignment or in the name of a variant.
    """
    given = {}
    for raw in _recipes(request):
        given[_free(_folder_name(raw.name), given)] = raw
    extra = variants(request.variants)
    _check(request, point, list(given.values()), extra)
    found = {
        source: Arm(source, _turned(raw, point), source, "recipe", _supervised(raw))
        for source, raw in given.items()
    }
    own = {name for raw in given.values() for name in _baselines(raw)} if request.baselines else set()
    for name in extra:
        if name.casefold() in {other.casefold() for other in (*found, *own)}:
            raise InputError(f"--variant {name}: there is an arm of this name already.", "Give it another.")
    ordered: dict[str, Arm] = {}
    for source, raw in given.items():
        ordered[source] = found[source]
        turned = found[source].recipe
        for name, assignments in extra.items():
            if all(takes(schema(raw), _key(text), raw.values) for text in assignments):
                arm = _free(name if len(given) == 1 else f"{source}-{name}", {**found, **ordered})
                changed = _named(override(turned, assignments), assignments, f"--variant {name}:")
                ordered[arm] = Arm(arm, changed, source, "variant", _supervised(raw))
        for name, changes in (_baselines(raw) if request.baselines else {}).items():
            taken = {**found, **ordered}
            arm = _free(name if _free(name, taken) == name else f"{source}-{name}", taken)
            changed = Recipe(raw.name, merge(turned.values, changes), turned.origins)
            ordered[arm] = Arm(arm, changed, source, name, _supervised(changed))
    return ordered


def _baselines(raw: Recipe) -> dict[str, dict[str, Any]]:
    """What its method holds a recipe against."""
    return _method(raw).baselines_of(raw.values)


def takes(settings: type[BaseModel], key: str, values: Any = None) -> bool:
    """Whether the settings of a method have a key, in some variant of the sections on the way.

    Args:
        settings: the schema.
        key: path of the key; an entry of a list of sections is named by its name or number.
        values: a recipe's keys, which say what entries its lists have.

    Example:
        >>> from leanlabel.config import RunConfig
        >>> takes(RunConfig, "optim.lr"), takes(RunConfig, "optim.lrr"), takes(RunConfig, "optim.lr.x")
        (True, False, False)
    """
    *way, last = key.split(".")
    options, listed = [settings], False
    for part in way:
        if listed:  # this part names an entry; its sections are known already
            found = None if not isinstance(values, list) else entry_of(values, part)
            if found is None:
                return False
            values, listed = values[found], False
            continue
        values = values.get(part) if isinstance(values, Mapping) else None
        fields = [one.model_fields[part] for one in options if part in one.model_fields]
        if any(get_origin(one.annotation) is dict for one in fields):
            return True
        options = [variant for one in fields for variant in sections(one.annotation)]
        listed = any(get_origin(one.annotation) in (tuple, list) for one in fields) and bool(options)
    if listed:
        return isinstance(values, list) and entry_of(values, last) is not None
    return any(last in one.model_fields for one in options)


def _recipes(request: Request) -> Iterator[Recipe]:
    """The recipes with ``--data`` and ``--set``."""
    for name in request.recipes:
        yield override(with_data(read_recipe(name), list(request.data)), request.overrides)


def _check(request: Request, point: Point, raws: list[Recipe], extra: Mapping[str, list[str]]) -> None:
    """Every recipe is sound as it is, and every key has somebody to take it."""
    for text in request.overrides:
        lacking = [raw for raw in raws if not takes(schema(raw), _key(text), raw.values)]
        if lacking and len(lacking) < len(raws):
            raise InputError(
                f"--set {text}: {lacking[0].name} (method {_name(lacking[0])}) has no key {_key(text)}.",
                f"To change it where it is: --variant NAME:{text}.",
            )
    for raw in raws:
        resolve(raw)
    for name, assignments in extra.items():
        if not any(all(takes(schema(raw), _key(text), raw.values) for text in assignments) for raw in raws):
            missing = [text for text in assignments if not _taken(raws, _key(text))] or assignments
            _refuse(f"--variant {name}:{missing[0]}", _key(missing[0]), raws)
    for key in point.texts:
        if not _taken(raws, key):
            _refuse(f"{'--dial' if request.dial else '--grid'} {key}", key, raws)


def _taken(raws: list[Recipe], key: str) -> bool:
    return any(takes(schema(raw), key, raw.values) for raw in raws)


def _refuse(what: str, key: str, raws: list[Recipe]) -> None:
    known = [path for raw in raws for path in _paths(resolve(raw).model_dump(mode="json"))]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    hint = f"Nearest valid key: {near[0]}." if near else f"See `leanlabel show {raws[0].name}` for its keys."
    raise InputError(f"{what}: no recipe here has this key.", hint)


def _paths(values: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield above + key
        if isinstance(value, dict):
            yield from _paths(value, f"{above}{key}.")


def _turned(raw: Recipe, point: Point) -> Recipe:
    """A recipe at a point: the keys that it has are set."""
    texts = [f"{key}={text}" for key, text in point.texts.items() if takes(schema(raw), key, raw.values)]
    return _named(override(raw, texts), texts, "value ")


def _named(recipe: Recipe, texts: list[str], option: str) -> Recipe:
    """The recipe, with the option that was really given as the origin of the keys set by it."""
    origins = {tuple(_key(text).split(".")): f"{option}{text}" for text in texts}
    return Recipe(recipe.name, recipe.values, {**recipe.origins, **origins})


def _key(text: str) -> str:
    return ".".join(part.strip() for part in text.partition("=")[0].split("."))


def _name(raw: Recipe) -> str:
    return raw.values["method"]["name"]


def _method(raw: Recipe) -> Any:
    return methods.find(_name(raw))


def _supervised(raw: Recipe) -> bool:
    return bool(getattr(_method(raw), "supervised_only", False))


def _folder_name(recipe: str) -> str:
    """The name of a recipe's arm, which every system takes for a folder and which is none of the comparison's own."""
    name = safe_name(recipe)
    return f"_{name}" if reserved(name) else name


def _free(name: str, taken: Mapping[str, Any]) -> str:
    """A name that no other arm has, also where upper and lower case are the same."""
    used = {other.casefold() for other in taken}
    counter, free = 1, name
    while free.casefold() in used:
        counter += 1
        free = f"{name}-{counter}"
    return free
