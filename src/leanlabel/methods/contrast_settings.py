"""What methods with negatives share: the settings of mixed hard negatives."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from leanlabel.config import Settings
from leanlabel.evaluation.negatives import ENOUGH, expected_false_negatives
from leanlabel.losses.mixing import Mixing


class MixingSettings(Settings):
    """Hard negatives mixed from the hardest ones of each query; the paper's (N, s, s')."""

    hardest: int = Field(default=1024, ge=1)
    """How many of the hardest negatives of a query are mixed (N)."""
    pairs: int = Field(default=1024, ge=0)
    """Mixed negatives of two of them (s)."""
    with_query: int = Field(default=128, ge=0)
    """Mixed negatives of one of them and the query, of which the query is less than half (s')."""
    warmup: int = Field(default=0, ge=0)
    """Iterations before the first mixing; the paper waits 10 of 200 epochs on ImageNet-100."""

    def at(self, t: int) -> Mixing | None:
        """What is mixed in iteration ``t``; None for nothing."""
        if t < self.warmup or self.pairs + self.with_query == 0:
            return None
        return Mixing(self.hardest, self.pairs, self.with_query)


def few_classes(mixing: MixingSettings | None, y: Tensor | None, keys: int, remedy: str) -> list[str]:
    """A warning where the hardest keys of a query are mostly of its own class; nothing without labels or mixing.

    Args:
        mixing: settings.
        y: (N,) classes, negative where unknown.
        keys: how many keys are ranked (K).
        remedy: what would help, beside no mixing.
    """
    classes = 0 if y is None else int(y.unique().ge(0).sum())
    if mixing is None or classes == 0 or keys < 1:
        return []
    hardest = min(mixing.hardest, keys)
    expected = expected_false_negatives(classes, hardest, keys)
    if expected.enough:
        return []
    return [
        f"{classes} classes: N classes / K = {expected.ratio:.2g} (below {ENOUGH:g}), so most of the {hardest} "
        f"hardest of {keys} keys are of the query's own class, and mixing them makes false negatives: try {remedy}, or "
        f"method.mixing=null"
    ]
