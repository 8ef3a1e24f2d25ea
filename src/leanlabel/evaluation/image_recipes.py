"""How the readouts that need images are trained: the published recipes by name.

Every published number belongs to one of them: they differ by a point and more on the same backbone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Recipe:
    """How a readout is trained. SGD with momentum 0.9, no weight decay; random windows and mirrors in training."""

    about: str
    """Where the numbers come from."""
    epochs: int
    """Passes over the training rows."""
    batch: int
    """Rows per step."""
    lr: float
    """Learning rate of the linear layer at its highest."""
    backbone_lr: float = 0.0
    """Learning rate of the backbone; 0: frozen, in evaluation mode."""
    schedule: Literal["drops", "cosine"] = "cosine"
    """Course of the learning rates: factors at the start of epochs, or half a cosine, per step."""
    drops: tuple[int, ...] = ()
    """Epochs behind which the learning rates fall; they move in proportion where there are more or fewer epochs."""
    factor: float = 1.0
    """What they are multiplied by there."""
    nesterov: bool = False
    """Whether momentum looks ahead."""
    start: Literal["normal", "uniform"] = "normal"
    """First weights of the linear layer: N(0, 0.01^2) and biases 0, or U(-1, 1) / sqrt(width) for both."""
    drop_last: bool = False
    """Leave out the last batch of an epoch where it is smaller than the others."""
    share: float = 1.0
    """Share of the training rows whose labels are used, as many of each class."""

    @property
    def frozen(self) -> bool:
        """Whether only the linear layer is trained."""
        return self.backbone_lr == 0

    @property
    def settings(self) -> dict[str, Any]:
        """The numbers as plain data."""
        return {key: value for key, value in asdict(self).items() if key != "about"}


RECIPES: dict[str, Recipe] = {
    "linear-moco": Recipe(
        "MoCo, official code, ImageNet-1K", 100, 256, 30.0, schedule="drops", drops=(60, 80), factor=0.1
    ),
    "linear-imagenet100": Recipe(
        "MoCHi, ImageNet-100; drops as in CMC's code",
        *(60, 512, 10.0),
        schedule="drops",
        drops=(30, 40, 50),
        factor=0.2,
    ),
    "linear-lightly": Recipe(
        "lightly's benchmarks, 0.1 x batch / 256", 90, 256, 0.1, start="uniform", drop_last=True
    ),
    # SimCLR, appendix B.5: Nesterov momentum, no decay, no warm-up, 60 epochs for 1 % and 30 for 10 %. It has one rate
    # for all (0.05 x batch / 256); that a new layer learns a hundred times faster than the backbone is VISSL's.
    "finetune-1": Recipe(
        "SimCLR, semi-supervised, with VISSL's learning rates",
        *(60, 256, 1.0),
        backbone_lr=0.01,
        nesterov=True,
        share=0.01,
    ),
    "finetune-10": Recipe(
        "SimCLR, semi-supervised, with VISSL's learning rates",
        *(30, 256, 1.0),
        backbone_lr=0.01,
        nesterov=True,
        share=0.1,
    ),
}
"""Name of the protocol -> how its readout is trained."""

SELECTION = (
    "none: weights of the last epoch; best_accuracy is that of the epoch with best validation accuracy"
)
"""How the scored weights are chosen, for people."""
