"""What a comparison was asked for: recipes, seeds, variants, and the values of a grid or a dial."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from leanlabel.errors import InputError
from leanlabel.recipe import Recipe, override
from leanlabel.report.numbers import finite

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
RESERVED = {
    "stages",
    "compare.lock",
    "comparison.csv",
    "comparison.json",
    "pairs.csv",
    "report.html",
    "results.jsonl",
    "stopped.jsonl",
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{n}" for port in ("com", "lpt") for n in range(10)),
}
"""Names that cannot be folders: of shared stages, of files of the comparison, and of devices on Windows."""


@dataclass(frozen=True)
class Request:
    """What to compare. Texts are written as on the command line.

    Attributes:
        recipes: packaged names or files; each is an arm, and brings the baselines of its method.
        seeds: runs per arm, with seeds counted up from that of the first recipe.
        data: places of data as for ``fit``, for every arm.
        overrides: ``key=value`` for every arm.
        only: names of arms to keep; empty for all.
        baselines: add the methods' baselines.
        variants: ``NAME:key=value``; each name is one more arm of every recipe that has its keys.
        grid: ``key=v1,v2``; every arm that trains is tuned over the product.
        grid_seeds: seeds that each point of the grid is run with.
        dial: ``key=v1,v2`` or ``key+key=v1,v2``; the whole comparison at every value.
        against: the arm that all others are compared with; None pairs every recipe with every other arm.
    """

    recipes: Sequence[str]
    seeds: int = 3
    data: Sequence[str] = ()
    overrides: Sequence[str] = ()
    only: Sequence[str] = ()
    baselines: bool = True
    variants: Sequence[str] = ()
    grid: Sequence[str] = ()
    grid_seeds: int = 1
    dial: str | None = None
    against: str | None = None

    def __post_init__(self) -> None:
        """Take any iterable; refuse what cannot be meant."""
        for name in ("recipes", "data", "overrides", "only", "variants", "grid"):
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given))
        if not self.recipes:
            raise InputError("A comparison needs a recipe.", "List them with `leanlabel recipes`.")
        if self.seeds < 1:
            raise InputError(f"--seeds {self.seeds}: at least one is needed.")
        if self.grid and self.dial:
            raise InputError(
                "--grid and --dial cannot stand together.", "Tune first, then turn the dial with --set."
            )
        if not 1 <= self.grid_seeds <= self.seeds:
            raise InputError(f"--grid-seeds {self.grid_seeds}: from 1 to the {self.seeds} of --seeds.")


@dataclass(frozen=True)
class Point:
    """One setting of a dial, or one point of a grid.

    Attributes:
        label: short text, such as ``lr=0.01``; empty where nothing is turned.
        text: its right-hand side; of a list of equal numbers, the number.
        texts: key -> value as it was written.
        values: key -> value as YAML reads it.
        x: place on an axis, where the value is one number (or a list of one number only).
    """

    label: str = ""
    text: str = ""
    texts: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    x: float | None = None


PLAIN = Point()


def grid_points(texts: Sequence[str]) -> list[Point]:
    """The product of ``key=v1,v2`` options, the last key turning fastest.

    Raises:
        InputError: a malformed option, the same key twice, or a single point.

    Example:
        >>> [point.label for point in grid_points(["optim.lr=0.1,0.01", "steps=5,9"])]
        ['lr=0.1, steps=5', 'lr=0.1, steps=9', 'lr=0.01, steps=5', 'lr=0.01, steps=9']
    """
    axes = [_axis("--grid", text) for text in texts]
    keys = [key for keys, _ in axes for key in keys]
    if len(set(keys)) < len(keys) or any(len(keys) > 1 for keys, _ in axes):
        raise InputError(
            f"--grid {' --grid '.join(texts)}: every key by itself, and once.", "Write --grid key=v1,v2."
        )
    if all(len(values) < 2 for _, values in axes):
        raise InputError(f"--grid {' --grid '.join(texts)}: one point is no choice.", "Use --set for it.")
    return [
        Point(
            ", ".join(f"{_short(key)}={_shown(*one)}" for key, one in zip(keys, chosen)),
            ", ".join(_shown(*one) for one in chosen),
            {key: text for key, (text, _) in zip(keys, chosen)},
            {key: value for key, (_, value) in zip(keys, chosen)},
            _place(chosen[0][1]) if len(keys) == 1 else None,
        )
        for chosen in itertools.product(*(values for _, values in axes))
    ]


def dial_points(text: str) -> list[Point]:
    """The values of ``key=v1,v2``, or of ``key+key=v1,v2``, which gives the same value to both keys.

    With ``key+key=a:b,c:d`` each key gets a value of its own; the first one is the place on the axis.

    Raises:
        InputError: a malformed option.

    Example:
        >>> [(point.label, point.x) for point in dial_points("augment.edge_rates=[.1,.1],[.2,.4]")]
        [('edge_rates=0.1', 0.1), ('edge_rates=[0.2, 0.4]', None)]
        >>> dial_points("data.classes+data.per_class=20:400,200:40")[1].values
        {'data.classes': 200, 'data.per_class': 40}
    """
    keys, values = _axis("--dial", text)
    name = "+".join(_short(key) for key in keys)
    found = []
    for written, value in values:
        parts = written.split(":") if isinstance(value, str) else []
        own = len(keys) > 1 and len(parts) == len(keys)
        texts = parts if own else [written] * len(keys)
        read = [_read("--dial", key, part) for key, part in zip(keys, texts)] if own else [value] * len(keys)
        shown = ":".join(_shown(*one) for one in zip(texts, read)) if own else _shown(written, value)
        found.append(
            Point(f"{name}={shown}", shown, dict(zip(keys, texts)), dict(zip(keys, read)), _place(read[0]))
        )
    return found


def variants(texts: Sequence[str]) -> dict[str, list[str]]:
    """Name -> assignments of ``NAME:key=value`` options, those of one name together.

    Raises:
        InputError: an option that is not of this form, or a name that cannot be one of a folder.
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        name, colon, assignment = text.partition(":")
        key, equals, _ = assignment.partition("=")
        if not (colon and equals and key.strip()):
            raise InputError(
                f"--variant {text!r}: write it as NAME:key=value.",
                "For example --variant cold:method.tau=0.1.",
            )
        if not NAME.fullmatch(name) or reserved(name) or name.endswith("."):
            raise InputError(
                f"--variant {text!r}: {name!r} cannot be the name of an arm.",
                "Use letters, digits, '-', '_' and '.'.",
            )
        found.setdefault(name, []).append(assignment)
    return found


def reserved(name: str) -> bool:
    """Whether a folder of a comparison cannot have this name.

    Example:
        >>> reserved("Stages"), reserved("nul.x"), reserved("stages-2")
        (True, True, False)
    """
    return not {name.casefold(), name.casefold().partition(".")[0]}.isdisjoint(RESERVED)


def split_values(text: str) -> list[str]:
    """Parts of a text between the commas that stand outside brackets and quotes.

    Example:
        >>> split_values("[0.1, 0.2],[0.3,0.4], relu")
        ['[0.1, 0.2]', '[0.3,0.4]', 'relu']
    """
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        if letter == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _axis(option: str, text: str) -> tuple[list[str], list[tuple[str, Any]]]:
    """Keys and values (as written, as read) of one option."""
    left, equals, right = text.partition("=")
    keys, values = [key.strip() for key in left.split("+")], split_values(right)
    if not equals or not all(keys) or not all(values):
        raise InputError(
            f"{option} {text!r}: write it as key=v1,v2.", f"For example {option} optim.lr=0.001,0.01."
        )
    for key in keys:
        if key == "seed":
            raise InputError(f"{option} {text!r}: seeds are counted by --seeds.")
    read = [(written, _read(option, key, written)) for key in keys[:1] for written in values]
    told = [(isinstance(value, bool), value) for _, value in read]  # True is 1 in Python, not in YAML
    labels = {_shown(*one) for one in read}
    if any(one in told[:place] for place, one in enumerate(told)) or len(labels) < len(read):
        raise InputError(f"{option} {text!r}: a value stands there twice.")
    return keys, read


def _read(option: str, key: str, written: str) -> Any:
    try:
        return override(Recipe("", {}), [f"value={written}"]).values["value"]
    except InputError as error:
        raise InputError(f"{option} {key}: {written!r} is not a YAML value.") from error


def _short(key: str) -> str:
    return key.rpartition(".")[2]


def _shown(written: str, value: Any) -> str:
    """A value as it stands in tables: as it was written, a list of one number by that number."""
    if not isinstance(value, list) or not value or any(isinstance(one, list | dict) for one in value):
        return written
    return str(value[0]) if all(one == value[0] for one in value) else f"[{', '.join(map(str, value))}]"


def _place(value: Any) -> float | None:
    if isinstance(value, list) and value and all(one == value[0] for one in value):
        value = value[0]
    return float(value) if isinstance(value, int | float) and finite(value) else None
