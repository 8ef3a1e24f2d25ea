"""The plan of a generated street: camera, road, walls, fences and the things that stand on the ground.

Lengths are metres. X points right, Z ahead, the camera stands at X = Z = 0 above the middle of the left lane.
The street bends: its axis lies at X = curve Z^2. Plans know nothing of pixels and nothing of colours.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from leanlabel.data.generated.scene_things import FENCE, Camera, Dice, Placer, Thing, tail_factor

FAR = 160.0
BLOCKS = 14
# Columns of a row of `Street.walls`.
XA, ZA, XB, ZB, EAVE, ROOF, COLOUR, FLOOR, PITCH, WIDE, TALL, SHOP, KIND, FACING = range(14)
HOUSE, HEDGE = 0.0, 1.0
RAILING, BOARDS, LOW_WALL = 0.0, 1.0, 2.0
# Directions that a wall looks to: right, left, towards the camera.
RIGHT, LEFT, BACK = 0.0, 1.0, 2.0


class Street(NamedTuple):
    """A plan; see the module."""

    camera: Camera
    road: tuple[float, float]
    pavement: tuple[float, float]
    centre: float
    junction: tuple[float, float] | None
    zebra: float | None
    edge_lines: bool
    green: float
    sun: tuple[float, float]
    walls: np.ndarray
    fences: np.ndarray
    eaves: np.ndarray
    things: list[Thing]
    skyline: np.ndarray
    sky: tuple[float, float, float]
    mood: tuple[float, float, float, float]


def plan_street(numbers: np.ndarray, tail: float = 1.0, content: float = 0.0) -> Street:
    """Plan a street from uniform numbers.

    A thing is there if its number is below a probability, which is all that `tail` moves: a street at a smaller
    exponent has the things of a larger one and more. `content` moves road, buildings, camera and probabilities.

    Args:
        numbers: (NUMBERS,) in [0, 1).
        tail: exponent of the long tail, >= 0.
        content: shift of the content, in [0, 1].

    Returns:
        A Street.

    >>> from leanlabel.data.generated.scene_things import NUMBERS
    >>> street = plan_street(np.full(NUMBERS, 0.5))
    >>> street.road[0] < 0 < street.road[1], street.camera.shift
    (True, 0.0)
    """
    dice = Dice(numbers)
    camera = Camera(
        height=1.3 + 0.3 * dice.one() + 0.7 * content,
        horizon=0.482 + 0.07 * dice.one() - 0.07 * content,
        focal=1.08 + 0.2 * dice.one(),
        shift=0.36 * (dice.one() - 0.5),
        curve=0.003 * (2 * dice.one() - 1) ** 3,
    )
    narrow = 1 - 0.3 * content
    left = -(1.75 + (2.1 if dice.one() < 0.42 else 0.0)) * narrow
    centre = 1.65 * narrow
    right = (4.5 + (2.1 if dice.one() < 0.36 else 0.0) + (3.0 if dice.one() < 0.15 else 0.0)) * narrow
    pavement = (2.3 + 2.8 * dice.one(), 2.3 + 2.8 * dice.one())
    setback = [2.5 * max(0.0, dice.one() - 0.5), 2.5 * max(0.0, dice.one() - 0.5)]
    urban = dice.one()
    base = 8.6 + 8.5 * dice.one() ** 1.2
    crossing, crossing_z, crossing_width = dice.one() < 0.4, 13 + 30 * dice.one(), 7 + 5 * dice.one()
    junction = (crossing_z, crossing_z + crossing_width) if crossing else None
    has_zebra, zebra_z = dice.one() < 0.3, 7 + 16 * dice.one()
    zebra = (crossing_z - 4.5 if crossing else zebra_z) if has_zebra else None
    closed, closed_z = dice.one() < 0.22, 45 + 45 * dice.one()
    sun = (2 * math.pi * dice.one(), math.radians(24 + 36 * dice.one()))
    edge_lines = dice.one() < 0.6
    sky = (dice.one(), dice.one(), dice.one())
    mood = (dice.one(), dice.one(), dice.one(), dice.one())
    faces = (left - pavement[0] - setback[0], right + pavement[1] + setback[1])
    rise = base * (1 + 0.7 * content)
    sides = [
        _side(dice.rows(BLOCKS, 12), sign, face, rise, 0.28 + 0.7 * urban, junction, camera.curve)
        for sign, face in zip((-1, 1), faces)
    ]
    end = dice.rows(1, 12)[0]
    walls = [wall for side in sides for wall in side[0]]
    if closed:
        high = rise * (0.8 + 0.5 * end[0])
        walls.append(_wall((-60, closed_z), (60, closed_z), camera.curve, high, 3 * end[1], BACK, end))
    planner = Placer(camera, (left, right), faces, junction, closed_z if closed else FAR, tail, content)
    things = planner.all(dice, [side[2] for side in sides])
    fences = _fences(dice.rows(8, 6), (left, right), faces, sides, junction, tail, camera.curve)
    return Street(
        camera=camera,
        road=(left, right),
        pavement=(left - pavement[0], right + pavement[1]),
        centre=centre,
        junction=junction,
        zebra=zebra,
        edge_lines=edge_lines,
        green=1 - urban,
        sun=sun,
        walls=np.array(walls, dtype=np.float64).reshape(-1, 14),
        fences=fences,
        eaves=np.stack([side[1] for side in sides]),
        things=things,
        skyline=dice.rows(1, 12)[0],
        sky=sky,
        mood=mood,
    )


def _wall(
    start: tuple[float, float],
    stop: tuple[float, float],
    curve: float,
    eave: float,
    roof: float,
    facing: float,
    u: np.ndarray,
    kind: float = HOUSE,
) -> list[float]:
    """One row of the walls between two points of the bent street; u (12,) picks what it is made of."""
    floor = 2.8 + 0.9 * u[5]
    return [
        start[0] + curve * start[1] ** 2,
        start[1],
        stop[0] + curve * stop[1] ** 2,
        stop[1],
        eave,
        roof,
        u[4],
        floor,
        1.5 + 2.4 * u[6],
        0.3 + 0.32 * u[7],
        0.42 + 0.2 * u[8],
        1.0 if u[9] < 0.45 else 0.0,
        kind,
        facing,
    ]


def _side(
    u: np.ndarray,
    sign: int,
    face: float,
    rise: float,
    urban: float,
    junction: tuple[float, float] | None,
    curve: float,
) -> tuple[list[list[float]], np.ndarray, list[tuple[float, float, float]]]:
    """One side: walls, height of its eaves at every metre of Z, and the stretches left open (start, stop, u)."""
    eaves = np.zeros(int(FAR) + 1)
    walls, open_ = [], []
    start = 1.0
    facing = RIGHT if sign < 0 else LEFT
    for row in u:
        stop = start + 6 + 13 * row[0]
        if stop > FAR:
            break
        if junction is None or stop <= junction[0] or start >= junction[1]:
            if row[1] < urban:
                eave = rise * (0.72 + 0.56 * row[2])
                roof = 2.6 * row[3] if row[3] > 0.3 else 0.0
                inward = face + sign * (1.2 * row[10] if row[11] < 0.3 else 0.0)
                back = inward + sign * (7 + 4 * row[10])
                walls.append(_wall((inward, start), (inward, stop), curve, eave, roof, facing, row))
                walls.append(_wall((inward, start), (back, start), curve, eave, roof, BACK, row))
                eaves[int(start) : int(stop)] = eave
            else:
                open_.append((start, stop, float(row[2])))
                if row[2] < 0.35:
                    tall = 1.2 + 1.6 * row[3]
                    walls.append(_wall((face, start), (face, stop), curve, tall, 0.0, facing, row, HEDGE))
                    eaves[int(start) : int(stop)] = tall
        start = stop
    return walls, eaves, open_


def _fences(
    u: np.ndarray,
    road: tuple[float, float],
    faces: tuple[float, float],
    sides: list[tuple[list[list[float]], np.ndarray, list[tuple[float, float, float]]]],
    junction: tuple[float, float] | None,
    tail: float,
    curve: float,
) -> np.ndarray:
    """Rows (xa, za, xb, zb, height, kind, colour, facing): railings at the kerb, boards and walls behind."""
    found = []
    factor = tail_factor(FENCE, tail)
    for i, row in enumerate(u):
        side = i % 2
        there = row[0] < min(1.0, 0.16 * factor) if i < 4 else row[0] < min(1.0, 0.55 * factor)
        if not there:
            continue
        if i < 4:
            start, long = 4 + 22 * row[1] ** 1.5, 7 + 18 * row[2]
            x = road[side] + (-0.3 if side == 0 else 0.3)
            high, kind = 1.05, RAILING
        else:
            gaps = sides[side][2]
            if not gaps:
                continue
            # Nearer openings are looked at first: they are the ones that are seen.
            start, stop, _ = gaps[min(int(row[1] ** 2 * len(gaps)), len(gaps) - 1)]
            long = stop - start
            x = faces[side] + (0.25 if side == 0 else -0.25)
            high, kind = 0.9 + 1.1 * row[3], float(int(3 * row[4]))
        if junction is not None and start < junction[1] and start + long > junction[0]:
            if start >= junction[0]:
                continue
            long = junction[0] - start
        xa, xb = x + curve * start**2, x + curve * (start + long) ** 2
        found.append([xa, start, xb, start + long, high, kind, row[5], RIGHT if side == 0 else LEFT])
    return np.array(found, dtype=np.float64).reshape(-1, 8)
