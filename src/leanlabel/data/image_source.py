"""Which images a recipe means: settings, and from settings to images."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Discriminator, Field, Tag, model_validator

from leanlabel.config import Settings
from leanlabel.data.dense_parts import train_mask
from leanlabel.data.dense_source import DenseSource, open_dense
from leanlabel.data.graph_source import find
from leanlabel.data.image_files import Step, read_images
from leanlabel.data.image_folder import Layout
from leanlabel.data.images import Images, JoinedPixels, Pixels
from leanlabel.errors import InputError

DOMAINS = ("source", "target")
"""Keys of the two domains, in the order of their numbers."""


class Source(Settings):
    """What every source of images has."""

    batch_size: int = Field(default=256, ge=1)
    """Images per iteration, over all processes."""


class ImageFiles(Source):
    """Images on disk."""

    kind: Literal["file"] = "file"
    """Files of one's own or of a public set."""
    path: str
    """A folder of images, a folder per class, train/val/test folders, a .zip of these, a list of files, an .npz, or
    CIFAR's Python batches; also found below LEANLABEL_DATA."""
    layout: Layout = "auto"
    """What folders mean: nothing (flat), the first one is the class (class), train, val and test hold one folder per
    class (split/class), or domains hold one folder per class (domain/class); auto looks."""
    labels: Literal["auto", "none"] = "auto"
    """none: forget the labels, as of images that have none."""
    load: Literal["auto", "memory", "disk"] = "auto"
    """Keep pixels in memory, or decode files each time; auto: memory where all images have one size and take less than
    1 GiB."""
    resize: int | None = Field(default=None, ge=1)
    """Scale the shorter side down to this many pixels on reading, antialiased; null leaves sizes alone."""
    square: bool = False
    """Cut the middle resize x resize pixels out, so that all images have one size; smaller images are scaled up."""
    limit: int | None = Field(default=None, ge=1)
    """Keep this many images, drawn with a fixed seed, as evenly as possible over the classes; null keeps all."""
    val_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the training part that becomes the validation part where the source has train and test but no val; drawn
    with a fixed seed, whatever the run's seed. Of train and val without test, val is the test part."""
    verify: bool = True
    """Decode every file once before training; false looks at the heads of files only."""
    skip_unreadable: bool = False
    """Leave unreadable files out and say how many, instead of stopping."""

    @model_validator(mode="after")
    def _has_side(self) -> Self:
        if self.square and self.resize is None:
            raise ValueError("resize, the side of the square, with square: true")
        return self


class Glyphs(Source):
    """Generated images of symbols; see `leanlabel.data.generated.glyphs.glyph_images`."""

    kind: Literal["glyphs"] = "glyphs"
    """Drawn by the library, no file needed."""
    classes: int = Field(default=200, ge=2, le=1000)
    """Symbols."""
    per_class: int = Field(default=50, ge=1)
    """Images of each symbol."""
    size: int = Field(default=32, ge=16)
    """Height and width in pixels."""
    distortion: float = Field(default=1.0, ge=0, le=2)
    """How much symbols are rotated, sheared, scaled and moved; 0 not at all."""
    background: float = Field(default=1.0, ge=0, le=2)
    """How much texture and noise there is behind symbols; 0 one plain colour."""
    colour: float = Field(default=1.0, ge=0, le=2)
    """How much colours vary; 0 is black on white."""
    styles: tuple[int, ...] | None = None
    """Text styles by number, each of them a domain; null for all twelve."""
    test_share: float = Field(default=0.25, ge=0, lt=1)
    """Share of each class in the test part."""
    val_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of each class in the validation part."""
    seed: int = Field(default=0, ge=0)
    """Seed of the images; the run's seed does not change it."""


class Domains(Source):
    """Images of dense data, of a source and a target domain, without their masks."""

    kind: Literal["domains"] = "domains"
    """The training parts of one or two sets that segmentation is trained on; nothing of their masks is read."""
    source: DenseSource
    """Images with masks, or images alone. Its batch_size has no effect here."""
    target: DenseSource | None = None
    """The same of the other domain; null for one domain only. Its batch_size has no effect here."""


def _kind(value: Any) -> Any:
    """The variant a section means; images on disk unless it says otherwise."""
    return value.get("kind", "file") if isinstance(value, dict) else getattr(value, "kind", None)


ImageSource = Annotated[
    Annotated[ImageFiles, Tag("file")]
    | Annotated[Glyphs, Tag("glyphs")]
    | Annotated[Domains, Tag("domains")],
    Discriminator(_kind),
]


def open_images(source: ImageFiles | Glyphs | Domains, progress: Step | None = None) -> Images:
    """Read or draw the images that the settings name.

    Args:
        source: the settings.
        progress: called now and then with the number of files looked at, and of all.

    Raises:
        InputError: whatever is wrong with the files, or no such place.
    """
    if isinstance(source, Glyphs):
        from leanlabel.data.generated.glyphs import glyph_images

        try:
            return glyph_images(**source.model_dump(exclude={"kind", "batch_size"}))
        except ValueError as error:
            raise InputError(f"data: {error}.") from error
    if isinstance(source, Domains):
        return _open_domains(source, progress)
    options = source.model_dump(exclude={"kind", "path", "batch_size"})
    return read_images(find(source.path), **options, progress=progress)


def _open_domains(source: Domains, progress: Step | None) -> Images:
    """The images of the training parts of both domains, in this order; which part they are of is their domain."""
    given = {key: section for key in DOMAINS if (section := getattr(source, key)) is not None}
    parts: list[Pixels] = []
    names, ids, domain, facts = [], [], [], {}
    for number, (key, section) in enumerate(given.items()):
        try:
            # Segmentation cuts a part to measure with; no image of it may be seen here.
            data = open_dense(section, progress, unread=True)
        except InputError as error:
            raise InputError(f"data.{key}: {error.message}", error.suggestion) from error
        rows = train_mask(len(data), data.splits).nonzero()[:, 0]
        if not len(rows):
            raise InputError(f"data.{key}: {data.name} has no images to train on.")
        first = data.pixels[int(rows[0])]
        if first.dtype != torch.uint8 or len(first) != 3:
            raise InputError(
                f"data.{key}: {data.name} has images of {len(first)} bands, {first.dtype}; views need RGB images.",
                "Read them with bands: null, and without a sensor of other bands.",
            )
        parts.append(data.pixels.take(rows.tolist()))
        names.append(data.name)
        ids += [f"{key}/{row if data.ids is None else data.ids[row]}" for row in rows.tolist()]
        domain += [number] * len(rows)
        facts[key] = f"{len(rows)} images of {data.name}"
    return Images(
        name=" and ".join(dict.fromkeys(names)),
        pixels=JoinedPixels(tuple(parts)),
        ids=ids,
        domain=torch.tensor(domain, dtype=torch.int64),
        domain_names=list(given),
        facts=facts,
    )
