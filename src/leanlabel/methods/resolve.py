"""From a recipe's raw keys to the complete configuration of the method that it names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from leanlabel.config import RunConfig, check_stages, validate, variants
from leanlabel.errors import InputError
from leanlabel.methods import find, table
from leanlabel.recipe import Recipe, merge, override, read_recipe


def resolve(
    recipe: str | Path | Recipe, overrides: Iterable[str] = (), data: Iterable[str] = ()
) -> RunConfig:
    """The complete, checked configuration of a recipe.

    Args:
        recipe: name of a packaged recipe, a YAML file, or raw keys.
        overrides: ``key.path=value`` assignments.
        data: paths that replace the recipe's data: one for ``data``, two for ``data.source`` and ``data.target``.

    Raises:
        InputError: every mistake at once, each with where it stands and the nearest valid key.
    """
    raw = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    raw = override(with_data(raw, list(data)), overrides)
    config = validate(raw, schema(raw))
    kind = find(raw.values["method"]["name"])
    if kind.stage_names is not None:
        check_stages(config, kind.stage_names)
    for name in config.stages:
        kind.stage_config(config, name)
    return config


def schema(raw: Recipe) -> type[RunConfig]:
    """The settings class of the method a recipe names."""
    section = raw.values.get("method")
    name = section.get("name") if isinstance(section, dict) else None
    if not isinstance(name, str):
        raise InputError(f"{raw.name}: method.name: missing; known methods: {', '.join(table())}.")
    return find(name).Config


def with_data(raw: Recipe, paths: list[str]) -> Recipe:
    """Recipe with its data replaced: one place for ``data``, two for ``data.source`` and ``data.target``."""
    if not paths:
        return raw
    if len(paths) > 2:
        raise InputError(f"--data was given {len(paths)} times; one place of data, or a source and a target.")
    places = [_absolute(path) for path in paths]
    section = schema(raw).model_fields.get("data")
    if section is None:
        raise InputError(f"--data {paths[0]}: the method of {raw.name} takes no data.")
    given = raw.values.get("data")
    kind = given.get("kind") if isinstance(given, dict) else None
    values = _placed(section.annotation, places, kind)
    return Recipe(raw.name, merge(raw.values, {"data": values}), {**raw.origins, ("data",): "--data"})


def _placed(annotation: Any, places: list[str], given: Any) -> dict[str, Any]:
    """Settings of the data at one or two places.

    Of several kinds of data the one that has a path, or a source and a target; its kind is named, so that a generated
    set is replaced. One place goes to the source where the recipe has such a pair already.

    Args:
        annotation: of the field ``data``.
        places: one or two.
        given: the kind of data that the recipe names.
    """
    sections = variants(annotation)
    pairs = [one.model_fields for one in sections if {"source", "target"} <= one.model_fields.keys()]
    pair = next((one for one in pairs if len(places) == 2 or (given and _kind(one) == {"kind": given})), None)
    if pair is not None:
        values = {
            key: _placed(pair[key].annotation, [place], None)
            for key, place in zip(("source", "target"), places, strict=False)
        }
        return {**_kind(pair), **values, **({} if len(places) == 2 else {"target": None})}
    named = [one.model_fields for one in sections if "path" in one.model_fields]
    if pairs and not named and len(places) == 1:
        raise InputError(
            f"--data {places[0]}: this recipe needs two places of data, a source and a target.",
            "Give --data twice: first the source, then the target.",
        )
    kind = _kind(named[0]) if named else {}
    files = [{**kind, "path": place} for place in places]
    return files[0] if len(files) == 1 else {"source": files[0], "target": files[1]}


def _kind(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What names a kind of data in a section; nothing where there is one kind only."""
    return {"kind": fields["kind"].default} if "kind" in fields else {}


def _absolute(path: str) -> str:
    """What is here by its full path; anything else as it was written, to be looked for below LEANLABEL_DATA."""
    try:
        place = Path(path).expanduser()
        return str(place.absolute()) if place.exists() else path
    except (OSError, RuntimeError, ValueError):  # the reader says what is wrong with it
        return path
