"""Painting of the things that stand in a generated street: cars, people, posts, signs and trees, far to near."""

from __future__ import annotations

import math

import numpy as np

from leanlabel.data.generated import scene_sprites as sprites
from leanlabel.data.generated.scene_paint import Canvas, mixed, sample, unit
from leanlabel.data.generated.scene_things import (
    BICYCLIST,
    CAR,
    CAR_KINDS,
    PEDESTRIAN,
    POLE,
    SIGN,
    TREE,
    Thing,
)

NEUTRAL = np.array((0.5, 0.5, 0.5), np.float32)


def paint_things(canvas: Canvas) -> None:
    """Paint everything that stands on the ground, from far to near."""
    for thing in canvas.street.things:
        if canvas.street.camera.focal * thing.height / thing.z * canvas.height < 1.5:
            continue
        _PAINTERS[thing.kind](canvas, thing)


def _light(canvas: Canvas, thing: Thing, share: float = 0.75) -> np.ndarray:
    """(3,) light on a thing: scattered, and direct unless a building keeps it away."""
    key = (share, canvas.shaded(thing.x, thing.z))
    if key not in canvas.lights:
        direct = share * canvas.upright * (1 - key[1]) * (0.75 - 0.35 * canvas.sun[1])
        canvas.lights[key] = canvas.ambient + canvas.direct * direct
    return canvas.lights[key]


def _place(canvas: Canvas, x: float, z: float) -> tuple[float, float, float]:
    """Column and row of a point on the ground, and pixels per metre there."""
    camera = canvas.street.camera
    metre = camera.focal * canvas.height / z
    column = 0.5 * canvas.width + camera.shift * canvas.height + metre * (x + camera.curve * z * z)
    return column, camera.horizon * canvas.height + metre * camera.height, metre


def _level(chain: list[np.ndarray], rows: float) -> np.ndarray:
    """The smallest member of a chain with at least so many rows."""
    for level in reversed(chain):
        if level.shape[1] >= rows:
            return level
    return chain[0]


def _stamp(
    canvas: Canvas,
    chain: list[np.ndarray],
    box: tuple[float, float, float, float],
    depth: float,
    inks: tuple[np.ndarray, np.ndarray],
    light: np.ndarray,
    kind: int,
    number: int,
    flip: bool = False,
) -> None:
    """Paint a sprite that faces the camera into (left, top, right, bottom), in pixels."""
    left, top, right, bottom = box
    j0, j1 = max(0, math.floor(left)), min(canvas.width, math.ceil(right))
    i0, i1 = max(0, math.floor(top)), min(canvas.height, math.ceil(bottom))
    if i1 <= i0 or j1 <= j0:
        return
    level = _level(chain, bottom - top)
    rows, columns = level.shape[1:]
    at_i = ((np.arange(i0, i1) + (0.5 - top)) * (rows / (bottom - top))).astype(np.int32)
    at_j = ((np.arange(j0, j1) + (0.5 - left)) * (columns / (right - left))).astype(np.int32)
    inside_i, inside_j = (at_i >= 0) & (at_i < rows), (at_j >= 0) & (at_j < columns)
    at_i, at_j = at_i[inside_i], at_j[inside_j]
    if not len(at_i) or not len(at_j):
        return
    if flip:
        at_j = columns - 1 - at_j
    i0, j0 = i0 + int(np.argmax(inside_i)), j0 + int(np.argmax(inside_j))
    part = (slice(i0, i0 + len(at_i)), slice(j0, j0 + len(at_j)))
    if not (canvas.depth[part] > depth).any():
        return
    sprite = level[:, at_i[:, None], at_j]
    _blend(canvas, part, sprite, np.float32(depth), inks, light, kind, number)


def _blend(
    canvas: Canvas,
    part: tuple[slice, slice],
    sprite: np.ndarray,
    depth: np.ndarray | np.float32,
    inks: tuple[np.ndarray, np.ndarray],
    light: np.ndarray,
    kind: int,
    number: int,
) -> None:
    """Lay a sampled sprite (6, h, w) over a part of the canvas, where it is nearer."""
    behind = canvas.depth[part]
    sprite *= behind > depth
    cover = sprite[0]
    matrix = (
        np.concatenate([inks[0][:, None], inks[1][:, None], np.eye(3, dtype=np.float32)], 1) * light[:, None]
    )
    colour = (matrix @ sprite[1:].reshape(5, -1)).reshape(3, *cover.shape)
    rgb = canvas.rgb[:, part[0], part[1]]
    rgb *= 1 - cover
    rgb += colour
    hit = cover > 0.5
    canvas.mask[part][hit] = kind
    canvas.instances[part][hit] = number
    behind[hit] = depth if depth.ndim == 0 else np.broadcast_to(depth, hit.shape)[hit]


def _car(canvas: Canvas, thing: Thing) -> None:
    name = CAR_KINDS[int(thing.variant)][0]
    light = _light(canvas, thing)
    inks = (mixed(canvas.style.cars, thing.first), NEUTRAL)
    column, row, metre = _place(canvas, thing.x, thing.z)
    aspect = round(thing.length / thing.height, 3)
    side = sprites.car_side(name, aspect)
    high = thing.height * metre
    if thing.turn >= 2:
        half = 0.5 * thing.length * metre
        box = (column - half, row - high, column + half, row)
        _stamp(canvas, side, box, thing.z, inks, light, CAR, thing.number, flip=thing.turn == 3)
        return
    # The flank that one sees lies in a plane along the street.
    camera = canvas.street.camera
    bend = camera.curve * thing.z * thing.z
    flank = thing.x + bend + (-0.5 if thing.x + bend > 0 else 0.5) * thing.width
    if abs(thing.x + bend) > 0.5 * thing.width:
        facing = canvas.light(0.0 if thing.x + bend < 0 else 1.0)
        _flank(canvas, side, flank, thing, inks, facing * 0.5 + light * 0.42)
    half = 0.5 * thing.width * metre
    face = sprites.car_face(name, round(thing.width / thing.height, 3), thing.turn == 1)
    box = (column - half, row - high, column + half, row)
    _stamp(canvas, face, box, thing.z - 0.01, inks, light, CAR, thing.number)


def _flank(
    canvas: Canvas,
    chain: list[np.ndarray],
    flank: float,
    thing: Thing,
    inks: tuple[np.ndarray, np.ndarray],
    light: np.ndarray,
) -> None:
    """Paint the side of a car in the plane X = flank from its near end to its far end."""
    camera = canvas.street.camera
    scale = camera.focal * canvas.height
    near, far = thing.z, thing.z + thing.length
    middle = 0.5 * canvas.width + camera.shift * canvas.height
    ends = sorted((middle + scale * flank / near, middle + scale * flank / far))
    j0, j1 = max(0, math.floor(ends[0])), min(canvas.width, math.ceil(ends[1]))
    horizon = camera.horizon * canvas.height
    i0 = max(0, math.floor(horizon - scale * max(thing.height - camera.height, 0) / near))
    i0 = min(i0, max(0, math.floor(horizon - scale * (thing.height - camera.height) / far)))
    i1 = min(canvas.height, math.ceil(horizon + scale * camera.height / near))
    if j1 <= j0 or i1 <= i0:
        return
    level = _level(chain, scale * thing.height / near)
    rows, columns = level.shape[1:]
    z = (scale * flank) / (np.arange(j0, j1) + (0.5 - middle))
    up = camera.height - canvas.down[i0:i1] * (z / camera.focal).astype(np.float32)
    at_i = rows - 1 - np.floor(up * np.float32(rows / thing.height)).astype(np.int32)
    along = (z - near) / thing.length
    # Above the belt a car is narrower: its windows are seen as much farther along the street.
    lean = np.maximum(up - 0.6 * thing.height, 0) * np.float32(0.36 * (thing.variant < 3))
    at_j = along.astype(np.float32) + lean * (z / (abs(flank) * thing.length)).astype(np.float32)
    if thing.turn == 1:
        at_j = 1 - at_j
    at_j = np.floor(at_j * columns).astype(np.int32)
    inside = (at_i >= 0) & (at_i < rows) & (at_j >= 0) & (at_j < columns)
    sprite = level[:, at_i.clip(0, rows - 1), at_j.clip(0, columns - 1)]
    sprite *= inside
    part = (slice(i0, i1), slice(j0, j1))
    _blend(canvas, part, sprite, np.maximum(z, near).astype(np.float32), inks, light, CAR, thing.number)


def _person(canvas: Canvas, thing: Thing) -> None:
    chain = sprites.person(min(int(thing.variant * 6), 5), thing.turn > 0)
    _figure(canvas, thing, chain, PEDESTRIAN)


def _rider(canvas: Canvas, thing: Thing) -> None:
    chain = sprites.rider(min(int(thing.variant * 4), 3), thing.turn > 0)
    _figure(canvas, thing, chain, BICYCLIST)


def _figure(canvas: Canvas, thing: Thing, chain: list[np.ndarray], kind: int) -> None:
    column, row, metre = _place(canvas, thing.x, thing.z)
    half, high = 0.5 * thing.width * metre, thing.height * metre
    inks = (
        mixed(canvas.style.clothes, thing.first),
        mixed(canvas.style.clothes, thing.second * 0.5 + 0.4) * 0.7,
    )
    box = (column - half, row - high, column + half, row)
    _stamp(
        canvas, chain, box, thing.z, inks, _light(canvas, thing), kind, thing.number, flip=thing.second > 0.5
    )


def _sign(canvas: Canvas, thing: Thing) -> None:
    column, row, metre = _place(canvas, thing.x, thing.z)
    half, bottom = 0.5 * thing.width * metre, row - thing.base * metre
    inks = (mixed(canvas.style.boards, thing.first), mixed(canvas.style.boards, thing.first + 0.5))
    box = (column - half, bottom - thing.height * metre, column + half, bottom)
    _stamp(
        canvas,
        sprites.sign(int(thing.variant)),
        box,
        thing.z,
        inks,
        _light(canvas, thing),
        SIGN,
        thing.number,
    )


def _bar(
    canvas: Canvas,
    box: tuple[float, float, float, float],
    depth: float,
    colour: np.ndarray,
    kind: int,
    number: int,
) -> None:
    """Paint an upright rectangle, never thinner than a pixel, rounded by its shade."""
    left, top, right, bottom = box
    if right - left < 1:
        # A thin post takes the one column that its middle lies in.
        left = math.floor(0.5 * (left + right))
        right = left + 1
    if bottom - top < 1:
        top = math.floor(0.5 * (top + bottom))
        bottom = top + 1
    j0, j1 = max(0, round(left)), min(canvas.width, round(right))
    i0, i1 = max(0, round(top)), min(canvas.height, round(bottom))
    if j1 <= j0 or i1 <= i0:
        return
    part = (slice(i0, i1), slice(j0, j1))
    hit = canvas.depth[part] > depth
    if not hit.any():
        return
    rgb = canvas.rgb[:, part[0], part[1]]
    colour = colour[:, None, None]
    if j1 > j0 + 1:
        side = (np.arange(j0, j1, dtype=np.float32) + np.float32(0.5 - left)) / np.float32(right - left) - 0.5
        colour = colour * (1.08 - 0.9 * (side - np.float32(0.25 * canvas.sun[0])) ** 2)
    rgb += (colour - rgb) * hit
    canvas.mask[part][hit] = kind
    canvas.instances[part][hit] = number
    canvas.depth[part][hit] = depth


def _lamp(canvas: Canvas, thing: Thing) -> None:
    """A post with an arm over the road."""
    column, row, metre = _place(canvas, thing.x, thing.z)
    half = 0.5 * thing.width * metre
    metal = np.array(canvas.style.metal, np.float32) * (0.75 + 0.5 * thing.first)
    colour = metal * _light(canvas, thing)
    top = row - thing.height * metre
    _bar(canvas, (column - half, top, column + half, row), thing.z, colour, POLE, thing.number)
    if half > 1:
        foot = (column - 1.3 * half, row - metre, column + 1.3 * half, row)
        _bar(canvas, foot, thing.z - 0.01, colour, POLE, thing.number)
    left, right = sorted((column, column + thing.length * metre))
    arm = (left, top, right, top + max(1.0, 0.1 * metre))
    _bar(canvas, arm, thing.z, colour, POLE, thing.number)


def _post(canvas: Canvas, thing: Thing) -> None:
    column, row, metre = _place(canvas, thing.x, thing.z)
    half = 0.5 * thing.width * metre
    colour = np.array(canvas.style.metal, np.float32) * (0.75 + 0.5 * thing.first) * _light(canvas, thing)
    _bar(
        canvas,
        (column - half, row - thing.height * metre, column + half, row),
        thing.z,
        colour,
        POLE,
        thing.number,
    )


def _tree(canvas: Canvas, thing: Thing) -> None:
    """A trunk and a crown with a ragged edge, lit from the side of the sun; or a conifer (turn 1)."""
    style, tile = canvas.style, canvas.texture
    column, row, metre = _place(canvas, thing.x, thing.z)
    light = _light(canvas, thing, 1.0)
    trunk = np.array(style.trunk, np.float32) * light
    half = (0.035 * thing.height) * metre
    high = thing.height * metre
    top = row - high
    _bar(
        canvas,
        (column - half, row - 0.6 * high, column + half, row),
        thing.z + 0.02,
        trunk,
        TREE,
        thing.number,
    )
    wide = 0.5 * thing.width * metre
    low = row - high * (0.08 if thing.turn else 0.24)
    i0, i1 = max(0, math.floor(top)), min(canvas.height, math.ceil(low))
    j0, j1 = max(0, math.floor(column - wide)), min(canvas.width, math.ceil(column + wide))
    if i1 <= i0 or j1 <= j0:
        return
    part = (slice(i0, i1), slice(j0, j1))
    behind = canvas.depth[part]
    near: np.ndarray = np.greater(behind, thing.z)
    rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
    if not len(rows):
        return
    if len(rows) * len(columns) < 0.7 * near.size:
        # Of a tree behind a house only what looks over it is painted.
        i0, i1, j0, j1 = (
            i0 + int(rows[0]),
            i0 + int(rows[-1]) + 1,
            j0 + int(columns[0]),
            j0 + int(columns[-1]) + 1,
        )
        part = (slice(i0, i1), slice(j0, j1))
        behind, near = canvas.depth[part], canvas.depth[part] > thing.z
    dy = ((np.arange(i0, i1, dtype=np.float32) + np.float32(0.5 - top)) * np.float32(2 / (low - top)) - 1)[
        :, None
    ]
    dx = (np.arange(j0, j1, dtype=np.float32) + np.float32(0.5 - column)) * np.float32(1 / wide)
    start = int(thing.second * 511)
    # The noise goes with the tree, so that its edge is the same at any size; it has no sign changes at its middle.
    leaves = sample(tile, dy * 34 + (512 + thing.variant * 1500), dx * 34 + (512 + start))
    clumps = sample(canvas.soft, dy * 36 + (512 + start), dx * 36 + (512 + 7 * start))
    if thing.turn:
        edge = (dy + 1.02) * 0.5 - np.abs(dx) + 0.16 * leaves * (1 - 0.4 * dy)
    else:
        edge = (1 - dx * dx - dy * dy) * 0.8 + 0.3 * leaves + 0.1 * clumps - 0.06
    cover = unit(edge * np.float32(0.35 * wide) + 0.5) * near
    shade = (
        0.86
        - 0.2 * dy
        + dx * np.float32(0.22 * canvas.sun[0])
        + np.float32(0.16 + 0.14 * style.texture) * leaves
    )
    shade += 0.1 * clumps
    seen = cover
    if style.bare > 0:
        # Winter: branches, through which the sky shows; the crown still counts as tree.
        seen = cover * (1 - np.float32(style.bare) * unit(0.5 - leaves * 1.5 + 0.4 * np.abs(dx)))
    tint = np.array(style.leaves, np.float32) * (0.82 + 0.36 * thing.first) * light
    tint[0] *= 0.8 + 0.5 * thing.second
    rgb = canvas.rgb[:, part[0], part[1]]
    rgb += (tint[:, None, None] * shade - rgb) * seen
    hit = cover > 0.5
    canvas.mask[part][hit] = TREE
    canvas.instances[part][hit] = thing.number
    behind[hit] = thing.z


_PAINTERS = {
    "car": _car,
    "person": _person,
    "rider": _rider,
    "sign": _sign,
    "lamp": _lamp,
    "post": _post,
    "bollard": _post,
    "tree": _tree,
}
