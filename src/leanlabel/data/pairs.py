"""Which image of one data set shows the same scene as which image of another: by name, by a table, by time, by row."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from leanlabel import rng
from leanlabel.config import Settings
from leanlabel.data.decode import read_header
from leanlabel.data.dense import DenseImages, MaskFiles, fitted_size
from leanlabel.data.graph_source import find
from leanlabel.data.image_names import (
    ImageNames,
    composed,
    file_stem,
    names_of,
    two_columns,
    without_ending,
)
from leanlabel.data.image_times import seconds_of
from leanlabel.data.images import PixelFiles
from leanlabel.errors import InputError

_SHOWN = 5
_MOMENT = 1e-6
_TARGET, _SOURCE = ("target", "target_name", "new"), ("source", "source_name", "reference", "old")
_NAME, _TIME = (
    ("name", "image", "file", "filename", "path"),
    ("time", "timestamp", "date", "datetime", "seconds"),
)


class PairSection(Settings):
    """How images of the target find those of the source that show the same scene."""

    by: Literal["name", "csv", "time", "same"] = "name"
    """name: the same file name, or the same part of it, see rule; csv: a table says it, see path; time: taken nearest
    in time, see tolerance; same: row by row, under the same names, as of a transformed copy."""
    rule: str | None = None
    """Used by name: a regular expression with one group, looked for in both names, such as 'spot_([0-9]+)'; images
    belong together where the group reads the same and is not empty. It is your own: one that takes exponential time
    does. null: names without ending are the same; where no two are, names without folders, which then must be
    different for all images."""
    path: str | None = None
    """Used by csv: a table of two columns, target and source, with names of images; several lines may name one target.
    Also found below LEANLABEL_DATA."""
    times: str | None = None
    """Used by time: a table of two columns, name and time, for images of both sets; null reads times from names."""
    source_times: str | None = None
    """Used by time: a table for the source only, where names of the two sets are alike."""
    time_rule: str | None = None
    """Used by time: a regular expression with one group, the time in a name with its folders; null: the file name
    without ending is the time."""
    time_format: str | None = None
    """Used by time: how times are written, such as '%Y%m%d_%H%M%S'; null: seconds, or ISO 8601 with separators."""
    tolerance: float = Field(default=60.0, ge=0)
    """Used by time: images that were taken further apart are no pair; seconds."""

    @field_validator("rule", "time_rule")
    @classmethod
    def _one_group(cls, rule: str | None) -> str | None:
        if rule is None:
            return rule
        try:
            groups = re.compile(rule).groups
        except re.error as error:
            raise ValueError(f"a regular expression ({error})") from error
        if groups != 1:
            raise ValueError(
                f"a regular expression with one group in brackets, not {groups}; (?:...) is not counted"
            )
        return rule

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.by == "csv" and self.path is None:
            raise ValueError("path, the table of pairs, with by: csv")
        if self.source_times is not None and self.times is None:
            raise ValueError("times, the table of the target, with source_times")
        return self


@dataclass(frozen=True, eq=False)
class Pairs:
    """Images of a target with those of a source that show the same scene.

    Args:
        rows: (n,) int64 rows of the target that have a partner, in order.
        candidates: row of the target -> rows of the source, at least one each, in order.
        missing: names of the images of the target that have none.
    """

    rows: Tensor
    candidates: Mapping[int, Sequence[int]]
    missing: Sequence[str] = field(default=())

    def __len__(self) -> int:
        return len(self.rows)

    def choose(self, rows: Tensor, ids: Tensor, *, seed: int, epoch: int) -> Tensor:
        """Choose one partner for each image: another one in each epoch, where there are several.

        Args:
            rows: (B,) integer rows of the target, of those that have a partner.
            ids: (B,) integer sample ids, whose numbers are used.
            seed: the run's seed.
            epoch: >= 0.

        Returns:
            (B,) int64 rows of the source, uniform among the candidates.

        Raises:
            ValueError: a row without a partner.

        Example:
            >>> pairs = Pairs(torch.tensor([4]), {4: [7]})
            >>> pairs.choose(torch.tensor([4]), torch.tensor([0]), seed=0, epoch=3)
            tensor([7])
        """
        without = [row for row in rows.tolist() if not self.candidates.get(row)]
        if without:
            raise ValueError(f"row {without[0]} of the target has no partner")
        numbers = rng.draw(seed, "partner", epoch, ids.cpu()).uniform().tolist()
        found = [self.candidates[row] for row in rows.tolist()]
        return torch.tensor(
            [own[int(u * len(own))] for own, u in zip(found, numbers, strict=True)], dtype=torch.int64
        )

    def note(self) -> str | None:
        """A sentence about images that are left out; None where none is.

        >>> Pairs(torch.tensor([0]), {0: [0]}, ["b.png", "c.png"]).note()
        '2 of 3 target images have no partner and are left out: b.png, c.png.'
        """
        if not self.missing:
            return None
        more = ", ..." if len(self.missing) > _SHOWN else ""
        total = len(self.missing) + len(self.rows)
        verb = "has no partner and is" if len(self.missing) == 1 else "have no partner and are"
        names = ", ".join(self.missing[:_SHOWN]) + more
        return f"{len(self.missing)} of {total} target images {verb} left out: {names}."


def find_pairs(
    source: DenseImages,
    target: DenseImages,
    section: PairSection,
    rows_target: Tensor | Sequence[int] | None = None,
    rows_source: Tensor | Sequence[int] | None = None,
) -> Pairs:
    """Find the partners of images of the target.

    Args:
        source: where partners are looked for.
        target: whose images need partners.
        section: how they find them.
        rows_target: rows of the target that are asked for; None: all.
        rows_source: rows of the source that may be partners; None: all.

    Raises:
        InputError: no names or times where they are needed, a table that names what does not exist (file, line, name
            and the nearest one), sets of different length or names with same, names that could mean several images,
            two times of one image, or no pair at all.

    Example:
        >>> from leanlabel.data.generated.scenes import scene_images
        >>> scenes = scene_images(train=2, val=0, test=1, height=32, width=48)
        >>> find_pairs(scenes, scenes, PairSection(), [1, 2]).candidates
        {1: [1], 2: [2]}
    """
    wanted = list(range(len(target))) if rows_target is None else [int(row) for row in rows_target]
    allowed = set(range(len(source))) if rows_source is None else {int(row) for row in rows_source}
    find_partners = {"name": _by_name, "csv": _by_table, "time": _by_time, "same": _by_row}[section.by]
    partners = find_partners(source, target, section, allowed)
    found = {row: sorted(set(partners(row)) & allowed) for row in wanted}
    names = target.ids or [f"row {row}" for row in range(len(target))]
    missing = [names[row] for row in wanted if not found[row]]
    candidates = {row: own for row, own in found.items() if own}
    if not candidates:
        example = f", such as {missing[0]}" if missing else ""
        raise InputError(
            f"data.pairs: none of {len(wanted)} target images has a partner in {source.name} by {section.by}{example}.",
            _hint(source, section),
        )
    return Pairs(torch.tensor(list(candidates), dtype=torch.int64), candidates, missing)


def check_pair_sizes(source: DenseImages, target: DenseImages, pairs: Pairs) -> None:
    """Refuse pairs of images of different sizes: nobody knows how they lie on one another.

    Sizes are known or read from the heads of files; only images of other kinds are read.

    Raises:
        InputError: names the first few pairs and both sizes of each.
    """
    own, other = target.shape, source.shape
    if own is not None and other is not None:
        if own[1:] == other[1:]:
            return
        raise InputError(
            f"data.pairs: images of {target.name} have {own[2]} x {own[1]} pixels, those of {source.name} "
            f"{other[2]} x {other[1]}.",
            "Bring both to one size, such as with data.source.resize and data.target.resize.",
        )
    wrong = []
    sizes: dict[int, tuple[int, int]] = {}
    for row, candidates in pairs.candidates.items():
        mine = _size(target, row)
        for partner in candidates:
            if partner not in sizes:
                sizes[partner] = _size(source, partner)
            if sizes[partner] != mine:
                theirs = sizes[partner]
                wrong.append(
                    f"{_name(target, row)} with {mine[1]} x {mine[0]} and "
                    f"{_name(source, partner)} with {theirs[1]} x {theirs[0]} pixels"
                )
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise InputError(
            f"data.pairs: {len(wrong)} pairs differ in size: {'; '.join(wrong[:_SHOWN])}{more}.",
            "Bring both to one size, such as with data.source.resize and data.target.resize.",
        )


Partners = Callable[[int], Sequence[int]]


def _by_row(source: DenseImages, target: DenseImages, section: PairSection, allowed: set[int]) -> Partners:
    if len(source) != len(target):
        raise InputError(
            f"data.pairs: by same needs sets of one length, but {source.name} has {len(source)} images and "
            f"{target.name} {len(target)}.",
            "Pair them by name, csv or time.",
        )
    names = zip(source.ids or (), target.ids or (), strict=False)  # as many, or none at all
    for row, both in enumerate(names):
        theirs, own = (without_ending(composed(name)) for name in both)
        if theirs != own:
            raise InputError(
                f"data.pairs: by same: row {row} is {both[0]} in {source.name} and {both[1]} in {target.name}.",
                "Read both with the same limit, groups and parts, or pair them by name, csv or time.",
            )
    return lambda row: [row]


def _by_name(source: DenseImages, target: DenseImages, section: PairSection, allowed: set[int]) -> Partners:
    theirs, own = ([composed(name) for name in names_of(data)] for data in (source, target))
    if section.rule is not None:
        rule = re.compile(section.rule)
        index = _index([_group(rule, name) for name in theirs])
        mine = [_group(rule, name) for name in own]
    else:
        whole = _index([without_ending(name) for name in theirs])
        mine = [without_ending(name) for name in own]
        if not any(name in whole for name in mine):
            # Never for some images only: the partner that one lacks would be another sequence's image.
            mine = [file_stem(name) for name in own]
            index = _index([file_stem(name) for name in theirs])
            _check_stems(index, theirs, source.name, set(mine))
            _check_stems(_index(mine), own, target.name, set(index))
        else:
            index = whole
    return lambda row: [] if mine[row] is None else index.get(mine[row] or "", [])


def _check_stems(
    index: Mapping[str, Sequence[int]], names: Sequence[str], where: str, asked: set[str]
) -> None:
    """Refuse file names that are those of several images of a set, among those that are asked for."""
    for stem, rows in index.items():
        if len(rows) > 1 and stem in asked:
            raise InputError(
                f"data.pairs: by name: {names[rows[0]]} and {names[rows[1]]} of {where} have one file name, and "
                "folders of the two sets differ.",
                "Give data.pairs.rule what names of both sets share, or use by: csv.",
            )


def _by_table(source: DenseImages, target: DenseImages, section: PairSection, allowed: set[int]) -> Partners:
    assert section.path is not None  # the settings say so
    table, columns = two_columns(find(section.path), (_TARGET, _SOURCE))
    known = {"target": ImageNames(target), "source": ImageNames(source)}
    found: dict[int, list[int]] = {}
    for line, (own, other) in enumerate(zip(*(table.text(column) for column in columns), strict=True)):
        rows = [
            names.row(name, table.where(line), role)
            for name, (role, names) in zip((own, other), known.items(), strict=True)
        ]
        found.setdefault(rows[0], []).append(rows[1])
    return lambda row: found.get(row, [])


def _by_time(source: DenseImages, target: DenseImages, section: PairSection, allowed: set[int]) -> Partners:
    own = _times(target, section, section.times)
    theirs = _times(source, section, section.source_times or section.times)
    order = sorted((time, row) for row, time in theirs.items() if row in allowed)
    moments = [time for time, _ in order]

    def nearest(row: int) -> list[int]:
        if row not in own or not moments:
            return []
        time, place = own[row], bisect_left(moments, own[row])
        gap = min(abs(moments[k] - time) for k in (place - 1, place) if 0 <= k < len(moments))
        if gap > section.tolerance:
            return []
        # Several may be as near: taken at one moment, or as long before as after.
        start = bisect_left(moments, time - gap - _MOMENT)
        return [found for _, found in order[start : bisect_right(moments, time + gap + _MOMENT)]]

    return nearest


def _times(data: DenseImages, section: PairSection, path: str | None) -> dict[int, float]:
    """Seconds at which images were taken, of those where it is known."""
    found: dict[int, float] = {}
    lines: dict[int, int] = {}
    if path is None:
        rule = None if section.time_rule is None else re.compile(section.time_rule)
        for row, name in enumerate(map(composed, names_of(data))):
            text = file_stem(name) if rule is None else _group(rule, name)
            if text is not None:
                found[row] = seconds_of(text, section.time_format, f"{data.name}, {name}")
    else:
        table, (names, times) = two_columns(find(path), (_NAME, _TIME))
        known = ImageNames(data)
        for line, (name, text) in enumerate(zip(table.text(names), table.text(times), strict=True)):
            row = known.find(name)  # a table may list images of the other set, too
            if row is None or row < 0:
                continue
            time = seconds_of(text, section.time_format, table.where(line))
            if found.setdefault(row, time) != time:
                raise InputError(
                    f"{table.where(lines[row])}, and {table.where(line)}: two times of {_name(data, row)} of "
                    f"{data.name}.",
                    "Where images of both sets have one name, list the times of the source in another table, "
                    "data.pairs.source_times.",
                )
            lines.setdefault(row, line)
    if not found:
        where = "their names" if path is None else str(find(path))
        raise InputError(
            f"data.pairs: no image of {data.name} has a time in {where}.",
            "Look at data.pairs.time_rule and data.pairs.time_format."
            if path is None
            else "Write a table of two columns, name and time.",
        )
    return found


def _name(data: DenseImages, row: int) -> str:
    return f"{data.name}, row {row}" if data.ids is None else data.ids[row]


def _group(rule: re.Pattern[str], name: str) -> str | None:
    found = rule.search(name)
    return None if found is None else found.group(1)


def _index(keys: Sequence[str | None]) -> dict[str, list[int]]:
    """Rows by key, of those that have one; an empty one says nothing."""
    found: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        if key:
            found.setdefault(key, []).append(row)
    return found


def _size(data: DenseImages, row: int) -> tuple[int, int]:
    """Height and width of one image, decoded only where nothing else tells."""
    pixels: Any = data.pixels
    if isinstance(data.masks, MaskFiles):
        return int(data.masks.sizes[row, 0]), int(data.masks.sizes[row, 1])
    while hasattr(pixels, "told"):  # a copy that is computed, of the size of its original
        row, pixels = int(pixels.rows[row]), pixels.of
    if pixels.shape is not None:
        return pixels.shape[1], pixels.shape[2]
    if isinstance(pixels, PixelFiles):
        head = read_header(pixels.store.read(row), pixels.store.where(row))
        return fitted_size(pixels.fit, head.height, head.width)
    image = pixels[row]
    return int(image.shape[1]), int(image.shape[2])


def _hint(source: DenseImages, section: PairSection) -> str:
    if section.by == "time":
        return f"They are further apart than data.pairs.tolerance, {section.tolerance:g} s; or clocks differ."
    if section.by == "name":
        names = ", ".join((source.ids or [])[:2])
        return f"Names of the source are like {names}; give data.pairs.rule what both names share, or use by: csv."
    return "Look at data.pairs and at which images are in the training parts."
