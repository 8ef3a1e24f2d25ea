"""How well content and style of images are kept apart, measured on held-out images of two domains without labels.

Content c = E_c(x) is the map of features of a segmentation network, s = E_s(x) a style, and G(c, s) an image that is
drawn from both; x0 = G(c, 0) is drawn without style, c0 = E_c(x0) its content. Where the two are apart, a linear
classifier tells domains apart by s and not by c, the content survives without style, and x0 has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leanlabel.evaluation.domain_classifier import domain_error


@dataclass(frozen=True, eq=False)
class Separation:
    """Measures of content and style; each is a mean over the domains, so that a larger domain counts no more.

    Attributes:
        content_accuracy: share of held-out images whose domain a linear classifier finds in the content, averaged over
            space; in [0, 1], 1/2 is chance. Lower is better.
        style_accuracy: likewise in the style. High is better.
        drift: mean |c0 - c| / mean |c|; 0: content survives without style.
        emptiness: mean |E_s(x0)|; 0: what is drawn without style shows none.
        reconstruction: mean |G(c, s) - x| of normalised images.
        by_domain: drift, emptiness and reconstruction of each domain, in this order.

    A measure is NaN where a domain has no image (accuracies: fewer than two images, or groups of them), and drift where
    a domain's content is 0 everywhere.
    """

    content_accuracy: float
    style_accuracy: float
    drift: float
    emptiness: float
    reconstruction: float
    by_domain: tuple[tuple[float, float, float], ...]


class SeparationMeter:
    """Measures of separation over any number of batches; of the images only means are kept.

    Example:
        >>> meter, maps, dull = SeparationMeter(), torch.ones(2, 1, 2, 2), torch.zeros(2, 1)
        >>> for domain, style in ((0, dull), (1, dull + 9)):
        ...     meter.add(domain, maps, maps, style, rebuilt=maps, content_again=maps / 2, style_again=dull)
        >>> found = meter.result(seed=0)
        >>> found.content_accuracy, found.style_accuracy, found.drift, found.reconstruction
        (0.5, 1.0, 0.5, 0.0)
    """

    def __init__(self) -> None:
        self._content: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._style: tuple[list[Tensor], list[Tensor]] = ([], [])
        # Sums of |c0 - c|, |c|, |E_s(x0)| and |G - x|, and numbers of elements of the last two.
        self._sums = torch.zeros(2, 6, dtype=torch.float64)

    @torch.no_grad()
    def add(
        self,
        domain: int,
        images: Tensor,
        content: Tensor,
        style: Tensor,
        *,
        rebuilt: Tensor,
        content_again: Tensor,
        style_again: Tensor,
    ) -> None:
        """Count some images of one domain.

        Args:
            domain: 0 or 1.
            images: (B, C, H, W), normalised.
            content: (B, D, h, w), of the images.
            style: (B, N), of the images.
            rebuilt: (B, C, H, W), G(c, s).
            content_again: (B, D, h, w), of G(c, 0).
            style_again: (B, N), of G(c, 0).

        Raises:
            ValueError: shapes do not fit.
        """
        pairs = {
            "rebuilt": (rebuilt, images),
            "content_again": (content_again, content),
            "style_again": (style_again, style),
        }
        for name, (one, like) in pairs.items():
            if one.shape != like.shape:
                raise ValueError(f"{name} must be {tuple(like.shape)}, got {tuple(one.shape)}")
        if not len(images) == len(content) == len(style):
            raise ValueError(
                f"{len(images)} images need a content and a style each, got {len(content)} and {len(style)}"
            )
        wide = content.detach().double()
        self._content[domain].append(wide.mean((2, 3)).cpu())
        self._style[domain].append(style.detach().double().cpu())
        sums = (
            (content_again.detach().double() - wide).abs().sum(),
            wide.abs().sum(),
            style_again.detach().double().abs().sum(),
            (rebuilt.detach().double() - images.detach().double()).abs().sum(),
        )
        self._sums[domain] += torch.tensor(
            [*map(float, sums), style.numel(), images.numel()], dtype=torch.float64
        )

    def result(self, seed: int = 0, groups: tuple[Tensor | None, Tensor | None] = (None, None)) -> Separation:
        """Measures of all that was added.

        Args:
            seed: of the parts of images that are held out from the classifiers in turn.
            groups: (N,) and (M,) integers, images that are near copies of one another such as frames of a sequence, in
                the order in which they were added; see :func:`leanlabel.evaluation.domain_classifier.domain_error`.
        """
        found = [tuple(_ratio(*pair) for pair in _pairs(row)) for row in self._sums.tolist()]
        drift, empty, rebuilt = (sum(one) / len(found) for one in zip(*found, strict=True))
        return Separation(
            _accuracy(self._content, seed, groups),
            _accuracy(self._style, seed, groups),
            *(drift, empty, rebuilt),
            by_domain=tuple((one[0], one[1], one[2]) for one in found),
        )


def _pairs(row: Sequence[float]) -> list[tuple[float, float]]:
    drift, size, empty, error, styles, pixels = row
    return [(drift, size), (empty, styles), (error, pixels)]


def _ratio(total: float, count: float) -> float:
    return total / count if count > 0 else math.nan


def _accuracy(
    rows: tuple[list[Tensor], list[Tensor]], seed: int, groups: tuple[Tensor | None, Tensor | None]
) -> float:
    """Held-out accuracy; NaN where a domain has too few rows or groups, or what was given is not finite."""
    both = [torch.cat(own) if own else torch.zeros(0, 1) for own in rows]
    few = any(len(one) < 2 or not bool(torch.isfinite(one).all()) for one in both)
    if few or any(one is not None and len(one.unique()) < 2 for one in groups):
        return math.nan
    return 1.0 - domain_error(both[0], both[1], seed, groups=groups)
