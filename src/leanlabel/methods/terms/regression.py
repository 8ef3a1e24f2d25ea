"""Terms that learn an unlabelled domain from pairs: two images of one scene, of which a frozen network reads one.

The frozen network, the reference, reads the image of the labelled domain that it was trained on; the trained network
reads the image of the other domain, and is to say the same. Pixels where one of the two shows nothing do not count.
"""

from __future__ import annotations

import warnings
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.func import functional_call

from leanlabel import dist
from leanlabel.banks.teacher import plain
from leanlabel.config import OptimSettings, Settings
from leanlabel.errors import InputError
from leanlabel.losses.feature_regression import (
    Kind,
    Tolerance,
    distillation_loss,
    mean_square,
    regression_loss,
)
from leanlabel.losses.pixel import align, pixel_cross_entropy
from leanlabel.methods.dense_step import DenseBatch, Step
from leanlabel.methods.terms import Setting, Term
from leanlabel.methods.terms.pixel import Weighted, _Weighted
from leanlabel.models.segmenters import DenseOutput

IGNORED = -100
Layer = Annotated[str, Field(pattern=r"^(features|logits|map[1-9][0-9]*)$")]
Channels = Annotated[int, Field(ge=1)]


class RegressionSettings(Settings):
    """Which maps are compared, and how. The published text names the squared error; all else is our choice."""

    layers: tuple[Layer, ...] = Field(default=("features",), min_length=1)
    """Maps that are compared: features (what the classifier reads), logits, and map1, map2, …, those of the encoder,
    the finest first."""
    weights: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """What the loss of each layer is multiplied by; null: all alike, with sum 1."""
    kind: Kind | None = None
    """How two maps are compared. mse: mean of the squares of differences; l1: of their sizes; smooth-l1: squares up to
    1, sizes beyond; relative: squares divided by the mean square of the reference's map, which makes layers
    comparable; cosine: one minus the cosine of the vectors at a position. null: mse for one layer, relative for
    several."""
    scale_batches: int = Field(default=32, ge=0)
    """Batches over which the mean square of the reference's map is averaged for kind relative; a constant from then on,
    so that losses of different iterations can be compared. 0: each batch's own."""
    tolerance: Tolerance = Tolerance()
    """How exactly the two images must be aligned."""
    robust: float | None = Field(default=None, gt=0)
    """Error tau of a position from which on it counts less: its gradient is divided by 1 + error / tau. null: all
    count as they are."""
    adaptors: dict[Layer, tuple[Channels, Channels]] = Field(default={})
    """Layer -> channels of the trained network's map and of the reference's, for layers where they differ: a
    convolution 1x1, which is trained along, brings one to the other. It is not part of the network that predicts."""
    adaptor_lr: float = Field(default=1e-3, gt=0)
    """Learning rate of their Adam at its highest; its course is that of optim.schedule."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.layers)) < len(self.layers):
            raise ValueError("each of the layers once")
        if self.weights is not None and len(self.weights) != len(self.layers):
            raise ValueError(
                f"as many weights as layers; {len(self.weights)} weights for {len(self.layers)} layers"
            )
        other = sorted(set(self.adaptors) - set(self.layers))
        if other:
            raise ValueError(f"adaptors of layers that are compared; {other[0]} is none of the layers")
        return self


class MaskReuseSettings(Weighted):
    """Cross-entropy on the masks of the other images."""

    smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of every target that is spread evenly over the classes."""
    erode: int = Field(default=0, ge=0)
    """Pixels around a border between classes that do not count, for images that are aligned up to so many pixels."""


class DistillationSettings(Settings):
    """How soft the reference's classes are."""

    temperature: float = Field(default=1.0, gt=0)
    """What scores are divided by before the softmax; the loss is multiplied by its square."""


class _Paired(Term):
    """A term that reads pairs and no other image."""

    source: ClassVar[bool] = False
    target: ClassVar[bool] = True
    pairs: ClassVar[bool] = True


class FeatureRegression(_Paired):
    """Difference between maps of the trained network on an image and of the reference on its partner.

    L = sum_l weight_l D(A(student_l(x')), A(reference_l(x))) with D and A as the settings say; the reference has no
    gradient [Benbihi, Geist and Pradalier 2018]. The paper's text was not at hand: all but the regression between maps
    is a reconstruction.
    """

    Settings: ClassVar[type[Settings]] = RegressionSettings
    frozen: ClassVar[Literal["", "reference", "initial"]] = "reference"
    scales: Tensor
    seen: Tensor
    batches: Tensor

    def __init__(self, settings: Any, known: Setting) -> None:
        super().__init__(settings, known)
        count = len(settings.layers)
        self.kind: Kind = settings.kind or ("mse" if count == 1 else "relative")
        self.register_buffer("scales", torch.zeros(count))
        self.register_buffer("seen", torch.zeros(count, dtype=torch.int64))
        self.register_buffer("batches", torch.zeros(count, dtype=torch.int64))
        # In a plain dictionary: the method keeps and wraps them, and this term must not hold their weights once more.
        self._made: dict[str, nn.Module] = {
            f"adaptor_{layer}": nn.Conv2d(own, other, 1) for layer, (own, other) in settings.adaptors.items()
        }
        self._compared: dict[str, tuple[Tensor, Tensor, Tensor | None, Tensor | None]] = {}
        self._told = False

    def trained(self, output: DenseOutput) -> list[Tensor]:
        """The maps that are compared; with logits not among them the classifier stays as it is."""
        return [_map(output, layer) for layer in self.settings.layers]

    def networks(self) -> dict[str, nn.Module]:
        """The adaptors."""
        return dict(self._made)

    def optimiser(self, key: str) -> OptimSettings:
        """Adam."""
        return OptimSettings(name="adam", lr=self.settings.adaptor_lr)

    def loss(self, step: Step) -> dict[str, Tensor]:
        """The weighted sum over the layers, each a mean over the valid positions of all ranks."""
        s = self.settings
        valid, reference = valid_pixels(step), paired_reference(step)
        weights = s.weights or [1 / len(s.layers)] * len(s.layers)
        total: Tensor | None = None
        for number, (layer, weight) in enumerate(zip(s.layers, weights, strict=True)):
            own, other = _map(step.target.output, layer), _map(reference, layer)
            scale = self._scale(number, other, valid)
            if layer in s.adaptors:
                self._compared[layer] = (own.detach(), other, scale, valid)
            own = self._adapted(step, layer, own, other)
            self._tell_sizes(layer, own, other)
            value = self._compare(own, other, scale, valid)
            if len(s.layers) > 1:
                step.report(**{f"regression_{layer}": value})
            total = weight * value if total is None else total + weight * value
        assert total is not None
        if valid is not None:
            step.report(regression_valid=dist.global_mean(valid.sum(), valid.numel()))
        return {"regression": total}

    def after(self, step: Step) -> None:
        """A step of each adaptor on the maps of this iteration."""
        for layer, (own, other, scale, valid) in self._compared.items():
            name = self.names[f"adaptor_{layer}"]
            network = step.part(name)
            adapted = network(own.to(next(network.parameters()).dtype))
            step.update(self._compare(adapted, other, scale, valid), name)
        self._compared.clear()

    def _compare(self, own: Tensor, other: Tensor, scale: Tensor | None, valid: Tensor | None) -> Tensor:
        s = self.settings
        return regression_loss(
            own, other, kind=self.kind, scale=scale, valid=valid, tolerance=s.tolerance, robust=s.robust
        )

    def _adapted(self, step: Step, layer: str, own: Tensor, other: Tensor) -> Tensor:
        """The student's map with the reference's number of channels.

        Raises:
            InputError: they differ, and the recipe has no adaptor between them.
        """
        widths = [own.shape[1], other.shape[1]]
        chosen = self.settings.adaptors.get(layer)
        if list(chosen or (widths[1], widths[1])) != widths:
            raise InputError(
                f"method.terms, feature-regression: {layer} has {widths[0]} channels in the trained network and "
                f"{widths[1]} in the reference.",
                f"Set its settings.adaptors to {{{layer}: {widths}}}, or leave {layer} out of layers.",
            )
        if chosen is None:
            return own
        network = plain(step.part(self.names[f"adaptor_{layer}"]))
        # It learns in a step of its own; a gradient from here would be thrown away.
        weights = {name: value.detach() for name, value in network.named_parameters()}
        return functional_call(network, weights, (own.to(next(iter(weights.values())).dtype),))

    def _scale(self, number: int, other: Tensor, valid: Tensor | None) -> Tensor | None:
        """Mean square of a layer of the reference over the first batches; None: this batch's own."""
        if self.kind != "relative" or self.settings.scale_batches == 0:
            return None
        if int(self.batches[number]) < self.settings.scale_batches:
            mean, count = mean_square(other, valid=valid)
            total = self.seen[number] + count
            self.scales[number] += (mean.to(self.scales) - self.scales[number]) * count / total.clamp(min=1)
            self.seen[number] = total
            self.batches[number] += (count > 0).long()  # a batch without valid positions says nothing
        return self.scales[number].clone()

    def _tell_sizes(self, layer: str, own: Tensor, other: Tensor) -> None:
        """Warn once where two maps differ by more than rounding."""
        differ = max(abs(a - b) for a, b in zip(own.shape[-2:], other.shape[-2:], strict=True))
        if differ > 1 and not self._told:
            self._told = True
            one, two = (" x ".join(map(str, x.shape[-2:])) for x in (own, other))
            warnings.warn(
                f"feature-regression: {layer} has {one} positions in the trained network and {two} in the reference, "
                f"which is resized.",
                stacklevel=2,
            )


class MaskReuse(_Weighted, _Paired):
    """Mean cross-entropy of an image on the mask of its partner, as if the two were aligned."""

    Settings: ClassVar[type[Settings]] = MaskReuseSettings

    def loss(self, step: Step) -> dict[str, Tensor]:
        """The mean over the labelled pixels of all ranks where both images show something."""
        s, valid = self.settings, valid_pixels(step)
        labels = eroded(partner(step).labels, s.erode)
        if valid is not None:
            labels = labels.where(valid, IGNORED)
        logits = step.target.full_logits if s.at == "input" else step.target.logits
        logits, labels = align(logits, labels, at=s.at)
        value = pixel_cross_entropy(logits, labels, class_weights=self.class_weights, smoothing=s.smoothing)
        return {"mask_reuse": value}


class LogitDistillation(_Paired):
    """Divergence of an image's class probabilities from those that the reference gives its partner."""

    Settings: ClassVar[type[Settings]] = DistillationSettings
    frozen: ClassVar[Literal["", "reference", "initial"]] = "reference"

    def loss(self, step: Step) -> dict[str, Tensor]:
        """The mean over the valid positions of all ranks, at the network's stride."""
        value = distillation_loss(
            step.target.logits,
            paired_reference(step).logits,
            temperature=self.settings.temperature,
            valid=valid_pixels(step),
        )
        return {"logit_distillation": value}


def partner(step: Step) -> DenseBatch:
    """The partners of the unlabelled images.

    Raises:
        InputError: the recipe does not say what belongs together.
    """
    if step.partner is None:
        raise InputError(
            "method.terms: a term that learns from pairs needs images that belong together.",
            "Set data.pairs, such as {by: name}.",
        )
    return step.partner


def paired_reference(step: Step) -> DenseOutput:
    """What the reference says about the partners; computed once per iteration, without gradient."""
    kept: dict[str, Any] = vars(step)
    if "paired reference" not in kept:
        kept["paired reference"] = step.reference(partner(step).images)
    return kept["paired reference"]


def valid_pixels(step: Step) -> Tensor | None:
    """Pixels (B, H, W) bool where both images of a pair show something; None: everywhere."""
    found = [one > 0 for one in (partner(step).weights, step.target.weights) if one is not None]
    return found[0] if len(found) == 1 else found[0] & found[1] if found else None


def eroded(labels: Tensor, radius: int) -> Tensor:
    """Ignore pixels that are near another class or near one without a label.

    Args:
        labels: (B, H, W) int64, -100 ignored; no gradient.
        radius: largest distance in pixels, down or across, >= 0.

    Returns:
        (B, H, W) int64: the label where all pixels of the image within that distance have it, else -100.

    Example:
        >>> eroded(torch.tensor([[[0, 0, 0, 1, 1]]]), 1).tolist()
        [[[0, 0, -100, -100, 1]]]
    """
    if radius == 0:
        return labels
    values, side = labels[:, None].float(), 2 * radius + 1
    most, least = (sign * F.max_pool2d(sign * values, side, 1, radius)[:, 0] for sign in (1, -1))
    return labels.where(most == least, IGNORED)


def _map(output: DenseOutput, layer: str) -> Tensor:
    """One map of a network by its name.

    Raises:
        InputError: the encoder has fewer.
    """
    if not layer.startswith("map"):
        return output.features if layer == "features" else output.logits
    number = int(layer[3:])
    if number > len(output.maps):
        raise InputError(
            f"method.terms, feature-regression: layers: no {layer}; the encoder has {len(output.maps)} maps.",
            f"Name one of map1 to map{len(output.maps)}, features or logits.",
        )
    return output.maps[number - 1]
