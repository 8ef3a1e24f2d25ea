"""The parts that dense training is made of: each term is one idea with its own memory, losses and settings.

A recipe lists its terms in order under ``method.terms``; the training step calls them one after the other. Other
packages add rows to the table through entry points (group ``leanlabel.terms``).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn

from leanlabel.config import OptimSettings, Settings
from leanlabel.errors import InputError

if TYPE_CHECKING:
    from leanlabel.methods.dense_step import DenseBatch, Step
    from leanlabel.models.segmenters import DenseOutput

TABLE: dict[str, str] = {
    "cross-entropy": "leanlabel.methods.terms.pixel:CrossEntropy",
    "ohem": "leanlabel.methods.terms.pixel:Ohem",
    "focal": "leanlabel.methods.terms.pixel:Focal",
    "max-pooling": "leanlabel.methods.terms.pixel:MaxPooling",
    "dice": "leanlabel.methods.terms.pixel:Dice",
    "lovasz": "leanlabel.methods.terms.pixel:Lovasz",
    "locally-adaptive": "leanlabel.methods.terms.locally_adaptive:LocallyAdaptive",
    "self-training": "leanlabel.methods.terms.self_training:SelfTraining",
    "entropy": "leanlabel.methods.terms.self_training:Entropy",
    "labelled-target": "leanlabel.methods.terms.self_training:LabelledTarget",
    "class-mix": "leanlabel.methods.terms.mixing:ClassMix",
    "content-transfer": "leanlabel.methods.terms.mixing:ContentTransfer",
    "zero-style": "leanlabel.methods.terms.zero_style:ZeroStyle",
    "prototype-contrast": "leanlabel.methods.terms.prototypes:Prototypical",
    "masked-consistency": "leanlabel.methods.terms.masked:MaskedConsistency",
    "adversary": "leanlabel.methods.terms.adversary:Adversary",
    "feature-distance": "leanlabel.methods.terms.feature_distance:FeatureDistance",
    "detail": "leanlabel.methods.terms.detail:Detail",
    "feature-regression": "leanlabel.methods.terms.regression:FeatureRegression",
    "mask-reuse": "leanlabel.methods.terms.regression:MaskReuse",
    "logit-distillation": "leanlabel.methods.terms.regression:LogitDistillation",
}


@dataclass(frozen=True)
class Setting:
    """What a term may know when it is built.

    Attributes:
        classes: K names.
        pixels: K numbers of labelled training pixels.
        width: channels D of the network's features.
        steps: iterations of the run.
        seed: the run's seed.
        stride: pixels of an image per position of the features.
        channels: of the images.
    """

    classes: Sequence[str]
    pixels: Sequence[int]
    width: int
    steps: int
    seed: int
    stride: int = 1
    channels: int = 3


@dataclass(frozen=True)
class Needs:
    """What a term reads; see the attributes of :class:`Term` by these names."""

    source: bool
    target: bool
    stored: bool
    target_labels: bool
    pairs: bool
    teacher: bool
    frozen: Literal["", "reference", "initial"]
    donors: bool = False


class Term(nn.Module):
    """One idea of dense training. What it remembers are buffers; what it learns are parameters.

    A subclass names its ``Settings``, and overrides what it needs of the four methods, which are called in this order
    in every iteration from the one on that its recipe names as ``start``.

    Args:
        settings: its section of the recipe.
        known: classes, their pixels, the length of the run.
    """

    Settings: ClassVar[type[Settings]] = Settings
    teacher: ClassVar[bool] = False
    """Whether it reads ``step.teacher``, for which the recipe must keep an average of the network (method.ema)."""
    source: ClassVar[bool] = True
    """Whether it reads the labelled images."""
    target: ClassVar[bool] = False
    """Whether it reads ``step.target``, the images of an unlabelled domain."""
    stored: ClassVar[bool] = False
    """Whether it reads stored pseudo labels of these."""
    target_labels: ClassVar[bool] = False
    """Whether it reads true labels of these: an upper bound, no adaptation."""
    pairs: ClassVar[bool] = False
    """Whether it reads ``step.partner``, for which the recipe must say what belongs together (data.pairs)."""
    frozen: ClassVar[Literal["", "reference", "initial"]] = ""
    """Which frozen network it reads: the one that training began with, or the encoder that the run found."""
    donors: ClassVar[bool] = False
    """Whether it reads ``step.donor``, labelled images that are drawn for their rare classes."""
    joint: ClassVar[tuple[str, ...]] = ()
    """Which of its own networks learn from the sum of all losses, in the main update."""
    carried: ClassVar[bool] = False
    """Whether what it remembers and its own networks go on into the term of its name in the next stage."""

    def __init__(self, settings: Any, known: Setting) -> None:
        super().__init__()
        self.settings = settings
        self.known = known
        self.names: dict[str, str] = {}  # of its own networks, as the method calls them

    @classmethod
    def needs(cls, settings: Any, /) -> Needs:
        """What it reads under its settings; by default what the class says."""
        return Needs(
            cls.source,
            cls.target,
            cls.stored,
            cls.target_labels,
            cls.pairs,
            cls.teacher,
            cls.frozen,
            cls.donors,
        )

    @classmethod
    def asks(cls, settings: Any, /) -> tuple[str, ...]:
        """Names of the terms that must stand in the same recipe under its settings."""
        return ()

    @classmethod
    def prepares(cls, settings: Any, /) -> bool:
        """Whether it looks at all labelled images once before training, through ``observe`` and ``observed``."""
        return False

    def observe(self, output: DenseOutput, labels: Tensor, /) -> None:
        """Look at some labelled images before training, without gradient, in evaluation mode, without augmentation.

        Args:
            output: what the network says about them.
            labels: (B, H, W) int64, -100 ignored.
        """

    def observed(self) -> None:
        """All of them have been seen; what buffers hold now is what training begins with."""

    def stored_pixels(self, pixels: Tensor, /) -> None:
        """Learn (K,) int64, how many pixels each class has in the stored pseudo labels, before training."""

    def taken_over(self) -> None:
        """Weights were taken from another run, before training: undo what only belongs to that run's settings."""

    def donor_rule(self) -> tuple[Tensor, float, int]:
        """Which classes labelled images are drawn for, by which temperature, with how many pixels at least.

        Returns:
            (K,) bool, none: no image is drawn; temperature > 0; a number of pixels.
        """
        raise NotImplementedError

    def networks(self) -> dict[str, nn.Module]:
        """Networks of its own that learn, such as a discriminator; the method keeps and trains them."""
        return {}

    def optimiser(self, key: str, /) -> OptimSettings:
        """How one of these learns; its learning rate follows the course of the main one."""
        raise NotImplementedError(key)

    @classmethod
    def follows_steps(cls, settings: Any, /) -> list[str]:
        """Names of its settings whose course depends on the number of iterations."""
        return []

    def trained(self, output: DenseOutput, /) -> Sequence[Tensor]:
        """What of the network's output its losses depend on; weights that none of them needs are not trained."""
        return [output.logits]

    def views(self, batch: DenseBatch, draw: Any, /) -> DenseBatch:
        """The batch with what this term changes in the input.

        Args:
            batch: images and labels after augmentation.
            draw: name of a stream -> random numbers of this iteration's samples.
        """
        return batch

    def before(self, step: Step, /) -> None:
        """Bring up to date what the losses read: prototypes, thresholds."""

    def loss(self, step: Step, /) -> dict[str, Tensor]:
        """Losses by name, unweighted, each this rank's share (see `leanlabel.dist.global_mean`)."""
        return {}

    def after(self, step: Step, /) -> None:
        """Update memory from the result."""

    def notes(self) -> list[str]:
        """What the user of this training should know, one sentence each."""
        return []

    def emphasis(self, logits: Tensor, labels: Tensor, /) -> Tensor | None:
        """Weight that each pixel's loss carries, relative to the mean, for a picture; None where all are alike.

        Args:
            logits: (B, K, h, w) at the network's stride.
            labels: (B, H, W) int64, -100 ignored.

        Returns:
            (B, h', w') at any resolution, >= 0.
        """
        return None


def table() -> dict[str, str]:
    """All terms that a recipe can list, third-party ones included."""
    return {**{entry.name: entry.value for entry in entry_points(group="leanlabel.terms")}, **TABLE}


def find_term(name: str) -> type[Term]:
    """The class of a term.

    Raises:
        InputError: no such term; names the nearest one.

    Example:
        >>> find_term("dice").__name__
        'Dice'
    """
    rows = TABLE if name in TABLE else table()
    if name not in rows:
        near = difflib.get_close_matches(name, rows, n=1, cutoff=0.4)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known terms: {', '.join(rows)}."
        raise InputError(f"method.terms: unknown term {name!r}.", hint)
    module, _, attribute = rows[name].partition(":")
    return getattr(import_module(module), attribute)
