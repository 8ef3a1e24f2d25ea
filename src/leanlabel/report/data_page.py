"""The page of a check of segmentation data: findings, shares of classes, and images under their masks."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from leanlabel.data.class_map import IGNORE, UNLISTED, ClassMap
from leanlabel.data.decode import Fit, _pillow, decode_with_header
from leanlabel.data.dense import DenseImages, is_store
from leanlabel.data.dense_check import DenseFindings
from leanlabel.data.dense_listing import DenseListing
from leanlabel.data.masks import colour_table, decode_mask, form_of, nearest
from leanlabel.engine.runfolder import write_text
from leanlabel.errors import InputError
from leanlabel.report.charts import bar_chart
from leanlabel.report.findings import SEVERITIES
from leanlabel.report.markup import Markup, tag
from leanlabel.report.neighbours import PNG, picture
from leanlabel.report.numbers import compact, plural
from leanlabel.report.page import code, contents, facts, header, notice, page, section, table

WIDEST = 240
"""Longer side of a picture in pixels."""
MOST_BARS = 40
_SHADES = (128, 32, 8)
_STRENGTH = 0.5
_SMALLEST = 6.0
"""Radius in pixels that a region must hold to carry its number."""
_UNLISTED_COLOUR = (0, 0, 0)


def write_data_page(path: str | Path, title: str, found: DenseFindings) -> Path:
    """Write one self-contained page about segmentation data.

    Args:
        path: where the page goes.
        title: what was checked.
        found: what the check found.

    Returns:
        Path of the page.

    Raises:
        RunError: the page cannot be written; an earlier page is untouched.
    """
    findings = [asdict(one) for one in found.findings]
    write_text(Path(path), data_page(title, findings, found.figures, overlays(found)))
    return Path(path)


def data_page(
    title: str,
    findings: Sequence[Mapping[str, Any]],
    figures: Mapping[str, Any],
    pictures: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The HTML of :func:`write_data_page`.

    Args:
        title: what was checked.
        findings: severity, code, message and count of each.
        figures: as in :class:`leanlabel.data.dense_check.DenseFindings`.
        pictures: what :func:`overlays` gives.
    """
    listed = [
        ("images", "Images", _pictures(figures, pictures)),
        ("classes", "Classes", _classes(figures)),
        *((kind, name, _found(kind, name, lead, findings)) for kind, (name, lead) in SEVERITIES.items()),
    ]
    # What stops a training is read before anything else.
    order = {"error": 0, "warning": 1, "classes": 2, "images": 3, "info": 4}
    listed.sort(key=lambda entry: order[entry[0]])
    return page(
        f"{title} – leanlabel",
        header("leanlabel data check", title, _counts(figures), _box(findings), contents(listed)),
        [part for *_, part in listed],
        "Written by leanlabel.",
    )


def _box(findings: Sequence[Mapping[str, Any]]) -> Markup:
    counts = [sum(one.get("severity") == kind for one in findings) for kind in SEVERITIES]
    words = zip(counts, ("error", "warning", "fact"), strict=True)
    told = tag("p", ", ".join(plural(count, name) for count, name in words) + ".")
    if counts[0]:
        return notice("bad", "Put the errors of this data right before training.", told)
    if counts[1]:
        return notice("warn", "This data can be used; read the warnings first.", told)
    return notice("good", "Nothing found that would spoil a training.", told)


def _counts(figures: Mapping[str, Any]) -> Markup | None:
    sizes = figures.get("sizes") or []
    rows: list[tuple[str, Any]] = [
        ("images", figures.get("images")),
        ("with masks", figures.get("labelled")),
        ("classes", len(figures.get("classes") or [])),
        ("class map", figures.get("map")),
    ]
    if sizes:
        width, height, count = sizes[0]
        often = "" if count == figures.get("images") else f" ({plural(count, 'image')})"
        rows.append(("width × height", f"{width} × {height}{often}"))
    rows += [(str(part.get("name")), part.get("images")) for part in figures.get("parts") or []]
    return facts(rows)


def _found(kind: str, name: str, lead: str, findings: Sequence[Mapping[str, Any]]) -> Markup | None:
    rows = [
        [one.get("message", ""), code(one.get("code", "")), compact(one.get("count"))]
        for one in findings
        if one.get("severity") == kind
    ]
    listed = table(["finding", "code", "count"], rows, words=(0, 1), label=name, kind="fixed")
    return section(kind, name, lead, listed if rows else None)


def _classes(figures: Mapping[str, Any]) -> Markup | None:
    """Bars of pixels and of images, and a table by part."""
    classes = figures.get("classes") or []
    if not classes or not figures.get("labelled"):
        return None
    pixels, images = ([one["shares"]["all"][key] for one in classes] for key in ("pixels", "images"))
    order = sorted(range(len(classes)), key=lambda c: -pixels[c])[:MOST_BARS]
    bars = [
        bar_chart(
            title, [(classes[c]["name"], values[c], _percent(values[c])) for c in order], name=name, top=top
        )
        for title, values, name, top in (
            ("Share of the pixels that have a class", pixels, "Share of pixels", None),
            ("Share of the images with masks", images, "Share of images", 1.0),
        )
    ]
    parts = [part["name"] for part in figures.get("parts") or []] or ["all"]
    rows = []
    for number, one in enumerate(classes):
        cells = [one["shares"][part] for part in parts if part in one["shares"]]
        raw = ", ".join(map(str, one["raw"][:8])) + (", …" if len(one["raw"]) > 8 else "")
        shown = [f"{_percent(cell['pixels'])} · {cell['count']:,}" for cell in cells]
        rows.append([_key(number, one), raw, *shown])
    ignored = figures.get("ignored") or {}
    rows.append(["ignored", "", *(_percent(ignored.get(part, 0)) for part in parts)])
    listed = table(
        ["class", "values in masks", *parts],
        rows,
        words=(0, 1),
        caption="Share of pixels · number of images, by part. Ignored: of all labelled pixels.",
        label="Classes",
    )
    left = len(classes) - len(order)
    note = tag("p", f"{plural(left, 'further class', 'further classes')} only in the table.", class_="note")
    lead = "What a network sees often, and what it hardly sees."
    return section(
        "classes", "Classes", lead, tag("div", *bars, class_="charts"), note if left else None, listed
    )


def _pictures(figures: Mapping[str, Any], pictures: Sequence[Mapping[str, Any]]) -> Markup | None:
    drawn = [one for one in pictures if picture(one)]
    if not drawn:
        return None
    classes = figures.get("classes") or []
    shown = sorted({label for one in drawn for label in one.get("classes", ()) if label < len(classes)})
    keys = [tag("li", _key(label, classes[label])) for label in shown]
    if any(one.get("unlisted") for one in drawn):
        keys.append(tag("li", _swatch(_UNLISTED_COLOUR), tag("span", "not in the class map")))
    items = []
    for one in drawn:
        held = [
            f"{label} {classes[label]['name']}" for label in one.get("classes", ()) if label < len(classes)
        ]
        image = tag("img", src=picture(one), alt=f"{one.get('name')}: {', '.join(held)}")
        name = tag("figcaption", one.get("name", ""))
        items.append(tag("figure", name, image))
    lead = "Do masks lie where they should? Numbers name the classes; stripes are ignored."
    legend = tag("ul", *keys, class_="legend row", aria_label="Classes")
    return section("images", "Images", lead, legend, tag("div", *items, class_="charts"))


def _key(number: int, one: Mapping[str, Any]) -> Markup:
    """A class: its colour, number and name."""
    return tag("span", _swatch(one["colour"]), " ", tag("b", number), " ", one["name"])


def _swatch(colour: Sequence[int]) -> Markup:
    red, green, blue = (int(part) for part in colour)
    box = tag(
        "rect", x="1", y="1", width="14", height="14", fill=f"rgb({red},{green},{blue})", stroke="#777777"
    )
    return tag("svg", box, viewBox="0 0 16 16", width="16", height="16", class_="key", aria_hidden="true")


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %" if value >= 0.0005 or not value else "< 0.05 %"


# ------------------------------------------------------------------------------------------- pictures


def overlays(found: DenseFindings) -> list[dict[str, Any]]:
    """Draw the examples of a check: each image under its mask, outlined, with the numbers of its classes.

    Returns:
        name, image (a PNG in base64), classes (numbers, largest first) and unlisted (whether the mask holds values
        that the class map does not list); images that cannot be read are left out.
    """
    drawn = []
    for row in found.figures["examples"]:
        try:
            image, labels = _read(found.data, found.classes, row)
        except InputError:  # a finding says so
            continue
        counts = np.bincount(labels.reshape(-1), minlength=256)
        held = [
            label
            for label in np.argsort(-counts, kind="stable").tolist()
            if counts[label] and label < UNLISTED
        ]
        drawn.append(
            {
                "name": found.data.ids[row] if found.data.ids else f"image {row}",
                "image": _encoded(draw_overlay(image, labels, found.classes)),
                "classes": held,
                "unlisted": bool(counts[UNLISTED]),
            }
        )
    return drawn


def draw_overlay(image: np.ndarray, labels: np.ndarray, classes: ClassMap) -> np.ndarray:
    """Blend class colours over an image, outline regions, and write the number of each class into its widest place.

    Args:
        image: (h, w, 3) uint8.
        labels: (h, w) uint8 classes; 254 for values that the map does not list, 255 for ignored ones.
        classes: the map.

    Returns:
        (h, w, 3) uint8.
    """
    from PIL import ImageDraw
    from scipy.ndimage import distance_transform_edt

    palette = np.zeros((256, 3), dtype=np.float32)
    palette[: len(classes)] = classes.colours
    palette[UNLISTED] = _UNLISTED_COLOUR
    diagonal = np.add.outer(np.arange(labels.shape[0]), np.arange(labels.shape[1]))
    # Stripes, which no class has: one of its colours may be any grey.
    stripes = 255.0 * (diagonal // 3 % 2)[..., None]
    over = np.where((labels == IGNORE)[..., None], stripes, palette[labels])
    blended = (1 - _STRENGTH) * image + _STRENGTH * over
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    blended[edge] *= 0.35
    out = _pillow().fromarray(np.clip(blended, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(out)
    for label in np.unique(labels[labels < len(classes)]).tolist():
        # The frame counts as outside, so that a number never hangs over the edge.
        depth = np.asarray(distance_transform_edt(np.pad(labels == label, 1)))[1:-1, 1:-1]
        y, x = divmod(int(np.argmax(depth)), depth.shape[1])
        if depth[y, x] >= _SMALLEST:
            pen.text(
                (x, y),
                str(label),
                fill=(255, 255, 255),
                anchor="mm",
                stroke_width=1,
                stroke_fill=(0, 0, 0),
            )
    return np.asarray(out)


def _read(data: DenseListing | DenseImages, classes: ClassMap, row: int) -> tuple[np.ndarray, np.ndarray]:
    """A small image (h, w, 3) and its labels (h, w), also of masks that training would refuse."""
    image = _image(data, row)
    size = image.shape[:2]
    masks: Any = data.masks
    if isinstance(data, DenseImages):
        return image, nearest(np.asarray(masks[row]), size)
    place = data.mask_row(row)
    if not is_store(masks):
        return image, nearest(np.asarray(masks[place]), size)
    raw = nearest(decode_mask(masks.read(place), masks.where(place), form_of(classes, data.form)), size)
    if raw.ndim == 2:
        return image, classes.table[raw]
    wide = raw.astype(np.int32)
    return image, colour_table(classes)[wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]]


def _image(data: DenseListing | DenseImages, row: int) -> np.ndarray:
    if isinstance(data, DenseImages):
        values = data.pixels[row]
    else:
        content, where = data.images.read(row), data.images.where(row)
        try:
            values = decode_with_header(content, where, Fit(WIDEST))[0]
        except InputError:
            from leanlabel.data.bands import read_bands

            values = read_bands(content, where)
    channels = np.asarray(values)
    if channels.dtype != np.uint8:
        channels = (channels * 255).round().astype(np.uint8)
    shown = channels[:3] if len(channels) >= 3 else np.repeat(channels[:1], 3, axis=0)
    module = _pillow()
    small = module.fromarray(np.ascontiguousarray(shown.transpose(1, 2, 0)))
    small.thumbnail((WIDEST, WIDEST), module.Resampling.BICUBIC)
    return np.asarray(small)


def _encoded(pixels: np.ndarray) -> str:
    """A PNG of few colours in base64: a third of the size, and hardly another picture; noise gets fewer still."""
    image, text = _pillow().fromarray(pixels), ""
    for shades in _SHADES:
        file = io.BytesIO()
        image.quantize(shades).save(file, "PNG", optimize=True)
        text = base64.b64encode(file.getvalue()).decode("ascii")
        if PNG.fullmatch(text):
            break
    return text
