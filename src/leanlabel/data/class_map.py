"""Which raw label ids mean which class: named maps of public sets, and plain ones for data of one's own."""

from __future__ import annotations

import colorsys
import difflib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from leanlabel.data.published_classes import NAMED, Colour
from leanlabel.data.published_classes import sixteen_to_nineteen as sixteen_to_nineteen
from leanlabel.errors import InputError

IGNORE = 255
"""Value of pixels without a class in masks of uint8."""
MOST_CLASSES = 254
"""Classes are numbered 0 .. 253: 254 marks ids that a map does not list, 255 what is ignored."""
UNLISTED = 254
"""Entry of a table for an id that the map does not list."""
_RAW = 1 << 16
_TRAIN_IDS = "cityscapes-19-train-ids"


@dataclass(frozen=True)
class ClassMap:
    """Raw label ids of files, and the K classes that they mean.

    Args:
        name: name of the map.
        names: K names of the classes, each another one.
        colours: K colours (red, green, blue), 0 .. 255.
        ids: raw id in [0, 65535] -> class in [0, K); several ids may share a class, each class has at least one.
        ignored: raw ids that mean no class, such as 11 in CamVid.
        unlisted: what an id means that is neither in `ids` nor `ignored`: a mistake in the data, or no class.
        subsets: classes that further scores are averaged over, by name.
        by_colour: masks are colour pictures whose colours, not ids, say the class.
        ignored_colours: colours that mean no class; used with `by_colour`.

    Raises:
        ValueError: lengths differ, a name occurs twice, or a class or id is out of range.

    >>> tiny = ClassMap("tiny", ("road", "car"), ((128, 64, 128), (0, 0, 142)), {7: 0, 26: 1}, frozenset({0}))
    >>> tiny.translate(np.array([[7, 26], [0, 7]], dtype=np.uint8), "a.png").tolist()
    [[0, 1], [255, 0]]
    """

    name: str
    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    ids: Mapping[int, int]
    ignored: frozenset[int] = frozenset()
    unlisted: Literal["error", "ignore"] = "error"
    subsets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    by_colour: bool = False
    ignored_colours: frozenset[Colour] = frozenset()

    def __post_init__(self) -> None:
        k = len(self.names)
        if not 1 <= k <= MOST_CLASSES:
            raise ValueError(f"{self.name}: {k} classes, must be 1 to {MOST_CLASSES}")
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise ValueError(f"{self.name}: the class name {twice[0]!r} occurs twice")
        if len(self.colours) != k:
            raise ValueError(f"{self.name}: {len(self.colours)} colours for {k} classes")
        for colour in (*self.colours, *self.ignored_colours):
            if len(colour) != 3 or not all(0 <= part <= 255 for part in colour):
                raise ValueError(f"{self.name}: {tuple(colour)} is not a colour (red, green, blue), 0 to 255")
        outside = [raw for raw in (*self.ids, *self.ignored) if not 0 <= raw < _RAW]
        if outside:
            raise ValueError(f"{self.name}: the raw id {outside[0]} is not in 0 to {_RAW - 1}")
        if self.unlisted not in ("error", "ignore"):
            raise ValueError(f"{self.name}: unlisted must be error or ignore, got {self.unlisted!r}")
        both = sorted(set(self.ids) & self.ignored)
        if both:
            raise ValueError(f"{self.name}: the raw id {both[0]} is listed as a class and as ignored")
        wrong = sorted(set(range(k)) ^ set(self.ids.values()))
        if wrong:
            what = "has no raw id" if wrong[0] in range(k) else f"does not exist, there are {k}"
            raise ValueError(f"{self.name}: class {wrong[0]} {what}")
        inside = [one for own in self.subsets.values() for one in own if one not in range(k)]
        if inside:
            raise ValueError(f"{self.name}: a subset names class {inside[0]}, there are {k}")
        if self.by_colour:
            seen = {*self.colours, *self.ignored_colours}
            if len(seen) != k + len(self.ignored_colours):
                raise ValueError(f"{self.name}: two classes share a colour, but masks are told by colour")

    def __len__(self) -> int:
        return len(self.names)

    def __hash__(self) -> int:
        return hash((self.name, self.names, self.colours))

    @functools.cached_property
    def table(self) -> np.ndarray:
        """(65536,) uint8: raw id -> class, 255 for ignored, 254 for an id that is an error."""
        table = np.full(_RAW, IGNORE if self.unlisted == "ignore" else UNLISTED, dtype=np.uint8)
        table[list(self.ignored)] = IGNORE
        table[list(self.ids)] = list(self.ids.values())
        return table

    @functools.cached_property
    def raw_ids(self) -> tuple[int, ...]:
        """K raw ids: of each class the first that the map lists, to write masks as the data had them."""
        first: dict[int, int] = {}
        for raw, label in self.ids.items():
            first.setdefault(label, raw)
        return tuple(first[label] for label in range(len(self)))

    def translate(self, raw: np.ndarray, where: str) -> np.ndarray:
        """Turn raw ids into classes.

        Args:
            raw: any shape, uint8 or uint16; other integers in [0, 65535].
            where: name of the file, for messages.

        Returns:
            The same shape, uint8: class, or 255 for none.

        Raises:
            InputError: an id that the map does not list; names file, value and count.
        """
        if raw.dtype not in (np.uint8, np.uint16):
            if raw.dtype.kind not in "biu":
                raise ValueError(f"raw ids must be integers, got {raw.dtype}")
            if raw.size and (int(raw.min()) < 0 or int(raw.max()) >= _RAW):
                raise InputError(
                    f"{where}: label values from {raw.min()} to {raw.max()}, expected 0 to {_RAW - 1}."
                )
            raw = raw.astype(np.uint16)
        classes = self.table[: 256 if raw.dtype == np.uint8 else None][raw]
        if self.unlisted == "error" and bool((classes == UNLISTED).any()):
            values, counts = np.unique(raw, return_counts=True)
            raise self.refuse(dict(zip(values.tolist(), counts.tolist())), where)
        return classes

    def refuse(self, counts: Mapping[int, int], where: str, files: str = "") -> InputError:
        """Make the error for masks that hold ids which the map does not list.

        Args:
            counts: raw id -> pixels, of all ids that occur.
            where: name of the file or of the data.
            files: which files hold them, where several were looked at.
        """
        wrong = {raw: n for raw, n in sorted(counts.items()) if n and self.table[raw] == UNLISTED}
        shown = ", ".join(f"{raw} ({n:,} pixels)" for raw, n in list(wrong.items())[:5])
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        plural = "values" if len(wrong) > 1 else "value"
        return InputError(
            f"{where}: label {plural} {shown}{more} not in the class map {self.name} "
            f"(it lists {_ranges(self.ids)}{'; ignored ' + _ranges(self.ignored) if self.ignored else ''}){files}.",
            f"{self.hint(counts)}",
        )

    def hint(self, counts: Mapping[int, int]) -> str:
        """Say what label values probably are that do not fit: a binary mask, off by one, class numbers.

        Args:
            counts: raw id -> pixels, of all ids that occur.
        """
        values = {raw for raw, n in counts.items() if n}
        largest = max(self.ids)
        plain = set(self.ids) == set(range(len(self)))
        if values == {IGNORE}:
            return "255 only: list it in the class map as ignored: [255] where it means no class."
        if values == {0, IGNORE}:
            return "0 and 255 only: looks like a binary mask written as 0/255; ids: {0: 0, 255: 1}."
        if plain and 0 not in values and values - {IGNORE} and max(values - {IGNORE}) == largest + 1:
            return (
                "All ids one too large: off by one (they start at 1); list them in the class map as "
                f"ids: {{1: 0, 2: 1, ..., {largest + 1}: {largest}}}."
            )
        return (
            "Add these values to the class map (ids, or ignored), give another map with data.classes, "
            "or say unlisted: ignore to leave such pixels out."
        )

    def doubt(self, counts: Mapping[int, int]) -> str | None:
        """Say why label values that the map lists are probably meant otherwise; None where nothing speaks for it.

        Args:
            counts: raw id -> pixels of all masks; in a single mask, 0 and 255 may well be background and ignored.
        """
        values = {raw for raw, n in counts.items() if n}
        if values == {0, IGNORE} and len(self) > 1 and 0 in self.ids and IGNORE not in self.ids:
            return self.hint(counts)
        if (
            self.unlisted == "ignore"
            and not {0, 1, 2} & set(self.ids)
            and values <= {*range(len(self)), IGNORE}
        ):
            low, known = (sum(counts.get(raw, 0) for raw in ids) for ids in ((0, 1, 2), range(len(self))))
            if 2 * low > known:
                return (
                    "Most pixels have the values 0, 1 and 2, which it ignores: these masks hold class numbers "
                    f"(train ids), not raw ids; for 19 classes set data.classes: {_TRAIN_IDS}."
                )
        return None

    def as_dict(self) -> dict[str, Any]:
        """All of the map as plain data, for checkpoints and JSON."""
        return {
            "name": self.name,
            "names": list(self.names),
            "colours": [list(colour) for colour in self.colours],
            "ids": {str(raw): label for raw, label in self.ids.items()},
            "ignored": sorted(self.ignored),
            "unlisted": self.unlisted,
            "subsets": {name: list(own) for name, own in self.subsets.items()},
            "by_colour": self.by_colour,
            "ignored_colours": [list(colour) for colour in sorted(self.ignored_colours)],
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> ClassMap:
        """Read what :meth:`as_dict` made.

        Raises:
            InputError: it is not such a map.

        >>> ClassMap.from_dict(class_map("synthia-16").as_dict()) == class_map("synthia-16")
        True
        """
        try:
            return cls(
                name=str(stored["name"]),
                names=tuple(str(one) for one in stored["names"]),
                colours=_colours(stored["colours"]),
                ids={int(raw): int(label) for raw, label in stored["ids"].items()},
                ignored=frozenset(int(raw) for raw in stored.get("ignored", ())),
                unlisted=stored.get("unlisted", "error"),
                subsets={str(k): tuple(int(c) for c in own) for k, own in stored.get("subsets", {}).items()},
                by_colour=bool(stored.get("by_colour", False)),
                ignored_colours=frozenset(_colours(stored.get("ignored_colours", ()))),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
            raise InputError(f"a stored class map cannot be read: {reason}.") from error


def plain_map(
    names: Sequence[str],
    colours: Sequence[Colour] | None = None,
    *,
    name: str = "own classes",
    ids: Mapping[int, int] | None = None,
    ignored: Sequence[int] | None = None,
    unlisted: Literal["error", "ignore"] = "error",
    by_colour: bool = False,
    ignored_colours: Sequence[Colour] = (),
) -> ClassMap:
    """Make a class map in which raw id k is class k, unless `ids` say otherwise.

    Args:
        names: K names.
        colours: K colours; without them, such that colour-blind people can tell the first 32 apart.
        name: name of the map.
        ids: raw id -> class.
        ignored: raw ids that mean no class; without it 255, where that is no class's id.
        unlisted: what other ids mean.
        by_colour: masks are colour pictures.
        ignored_colours: colours that mean no class.

    Raises:
        ValueError: as for :class:`ClassMap`.

    >>> plain_map(["background", "cell"]).translate(np.array([[1, 255]], dtype=np.uint8), "a.png").tolist()
    [[1, 255]]
    """
    own = dict(enumerate(range(len(names)))) if ids is None else dict(ids)
    if ignored is None:
        ignored = () if IGNORE in own else (IGNORE,)
    return ClassMap(
        name,
        tuple(names),
        default_colours(len(names)) if colours is None else _colours(colours),
        own,
        frozenset(ignored),
        unlisted,
        by_colour=by_colour,
        ignored_colours=frozenset(_colours(ignored_colours)),
    )


def default_colours(count: int) -> tuple[Colour, ...]:
    """Colours for classes that have none of their own.

    The first 32 were chosen one by one, each as far as possible from those before it, for normal sight and for all
    three kinds of colour blindness; further ones run through hues and lightness. All are different.

    >>> default_colours(2), len(set(default_colours(254)))
    (((230, 159, 0), (86, 180, 233)), 254)
    """
    found = list(_DISTINCT[:count])
    number = 0
    while len(found) < count:
        hue, light = (number * 0.618034) % 1, (0.35, 0.5, 0.65, 0.8)[number % 4]
        red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue, light, 0.75))
        if (red, green, blue) not in found:
            found.append((red, green, blue))
        number += 1
    return tuple(found)


def class_map(name: str) -> ClassMap:
    """Return a map of a public set.

    Args:
        name: one of :func:`class_map_names`.

    Raises:
        InputError: no such map; names the nearest.

    >>> len(class_map("cityscapes-19")), class_map("camvid-11").names[3]
    (19, 'road')
    """
    if name not in NAMED:
        near = difflib.get_close_matches(name.lower(), NAMED, n=1, cutoff=0.4)
        raise InputError(
            f"There is no class map {name!r}.",
            f"{f'Nearest: {near[0]}; all' if near else 'There are'}: {', '.join(NAMED)}.",
        )
    return _named(name)


@functools.cache
def _named(name: str) -> ClassMap:
    return ClassMap(**NAMED[name])


def class_map_names() -> tuple[str, ...]:
    """Names that :func:`class_map` knows."""
    return tuple(NAMED)


def _colours(values: Any) -> tuple[Colour, ...]:
    found = tuple(tuple(int(part) for part in colour) for colour in values)
    if any(len(colour) != 3 for colour in found):
        raise ValueError("a colour has three parts: red, green, blue")
    return found  # type: ignore[return-value]


def _ranges(values: Any) -> str:
    """Numbers in order, runs joined: "0-18, 255"."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    text = [str(low) if low == high else f"{low}-{high}" for low, high in runs]
    return ", ".join(text[:12]) + (", ..." if len(text) > 12 else "")


_DISTINCT: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
    (128, 128, 128), (153, 0, 255), (119, 0, 0), (204, 255, 170), (68, 0, 153), (85, 34, 85), (153, 255, 221),
    (136, 119, 255), (102, 34, 51), (221, 221, 255), (119, 187, 102), (238, 255, 136), (170, 68, 68), (170, 34, 0),
    (0, 51, 119), (255, 170, 170), (102, 68, 187), (136, 153, 255), (221, 187, 85), (136, 85, 136), (238, 85, 68),
    (0, 51, 204), (102, 85, 102), (221, 170, 187), (255, 51, 204),
)  # fmt: skip
