"""From a recipe's raw keys to the complete configuration of the method that it names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

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
    check_stages(config, find(raw.values["method"]["name"]).stage_names)
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
    # Of several kinds of data the one that has a path; its kind is named, so that a generated set is replaced.
    named = [one.model_fields for one in variants(section.annotation) if "path" in one.model_fields]
    kind = {"kind": named[0]["kind"].default} if named and "kind" in named[0] else {}
    files = [{**kind, "path": place} for place in places]
    values = files[0] if len(files) == 1 else {"source": files[0], "target": files[1]}
    return Recipe(raw.name, merge(raw.values, {"data": values}), {**raw.origins, ("data",): "--data"})


def _absolute(path: str) -> str:
    """What is here by its full path; anything else as it was written, to be looked for below LEANLABEL_DATA."""
    try:
        place = Path(path).expanduser()
        return str(place.absolute()) if place.exists() else path
    except (OSError, RuntimeError, ValueError):  # the reader says what is wrong with it
        return path
