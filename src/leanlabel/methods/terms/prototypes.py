"""Features of both domains gather around one prototype for each class, which labelled images give."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from leanlabel import dist
from leanlabel.banks.prototypes import ImageMeans, Prototypes, agreeing_labels, nearest_labels
from leanlabel.banks.teacher import plain
from leanlabel.config import OptimSettings, Settings
from leanlabel.losses.feature_distance import cell_classes
from leanlabel.losses.pixel import wide
from leanlabel.losses.prototype import SimilarityMeter, feature_spread, prototype_contrast
from leanlabel.methods.dense_step import Step
from leanlabel.methods.terms import Needs, Setting, Term
from leanlabel.models.decoders import upsample
from leanlabel.models.segmenters import DenseOutput

IGNORED = -100
Agree = Literal["agreed", "fallback", "labels"]
Thin = Literal["nearest", "pure"]
_SEEN = "prototype-contrast"


class PrototypeSettings(Settings):
    """How prototypes are made and what is contrasted with them. SPCL's published code has tau 100, alpha 0.1, weight 1;
    absent decay, balance pixel and agree agreed, where the defaults here differ."""

    tau: float = Field(default=100.0, gt=0)
    """Temperature of the softmax over similarities. At 100 (official) the loss stays near log K for each domain and
    pulls at all places alike; below 0.1 it pulls at badly placed ones."""
    alpha: float = Field(default=0.1, ge=0, le=1)
    """Share of a prototype that an iteration keeps (estimator ema); 0.1 (official): nine tenths are this batch's."""
    estimator: Literal["ema", "running_mean"] = "ema"
    """ema (official): alpha P + (1 - alpha) mean of the batch; running_mean: the mean over all places seen so far."""
    absent: Literal["keep", "decay"] = "keep"
    """A class that the batch lacks keeps its prototype, or (official) has it multiplied by alpha; for estimator ema."""
    balance: Literal["pixel", "class"] = "class"
    """Mean over places (official), or mean over the classes present of their means: with pixels, large classes draw
    the features of small ones away from their prototypes, and small classes lose IoU."""
    mask_unknown: bool = False
    """Leave classes without a prototype out of the softmax; false (official): they have similarity 0 there."""
    agree: Agree = "fallback"
    """Places of labelled images that count: where the network sees the label (agreed, official), the same but all of a
    class that it sees nowhere in the batch (fallback), or all (labels)."""
    thin: Thin = "nearest"
    """Label of a feature position: that of one pixel (nearest, official), or the class that covers enough of it."""
    purity: float = Field(default=0.75, gt=0, le=1)
    """Smallest share of a position's pixels that its class covers, for thin pure."""
    features: Literal["student", "teacher"] = "student"
    """Whose features of labelled images make prototypes: the trained network's (official) or the running average's."""
    layer: Literal["features"] = "features"
    """What is compared: the map that the classifier reads."""
    head: int = Field(default=0, ge=0)
    """Channels of two convolutions 1x1 with a ReLU between, behind which features are compared and prototypes live;
    0 (official): none. It is not part of the network that predicts."""
    head_lr: float = Field(default=1e-3, gt=0)
    """Learning rate of the head's AdamW at its highest; its course is that of optim.schedule."""
    initial: Literal["pass", "batch"] | None = None
    """Where prototypes begin: one pass over all labelled images before training (official), or the first batches;
    null: pass without a head, batch with one, as a head that has not learned says nothing."""
    target: Literal["stored", "online", "none"] = "stored"
    """Labels of unlabelled images: stored pseudo labels (official), those of the running average in this iteration, or
    none: labelled images alone are contrasted."""
    threshold: float = Field(default=0.968, ge=0, le=1)
    """Probability from which on a label of the running average counts, for target online."""
    wait: int = Field(default=0, ge=0)
    """Iterations of this training in which prototypes are made but nothing is contrasted; SePiCo: 3000."""
    spread: float = Field(default=0.0, ge=0)
    """Weight of a regulariser that keeps the mean feature of unlabelled images between the prototypes, as in SePiCo. It
    goes with the square of 1 / tau: about 1e-9 at tau 100."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.head and self.initial == "pass":
            raise ValueError("initial: batch with a head, which has not learned anything before training")
        if self.spread and self.target == "none":
            raise ValueError("spread: 0 with target: none, as it is computed on unlabelled images")
        return self

    @property
    def begins(self) -> Literal["pass", "batch"]:
        """Where prototypes begin, with null resolved."""
        return self.initial or ("batch" if self.head else "pass")


class Prototypical(Term):
    """Classify features of both domains by their similarity to one prototype of each class [SPCL, Xie et al. 2021].

    L = l(source) + l(target), l = - mean_i log softmax_k(z_i P_k / tau) at y_i, with z of norm 1. Prototypes have no
    gradient; they are moved towards the class means of the labelled batch before the loss reads them. Cost grows with
    pixels times classes. No gradient reaches the classifier.

    At tau = 100 the loss of a domain hardly leaves log K whatever is learned; the similarities that are logged tell:
    own, other and their gap, of the source by its labels and of the target by its pseudo labels.
    """

    Settings: ClassVar[type[Settings]] = PrototypeSettings
    target: ClassVar[bool] = True
    stored: ClassVar[bool] = True
    joint: ClassVar[tuple[str, ...]] = ("head",)
    carried: ClassVar[bool] = True

    def __init__(self, settings: Any, known: Setting) -> None:
        super().__init__(settings, known)
        s = settings
        self.bank = Prototypes(
            len(known.classes),
            s.head or known.width,
            estimator=s.estimator,
            alpha=s.alpha,
            absent=s.absent,
        )
        # In a plain dictionary: the method keeps and wraps it, and this term must not hold its weights once more.
        self._made: dict[str, nn.Module] = {}
        if s.head:
            self._made["head"] = nn.Sequential(
                nn.Conv2d(known.width, s.head, 1), nn.ReLU(), nn.Conv2d(s.head, s.head, 1)
            )
        self._pass: _Pass | None = None

    @classmethod
    def needs(cls, settings: Any) -> Needs:
        """A second domain, stored pseudo labels and a teacher as its settings say."""
        return replace(
            super().needs(settings),
            target=settings.target != "none",
            stored=settings.target == "stored",
            teacher=settings.target == "online" or settings.features == "teacher",
        )

    @classmethod
    def prepares(cls, settings: Any) -> bool:
        """Whether prototypes begin with a pass over the labelled images."""
        return settings.begins == "pass"

    def networks(self) -> dict[str, nn.Module]:
        """The head, where there is one."""
        return dict(self._made)

    def optimiser(self, key: str) -> OptimSettings:
        """AdamW."""
        return OptimSettings(name="adamw", lr=self.settings.head_lr)

    def trained(self, output: DenseOutput) -> Sequence[Tensor]:
        """The features: the classifier learns nothing from this."""
        return [output.features]

    def observe(self, output: DenseOutput, labels: Tensor) -> None:
        """Add the class means of some labelled images to those of the pass."""
        if self._pass is None:
            self._pass = self._begin_pass()
        thin = thinned(labels, output.features.shape[-2:], self._classes, self.settings)
        self._pass.add(output.features, thin, output.logits)

    def observed(self) -> None:
        """Begin with the means of the pass. Collective on several ranks."""
        if self._pass is None:
            self._pass = self._begin_pass()
        values, _, pixels = self._pass.result()
        self._pass = None
        self.bank.begin(values, pixels)

    def before(self, step: Step) -> None:
        """Move the prototypes towards the class means of the labelled batch; logs the share of agreed positions."""
        s = self.settings
        features = self._projected(step, step.features)
        size = (features.shape[2], features.shape[3])
        logits = step.enlarge(step.logits.detach(), size)
        labels = thinned(_shown(step.labels, step), size, self._classes, s)
        agreed = (labels != IGNORED) & (logits.argmax(1) == labels)
        step.report(agreed=dist.global_mean(agreed.sum().double(), (labels != IGNORED).sum()))
        if s.agree != "labels":
            labels = agreeing_labels(labels, logits, fallback=s.agree == "fallback")
        made = features
        if s.features == "teacher":
            with torch.no_grad():
                made = self._projected(step, step.taught.features, still=True)
        self.bank.update(made.detach(), labels)
        step.shared[_SEEN] = features, labels

    def loss(self, step: Step) -> dict[str, Tensor]:
        """The sum of the means over the labelled positions of each domain, on all ranks."""
        s, prototypes, known = self.settings, self.bank.values.clone(), self.bank.known
        features, labels = step.shared[_SEEN]
        self._tell(
            step, features, labels, prototypes, known, "own_similarity", "other_similarity", "similarity_gap"
        )
        if step.t < s.wait:
            return {"prototype": wide(features).sum() * 0}
        own = self._contrast(features, labels, prototypes, known)
        step.report(prototype_source=own)
        if s.target == "none":
            return {"prototype": own}
        theirs = self._projected(step, step.target.features)
        guessed = self._guessed(step.target, theirs.shape[-2:])
        other = self._contrast(theirs, guessed, prototypes, known)
        step.report(prototype_target=other)
        names = ("target_own_similarity", "target_other_similarity", "target_gap")
        self._tell(step, theirs, guessed, prototypes, known, *names)
        total = own + other
        if s.spread:
            spread = feature_spread(theirs, prototypes, s.tau, known)
            step.report(prototype_spread=spread)
            total = total + s.spread * spread
        return {"prototype": total}

    @property
    def _classes(self) -> int:
        return len(self.known.classes)

    def _begin_pass(self) -> _Pass:
        return _Pass(self._classes, self.bank.values.shape[1], self.settings.agree)

    def _contrast(self, features: Tensor, labels: Tensor, prototypes: Tensor, known: Tensor) -> Tensor:
        s = self.settings
        return prototype_contrast(
            *(features, labels, prototypes),
            tau=s.tau,
            balance=s.balance,
            known=known,
            mask_unknown=s.mask_unknown,
        )

    def _projected(self, step: Step, features: Tensor, *, still: bool = False) -> Tensor:
        """Features where prototypes live; ``still``: for no gradient, so not through the head's wrapper."""
        if "head" not in self.names:
            return features
        head = step.part(self.names["head"])
        head = plain(head) if still else head
        return head(features.to(next(head.parameters()).dtype))

    def _guessed(self, target: Step, size: torch.Size) -> Tensor:
        """Labels (B, *size) of unlabelled images: stored ones, or those that the teacher is sure of."""
        s = self.settings
        if s.target == "stored":
            return thinned(_shown(target.labels, target), size, self._classes, s)
        logits = target.taught.logits
        # The position's own scores say more about it than those of one pixel between positions would.
        large = target.labels.shape[-2:] if s.thin == "pure" else size
        sure, labels = wide(target.enlarge(logits, (large[0], large[1]))).softmax(1).max(1)
        labels = labels.where(sure >= s.threshold, IGNORED)
        if s.thin == "pure":
            return thinned(_shown(labels, target), size, self._classes, s)
        if target.weights is None:
            return labels
        return labels.where(nearest_labels((target.weights > 0).long(), size) > 0, IGNORED)

    @torch.no_grad()
    def _tell(
        self, step: Step, features: Tensor, labels: Tensor, prototypes: Tensor, known: Tensor, *names: str
    ) -> None:
        """Log similarities to the own prototype and to others, and the gap; nothing where no position has a label."""
        meter = SimilarityMeter(self._classes)
        meter.add(features, labels, prototypes, known)
        found = meter.result()
        told = zip(names, (found.own, found.other, found.gap), strict=True)
        step.report(**{name: value for name, value in told if math.isfinite(value)})


class _Pass:
    """Class means of images, one after the other, over agreed positions and where asked over all labelled ones.

    A class that the network sees nowhere takes all its positions in the whole pass: not batch by batch, so that the
    result does not depend on which images come together, and ranks need not meet before its end.
    """

    def __init__(self, classes: int, width: int, agree: Agree) -> None:
        self.rules = {"agreed": (True,), "labels": (False,), "fallback": (True, False)}[agree]
        self.means = [ImageMeans(classes, width) for _ in self.rules]
        self.pixels = [torch.zeros(classes, dtype=torch.float64) for _ in self.rules]

    def add(self, features: Tensor, labels: Tensor, logits: Tensor) -> None:
        """Features (B, D, h, w), labels (B, h, w) and logits of the network at any stride."""
        logits = upsample(logits, features.shape[-2:])
        for strict, means, pixels in zip(self.rules, self.means, self.pixels, strict=True):
            chosen = agreeing_labels(labels, logits) if strict else labels
            means.add(features, chosen)
            pixels += torch.bincount(chosen[chosen != IGNORED].cpu(), minlength=len(pixels))

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """Means (K, D), numbers of images and of positions (K,) behind them, of all ranks."""
        values, images, pixels = (None, None, None)
        for means, counted in zip(self.means, self.pixels, strict=True):
            mean, number = means.result()
            count = dist.all_sum(counted).to(mean.device)
            if values is None or images is None or pixels is None:
                values, images, pixels = mean, number, count
                continue
            lacking = images == 0
            values = torch.where(lacking[:, None], mean, values)
            images, pixels = images.where(~lacking, number), pixels.where(~lacking, count)
        assert values is not None
        assert images is not None
        assert pixels is not None
        return values, images, pixels


@torch.no_grad()
def source_prototypes(
    segmenter: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    classes: int,
    *,
    agree: Agree = "fallback",
    thin: Thin = "nearest",
) -> tuple[Tensor, Tensor]:
    """Average the features of each class over labelled images: P_k = mean over images of the mean unit feature.

    Args:
        segmenter: network that gives a DenseOutput; it is asked in evaluation mode, and left as it was.
        batches: images (B, C, H, W), normalised, and labels (B, H, W) int64, -100 ignored.
        classes: number K.
        agree: which positions count; a class that the network sees nowhere takes all its positions with fallback.
        thin: how labels are brought to the features' size.

    Returns:
        Prototypes (K, D), not of norm 1, zeros for a class that no position has; (K,) int64, the images behind each.
        No gradient. On several ranks each gives its own batches, and the result is that of all.

    Raises:
        ValueError: there is no batch; InputError for a label that is no class.

    Example:
        >>> class Pixels(nn.Module):
        ...     def forward(self, x):
        ...         return DenseOutput(x, x)
        >>> images = torch.tensor([[3.0, 0.0], [4.0, 2.0]]).view(1, 2, 1, 2)
        >>> values, images = source_prototypes(Pixels(), [(images, torch.tensor([[[1, -100]]]))], 2)
        >>> values.tolist(), images.tolist()
        ([[0.0, 0.0], [0.6000000238418579, 0.800000011920929]], [0, 1])
    """
    first = next(iter([*segmenter.parameters(), *segmenter.buffers()]), None)
    modes = [(module, module.training) for module in segmenter.modules()]
    found: _Pass | None = None
    settings = PrototypeSettings(thin=thin)
    segmenter.eval()
    try:
        for images, labels in batches:
            if first is not None:
                images, labels = images.to(first.device, first.dtype), labels.to(first.device)
            output = segmenter(images)
            found = found or _Pass(classes, output.features.shape[1], agree)
            labels = thinned(labels, output.features.shape[-2:], classes, settings)
            found.add(output.features, labels, output.logits)
    finally:
        for module, mode in modes:
            module.training = mode
    if found is None:
        raise ValueError("source_prototypes needs at least one batch of labelled images")
    values, images, _ = found.result()
    return values, images


def thinned(labels: Tensor, size: Sequence[int], classes: int, settings: PrototypeSettings) -> Tensor:
    """Labels (B, *size) of a coarse map from those of pixels (B, H, W), as the settings say."""
    if settings.thin == "pure":
        return cell_classes(labels, size, classes, purity=settings.purity)
    return nearest_labels(labels, (size[0], size[1]))


def _shown(labels: Tensor, step: Step) -> Tensor:
    """Labels without those of pixels of weight 0, such as padding."""
    return labels if step.weights is None else labels.where(step.weights > 0, IGNORED)
