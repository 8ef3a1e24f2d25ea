"""Cases of segmentation losses: the locally adaptive loss on nine pixels, computed by loops over windows elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from leanlabel.losses.locally_adaptive import GUO2018, local_losses, locally_adaptive
from leanlabel.verify.case import Case

SOURCE = "Guo et al. 2018 as reconstructed, {}; in float64 by an independent script"

# Small integers, exact in every precision: rows of pixels with three scores each.
PIXELS = [
    [[2, 0, 0], [0, 1, 0], [0, 0, 0]],
    [[1, 0, 1], [0, 2, 0], [0, 0, 3]],
    [[0, 0, 0], [-1, 1, 0], [0, 1, 1]],
]
LABELS = [[0, 0, 1], [0, 1, 1], [255, 1, 2]]
PLAIN: dict[str, Any] = {"n": 3, "sigma": math.inf}
GAUSSIAN: dict[str, Any] = {"n": 3, "sigma": 1.0}

Run = Callable[[torch.device, torch.dtype], Tensor]


def cases() -> list[Case]:
    """All cases of segmentation losses."""
    return [*_losses(), *_means(), *_gradients(), *_variants(), *_batches(), _large()]


def _case(name: str, run: Run, values: Sequence, source: str) -> Case:
    return Case("segmentation", name, run, torch.tensor(values, dtype=torch.float64), SOURCE.format(source))


def _inputs(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scores (1, 3, 3, 3) with gradient, and labels."""
    scores = torch.tensor(PIXELS, dtype=dtype, device=device).permute(2, 0, 1)[None].contiguous()
    return scores.requires_grad_(), torch.tensor(LABELS, device=device)[None]


def _loss(**settings: Any) -> Run:
    def run(device: torch.device, dtype: torch.dtype) -> Tensor:
        return locally_adaptive(*_inputs(device, dtype), ignore=255, **settings)[None]

    return run


def _slope(**settings: Any) -> Run:
    def run(device: torch.device, dtype: torch.dtype) -> Tensor:
        scores, labels = _inputs(device, dtype)
        (found,) = torch.autograd.grad(locally_adaptive(scores, labels, ignore=255, **settings), scores)
        return found[0].permute(1, 2, 0)

    return run


def _losses() -> list[Case]:
    def eps(**settings: Any) -> Run:
        def run(device: torch.device, dtype: torch.dtype) -> Tensor:
            found = local_losses(*_inputs(device, dtype), ignore=255, **settings)
            return found.eps[found.valid]

        return run

    pixels = [0.2395447662, 1.5514447139, 1.0986122887, 0.8619948041]
    pixels += [0.2395447662, 3.0949229564, 0.4076059644, 0.8619948041]
    plain = [0.7064750871, 0.7064750871, 1.0678195356, 0.7064750871]
    plain += [0.8619948041, 0.8619948041, 0.8169552020, 0.8619948041]
    gaussian = [0.5933907027, 0.8191289218, 1.0624082905, 0.7236275097]
    gaussian += [0.7306502147, 1.0793858578, 0.7281515550, 0.8619948041]
    return [
        _case("losses of pixels", eps(n=1), pixels, "section 3"),
        _case("losses of windows, plain mean", eps(**PLAIN), plain, "section 3"),
        _case("losses of windows, Gaussian", eps(**GAUSSIAN), gaussian, "section 3"),
    ]


def _means() -> list[Case]:
    source = "power mean"
    return [
        _case("pixels, k = 1", _loss(n=1, k=1.0), [1.0444581330], source),
        _case("pixels, k = 5", _loss(n=1, k=5.0), [2.0582395098], source),
        _case("plain mean, k = 1", _loss(**PLAIN, k=1.0), [0.8237730514], source),
        _case("plain mean, k = 5", _loss(**PLAIN, k=5.0), [0.8574484199], source),
        _case("Gaussian, k = 1", _loss(**GAUSSIAN, k=1.0), [0.8248422320], source),
        _case("reference settings", _loss(**GUO2018), [0.8852070844], source),
        _case("stride 2, k = 2", _loss(**GAUSSIAN, stride=2, k=2.0), [0.8609798573], source),
    ]


def _gradients() -> list[Case]:
    def parts(device: torch.device, dtype: torch.dtype) -> Tensor:
        found = _slope(**GUO2018)(device, dtype)
        return torch.stack([found[1, 2], found[0, 0]])

    first, second = (
        [-0.0633274677, 0.0316637338, 0.0316637338],
        [0.0219160423, -0.0867079095, 0.0647918671],
    )
    whole = [
        [first, first, [0.0170639360, -0.0634485230, 0.0463845870]],
        [first, second, second],
        [[0, 0, 0], [0.0145622566, -0.0593644617, 0.0448022050], [0.0194203004, 0.0527898498, -0.0722101502]],
    ]
    some = [[0.0319827901, -0.1257990778, 0.0938162877], [-0.0270293019, 0.0137880513, 0.0132412506]]
    return [
        _case("gradient, plain mean, k = 1", _slope(**PLAIN, k=1.0), whole, "gradient"),
        _case("gradient, reference settings, two pixels", parts, some, "gradient"),
    ]


def _variants() -> list[Case]:
    source = "variants"
    return [
        _case("pooled probabilities", _loss(**PLAIN, pool="probs", k=1.0), [0.7883073647], source),
        _case(
            "divided by the count, k = 1",
            _loss(**GAUSSIAN, normaliser="count", k=1.0),
            [0.8758999642],
            source,
        ),
        _case("divided by the count, k = 5", _loss(**GAUSSIAN, normaliser="count"), [0.9080561123], source),
        _case("all classes of a window, k = 1", _loss(**PLAIN, anchor="all", k=1.0), [0.8307882797], source),
        _case("all classes of a window, k = 5", _loss(**GAUSSIAN, anchor="all"), [1.0487200680], source),
    ]


def _batches() -> list[Case]:
    """Two images at once: the power mean runs over the windows of both."""

    def run(device: torch.device, dtype: torch.dtype) -> Tensor:
        scores, labels = _inputs(device, dtype)
        both, labels = torch.cat([scores, -scores]), labels.repeat(2, 1, 1)
        return torch.stack([locally_adaptive(both, labels, k=k, ignore=255) for k in (1.0, 2.0, 5.0)])

    values = [1.1957957753, 1.2646018985, 1.4177556363]
    return [_case("a batch of an image and its negative, k = 1, 2, 5", run, values, "power mean")]


def _large() -> Case:
    def run(device: torch.device, dtype: torch.dtype) -> Tensor:
        # The second loss, 0.1, comes from a score gap that no narrow type holds; it hardly matters beside the first.
        gaps = torch.tensor([100.0, math.log(math.expm1(0.1))], dtype=dtype, device=device)
        scores = torch.stack([gaps, torch.zeros_like(gaps)])[None]
        return locally_adaptive(scores, torch.ones(1, 2, dtype=torch.int64, device=device), n=1)[None]

    return _case("losses of 100 and 0.1, k = 5", run, [87.0550563296], "power mean")
