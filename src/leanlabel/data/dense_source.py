"""Which images with masks a recipe means: settings, and from settings to images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from leanlabel.augment.sensor import SensorName, SensorSettings, ShiftSettings
from leanlabel.config import Settings
from leanlabel.data.class_map import IGNORE, ClassMap, class_map, plain_map
from leanlabel.data.dense import COUNTED, DenseImages, MaskArray
from leanlabel.data.dense_files import read_dense
from leanlabel.data.dense_layouts import DenseLayout
from leanlabel.data.dense_parts import Labels, SplitBy, train_mask
from leanlabel.data.graph_source import find
from leanlabel.data.image_files import Step
from leanlabel.errors import InputError

Byte = Annotated[int, Field(ge=0, le=255)]
RawId = Annotated[int, Field(ge=0, le=65535)]


class ClassSection(Settings):
    """What values in masks mean, written out."""

    names: tuple[str, ...] = Field(min_length=1, max_length=254)
    """Names of the classes; class k is the k-th."""
    colours: tuple[tuple[Byte, Byte, Byte], ...] | None = None
    """Red, green and blue of each class; null for colours that colour-blind people can tell apart."""
    ids: dict[RawId, int] | None = None
    """Value in the files -> class; null: value k is class k."""
    ignored: tuple[RawId, ...] | None = None
    """Values that mean no class; null: 255, where that is no class's value."""
    unlisted: Literal["error", "ignore"] = "error"
    """What other values are: a mistake, or no class."""
    by_colour: bool = False
    """Masks are colour pictures, whose colours are those of the classes."""
    ignored_colours: tuple[tuple[Byte, Byte, Byte], ...] = ()
    """Colours that mean no class; used with by_colour."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.by_colour and self.colours is None:
            raise ValueError("colours, the colour of each class, with by_colour: true")
        self.class_map()
        return self

    def class_map(self) -> ClassMap:
        """The class map that these keys say.

        Raises:
            ValueError: they contradict one another.
        """
        return plain_map(
            self.names,
            self.colours,
            ids=self.ids,
            ignored=self.ignored,
            unlisted=self.unlisted,
            by_colour=self.by_colour,
            ignored_colours=self.ignored_colours,
        )


class DenseGiven(Settings):
    """What every source of images with masks has."""

    batch_size: int = Field(default=8, ge=1)
    """Images per iteration, over all processes."""
    labels: Labels = "auto"
    """none: read images only, as of a domain without labels; held-out: read masks of the parts called val and
    test, to measure, and leave all others unread."""


class DenseFiles(DenseGiven):
    """Images and masks on disk."""

    kind: Literal["file"] = "file"
    """Files of one's own or of a public set."""
    path: str
    """A folder or .zip of images and masks, a list of pairs, a .csv, or COCO JSON; also found below LEANLABEL_DATA."""
    layout: DenseLayout = "auto"
    """How images and masks lie: in folders of one's own (folders), named by a list or table (list, csv, coco), or as
    a public set is published; auto looks."""
    classes: str | ClassSection | None = None
    """What values in masks mean: the name of a class map, or names, colours and ids written out; null: what lies beside
    the data (classes.json, classes.txt), or the map of the layout."""
    images: str | None = None
    """Folder of images below the path, or column of a table; null looks for a usual name."""
    masks: str | None = None
    """Folder of masks below the path, or column of a table; null looks for a usual name."""
    load: Literal["auto", "memory", "disk"] = "auto"
    """Keep pixels in memory, or decode files each time; auto: memory where all images have one size and take less than
    1 GiB."""
    resize: int | None = Field(default=None, ge=1)
    """Scale the shorter side down to this many pixels on reading: images antialiased, masks by the nearest pixel; null
    leaves sizes alone."""
    limit: int | None = Field(default=None, ge=1)
    """Keep this many images, drawn with a fixed seed, the same share of every part; null keeps all."""
    val_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the training part that becomes the validation part where the data has none; drawn with a fixed seed,
    whatever the run's seed, and noted with the data. 0 for none."""
    split_by: SplitBy = "auto"
    """Whether that part takes single images or whole sequences (else one block of each sequence), so that frames of one
    sequence are not in both; auto: sequences where they are known."""
    only_groups: tuple[str, ...] | None = None
    """Keep the images of these groups (sequences, cities, patients) only; null keeps all."""
    without_groups: tuple[str, ...] | None = None
    """Leave out the images of these groups."""
    bands: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Bands to read, counted from 0, of files with any number of them; [] reads all, null reads RGB."""
    white: float | None = Field(default=None, gt=0)
    """Value that means 1.0 in files of more than 8 bits; null: the largest that the type holds. Used with bands."""
    verify: bool = True
    """Decode every image and mask once before training; false looks at the heads of files only, and counts nothing."""
    skip_unreadable: bool = False
    """Leave unreadable images and masks out and say how many, instead of stopping."""

    @field_validator("classes", mode="before")
    @classmethod
    def _one_mistake(cls, given: Any) -> Any:
        """Check names and sections here: a union would name each mistake once for every form it allows."""
        if given is None or isinstance(given, ClassSection):
            return given
        if isinstance(given, str):
            try:
                class_map(given)
            except InputError as error:
                raise ValueError(f"the name of a class map ({error.suggestion})") from error
            return given
        if not isinstance(given, Mapping):
            raise ValueError(
                "the name of a class map, or a section with names, and if you like colours and ids"
            )
        return _section(ClassSection, given, "classes", "classes that fit together")

    @model_validator(mode="after")
    def _has_bands(self) -> Self:
        if self.white is not None and self.bands is None:
            raise ValueError("bands, the bands to read, with white")
        return self


class Scenes(DenseGiven):
    """Generated street scenes; see `leanlabel.data.generated.scenes.scene_images`."""

    kind: Literal["scenes"] = "scenes"
    """Drawn by the library, no file needed."""
    train: int = Field(default=200, ge=0)
    """Scenes of the training part."""
    val: int = Field(default=40, ge=0)
    """Scenes of the validation part."""
    test: int = Field(default=60, ge=0)
    """Scenes of the test part."""
    height: int = Field(default=96, ge=32)
    """Pixels."""
    width: int = Field(default=128, ge=32)
    """Pixels."""
    rendering: Literal["source", "target"] = "source"
    """source: clean, with a synthetic look; target: other colours and light, haze, blur and noise of a camera."""
    gap: float = Field(default=1.0, ge=0, le=2)
    """How far the look of the target rendering is from that of the source; 0 not at all."""
    content: float = Field(default=0.0, ge=0, le=1)
    """How far layouts of the target rendering are from those of the source."""
    tail: float = Field(default=1.0, ge=0, le=3)
    """Exponent of the long tail: 0 nearly balanced, 1 as in CamVid, more is rarer still."""
    seed: int = Field(default=0, ge=0)
    """Seed of the scenes; the run's seed does not change it."""

    @model_validator(mode="after")
    def _has_scenes(self) -> Self:
        if self.train + self.val + self.test < 1:
            raise ValueError("at least one scene in train, val and test")
        return self


def _kind(value: Any) -> Any:
    """The variant a section means; files unless it says otherwise."""
    return value.get("kind", "file") if isinstance(value, dict) else getattr(value, "kind", None)


Original = Annotated[
    Annotated[DenseFiles, Tag("file")] | Annotated[Scenes, Tag("scenes")], Discriminator(_kind)
]


class Transformed(DenseGiven):
    """Images as another sensor would have taken them, roughly aligned with the originals.

    See `leanlabel.data.transformed.transformed`.
    """

    kind: Literal["transformed"] = "transformed"
    """Copies of other images, computed when they are read."""
    of: Original
    """The originals: files or scenes; their batch_size has no effect."""
    sensor: SensorName | SensorSettings = "camera"
    """What another sensor makes of values: identity, camera (another camera), inversion, grey-blur, infrared (one
    channel), published-toy, or a section that says it."""
    shift: ShiftSettings = ShiftSettings()
    """How far images lie from their originals."""
    shift_all: bool = False
    """Shift images of all parts; false: of the training part only, so that what is measured lies where it should."""
    seed: int = Field(default=0, ge=0)
    """Seed of noise and shifts; the run's seed does not change it."""

    @field_validator("sensor", mode="before")
    @classmethod
    def _one_mistake(cls, given: Any) -> Any:
        """Check names and sections here: a union would name each mistake once for every form it allows."""
        if isinstance(given, str | SensorSettings):
            if isinstance(given, str) and given not in get_args(SensorName):
                raise ValueError(f"the name of a sensor: {', '.join(get_args(SensorName))}; or a section")
            return given
        if not isinstance(given, Mapping):
            raise ValueError("the name of a sensor, or a section that says what it does")
        return _section(SensorSettings, given, "sensor", "changes that fit together")


DenseSource = Annotated[
    Annotated[DenseFiles, Tag("file")]
    | Annotated[Scenes, Tag("scenes")]
    | Annotated[Transformed, Tag("transformed")],
    Discriminator(_kind),
]


def chosen_classes(given: str | ClassSection | None) -> ClassMap | None:
    """The class map that the key `classes` means; None where the data say it.

    Raises:
        InputError: no map of this name.
    """
    if isinstance(given, ClassSection):
        return given.class_map()
    return None if given is None else class_map(given)


def open_dense(
    source: DenseFiles | Scenes | Transformed, progress: Step | None = None, *, unread: bool = False
) -> DenseImages:
    """Read or draw the images and masks that the settings name.

    Args:
        source: the settings.
        progress: called now and then with the number of images looked at, and of all.
        unread: whether to open no mask, but to give the same images in the same parts as if they were read.

    Raises:
        InputError: whatever is wrong with the files, or no such place.
    """
    if isinstance(source, Transformed):
        from leanlabel.data.transformed import transformed

        # Whoever leaves more unread is obeyed.
        both: tuple[Labels, Labels] = source.labels, source.of.labels
        stricter = max(both, key=("auto", "held-out", "none").index)
        data = open_dense(source.of.model_copy(update={"labels": stricter}), progress, unread=unread)
        return transformed(data, source.sensor, source.shift, source.seed, shift_all=source.shift_all)
    if isinstance(source, Scenes):
        from leanlabel.data.generated.scenes import scene_images

        try:
            data = scene_images(**source.model_dump(exclude={"kind", "batch_size", "labels"}))
        except ValueError as error:
            raise InputError(f"data: {error}.") from error
        return _unread(data, "none" if unread else source.labels)
    options = source.model_dump(exclude={"kind", "path", "batch_size", "classes"})
    own = chosen_classes(source.classes)
    return read_dense(find(source.path), **options, classes=own, unread=unread, progress=progress)


def _unread(data: DenseImages, labels: Labels) -> DenseImages:
    """Take away masks of a set in memory that are not to be read."""
    if labels == "auto":
        return data
    facts = {key: value for key, value in data.facts.items() if key not in COUNTED}
    if labels == "none":
        return replace(data, masks=None, instances=None, facts=facts)
    hidden = train_mask(len(data), data.splits)
    kept = {}
    for role, empty in (("masks", IGNORE), ("instances", 0)):
        own = getattr(data, role)
        if own is not None:
            array = own.read(range(len(data)))
            array[hidden] = empty
            kept[role] = MaskArray(array)
    facts |= {"train_class_pixels": [0] * data.num_classes, "training_masks_hidden": int(hidden.sum())}
    return replace(data, **kept, facts=facts)


def _section(schema: type[Settings], given: Mapping[str, Any], key: str, what: str) -> Any:
    """A section as one of several forms of a key; all of its mistakes in one.

    Raises:
        ValueError: mistakes in it.
    """
    try:
        return schema.model_validate_json(json.dumps(given), strict=True)
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, one['loc'])) or key}: {one['msg']}" for one in error.errors())
        raise ValueError(f"{what} ({'; '.join(faults)})") from error
