"""Recipes that fit given data: the rules behind ``leanlabel init``.

The table names the rules of every task as plain strings. A new system adds a module with a function
``advise(places: list[str]) -> Advice`` and names it here.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from leanlabel.errors import InputError

if TYPE_CHECKING:
    from leanlabel.advice.recipe import Advice


class Task(NamedTuple):
    """One kind of job."""

    places: int
    """How many places of data it takes."""
    rules: str | None = None
    """Its rules as "module:function"; None while no system of the package does this job."""


TASKS: dict[str, Task] = {
    "graph": Task(1, "leanlabel.advice.graph:advise"),
    "ssl": Task(1, "leanlabel.advice.ssl:advise"),
    "segmentation": Task(1, "leanlabel.advice.segmentation:advise"),
    "adapt": Task(2, "leanlabel.advice.adapt:advise"),
    "semi": Task(1),
    "classify-adapt": Task(2),
    "volumes": Task(1),
    "text": Task(1),
}


def advise(task: str, places: Sequence[str]) -> Advice:
    """Look at data and choose the settings of a recipe for it.

    Args:
        task: a key of ``TASKS``.
        places: paths of the data: one, or a source and a target for the tasks that adapt.

    Raises:
        InputError: an unknown task (names the nearest), one without rules yet, another number of places than
            it takes, or data that cannot be read.
    """
    written = ", ".join(name for name, one in TASKS.items() if one.rules)
    if task not in TASKS:
        near = difflib.get_close_matches(task, TASKS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"There are rules for: {written}."
        raise InputError(f"init {task!r}: unknown task.", hint)
    wanted, rules = TASKS[task]
    if rules is None:
        raise InputError(
            f"init {task}: this version of leanlabel has no system for that job yet.",
            f"There are rules for: {written}.",
        )
    if len(places) != wanted:
        takes = "one place of data" if wanted == 1 else "a source and a target"
        raise InputError(f"init {task} takes {takes}, got {len(places)}.")
    module, _, function = rules.partition(":")
    return getattr(import_module(module), function)(list(places))
