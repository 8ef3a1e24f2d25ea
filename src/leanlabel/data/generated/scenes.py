"""Street scenes with the eleven CamVid classes: a synthetic source, a photographic target, and dials between."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch

from leanlabel.data.class_map import class_map
from leanlabel.data.dense import DenseImages, MaskArray
from leanlabel.data.generated.scene_camera import expose, look
from leanlabel.data.generated.scene_layout import plan_street
from leanlabel.data.generated.scene_objects import paint_things
from leanlabel.data.generated.scene_paint import Canvas, paint_fences, paint_ground, paint_sky, paint_walls
from leanlabel.data.generated.scene_shadows import paint_shadows
from leanlabel.data.generated.scene_things import NUMBERS
from leanlabel.data.images import PixelArray
from leanlabel.rng import draw

SMALLEST_SIDE = 32
# Numbers of a split begin at a multiple of this, so that no split ever reaches into another.
SPLIT_LIMIT = 1 << 24
# Scenes whose random numbers are drawn together: one call costs nearly the same for one and for many.
TOGETHER = 64

Rendering = Literal["source", "target"]


class Scene(NamedTuple):
    """One picture and what it shows.

    Args:
        image: (3, h, w) uint8.
        mask: (h, w) uint8, class of every pixel in the order of "camvid-11".
        instances: (h, w) int32, one number per car, pedestrian, bicyclist, sign, pole and tree; 0 elsewhere.
    """

    image: np.ndarray
    mask: np.ndarray
    instances: np.ndarray


def render_scene(
    seed: int,
    number: int,
    height: int = 96,
    width: int = 128,
    *,
    rendering: Rendering = "source",
    gap: float = 1.0,
    content: float = 0.0,
    tail: float = 1.0,
) -> Scene:
    """Draw the picture of one street.

    The street belongs to (seed, number): where things stand does not depend on the size of the picture, nor, with
    content 0, on the rendering, so that source and target show one street in two looks with equal masks.

    Args:
        seed: >= 0.
        number: >= 0, number of the scene.
        height: pixels, >= 32.
        width: pixels, >= 32; a wider picture sees more at its sides.
        rendering: "source": clean, bright colours, plain materials, even light, no noise. "target": muted colours,
            low sun or dusk, haze, blur, noise, dark corners, the response of a camera.
        gap: how far the target's look is from the source, in [0, 2]: 0 the same pixels, 1 a photograph of another
            city, 2 twice as far. Without effect on the source.
        content: how far what the target shows differs, in [0, 1]: more cars and pedestrians, narrower roads, higher
            buildings, a higher camera that looks down. Without effect on the source.
        tail: exponent of the long tail, in [0, 3]: 1 as CamVid, 0 more even, 2 rare classes much rarer. The things of
            a larger exponent are among those of a smaller one.

    Returns:
        A Scene.

    Raises:
        ValueError: an argument is out of its range; the message names it.

    >>> scene, photo = (render_scene(0, 7, 48, 64, rendering=rendering) for rendering in ("source", "target"))
    >>> scene.image.shape, scene.mask.shape, bool((scene.mask == photo.mask).all())
    ((3, 48, 64), (48, 64), True)
    """
    _check(seed=seed, height=height, width=width, rendering=rendering, gap=gap, content=content, tail=tail)
    if number < 0:
        raise ValueError(f"number must be >= 0, got {number}")
    return _render(_numbers(seed, [number])[0], height, width, rendering, gap, content, tail)


def scene_images(
    *,
    train: int = 200,
    val: int = 40,
    test: int = 60,
    height: int = 96,
    width: int = 128,
    rendering: Rendering = "source",
    gap: float = 1.0,
    content: float = 0.0,
    tail: float = 1.0,
    seed: int = 0,
) -> DenseImages:
    """Draw street scenes with a class and an instance for each pixel.

    Scenes of the parts are different streets, and stay the same ones when a part grows. A source and a target of one
    seed show the same streets; give two seeds where that would be an unfair help.

    A seed means the same streets everywhere; a grey level may differ between processors.

    Args:
        train: scenes in the split "train", >= 0.
        val: in "val".
        test: in "test"; all three below 2^24, one scene at least. A part of no scenes is missing in `splits`.
        height, width, rendering, gap, content, tail, seed: see :func:`render_scene`.

    Returns:
        DenseImages of train + val + test pictures, classes "camvid-11", with instances.

    Raises:
        ValueError: an argument is out of its range; the message names it.

    >>> data = scene_images(train=2, val=1, test=1, height=32, width=48)
    >>> data.shape, {part: rows.tolist() for part, rows in data.splits.items()}, data.num_classes
    ((3, 32, 48), {'train': [0, 1], 'val': [2], 'test': [3]}, 11)
    """
    _check(seed=seed, height=height, width=width, rendering=rendering, gap=gap, content=content, tail=tail)
    counts = {"train": train, "val": val, "test": test}
    for part, count in counts.items():
        if not 0 <= count < SPLIT_LIMIT:
            raise ValueError(f"{part} must be >= 0 and < {SPLIT_LIMIT}, got {count}")
    total = sum(counts.values())
    if not total:
        raise ValueError("train, val and test must not all be 0")
    numbers = [k * SPLIT_LIMIT + i for k, count in enumerate(counts.values()) for i in range(count)]
    pixels = torch.empty(total, 3, height, width, dtype=torch.uint8)
    masks = torch.empty(total, height, width, dtype=torch.uint8)
    instances = torch.empty(total, height, width, dtype=torch.int32)
    for start in range(0, total, TOGETHER):
        for i, row in enumerate(_numbers(seed, numbers[start : start + TOGETHER]), start):
            scene = _render(row, height, width, rendering, gap, content, tail)
            for to, found in zip((pixels, masks, instances), scene):
                to[i] = torch.from_numpy(found)
    classes = class_map("camvid-11")
    splits, start = {}, 0
    for part, count in counts.items():
        if count:
            splits[part] = torch.arange(start, start + count)
        start += count
    table = torch.stack([torch.bincount(mask.flatten().long(), minlength=len(classes)) for mask in masks])
    facts = {"rendering": rendering, "gap": gap, "content": content, "tail": tail, "seed": seed}
    facts |= {
        "class_pixels": table.sum(0).tolist(),
        "class_images": (table > 0).sum(0).tolist(),
        "ignore_share": 0.0,
    }
    facts["train_class_pixels"] = table[:train].sum(0).tolist()
    return DenseImages(
        name=f"scenes-{rendering}-{seed}",
        pixels=PixelArray(pixels),
        masks=MaskArray(masks),
        classes=classes,
        splits=splits,
        ids=[f"{part}/{i:06d}" for part, count in counts.items() for i in range(count)],
        instances=MaskArray(instances),
        facts=facts,
    )


def _numbers(seed: int, numbers: list[int]) -> np.ndarray:
    """(B, NUMBERS) uniform numbers of some scenes; a row does not depend on the other rows."""
    return draw(seed, "scenes", 0, torch.tensor(numbers)).uniform(NUMBERS).numpy()


def _render(
    numbers: np.ndarray, height: int, width: int, rendering: str, gap: float, content: float, tail: float
) -> Scene:
    if rendering == "source":
        gap = content = 0.0
    street = plan_street(numbers, tail, content)
    style = look(float(gap), street.mood)
    canvas = Canvas(street, style, height, width)
    paint_sky(canvas)
    paint_ground(canvas)
    paint_shadows(canvas)
    paint_walls(canvas)
    paint_things(canvas)
    paint_fences(canvas)
    seat = int(float(numbers[-1]) * (1 << 24))
    return Scene(expose(canvas.rgb, canvas.depth, style, seat), canvas.mask, canvas.instances)


def _check(
    *, seed: int, height: int, width: int, rendering: str, gap: float, content: float, tail: float
) -> None:
    limits = {
        "seed": (seed, 0, None),
        "height": (height, SMALLEST_SIDE, None),
        "width": (width, SMALLEST_SIDE, None),
        "gap": (gap, 0, 2),
        "content": (content, 0, 1),
        "tail": (tail, 0, 3),
    }
    for name, (value, low, high) in limits.items():
        if not value >= low or (high is not None and value > high):
            upper = "" if high is None else f" and <= {high}"
            raise ValueError(f"{name} must be >= {low}{upper}, got {value}")
    if rendering not in ("source", "target"):
        raise ValueError(f'rendering must be "source" or "target", got {rendering!r}')
