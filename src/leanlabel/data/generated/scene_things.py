"""The things that stand in a generated street: what they are, where, and how often.

Lengths are metres; see `scene_layout` for the axes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

NUMBERS = 1440
"""Uniform numbers that one plan is made of."""

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)
CAMVID_SHARES = (15.8, 24.1, 1.0, 29.3, 6.7, 11.2, 1.1, 1.4, 4.6, 0.6, 0.5)
"""Percent of the pixels of the 701 CamVid frames, in class order; 3.6 % there are unlabelled."""

# The share of pixels at which the tail dial turns: classes above it do not change with the exponent.
HEAD = 4.6

# Kind of car: width, height, length in metres, and how often, of 1.
CAR_KINDS = (
    ("hatch", 1.72, 1.47, 3.9, 0.38),
    ("saloon", 1.76, 1.43, 4.5, 0.28),
    ("estate", 1.84, 1.72, 4.6, 0.18),
    ("van", 1.95, 2.25, 5.1, 0.12),
    ("bus", 2.5, 3.1, 10.5, 0.04),
)


class Camera(NamedTuple):
    """A pinhole that looks along Z.

    A point (X, Y, Z), Y above the ground, is seen at x = shift + focal (X + curve Z^2) / Z right of the middle and
    y = horizon + focal (height - Y) / Z below the upper edge; x and y in heights of the picture.
    """

    height: float
    horizon: float
    focal: float
    shift: float
    curve: float


class Thing(NamedTuple):
    """One object that stands on the ground at (x, z), x measured from the bent axis of the street.

    `number` is its instance id, `variant` and `turn` pick shapes, `first` and `second` in [0, 1) pick colours,
    `base` is the height of its lower edge.
    """

    kind: str
    number: int
    x: float
    z: float
    width: float
    height: float
    length: float
    variant: float
    turn: float
    first: float
    second: float
    base: float = 0.0


class Dice:
    """Numbers in [0, 1) that are handed out in one order, whatever the settings are."""

    def __init__(self, numbers: np.ndarray) -> None:
        self._numbers = np.asarray(numbers, dtype=np.float64)
        self._used = 0

    def one(self) -> float:
        """Return the next number."""
        self._used += 1
        return float(self._numbers[self._used - 1])

    def rows(self, count: int, width: int) -> np.ndarray:
        """Return the next numbers as (count, width)."""
        self._used += count * width
        return self._numbers[self._used - count * width : self._used].reshape(count, width)


def tail_factor(kind: int, tail: float) -> float:
    """Return how much more often a class is met than with the tail of CamVid.

    factor = (share / HEAD)^(tail - 1) for the shares below HEAD, else 1: at tail 1 it is 1, at 0 the classes
    differ much less, at 2 a rare class is rarer by its own rarity.

    >>> [round(tail_factor(PEDESTRIAN, t), 2) for t in (0.0, 1.0, 2.0)], tail_factor(ROAD, 0.0)
    ([7.67, 1.0, 0.13], 1.0)
    """
    return min(1.0, CAMVID_SHARES[kind] / HEAD) ** (tail - 1)


class Placer:
    """Places objects; every group takes its numbers whether or not its objects are there.

    `chance` holds how much more often each class is met than with the tail of CamVid.
    """

    def __init__(
        self,
        camera: Camera,
        road: tuple[float, float],
        faces: tuple[float, float],
        junction: tuple[float, float] | None,
        end: float,
        tail: float,
        content: float,
    ) -> None:
        self.camera, self.road, self.faces, self.junction = camera, road, faces, junction
        self.end, self.content = end, content
        self.chance = [tail_factor(kind, tail) for kind in range(11)]
        self.number = 0
        self.found: list[Thing] = []

    def all(self, dice: Dice, gaps: list[list[tuple[float, float, float]]]) -> list[Thing]:
        """Place everything, and give it back from far to near."""
        self._cars(dice)
        self._lamps(dice)
        self._signs(dice)
        self._trees(dice, gaps)
        self._people(dice)
        self._riders(dice)
        return sorted(self.found, key=lambda thing: -thing.z)

    def _add(
        self, there: bool, kind: str, x: float, z: float, size: tuple[float, float, float], *rest: float
    ) -> None:
        # Numbers go to slots, present or not, so that an object keeps its id when others come or go.
        self.number += 1
        if there and 2.5 < z < self.end - 1:
            self.found.append(Thing(kind, self.number, x, z, *size, *rest))  # pyright: ignore[reportArgumentType]

    def _in_junction(self, start: float, stop: float) -> bool:
        return self.junction is not None and start < self.junction[1] and stop > self.junction[0]

    def _cars(self, dice: Dice) -> None:
        """Parked left and right, in the own lane, towards the camera, and crossing; turn 0: rear, 1: front."""
        left, right = self.road
        more = self.content
        room = (left < -3 + more, right > 6.4 - 2 * more)
        groups = (
            (left + 1.0, 5.5, 0.46 + 0.34 * more if room[0] else 0.0, 7, 1.0, 0.0),
            (right - 1.0, 7.0, 0.46 + 0.34 * more if room[1] else 0.1, 7, 1.0, 1.0),
            (0.0, 9.0, 0.2 + 0.3 * more, 4, 9.0, 0.0),
            (0.5 * (1.65 + right) if not room[1] else 3.2, 9.0, 0.22 + 0.3 * more, 4, 10.0, 1.0),
        )
        for x, start, chance, count, space, turn in groups:
            z = start
            for row in dice.rows(count, 7):
                size, variant = self._car(row[0], tight=space < 5)
                z += space * row[1] + 0.6 * row[2]
                there = row[3] < chance and not (space < 5 and self._in_junction(z, z + size[2]))
                facing = turn if row[4] < 0.85 or space > 5 else 1 - turn
                shift = 0.3 * (row[2] - 0.5)
                self._add(there, "car", x + shift, z, size, variant, facing, row[5], row[6])
                z += size[2] + 0.5
        for row in dice.rows(2, 7):
            size, variant = self._car(row[0], tight=False)
            middle = 0.0 if self.junction is None else sum(self.junction) / 2
            there = self.junction is not None and row[3] < 0.3 + 0.3 * more
            x = left - 4 + (right - left + 8) * row[1]
            z = middle + (1.6 if row[4] < 0.5 else -1.6)
            turn = 2.0 if row[4] < 0.5 else 3.0
            self._add(there, "car", x, z, size, variant, turn, row[5], row[6])

    def _car(self, u: float, tight: bool) -> tuple[tuple[float, float, float], float]:
        """Size and kind; there is no room for buses among parked cars."""
        number, u = 0, min(u, 0.95) if tight else u
        while u >= CAR_KINDS[number][4] and number + 1 < len(CAR_KINDS):
            u -= CAR_KINDS[number][4]
            number += 1
        return CAR_KINDS[number][1:4], float(number)

    def _lamps(self, dice: Dice) -> None:
        """Lamp posts along both kerbs, and bollards."""
        factor = self.chance[POLE]
        for side, sign in ((0, -1), (1, 1)):
            z = 2.0
            for row in dice.rows(8, 5):
                z += 9 + 9 * row[0]
                there = row[1] < min(1.0, 0.4 * factor) and not self._in_junction(z, z)
                x = self.road[side] + sign * (0.4 + 0.3 * row[2])
                tall = 6 + 3.5 * row[3]
                self._add(
                    there, "lamp", x, z, (0.17 + 0.06 * row[4], tall, -sign * 1.6), row[2], 0.0, row[4], 0.0
                )
        for row in dice.rows(10, 4):
            side = int(row[0] < 0.5)
            sign = 1 if side else -1
            x, z = self.road[side] + sign * 0.45, 6 + 26 * row[1]
            there = row[2] < min(1.0, 0.14 * factor) and not self._in_junction(z, z)
            self._add(there, "bollard", x, z, (0.17, 0.95, 0.0), row[3], 0.0, row[3], 0.0)

    def _signs(self, dice: Dice) -> None:
        """Signs and traffic lights on posts, and boards that hang on the buildings."""
        factor = self.chance[SIGN]
        for i, row in enumerate(dice.rows(14, 7)):
            side = int(row[0] < 0.5)
            sign = 1 if side else -1
            light = i < 4
            # Lights stand where streets meet.
            z = (self.junction[0] - 1.2 + 2 * row[1]) if light and self.junction else 6 + 38 * row[1]
            chance = (0.6 if self.junction else 0.07) if light else 0.33
            x = self.road[side] + sign * (0.5 + 0.5 * row[2])
            high = 2.1 + 0.7 * row[3]
            there = row[4] < min(1.0, chance * factor) and (light or not self._in_junction(z, z))
            size = (0.38, 1.0, 0.0) if light else (0.62 + 0.25 * row[5], 0.62 + 0.25 * row[5], 0.0)
            variant = 0.0 if light else 1.0 + int(5 * row[6])
            if variant == 5.0:
                size = (1.1 + row[5], 0.7 + 0.5 * row[5], 0.0)
            self._add(there, "post", x, z + 0.05, (0.1, high + size[1] * 0.8, 0.0), row[2], 0.0, row[3], 0.0)
            self._add(there, "sign", x, z, size, variant, 0.0, row[5], row[6], high)
        for row in dice.rows(10, 6):
            side = int(row[0] < 0.5)
            x = self.faces[side] + (-0.6 if side else 0.6)
            z = 7 + 33 * row[1]
            there = row[2] < min(1.0, 0.22 * factor) and not self._in_junction(z - 1, z + 1)
            size = (0.8 + 0.5 * row[3], 0.7 + 0.9 * row[4], 0.0)
            self._add(there, "sign", x, z, size, 5.0, 0.0, row[5], row[4], 2.7 + 1.4 * row[5])

    def _trees(self, dice: Dice, gaps: list[list[tuple[float, float, float]]]) -> None:
        """Street trees on the pavement, and trees in the stretches without buildings."""
        for side, sign in ((0, -1), (1, 1)):
            row_of_trees = dice.one() < 0.4
            for i, row in enumerate(dice.rows(6, 7)):
                z = 9 + 10 * i + 5 * row[0]
                there = row_of_trees and row[1] < 0.6 and not self._in_junction(z - 2, z + 2)
                x = self.road[side] + sign * 0.9
                tall = 4.5 + 3.5 * row[2]
                self._add(
                    there,
                    "tree",
                    x,
                    z,
                    (tall * (0.42 + 0.3 * row[3]), tall, 0.0),
                    row[4],
                    0.0,
                    row[5],
                    row[6],
                )
        for side, sign in ((0, -1), (1, 1)):
            for i, row in enumerate(dice.rows(7, 7)):
                stretch = gaps[side][i // 2] if i // 2 < len(gaps[side]) else None
                start, stop = stretch[:2] if stretch else (5.0, 5.0)
                z = start + (stop - start) * (0.5 * (i % 2) + 0.5 * row[0])
                x = self.faces[side] + sign * (1.2 + 5.5 * row[1])
                tall = 6.5 + 6.5 * row[2]
                there = stretch is not None and row[6] < 0.92
                turn = 1.0 if row[4] > 0.8 else 0.0
                wide = tall * (0.35 if turn else 0.6 + 0.35 * row[3])
                self._add(there, "tree", x, z, (wide, tall, 0.0), row[4], turn, row[5], row[6])

    def _people(self, dice: Dice) -> None:
        """Pedestrians on the pavements, a few on the road."""
        chance = min(1.0, 0.19 * self.chance[PEDESTRIAN] * (1 + 1.5 * self.content))
        for row in dice.rows(26, 7):
            side = int(row[0] < 0.5)
            z = 6 + 34 * row[1] ** 1.4
            if row[2] < 0.1:
                x = self.road[0] + (self.road[1] - self.road[0]) * row[3]
                z = max(z, 12.0)
            else:
                x = self.road[side] + (self.faces[side] - self.road[side]) * (0.12 + 0.75 * row[3])
            tall = 1.5 + 0.35 * row[4]
            size = (0.5 * tall, tall, 0.0)
            self._add(row[5] < chance, "person", x, z, size, row[6], float(row[2] > 0.5), row[4], row[3])

    def _riders(self, dice: Dice) -> None:
        """Bicyclists near the edges of the road; turn 0: along the street, 1: across."""
        chance = min(1.0, 0.135 * self.chance[BICYCLIST])
        for row in dice.rows(12, 6):
            side = int(row[0] < 0.35)
            x = self.road[side] + (-0.9 if side else 0.9) * (0.6 + row[1])
            z = 6.5 + 24 * row[2] ** 1.3
            across = row[4] < 0.4
            size = (1.75, 1.75, 0.0) if across else (0.8, 1.75, 0.0)
            self._add(row[3] < chance, "rider", x, z, size, row[4], float(across), row[5], row[1])
