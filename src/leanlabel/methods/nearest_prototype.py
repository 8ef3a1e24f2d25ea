"""Classes of pixels by the nearest prototype: of the images that a run was trained on, or of a few labelled ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanlabel.banks.prototypes import nearest_labels
from leanlabel.banks.teacher import plain
from leanlabel.data.bands import fitted
from leanlabel.data.class_map import ClassMap
from leanlabel.data.decode import Fit
from leanlabel.data.dense import DenseImages
from leanlabel.data.dense_listing import MaskForm
from leanlabel.engine.progress import Bar
from leanlabel.errors import InputError
from leanlabel.evaluation.prototype_space import completed, few_shot_prototypes
from leanlabel.evaluation.sliding import Segmented
from leanlabel.losses.prototype import prototype_logits, unit
from leanlabel.methods.dense_measuring import IGNORED, Measuring, device_labels
from leanlabel.methods.dense_readouts import LONG, by_size, joined
from leanlabel.methods.segmentation import channels_of, channels_read, training_rows
from leanlabel.methods.terms.prototypes import Prototypical, source_prototypes
from leanlabel.models.segmenters import DenseOutput, Segmenter

SHARPNESS = 0.1
"""Temperature of the softmax over cosines that gives the confidence."""
SMALLEST = 1e-6
"""Length below which a prototype has no direction."""
Pair = tuple[Tensor, Tensor]
"""An image (C, h, w), uint8 or float in [0, 1], and its mask (h, w) of classes, 255 or -100 for none."""


class ClassPrototypes(NamedTuple):
    """One mean feature for each class.

    Attributes:
        names: of the K classes.
        values: (K, D) float32 on the CPU, zeros for a class without one.
        counts: (K,) what is behind each: feature positions of a run's own bank, else images; 0 for a class without.
        head: what features go through before they are compared; None: nothing.
    """

    names: list[str]
    values: Tensor
    counts: Tensor
    head: nn.Module | None = None


class Similarities(nn.Module):
    """A segmentation network whose scores are cosines between its features and prototypes, divided by 0.1.

    Args:
        network: gives the features.
        prototypes: (C, D), none of them zero.
        head: what features go through first.
    """

    prototypes: Tensor

    def __init__(self, network: Segmenter, prototypes: Tensor, head: nn.Module | None = None) -> None:
        super().__init__()
        self.network = network
        self.head = head
        self.min_size, self.width = network.min_size, prototypes.shape[1]
        self.register_buffer("prototypes", unit(prototypes.to(next(network.parameters()).device), dim=1))

    def forward(self, x: Tensor) -> DenseOutput:
        """Scores (B, C, h, w) and features of images (B, C', H, W), already normalised."""
        features = projected(self.network(x).features, self.head)
        return DenseOutput(prototype_logits(features, self.prototypes, SHARPNESS), features)


class NearestPrototype(Measuring):
    """Reads images as the method of a run does, but says the class of the nearest prototype.

    Cosines are enlarged bilinearly to the size of the image, and the largest one wins. The confidence is its softmax
    probability at temperature 0.1, which is no probability of being right. A class without a prototype is never
    predicted.

    Args:
        method: of the run.
        prototypes: at least one class has one.

    Raises:
        InputError: no class has one.
    """

    supported: tuple[int, ...] = ()
    """Classes whose prototypes come from labelled images that were given."""

    def __init__(self, method: Measuring, prototypes: ClassPrototypes) -> None:
        super().__init__(method.cfg)
        known = (prototypes.counts > 0).nonzero()[:, 0]
        if not len(known):
            raise InputError("No class has a prototype.", "Give labelled images with --support.")
        self.classes = method.classes
        self.average = None
        self.data = None
        self.numbers = known.to(torch.uint8)
        self.network = Similarities(method.deployed, prototypes.values[known], prototypes.head)
        self._reads = method.look
        # How files are read is asked of a class, and that of the method knows.
        self.reading_of = type(method).reading_of  # pyright: ignore[reportAttributeAccessIssue]
        self.eval()

    @property
    def deployed(self) -> Any:
        """The network that gives similarities."""
        return self.network

    @property
    def look(self) -> Any:
        """How images are normalised."""
        return self._reads

    def read_batch(self, images: Tensor, size: tuple[int, int] | None = None) -> Segmented:
        """Classes (B, H, W) uint8 and confidence (B, H, W) of images (B, C, h, w) of one size, on the CPU.

        Args:
            images: uint8, or float in [0, 1].
            size: height H and width W of the result; None: those of the images.
        """
        found = super().read_batch(images, size)
        return Segmented(self.numbers[found.classes.long()], found.confidence)

    def segment_all(self, images: Tensor) -> Segmented:
        """Classes (B, h, w) uint8 and confidence (B, h, w) of images (B, C, h, w), each as :meth:`segment` reads it."""
        return joined([self.segment(image) for image in images])


def nearest_prototype(
    method: Any,
    support: Sequence[Pair] = (),
    *,
    support_only: bool = False,
    own: ClassPrototypes | None = None,
) -> NearestPrototype:
    """Make a reader that names the class of the nearest prototype.

    Args:
        method: of a run that segments images.
        support: labelled images; a class that they have takes its prototype from them, as the mean unit feature
            of its positions.
        support_only: leave the other classes out, in place of taking their prototypes from the run.
        own: those of the run, where they are known already.

    Raises:
        InputError: no prototype at all, or an image and a mask of different sizes.
        ValueError: only the support, and there is none; a label that is no class.
    """
    check_segments(method)
    if support_only and not support:
        raise ValueError("support_only needs labelled images")
    if own is None:
        own = own_prototypes(method) if not support_only and has_own(method) else nothing(method)
    if not support:
        return NearestPrototype(method, own)
    values, counts = support_prototypes(method, support, own.head)
    supported = tuple(counts.nonzero()[:, 0].tolist())
    if not support_only:
        values, counts = completed(values, counts, own.values, own.counts)
    made = NearestPrototype(method, own._replace(values=values, counts=counts))
    made.supported = supported
    return made


@torch.no_grad()
def own_prototypes(method: Any) -> ClassPrototypes:
    """The prototypes of a run: those that the term prototype-contrast has learned, else those of its labelled images.

    Learned ones are of the trained network (or of its running average, see the term's settings); where another one is
    handed out, or its statistics were estimated anew, they are computed from the labelled images.

    The latter are means over all labelled training images of the mean unit feature of each class, over the pixels
    that the network names rightly, and over all of a class that it never does.

    Raises:
        InputError: a method of another kind, or a network that cannot read the labelled images.
    """
    check_segments(method)
    learned = _learned(method)
    if learned is not None:
        return learned
    data = _labelled(method)
    if not has_own(method):
        raise InputError(
            f"{data.name}: its images have other channels than the network reads, so they give no prototypes.",
            "Give labelled images of the other domain with --support.",
        )
    values, counts = source_prototypes(method.deployed, _batches(method, data), len(method.classes))
    return ClassPrototypes(list(method.classes.names), values.float().cpu(), counts.cpu())


@torch.no_grad()
def support_prototypes(
    method: Any, support: Sequence[Pair], head: nn.Module | None = None
) -> tuple[Tensor, Tensor]:
    """Average the unit features of each class over a few labelled images.

    The label of a feature position is that of one pixel. A class that no position gets this way, such as a thin pole,
    takes those whose part of the image has some pixel of it.

    Args:
        method: of a run that segments images.
        support: images and masks.
        head: what features go through first.

    Returns:
        Prototypes (K, D), zeros for a class that no mask has, and the number of positions behind each (K,), on the
        CPU.

    Raises:
        InputError: an image and a mask of different sizes.
    """
    values, counts = few_shot_prototypes(_shots(method, support, head), len(method.classes))
    return values.float().cpu(), counts


def _shots(method: Any, support: Sequence[Pair], head: nn.Module | None) -> Iterator[Pair]:
    """Features (1, D, h, w) and labels (1, h, w) of labelled images, a further time for each class that got lost."""
    network, reading = method.deployed.eval(), getattr(method.reading_of(method.cfg), "resize", None)
    for place, (image, mask) in enumerate(support):
        labels = _checked(place, image, mask, len(method.classes))[None].to(method.device)
        small = image if reading is None else fitted(image, Fit(reading))
        features = projected(network(method.normalised(small[None])).features, head)
        size = (int(features.shape[-2]), int(features.shape[-1]))
        thin = nearest_labels(labels, size)
        yield features, thin
        for k in sorted({*labels.unique().tolist()} - {IGNORED} - {*thin.unique().tolist()}):
            some = F.adaptive_max_pool2d((labels == k).float(), size) > 0
            yield features, torch.where(some, k, IGNORED)


def support_reading(method: Any) -> tuple[ClassMap, MaskForm]:
    """What values in masks of the images that a network is for mean, and how their files say it."""
    data = getattr(method.data, "target", method.data)
    if data.masks is None:
        data = _labelled(method)
    return data.classes, getattr(data.masks, "form", "ids")


def projected(features: Tensor, head: nn.Module | None) -> Tensor:
    """Features (B, D, h, w) where prototypes live."""
    return features if head is None else head(features.to(next(head.parameters()).dtype))


def nothing(method: Any) -> ClassPrototypes:
    """No prototype for any class, in the space of those that a run has learned."""
    learned, k = _learned(method), len(method.classes)
    if learned is not None:
        return learned._replace(counts=torch.zeros(k, dtype=torch.int64))
    names, counts = list(method.classes.names), torch.zeros(k, dtype=torch.int64)
    return ClassPrototypes(names, torch.zeros(k, method.feature_width), counts)


def has_own(method: Any) -> bool:
    """Whether a run has prototypes of its own: learned ones, or images with labels that its network reads."""
    check_segments(method)
    if _learned(method) is not None:
        return True
    return channels_of(_labelled(method)) == channels_read(method.deployed)


def check_segments(method: Any) -> None:
    """Refuse a method that does not label pixels.

    Raises:
        InputError: says which.
    """
    if not isinstance(method, Measuring):
        raise InputError(
            f"{method.cfg.method.name}: prototypes are those of classes of pixels, and this method does not segment "
            "images."
        )


def _learned(method: Any) -> ClassPrototypes | None:
    """Prototypes of the term; None where they are of other features than those of the network that is handed out."""
    settings = method.cfg.method
    averaged = method.average is not None and method.cfg.evaluation.network != "student"
    for term, _ in method.terms():
        if isinstance(term, Prototypical) and bool(term.bank.known.any()):
            if getattr(settings, "adabn", False) or averaged != (term.settings.features == "teacher"):
                return None
            full = term.names.get("head")
            head = None if full is None else plain(method.own_network(full)).eval()
            values, names = term.bank.values.float().cpu(), list(method.classes.names)
            # One that decayed to nothing has no direction any more.
            counts = term.bank.counts.cpu().where(values.norm(dim=1) > SMALLEST, 0)
            return ClassPrototypes(names, values, counts, head)
    return None


def _labelled(method: Any) -> DenseImages:
    """The images with masks that the method was trained on."""
    return getattr(method.data, "source", method.data)


def _batches(method: Any, data: DenseImages) -> Iterator[Pair]:
    """Labelled training images, normalised, and their labels."""
    rows, done = training_rows(data), 0
    with method.reading(data), Bar(len(rows), label="prototypes", show=len(rows) >= LONG) as bar:
        for numbers, images, masks in by_size(data, rows, method.cfg.evaluation.batch):
            yield method.normalised(images), device_labels(masks)
            done += len(numbers)
            bar.advance(done)


def _checked(place: int, image: Tensor, mask: Tensor, classes: int) -> Tensor:
    """Labels (h, w) int64, -100 for none."""
    if image.ndim != 3 or mask.ndim != 2 or image.shape[1:] != mask.shape:
        raise InputError(
            f"support {place}: an image {tuple(image.shape)} and a mask {tuple(mask.shape)}; they must be (C, h, w) "
            "and (h, w)."
        )
    labels = device_labels(mask)
    wrong = labels[(labels != IGNORED) & ((labels < 0) | (labels >= classes))]
    if len(wrong):
        raise ValueError(f"support {place}: label {int(wrong[0])}, there are {classes} classes")
    return labels
