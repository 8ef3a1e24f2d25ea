"""The two looks of a generated street, and what air and camera make of the picture.

A look is a vector of numbers, so that style = source + gap (target - source): at gap 0 it is the source, to the bit.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from leanlabel.rng import draw

NOISE_SIDE = 512
# Steps of the table of the camera response.
STEPS = 4095

Rgb = tuple[float, float, float]


class Look(NamedTuple):
    """Colours in [0, 1] as a screen shows them, and the strengths of what makes a photograph.

    Args:
        houses, cars, clothes, boards: eight colours each, picked by the objects.
        roof, glass, asphalt, paving, grass, leaves, trunk, metal, marking, fence: one colour each.
        sun, ambient: colours of direct and of scattered light.
        zenith, horizon, cloud: colours of the sky.
        haze: colour of the air; density: 1/m.
        texture: strength of the materials' grain; bare: how far one sees through the crowns of trees.
        lit: share of light of windows lit from inside.
        shadow: 0 to 1; cloudy: 0 to 1; low: how much lower the sun stands, 0 to 1.
        blur: standard deviation in heights of the picture; noise: standard deviation at middle grey.
        vignette: loss of light in the corners; exposure, white: factors; saturation; contrast: exponent.
    """

    houses: tuple[Rgb, ...]
    cars: tuple[Rgb, ...]
    clothes: tuple[Rgb, ...]
    boards: tuple[Rgb, ...]
    roof: Rgb
    glass: Rgb
    asphalt: Rgb
    paving: Rgb
    grass: Rgb
    leaves: Rgb
    trunk: Rgb
    metal: Rgb
    marking: Rgb
    fence: Rgb
    sun: Rgb
    ambient: Rgb
    zenith: Rgb
    horizon: Rgb
    cloud: Rgb
    haze: Rgb
    density: float
    texture: float
    bare: float
    lit: float
    shadow: float
    cloudy: float
    low: float
    blur: float
    noise: float
    vignette: float
    exposure: float
    white: Rgb
    saturation: float
    contrast: float


SOURCE = Look(
    houses=(
        (0.86, 0.72, 0.5),
        (0.78, 0.45, 0.34),
        (0.62, 0.68, 0.76),
        (0.92, 0.86, 0.72),
        (0.7, 0.56, 0.46),
        (0.56, 0.62, 0.6),
        (0.84, 0.6, 0.42),
        (0.74, 0.74, 0.78),
    ),
    cars=(
        (0.85, 0.1, 0.1),
        (0.12, 0.28, 0.8),
        (0.92, 0.92, 0.92),
        (0.15, 0.16, 0.18),
        (0.95, 0.75, 0.1),
        (0.1, 0.6, 0.35),
        (0.62, 0.65, 0.7),
        (0.3, 0.65, 0.85),
    ),
    clothes=(
        (0.9, 0.2, 0.2),
        (0.15, 0.35, 0.85),
        (0.95, 0.8, 0.2),
        (0.2, 0.65, 0.4),
        (0.3, 0.3, 0.38),
        (0.7, 0.3, 0.7),
        (0.9, 0.9, 0.88),
        (0.95, 0.55, 0.2),
    ),
    boards=(
        (0.1, 0.35, 0.75),
        (0.1, 0.55, 0.3),
        (0.95, 0.8, 0.15),
        (0.85, 0.15, 0.15),
        (0.93, 0.93, 0.93),
        (0.2, 0.2, 0.25),
        (0.95, 0.55, 0.1),
        (0.5, 0.2, 0.55),
    ),
    roof=(0.62, 0.3, 0.24),
    glass=(0.34, 0.5, 0.66),
    asphalt=(0.4, 0.41, 0.44),
    paving=(0.72, 0.68, 0.64),
    grass=(0.42, 0.68, 0.28),
    leaves=(0.28, 0.6, 0.24),
    trunk=(0.46, 0.32, 0.22),
    metal=(0.5, 0.53, 0.57),
    marking=(0.96, 0.96, 0.96),
    fence=(0.62, 0.5, 0.4),
    sun=(0.5, 0.48, 0.44),
    ambient=(0.62, 0.63, 0.66),
    zenith=(0.3, 0.55, 0.92),
    horizon=(0.72, 0.86, 0.98),
    cloud=(0.98, 0.98, 1.0),
    haze=(0.72, 0.86, 0.98),
    density=0.0012,
    texture=0.3,
    bare=0.0,
    lit=0.0,
    shadow=0.55,
    cloudy=0.25,
    low=0.0,
    blur=0.0,
    noise=0.0,
    vignette=0.0,
    exposure=1.0,
    white=(1.0, 1.0, 1.0),
    saturation=1.0,
    contrast=1.0,
)

TARGET = Look(
    houses=(
        (0.52, 0.42, 0.3),
        (0.42, 0.27, 0.2),
        (0.46, 0.44, 0.42),
        (0.7, 0.65, 0.56),
        (0.36, 0.3, 0.26),
        (0.34, 0.33, 0.33),
        (0.55, 0.44, 0.32),
        (0.5, 0.48, 0.46),
    ),
    cars=(
        (0.4, 0.08, 0.09),
        (0.12, 0.16, 0.3),
        (0.75, 0.76, 0.77),
        (0.08, 0.08, 0.09),
        (0.34, 0.3, 0.24),
        (0.12, 0.22, 0.18),
        (0.48, 0.5, 0.53),
        (0.28, 0.36, 0.44),
    ),
    clothes=(
        (0.32, 0.12, 0.12),
        (0.13, 0.17, 0.28),
        (0.42, 0.36, 0.24),
        (0.15, 0.2, 0.16),
        (0.1, 0.1, 0.11),
        (0.24, 0.18, 0.24),
        (0.55, 0.53, 0.5),
        (0.36, 0.26, 0.18),
    ),
    boards=(
        (0.14, 0.22, 0.42),
        (0.12, 0.3, 0.22),
        (0.7, 0.6, 0.2),
        (0.55, 0.14, 0.12),
        (0.72, 0.7, 0.66),
        (0.13, 0.13, 0.14),
        (0.6, 0.36, 0.12),
        (0.28, 0.16, 0.22),
    ),
    roof=(0.26, 0.22, 0.2),
    glass=(0.13, 0.14, 0.16),
    asphalt=(0.33, 0.325, 0.33),
    paving=(0.42, 0.4, 0.37),
    grass=(0.3, 0.32, 0.16),
    leaves=(0.22, 0.23, 0.12),
    trunk=(0.2, 0.16, 0.13),
    metal=(0.3, 0.3, 0.3),
    marking=(0.75, 0.73, 0.68),
    fence=(0.33, 0.28, 0.24),
    sun=(0.78, 0.62, 0.42),
    ambient=(0.56, 0.58, 0.62),
    zenith=(0.6, 0.68, 0.78),
    horizon=(1.06, 1.03, 0.98),
    cloud=(1.02, 1.0, 0.98),
    haze=(0.86, 0.84, 0.8),
    density=0.006,
    texture=1.0,
    bare=0.4,
    lit=0.35,
    shadow=0.8,
    cloudy=0.75,
    low=0.65,
    blur=0.0026,
    noise=0.016,
    vignette=0.3,
    exposure=1.32,
    white=(1.04, 1.0, 0.93),
    saturation=0.8,
    contrast=1.28,
)


def look(gap: float, mood: tuple[float, float, float, float]) -> Look:
    """Mix the two looks, and let exposure, colour of the light and sharpness of the target differ by scene.

    Args:
        gap: 0 is the source, 1 the target, beyond it exaggerates.
        mood: four numbers in [0, 1) that belong to the scene.

    >>> look(0.0, (0.1, 0.9, 0.3, 0.5)) == SOURCE
    True
    """
    if gap == 0:
        return SOURCE
    mixed: dict[str, Any] = dict(_mix(gap))
    # Half the scenes of the target have direct sun, the others a dim and even sky, as at dusk.
    dusk = 1.0 if mood[0] > 0.6 else 0.0
    warm = 0.08 * gap * (mood[1] - 0.5) - 0.07 * gap * dusk
    r, g, b = mixed["white"]
    mixed["white"] = (r + warm, g, b - warm)
    mixed["exposure"] *= 2.0 ** (gap * 0.5 * (mood[2] - 0.5) - 0.6 * min(gap, 1.2) * dusk)
    fade = max(0.0, 1 - 0.8 * gap * dusk)
    mixed["sun"] = tuple(value * fade for value in mixed["sun"])
    mixed["shadow"] *= fade
    # Sensors of the day burn out in the sky: it stays bright when the street is dim.
    for name in ("zenith", "horizon", "cloud"):
        mixed[name] = tuple(value * (1 + 0.5 * gap * dusk) for value in mixed[name])
    mixed["blur"] *= 0.6 + 0.8 * mood[3]
    mixed["noise"] *= 1 + 0.4 * dusk
    return Look(**mixed)


@functools.lru_cache(maxsize=32)
def _mix(gap: float) -> dict[str, Any]:
    def mix(a: Any, b: Any) -> Any:
        if isinstance(a, tuple):
            return tuple(mix(p, q) for p, q in zip(a, b))
        # Beyond the target colours would reach black and change their hue on the way.
        return max(0.5 * min(a, b), a + gap * (b - a))

    return {name: mix(getattr(SOURCE, name), getattr(TARGET, name)) for name in Look._fields}


def expose(rgb: np.ndarray, depth: np.ndarray, style: Look, seat: int) -> np.ndarray:
    """Turn light into the picture that a camera stores.

    Air, lens, sensor, response, in this order: haze by depth, loss of light in the corners, blur, exposure and
    white balance, saturation, contrast, noise that grows with the signal.

    Args:
        rgb: (3, h, w) float32 light; used up.
        depth: (h, w) float32 metres, infinite in the sky.
        style: the look.
        seat: >= 0, where in the stored noise this picture begins.

    Returns:
        (3, h, w) uint8.
    """
    height, width = depth.shape
    clear = np.exp(depth * np.float32(-style.density))
    clear[depth == np.inf] = 1.0
    haze = np.array(style.haze, np.float32)[:, None, None]
    rgb -= haze
    rgb *= clear
    rgb += haze
    if style.blur > 0:
        rgb = _blur(rgb, style.blur * height)
    if style.vignette > 0:
        y = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height - 0.5
        x = (np.arange(width, dtype=np.float32)[None] + 0.5) / width - 0.5
        rgb *= 1 - np.float32(style.vignette * 2) * (x * x + y * y) ** 1.5
    gain = np.array(style.white, np.float32) * np.float32(style.exposure)
    grey = np.array((0.299, 0.587, 0.114), np.float32) * np.float32(1 - style.saturation)
    matrix = (grey + np.eye(3, dtype=np.float32) * np.float32(style.saturation)) * gain
    rgb = (matrix @ rgb.reshape(3, -1)).reshape(3, height, width)
    if style.contrast != 1 or style.noise > 0:
        rgb *= STEPS
        np.maximum(rgb, 0, out=rgb)
        index = np.minimum(rgb, STEPS, out=rgb).astype(np.intp)
        response, spread = _response(style.contrast, style.noise)
        rgb = response.take(index)
        rgb += spread.take(index) * _grain(seat, height, width)
    rgb *= 255
    rgb += 0.5
    np.maximum(rgb, 0, out=rgb)
    return np.minimum(rgb, 255, out=rgb).astype(np.uint8)


@functools.lru_cache(maxsize=64)
def _response(contrast: float, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Return tables of a sensor's answer to light and of its noise; powers of whole pictures take long."""
    light = np.linspace(0, 1, STEPS + 1)
    # Darks sink, lights do not burn out.
    answer = light**contrast
    answer *= 1 + 0.12 * (1 - answer) * min(1.0, abs(contrast - 1) * 4)
    spread = noise * (0.4 + 1.2 * np.sqrt(answer.clip(0, 1)))
    return answer.astype(np.float32), spread.astype(np.float32)


def _blur(rgb: np.ndarray, sigma: float) -> np.ndarray:
    """Blur with a Gaussian of `sigma` pixels, edges repeated."""
    reach = min(max(1, round(2.5 * sigma)), 12)
    weights = np.exp(-0.5 * (np.arange(reach + 1) / max(sigma, 0.05)) ** 2)
    weights = (weights / (weights[0] + 2 * weights[1:].sum())).astype(np.float32)
    for axis in (1, 2):
        out = rgb * weights[0]
        size = rgb.shape[axis]
        pads = [(0, 0)] * 3
        pads[axis] = (reach, reach)
        padded = np.pad(rgb, pads, mode="edge")
        for k in range(1, reach + 1):
            for start in (reach - k, reach + k):
                part = padded[:, start : start + size] if axis == 1 else padded[:, :, start : start + size]
                out += weights[k] * part
        rgb = out
    return rgb


@functools.cache
def _normals() -> np.ndarray:
    """One long row of stored normal numbers, drawn once: drawing them per picture would cost more than the picture."""
    return draw(0, "scenes-grain", 0).normal(1 << 19).numpy()


def _grain(seat: int, height: int, width: int) -> np.ndarray:
    normals = _normals()
    count = 3 * height * width
    start = seat % len(normals)
    if start + count > len(normals):
        rows = np.resize(np.roll(normals, -start), count)
    else:
        rows = normals[start : start + count]
    return rows.reshape(3, height, width)


@functools.cache
def texture(cells: int) -> np.ndarray:
    """Return noise of four octaves that repeats at its edges, the coarsest with so many knots along a side.

    Returns:
        (512, 512) float32, mean 0, most values in [-1, 1].
    """
    out = np.zeros((NOISE_SIDE, NOISE_SIDE), dtype=np.float32)
    for octave in range(4):
        knots = draw(cells, "scenes-texture", 0).uniform((cells, cells)).numpy() * 2 - 1
        at = np.arange(NOISE_SIDE) * cells / NOISE_SIDE
        low = at.astype(np.int64)
        part = (at - low).astype(np.float32)
        part = part * part * (3 - 2 * part)
        high = (low + 1) % cells
        rows = knots[low] * (1 - part[:, None]) + knots[high] * part[:, None]
        out += (rows[:, low] * (1 - part) + rows[:, high] * part) * np.float32(0.6**octave)
        cells *= 2
    return out
