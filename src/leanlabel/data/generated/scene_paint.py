"""Painting of sky, ground, walls and fences of a generated street onto a canvas with depth and classes.

Walls are found by casting one ray per column through the plan: the three nearest hits of a column are painted from
far to near, all columns at once. Everything is anti-aliased in the picture by the covered share of a pixel, and
belongs to the class that covers more than half of it.
"""

from __future__ import annotations

import math

import numpy as np

from leanlabel.data.generated.scene_camera import NOISE_SIDE, Look, Rgb, texture
from leanlabel.data.generated.scene_layout import (
    BOARDS,
    COLOUR,
    EAVE,
    FACING,
    FLOOR,
    HEDGE,
    KIND,
    LOW_WALL,
    PITCH,
    ROOF,
    SHOP,
    TALL,
    WIDE,
    Street,
)
from leanlabel.data.generated.scene_things import BUILDING, FENCE, PAVEMENT, ROAD, SKY, TREE

LAYERS = 3
FAR_DEPTH = 170.0
# The normals of walls that look right, left and towards the camera.
NORMALS = ((1.0, 0.0), (-1.0, 0.0), (0.0, -1.0))


def unit(values: np.ndarray) -> np.ndarray:
    """Clip a fresh array to [0, 1] in place: a third of the time of np.clip on a small one."""
    np.maximum(values, 0, out=values)
    return np.minimum(values, 1, out=values)


def sample(tile: np.ndarray, v: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Read the noise tile at real coordinates in texels; it repeats."""
    rows = v.astype(np.int32) & (NOISE_SIDE - 1)
    rows = rows * NOISE_SIDE
    return tile.ravel().take(rows + (u.astype(np.int32) & (NOISE_SIDE - 1)))


class Canvas:
    """A picture in work: light (3, h, w), depth in metres, class and instance of every pixel."""

    def __init__(self, street: Street, style: Look, height: int, width: int) -> None:
        self.street, self.style = street, style
        self.height, self.width = height, width
        self.rgb = np.empty((3, height, width), dtype=np.float32)
        self.depth = np.full((height, width), np.inf, dtype=np.float32)
        self.mask = np.full((height, width), SKY, dtype=np.uint8)
        self.instances = np.zeros((height, width), dtype=np.int32)
        camera = street.camera
        # Pixel centres in heights of the picture: rows from the horizon down, columns from the vanishing point.
        self.down = ((np.arange(height, dtype=np.float32) + 0.5) / height - np.float32(camera.horizon))[
            :, None
        ]
        across = (np.arange(width, dtype=np.float32) + 0.5) / height
        self.across = across - np.float32(0.5 * width / height + camera.shift)
        self.texture, self.soft = texture(16), texture(4)
        elevation = street.sun[1] * (1 - 0.72 * min(style.low, 1.3))
        self.sun = (math.sin(street.sun[0]), math.cos(street.sun[0]))
        self.reach = 1 / math.tan(elevation)
        self.upright = math.cos(elevation)
        self.ambient = np.array(style.ambient, np.float32)
        self.direct = np.array(style.sun, np.float32)
        self.lights: dict[tuple[float, float], np.ndarray] = {}
        self.ground_x: np.ndarray = np.zeros((0, 0), dtype=np.float32)
        self.ground_z: np.ndarray = np.zeros((0, 0), dtype=np.float32)
        self.top = height

    def light(self, facing: float) -> np.ndarray:
        """(3,) light that falls on a wall."""
        nx, nz = NORMALS[int(facing)]
        return self.ambient + self.direct * (self.upright * max(0.0, nx * self.sun[0] + nz * self.sun[1]))

    def shaded(self, x: float, z: float) -> float:
        """Share of direct light lost at a point of the ground, x from the axis of the street."""
        side = 0 if self.sun[0] < 0 else 1
        edge = self.street.pavement[side]
        away = abs(x - edge)
        need = away / max(abs(self.sun[0]) * self.reach, 1e-3)
        back = int(min(max(z + away * self.sun[1] / max(abs(self.sun[0]), 0.05), 0), 159))
        return self.style.shadow if self.street.eaves[side, back] > need else 0.0


def paint_sky(canvas: Canvas) -> None:
    """Paint a gradient with clouds, and the far skyline of trees and houses."""
    style, street = canvas.style, canvas.street
    height = canvas.height
    rows = min(height, math.ceil((street.camera.horizon + 0.02) * height))
    up = np.clip(-canvas.down[:rows], 0.004, None)
    blend = unit(up * 2.2) ** 0.7
    # Clouds lie in a plane overhead: farther ones are closer together.
    far = 0.16 / (up + 0.09)
    v = far * 600 + 512 * street.sky[0]
    u = (canvas.across * 280) * far + 512 * street.sky[1]
    puffs = sample(canvas.soft, v, u)
    cover = min(style.cloudy * (0.3 + 1.4 * street.sky[2]), 1.2)
    cloud = unit(puffs * 0.9 + np.float32(1.6 * cover - 0.75)) * min(1.0, 0.6 + cover)
    for c in range(3):
        plain = style.horizon[c] + (style.zenith[c] - style.horizon[c]) * blend
        canvas.rgb[c, :rows] = plain + (style.cloud[c] * (0.8 + 0.2 * blend) - plain) * cloud
    a, b, p, q = street.skyline[:4].tolist()
    at = ((canvas.across * 90 + 512 * a).astype(np.int32)) % NOISE_SIDE
    bumps = canvas.texture[int(511 * b), at]
    roofs = canvas.texture[int(511 * p), (canvas.across * 14 + 300 * q).astype(np.int32) % NOISE_SIDE]
    built = roofs > 0.15
    rise = np.where(built, 0.035 + 0.03 * roofs, 0.028 + 0.016 * bumps)
    lo = max(0, int((street.camera.horizon - 0.11) * height))
    cover = unit((rise + canvas.down[lo:rows]) * height + 0.5)
    tone = (1 + 0.25 * style.texture * bumps) * 0.9
    house = np.array(style.houses[5], np.float32)
    leaves = np.array(style.leaves, np.float32)
    colour = np.where(built, house[:, None], leaves[:, None]) * tone * (canvas.ambient * 1.05)[:, None]
    part = canvas.rgb[:, lo:rows]
    part += (colour[:, None] - part) * cover
    hit = cover > 0.5
    canvas.mask[lo:rows] = np.where(hit, np.where(built, BUILDING, TREE).astype(np.uint8), SKY)
    canvas.depth[lo:rows][hit] = FAR_DEPTH


def paint_ground(canvas: Canvas) -> None:
    """Paint road, markings, kerbs, pavements and grass, with the shadows of the buildings."""
    street, style = canvas.street, canvas.style
    camera = street.camera
    top = min(canvas.height, math.ceil((camera.horizon + 0.004) * canvas.height))
    canvas.top = top
    z = camera.focal * camera.height / canvas.down[top:]
    # Width of a pixel on the ground, across; along the street it is wider by Z over the height of the eye.
    foot = z / np.float32(camera.focal * canvas.height)
    x = canvas.across * (z / camera.focal) - camera.curve * z * z
    canvas.ground_x, canvas.ground_z = x, z
    left, right = street.road
    road = unit((x - left) / foot + 0.5) * unit((right - x) / foot + 0.5)
    tread = foot * z / camera.height
    if street.junction is not None:
        start, stop = street.junction
        road = np.maximum(road, unit((z - start) / tread + 0.5) * unit((stop - z) / tread + 0.5))
    verge = unit((street.pavement[0] - x) / foot + 0.5) + unit((x - street.pavement[1]) / foot + 0.5)
    kerb = np.minimum(np.abs(x - left + 0.09), np.abs(x - right - 0.09))
    kerb = np.clip((0.09 - kerb) / foot + 0.5, 0, np.minimum(1, 0.18 / foot)) * (1 - road)
    marks = _markings(canvas, x, z, foot, tread)
    fade = np.minimum(1.0, 0.03 / foot)
    grain = sample(canvas.texture, z * 9, x * 11) * np.float32(0.16 * style.texture) * (0.3 + 0.7 * fade)
    patches = sample(canvas.soft, z * 7 + 99, x * 16)
    grain += patches * np.float32(0.1 * style.texture)
    shadow = _house_shadow(canvas, x, z)
    high = math.sin(math.atan(1 / canvas.reach))
    slabs = (np.floor(z * 1.2) + np.floor(x * 1.2)) % 2 * np.float32(0.05) * np.minimum(1, 0.15 / tread)
    green = style.grass if street.green > 0.4 else style.paving
    for c in range(3):
        pave = style.paving[c] * (1 - slabs) + kerb * (0.14 * style.paving[c])
        base = pave + (green[c] - pave) * verge
        base += (style.asphalt[c] - base) * road
        base += (style.marking[c] - base) * marks
        base *= 1 + grain
        base *= canvas.ambient[c] + canvas.direct[c] * high * 1.3 * (1 - shadow)
        canvas.rgb[c, top:] = base
    outer = TREE if street.green > 0.4 else PAVEMENT
    kinds = np.where(verge > 0.5, np.uint8(outer), np.uint8(PAVEMENT))
    canvas.mask[top:] = np.where(road > 0.5, np.uint8(ROAD), kinds)
    canvas.depth[top:] = z


def _markings(
    canvas: Canvas, x: np.ndarray, z: np.ndarray, foot: np.ndarray, tread: np.ndarray
) -> np.ndarray:
    """(rows, w) coverage of white paint: the dashed middle, lines at the edges, a zebra crossing, a stop line."""
    street = canvas.street
    left, right = street.road
    narrow = np.minimum(1, 0.13 / foot)
    marks = np.clip((0.065 - np.abs(x - street.centre)) / foot + 0.5, 0, narrow)
    dash = np.clip((1.3 - np.abs(z % 6 - 3)) / tread + 0.5, 0, np.minimum(1, 1 / (1 + 0.02 * tread)))
    marks *= dash
    if street.edge_lines:
        edge = np.minimum(np.abs(x - left - 0.25), np.abs(x - right + 0.25))
        marks = np.maximum(marks, np.clip((0.055 - edge) / foot + 0.5, 0, np.minimum(1, 0.11 / foot)))
    if street.junction is not None:
        start, stop = street.junction
        marks *= 1 - unit((z - start + 1) / tread + 0.5) * unit((stop + 1 - z) / tread + 0.5)
        line = np.clip((0.25 - np.abs(z - start + 1.6)) / tread + 0.5, 0, np.minimum(1, 0.5 / tread))
        marks = np.maximum(marks, line * ((x > left) & (x < street.centre)))
    if street.zebra is not None:
        band = unit((1.5 - np.abs(z - street.zebra)) / tread + 0.5)
        stripes = unit((0.26 - np.abs((x - left) % 1.05 - 0.52)) / foot + 0.5)
        marks = marks * (1 - band) + stripes * band * ((x > left + 0.2) & (x < right - 0.2))
    return marks


def _house_shadow(canvas: Canvas, x: np.ndarray, z: np.ndarray) -> np.ndarray | float:
    """(rows, w) share of direct light that the buildings on the side of the sun take away."""
    sx, sz = canvas.sun
    if canvas.style.shadow <= 0 or abs(sx) < 0.05:
        return 0.0
    side = 0 if sx < 0 else 1
    away = np.abs(x - canvas.street.pavement[side])
    along = (z + away * np.float32(sz / abs(sx))).astype(np.int32)
    high = canvas.street.eaves[side].astype(np.float32)[np.clip(along, 0, canvas.street.eaves.shape[1] - 1)]
    need = away * np.float32(1 / (abs(sx) * canvas.reach))
    return unit((high - need) * 2 + 0.5) * np.float32(canvas.style.shadow)


def _cast(canvas: Canvas, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cast a ray through every column: (S, w) depth, infinite without a hit, and metres along the segment."""
    slope = (canvas.across / canvas.street.camera.focal).astype(np.float64)
    xa, za, xb, zb = (ends[:, k, None] for k in range(4))
    run = (xb - xa) - slope * (zb - za)
    with np.errstate(divide="ignore", invalid="ignore"):
        part = (slope * za - xa) / run
        depth = za + part * (zb - za)
        depth = np.where((part >= 0) & (part <= 1) & (depth > 0.6), depth, np.inf)
    long = np.hypot(xb - xa, zb - za)
    return depth.astype(np.float32), (part * long).astype(np.float32)


def paint_walls(canvas: Canvas) -> None:
    """Paint buildings and hedges, up to three deep in a column."""
    walls = canvas.street.walls
    if not len(walls):
        return
    depth, along = _cast(canvas, walls[:, :4])
    order = np.argsort(depth, axis=0)[:LAYERS]
    lights = np.stack([canvas.light(k) for k in range(3)])
    every = np.arange(canvas.width)
    tops = (walls[:, EAVE] + walls[:, ROOF] - canvas.street.camera.height).astype(np.float32)
    skyline = np.full(canvas.width, -np.inf, dtype=np.float32)
    hits: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    for row in order:
        z = depth[row, every]
        # What a nearer wall hides is not painted; the ragged top of a hedge hides a little less.
        rise = tops[row] / z
        columns = every[np.isfinite(z) & (rise > skyline)]
        leafy = walls[row, KIND] == HEDGE
        skyline = np.maximum(
            skyline, np.where(np.isfinite(z), np.where(leafy, rise - 0.5 / z, rise), -np.inf)
        )
        if len(columns):
            hits.append((columns, walls[row[columns]], z[columns], along[row[columns], columns]))
    for hit in reversed(hits):
        _wall_layer(canvas, *hit, lights)


def _wall_layer(
    canvas: Canvas, columns: np.ndarray, wall: np.ndarray, z: np.ndarray, u: np.ndarray, lights: np.ndarray
) -> None:
    """Paint one hit per column; wall (n, 14), z and u (n,)."""
    style, camera, tile = canvas.style, canvas.street.camera, canvas.texture
    metre = np.float32(camera.focal * canvas.height) / z
    wall = wall.astype(np.float32)
    eave, roof = wall[:, EAVE], wall[:, ROOF]
    leafy = wall[:, KIND] == HEDGE
    rough = tile[7, (u * 40).astype(np.int32) & 511]
    top = np.where(leafy, eave * (1 + 0.16 * rough), eave + roof)
    ridge = (camera.horizon * canvas.height) - (top - camera.height) * metre
    lo = max(0, int(ridge.min()))
    hi = min(canvas.height, int(camera.horizon * canvas.height + float((camera.height * metre).max())) + 2)
    if hi <= lo:
        return
    v = np.float32(camera.height) - canvas.down[lo:hi] * (z / camera.focal)
    cover = unit((top - v) * metre + 0.5) * (v > 0)
    pixel = 1 / metre
    # Windows: soft boxes that repeat with the pitch and the floors; the ground floor may be a shop.
    pitch, floor = wall[:, PITCH], wall[:, FLOOR]
    across, up = u / pitch, v / floor
    cell, storey = np.floor(across), np.floor(up)
    fx = np.abs(across - cell - 0.5)
    fy = np.abs(up - storey - 0.52)
    shop = (wall[:, SHOP] > 0) & (storey < 1)
    half_x = np.where(shop, 0.44, wall[:, WIDE])
    half_y = np.where(shop, 0.33, 0.5 * wall[:, TALL])
    panes = unit((half_x * np.float32(0.9) - fx) * (pitch / pixel) + 0.5)
    panes *= unit((half_y - fy) * (floor / pixel) + 0.5)
    panes *= (v < eave - 0.25) & ~leafy
    pick = cell * 37 + np.floor(wall[:, COLOUR] * 500) + storey * 101
    chance = sample(tile, pick, pick * 7)
    fade = np.minimum(1, 0.12 / pixel)
    grain = sample(tile, v * 23, u * 17)
    tone = 1 + grain * (np.where(leafy, 0.45, 0.2 * style.texture) * (0.35 + 0.65 * fade)).astype(np.float32)
    tone *= 0.86 + 0.14 * unit(v * 0.4)
    tone = np.where((fx > 0.47) & ~leafy, tone * 0.93, tone)
    tiles = unit((v - eave) * metre + 0.5) * ~leafy
    sign = shop & (np.abs(up - 0.93) < 0.07)
    house = np.array(style.houses, np.float32)[(wall[:, COLOUR] * 8).astype(np.int32)]
    leaves = np.array(style.leaves, np.float32) * 0.9
    house = np.where(leafy[:, None], leaves, house)
    band = np.array(style.boards, np.float32)[(wall[:, COLOUR] * 61).astype(np.int32) % 8]
    light = lights[wall[:, FACING].astype(np.int32)]
    lit = unit(chance * 2 - 0.9) * np.float32(style.lit)
    rgb = canvas.rgb[:, lo:hi]
    whole = len(columns) == canvas.width
    for c in range(3):
        colour = np.where(sign, band[:, c], house[:, c] * tone)
        colour += (style.roof[c] * tone - colour) * tiles
        glass = style.glass[c] * (1 + 0.35 * chance)
        colour += (glass - colour) * panes
        colour *= light[:, c]
        colour += panes * lit * (1.0, 0.78, 0.4)[c]
        if whole:
            rgb[c] += (colour - rgb[c]) * cover
        else:
            before = rgb[c][:, columns]
            rgb[c][:, columns] = before + (colour - before) * cover
    hit = cover > 0.5
    kinds = np.where(leafy, np.uint8(TREE), np.uint8(BUILDING))
    canvas.mask[lo:hi, columns] = np.where(hit, kinds, canvas.mask[lo:hi, columns])
    canvas.depth[lo:hi, columns] = np.where(hit, z, canvas.depth[lo:hi, columns])


def paint_fences(canvas: Canvas) -> None:
    """Paint the nearest fence of every column over what stands behind it."""
    fences = canvas.street.fences
    if not len(fences):
        return
    style, camera = canvas.style, canvas.street.camera
    depth, along = _cast(canvas, fences[:, :4])
    row = np.argmin(depth, axis=0)
    columns = np.arange(canvas.width)
    z = depth[row, columns]
    columns = columns[np.isfinite(z)]
    if not len(columns):
        return
    z, row = z[columns], row[columns]
    u = along[row, columns]
    fence = fences[row].astype(np.float32)
    metre = np.float32(camera.focal * canvas.height) / z
    lo = max(0, int(camera.horizon * canvas.height + float(((camera.height - fence[:, 4]) * metre).min())))
    hi = min(canvas.height, int(camera.horizon * canvas.height + float((camera.height * metre).max())) + 2)
    if hi <= lo:
        return
    v = np.float32(camera.height) - canvas.down[lo:hi] * (z / camera.focal)
    near = (v > 0) & (canvas.depth[lo:hi, columns] > z)
    cover = unit((fence[:, 4] - v) * metre + 0.5) * near
    kind = fence[:, 5]
    # Rails and bars of a railing; what is between them stays visible, but belongs to the fence.
    bars = np.clip((0.025 - np.abs(u % 0.14 - 0.07)) * metre + 0.5, 0, np.minimum(1, 0.36 + 0.05 * metre))
    rails = unit((0.05 - np.minimum(np.abs(v - fence[:, 4] + 0.05), np.abs(v - 0.2))) * metre + 0.5)
    posts = unit((0.06 - np.abs(u % 2.0 - 1.0)) * metre + 0.5)
    open_ = np.maximum(np.maximum(bars, posts), rails)
    solid = np.where(kind == 0, open_, 1.0) * cover
    grain = sample(canvas.texture, v * 30, u * 30)
    tone = 1 + np.float32(0.25 * style.texture) * grain
    tone *= np.where((kind == BOARDS) & (u % 0.3 < 0.04), 0.75, 1.0).astype(np.float32)
    houses = np.array(style.houses, np.float32)
    metal, wood = np.array(style.metal, np.float32), np.array(style.fence, np.float32)
    colour = np.where((kind == LOW_WALL)[:, None], houses[(fence[:, 6] * 8).astype(np.int32)], wood)
    colour = np.where((kind == 0)[:, None], metal * (0.7 + 0.6 * fence[:, 6, None]), colour)
    light = np.stack([canvas.light(k) for k in range(3)])[fence[:, 7].astype(np.int32)]
    for c in range(3):
        part = canvas.rgb[c, lo:hi]
        before = part[:, columns]
        part[:, columns] = before + (colour[:, c] * light[:, c] * tone - before) * solid
    hit = cover > 0.5
    canvas.mask[lo:hi, columns] = np.where(hit, np.uint8(FENCE), canvas.mask[lo:hi, columns])
    canvas.instances[lo:hi, columns] = np.where(hit, 0, canvas.instances[lo:hi, columns])
    canvas.depth[lo:hi, columns] = np.where(hit, z, canvas.depth[lo:hi, columns])


def mixed(colours: tuple[Rgb, ...], number: float) -> np.ndarray:
    """(3,) one of the eight colours, picked by a number in [0, 1)."""
    return np.array(colours[int(number * 8) % 8], np.float32)
