"""Small painted shapes of the generated street scenes: cars, people, bicycles, signs; each with a chain of sizes.

A sprite is (6, rows, columns) float32, all but the first multiplied by the first: coverage, weight of a first and of
a second colour that belong to the object, and red, green, blue that belong to the shape. Row 0 is the upper edge.
"""

from __future__ import annotations

import functools
import math

import numpy as np

ROWS = 128
# Shapes are tested at this many points per texel and side, then averaged.
FINE = 2
SMALLEST = 4

Point = tuple[float, float]
# Red, green, blue; or the number of an object's colour and a brightness.
Ink = tuple[float, float, float] | tuple[int, float]

GLASS: Ink = (0.17, 0.22, 0.28)
TYRE: Ink = (0.07, 0.07, 0.08)
RIM: Ink = (0.55, 0.56, 0.58)
DARK: Ink = (0.12, 0.12, 0.13)
PLATE: Ink = (0.88, 0.84, 0.5)
TAIL: Ink = (0.8, 0.08, 0.06)
HEADLIGHT: Ink = (0.95, 0.95, 0.88)
SKIN: Ink = (0.82, 0.6, 0.47)
HAIR: Ink = (0.2, 0.14, 0.1)
WHITE: Ink = (0.93, 0.93, 0.93)
RED: Ink = (0.8, 0.09, 0.1)

# Outlines of the side, front to the right.
_OUTLINES = {
    "hatch": "0 20 0 55 3 62 13 96 19 100 54 100 70 67 95 56 100 42 100 20",
    "saloon": "0 20 0 58 13 65 26 96 32 100 56 100 71 67 96 57 100 42 100 20",
    "estate": "0 20 0 56 3 90 7 100 56 100 69 66 95 58 100 45 100 20",
    "van": "0 14 0 98 3 100 70 100 86 58 98 48 100 36 100 14",
    "bus": "0 10 0 98 2 100 98 100 100 95 100 10",
}
_WINDOWS = {
    "hatch": ("10 66 18 93 34 94 34 66", "37 66 37 94 53 93 65 66"),
    "saloon": ("19 67 29 93 41 94 41 67", "44 67 44 94 55 93 66 67"),
    "estate": ("6 64 9 93 34 94 34 64", "37 64 37 94 55 93 64 64"),
    "van": ("60 58 60 90 70 90 80 58",),
    "bus": tuple(f"{x} 45 {x} 85 {x + 14} 85 {x + 14} 45" for x in range(3, 99, 16)),
}


def _points(text: str) -> list[Point]:
    """Read an outline: percent of the length and of the height, in turns."""
    numbers = [int(word) / 100 for word in text.split()]
    return list(zip(numbers[::2], numbers[1::2]))


WHEELS = {"hatch": (0.19, 0.81, 0.21), "saloon": (0.2, 0.8, 0.21), "estate": (0.19, 0.8, 0.19)}
WHEELS |= {"van": (0.2, 0.8, 0.15), "bus": (0.2, 0.75, 0.15)}
# Front and rear: height of the belt, how much narrower the roof is, lower and upper edge of the window.
CABINS = {
    "hatch": (0.6, 0.13, 0.63, 0.92),
    "saloon": (0.62, 0.14, 0.66, 0.92),
    "estate": (0.58, 0.09, 0.62, 0.92),
}
CABINS |= {"van": (0.55, 0.04, 0.6, 0.88), "bus": (0.4, 0.01, 0.42, 0.86)}


def _mirrored(points: list[Point], middle: float) -> list[Point]:
    """Complete the left half of an outline that is the same on both sides of x = middle."""
    return [*points, *((2 * middle - x, y) for x, y in reversed(points))]


class _Board:
    """A drawing board: points are (right, up) in units of the height, the lower left corner is (0, 0)."""

    def __init__(self, aspect: float) -> None:
        self.columns = max(8, round(ROWS * aspect))
        rows, columns = ROWS * FINE, self.columns * FINE
        self.y = (1 - (np.arange(rows, dtype=np.float32) + 0.5) / rows)[:, None]
        self.x = ((np.arange(columns, dtype=np.float32) + 0.5) / rows)[None]
        self.ink = np.zeros((6, rows, columns), dtype=np.float32)

    def _fill(self, inside: np.ndarray, ink: Ink) -> None:
        value = np.zeros(6, dtype=np.float32)
        value[0] = 1
        if len(ink) == 2:
            value[1 + ink[0]] = ink[1]
        else:
            value[3:] = ink
        self.ink = np.where(inside[None], value[:, None, None], self.ink)

    def polygon(self, points: list[Point], ink: Ink) -> None:
        """Fill by the even-odd rule."""
        inside = np.zeros((self.y.shape[0], self.x.shape[1]), dtype=bool)
        for (xa, ya), (xb, yb) in zip(points, points[1:] + points[:1]):
            if ya == yb:
                continue
            crosses = (ya > self.y) != (yb > self.y)
            inside ^= crosses & (self.x < xa + (xb - xa) * (self.y - ya) / (yb - ya))
        self._fill(inside, ink)

    def box(self, x0: float, y0: float, x1: float, y1: float, ink: Ink) -> None:
        self._fill((self.x >= x0) & (self.x <= x1) & (self.y >= y0) & (self.y <= y1), ink)

    def disc(
        self, x: float, y: float, radius: float, ink: Ink, squeeze: float = 1.0, hole: float = 0.0
    ) -> None:
        away = ((self.x - x) / squeeze) ** 2 + (self.y - y) ** 2
        self._fill((away <= radius**2) & (away >= hole**2), ink)

    def limb(self, a: Point, b: Point, thick: float, ink: Ink) -> None:
        """Draw a line with round ends."""
        dx, dy = b[0] - a[0], b[1] - a[1]
        along = ((self.x - a[0]) * dx + (self.y - a[1]) * dy) / max(dx * dx + dy * dy, 1e-9)
        along = along.clip(0, 1)
        away = (self.x - a[0] - along * dx) ** 2 + (self.y - a[1] - along * dy) ** 2
        self._fill(away <= (thick / 2) ** 2, ink)

    def chain(self) -> list[np.ndarray]:
        """Return the sprite at full size, half size, and so on."""
        now = self.ink.reshape(6, ROWS, FINE, self.columns, FINE).mean((2, 4))
        levels = [np.ascontiguousarray(now)]
        while now.shape[1] > SMALLEST and now.shape[2] > 1:
            rows, columns = now.shape[1] // 2, max(1, now.shape[2] // 2)
            now = now[:, : 2 * rows, : 2 * columns].reshape(6, rows, 2, columns, 2).mean((2, 4))
            levels.append(np.ascontiguousarray(now))
        return levels


@functools.cache
def car_side(kind: str, aspect: float) -> list[np.ndarray]:
    """Draw a car from its right, front to the right; aspect is length over height."""
    board = _Board(aspect)
    outline, windows = _points(_OUTLINES[kind]), [_points(text) for text in _WINDOWS[kind]]

    def scaled(points: list[Point]) -> list[Point]:
        return [(x * aspect, y) for x, y in points]

    board.polygon(scaled(outline), (0, 0.92))
    low = outline[0][1]
    board.box(0, low, aspect, low + 0.09, (0, 0.6))
    board.box(0.01, 0.5, aspect - 0.02, 0.515, (0, 0.7))
    for window in windows:
        board.polygon(scaled(window), GLASS)
    first, second, radius = WHEELS[kind]
    for x in (first * aspect, second * aspect):
        board.disc(x, radius, radius * 1.14, DARK)
        board.disc(x, radius, radius, TYRE)
        board.disc(x, radius, radius * 0.56, RIM)
    board.box(0, 0.44, 0.06, 0.54, TAIL)
    board.box(aspect - 0.1, 0.42, aspect - 0.02, 0.5, HEADLIGHT)
    return board.chain()


@functools.cache
def car_face(kind: str, aspect: float, front: bool) -> list[np.ndarray]:
    """Draw the front or the rear of a car; aspect is width over height."""
    board = _Board(aspect)
    belt, taper, low, high = CABINS[kind]
    w = aspect
    board.box(0.06 * w, 0, 0.2 * w, 0.3, TYRE)
    board.box(0.8 * w, 0, 0.94 * w, 0.3, TYRE)
    board.box(0.04 * w, 0.1, 0.96 * w, 0.3, DARK)
    body = [(0.02 * w, 0.17), (0.0, 0.3), (0.0, belt - 0.06), (0.03 * w, belt)]
    board.polygon(_mirrored(body, w / 2), (0, 0.92))
    t = taper * w
    board.polygon(_mirrored([(0.03 * w, belt), (t, 0.95), (t + 0.05 * w, 1.0)], w / 2), (0, 1.0))
    inset = 0.07 * w
    board.polygon(_mirrored([(inset + 0.02 * w, low), (inset + 0.85 * t, high)], w / 2), GLASS)
    lamp = HEADLIGHT if front else TAIL
    board.box(0, 0.17, w, 0.26, (0, 0.66))
    if front:
        board.box(0.28 * w, 0.34, 0.72 * w, 0.46, DARK)
        for x in (0.13, 0.87):
            board.disc(x * w, 0.42, 0.085, lamp)
        board.box(0.38 * w, 0.2, 0.62 * w, 0.27, WHITE)
    else:
        for x0, x1 in ((0.02, 0.15), (0.85, 0.98)):
            board.box(x0 * w, 0.38, x1 * w, belt - 0.06, lamp)
        board.box(0.35 * w, 0.33, 0.65 * w, 0.42, PLATE)
    return board.chain()


@functools.cache
def person(pose: int, across: bool) -> list[np.ndarray]:
    """Draw a pedestrian, half as wide as high; colours 0: coat, 1: trousers. Pose in 0..5."""
    board = _Board(0.5)
    stride = (0.02, 0.06, 0.11, 0.14, 0.09, 0.04)[pose] * (1.0 if across else 0.45)
    hip, neck, middle = 0.49, 0.84, 0.25
    spread = 0.035 if not across else 0.0
    for side, shade in ((-1, 0.75), (1, 1.0)):
        foot = (middle + side * (stride + spread), 0.02)
        knee = (middle + side * (stride * 0.55 + spread) + 0.015, 0.26)
        board.limb((middle + side * spread, hip), knee, 0.115, (1, shade))
        board.limb(knee, foot, 0.085, (1, shade * 0.95))
        board.limb(foot, (foot[0] + (0.03 if across else 0), 0.02), 0.05, DARK)
    long_coat = pose in (1, 4)
    wide = 0.15 if across else 0.2
    bottom = 0.34 if long_coat else 0.47
    coat = [(middle - wide / 2, bottom), (middle - wide / 2 - 0.01, 0.8), (middle - wide / 4, neck)]
    board.polygon(_mirrored(coat, middle), (0, 1.0))
    for side, shade in ((-1, 0.8), (1, 0.9)):
        shoulder = (middle + side * (wide / 2 - 0.005), 0.79)
        hand = (shoulder[0] + side * (0.02 + 0.6 * stride), 0.46)
        board.limb(shoulder, hand, 0.06, (0, shade))
        board.disc(hand[0], hand[1], 0.026, SKIN)
    if pose == 3:
        board.box(middle + wide / 2, 0.33, middle + wide / 2 + 0.1, 0.46, (1, 0.6))
    board.box(middle - 0.025, 0.82, middle + 0.025, 0.88, SKIN)
    board.disc(middle, 0.925, 0.062, SKIN, squeeze=0.85)
    board.disc(middle - (0.012 if across else 0), 0.945, 0.056, HAIR, squeeze=0.95)
    if across:
        board.disc(middle + 0.035, 0.915, 0.03, SKIN)
    return board.chain()


@functools.cache
def rider(pose: int, across: bool) -> list[np.ndarray]:
    """Draw a person on a bicycle, colours 0: jacket, 1: trousers; as wide as high if seen from the side."""
    steel: Ink = (0.3, 0.32, 0.36)
    if not across:
        board = _Board(0.8 / 1.75)
        m = 0.5 * 0.8 / 1.75
        board.limb((m, 0.02), (m, 0.42), 0.045, TYRE)
        board.limb((m - 0.13, 0.6), (m + 0.13, 0.6), 0.03, steel)
        for side, high in ((-1, 0.16), (1, 0.28 if pose % 2 else 0.2)):
            board.limb((m + side * 0.05, 0.52), (m + side * 0.085, high + 0.14), 0.09, (1, 0.95))
            board.limb((m + side * 0.085, high + 0.14), (m + side * 0.06, high - 0.05), 0.07, (1, 0.85))
        board.polygon(_mirrored([(m - 0.09, 0.5), (m - 0.115, 0.76), (m - 0.05, 0.83)], m), (0, 1.0))
        for side in (-1, 1):
            board.limb((m + side * 0.1, 0.76), (m + side * 0.15, 0.62), 0.06, (0, 0.85))
        board.disc(m, 0.91, 0.065, HAIR if pose % 2 else SKIN, squeeze=0.85)
        board.polygon(_mirrored([(m - 0.065, 0.93), (m - 0.03, 0.985)], m), RED if pose == 2 else HAIR)
        return board.chain()
    board = _Board(1.0)
    radius = 0.19
    back, front = (0.2, radius + 0.01), (0.8, radius + 0.01)
    for wheel in (back, front):
        board.disc(wheel[0], wheel[1], radius, TYRE, hole=radius - 0.05)
    crank, saddle, head, bar = (0.46, 0.2), (0.38, 0.5), (0.68, 0.47), (0.7, 0.55)
    tubes = (
        (back, crank),
        (crank, saddle),
        (back, saddle),
        (crank, head),
        (saddle, head),
        (head, front),
        (head, bar),
    )
    for a, b in tubes:
        board.limb(a, b, 0.028, steel)
    hip, turn = (0.38, 0.56), math.radians(70 + 70 * pose)
    for k, shade in ((0, 0.75), (1, 1.0)):
        pedal = (
            crank[0] + 0.09 * math.cos(turn + math.pi * k),
            crank[1] + 0.09 * math.sin(turn + math.pi * k),
        )
        knee = (0.5 * (hip[0] + pedal[0]) + 0.11, 0.5 * (hip[1] + pedal[1]) + 0.06)
        board.limb(hip, knee, 0.105, (1, shade))
        board.limb(knee, pedal, 0.08, (1, shade))
    board.limb(hip, (0.52, 0.8), 0.17, (0, 1.0))
    board.limb((0.53, 0.8), bar, 0.065, (0, 0.85))
    board.disc(0.58, 0.92, 0.065, SKIN)
    board.disc(0.565, 0.94, 0.06, RED if pose == 2 else HAIR)
    return board.chain()


@functools.cache
def sign(variant: int) -> list[np.ndarray]:
    """Draw traffic lights (0), a prohibition (1), a warning (2), an order (3), no entry (4) or a board (5)."""
    if variant == 0:
        board = _Board(0.38)
        board.box(0, 0, 0.38, 1, (0.06, 0.07, 0.07))
        for y, ink in ((0.82, (0.95, 0.15, 0.1)), (0.5, (0.35, 0.25, 0.05)), (0.18, (0.1, 0.4, 0.2))):
            board.disc(0.19, y, 0.12, ink)
        return board.chain()
    board = _Board(1.0)
    if variant == 1:
        board.disc(0.5, 0.5, 0.5, RED)
        board.disc(0.5, 0.5, 0.36, WHITE)
        board.box(0.36, 0.34, 0.46, 0.66, DARK)
        board.disc(0.6, 0.5, 0.12, DARK, hole=0.06)
    elif variant == 2:
        board.polygon([(0, 0.06), (0.5, 0.98), (1, 0.06)], RED)
        board.polygon([(0.2, 0.18), (0.5, 0.72), (0.8, 0.18)], WHITE)
        board.box(0.47, 0.24, 0.53, 0.52, DARK)
    elif variant == 3:
        board.disc(0.5, 0.5, 0.5, (0.08, 0.28, 0.72))
        board.limb((0.62, 0.7), (0.4, 0.35), 0.1, WHITE)
        board.polygon([(0.28, 0.42), (0.3, 0.2), (0.52, 0.28)], WHITE)
    elif variant == 4:
        board.disc(0.5, 0.5, 0.5, RED)
        board.box(0.16, 0.42, 0.84, 0.58, WHITE)
    else:
        board.box(0, 0, 1, 1, (0, 1.0))
        board.box(0.04, 0.04, 0.96, 0.96, (1, 1.0))
        board.box(0.04, 0.04, 0.96, 0.96, (0, 0.92))
        for y, x1 in ((0.7, 0.82), (0.48, 0.9), (0.26, 0.6)):
            board.box(0.12, y - 0.05, x1, y + 0.05, (1, 1.0))
    return board.chain()
