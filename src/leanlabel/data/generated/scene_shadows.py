"""Shadows of the things in a generated street on its ground."""

from __future__ import annotations

import numpy as np

from leanlabel.data.generated.scene_paint import Canvas

# Things farther than this cast no shadow worth its time.
SHADOW_RANGE = 32.0


def paint_shadows(canvas: Canvas) -> None:
    """Darken the ground under things, and where they keep the sun away."""
    strength = canvas.style.shadow
    for thing in canvas.street.things:
        if thing.z > SHADOW_RANGE or thing.base > 0:
            continue
        if thing.kind == "car":
            across = thing.turn >= 2
            wide, deep = (thing.length, thing.width) if across else (thing.width, thing.length)
            middle = thing.z + deep / 2
            _ellipse(canvas, thing.x, middle, wide * 0.62, deep * 0.62, 0.62)
            if strength > 0.1:
                x = thing.x + canvas.sun[0] * -0.45 * thing.height * min(canvas.reach, 2.5)
                z = middle - canvas.sun[1] * 0.45 * thing.height * min(canvas.reach, 2.5)
                _ellipse(canvas, x, z, wide * 0.6, deep * 0.6, 0.6 * strength)
            continue
        if thing.kind not in ("post", "bollard"):
            _ellipse(canvas, thing.x, thing.z, 0.45 * min(thing.width, 1.6) + 0.12, 0.3, 0.4)
        if strength > 0.1 and canvas.shaded(thing.x, thing.z) == 0:
            long = min(thing.height * canvas.reach, 9.0)
            crown = thing.kind == "tree"
            share = 0.75 if crown else 0.5
            x, z = thing.x - canvas.sun[0] * long * share, thing.z - canvas.sun[1] * long * share
            wide = 0.5 * thing.width if crown else max(0.1, 0.5 * long * abs(canvas.sun[0]))
            deep = 0.5 * thing.width if crown else max(0.15, 0.5 * long * abs(canvas.sun[1]))
            _ellipse(canvas, x, z, wide, deep, strength * (0.5 if crown else 0.4))


def _ellipse(canvas: Canvas, x: float, z: float, wide: float, deep: float, strength: float) -> None:
    """Darken an ellipse on the ground around (x, z), fading to its edge."""
    if z - deep < 1.2:
        deep = max(0.2, z - 1.2)
    camera = canvas.street.camera
    scale = camera.focal * canvas.height
    lo = int(camera.horizon * canvas.height + scale * camera.height / (z + deep))
    hi = int(camera.horizon * canvas.height + scale * camera.height / max(z - deep, 1.0)) + 1
    lo, hi = max(lo, canvas.top), min(hi, canvas.height)
    if hi <= lo:
        return
    middle = 0.5 * canvas.width + camera.shift * canvas.height
    bends = [x + camera.curve * at * at for at in (z - deep, z + deep)]
    near = max(z - deep, 1.0)
    edges = [
        middle + scale * (bend + side * wide) / at
        for bend, at in zip(bends, (near, z + deep))
        for side in (-1, 1)
    ]
    left, right = max(0, int(min(edges))), min(canvas.width, int(max(edges)) + 2)
    if right <= left:
        return
    rows = slice(lo - canvas.top, hi - canvas.top)
    away = (canvas.ground_x[rows, left:right] - x) * np.float32(1 / wide)
    away *= away
    along = (canvas.ground_z[rows] - z) * np.float32(1 / deep)
    away += along * along
    dark = np.maximum(1 - away, 0)
    dark *= np.float32(-strength * 1.6)
    dark += 1
    np.maximum(dark, 1 - strength, out=dark)
    canvas.rgb[:, lo:hi, left:right] *= dark
