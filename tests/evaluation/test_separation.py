"""Separation of content and style: the linear model by hand, naive means, and classifiers that see one of the two."""

from __future__ import annotations

import doctest
import math

import pytest
import torch
from torch import Tensor

from leanlabel.evaluation import domain_classifier, separation
from leanlabel.evaluation.domain_classifier import domain_error
from leanlabel.evaluation.domain_gap import blocks, proxy_a_distance
from leanlabel.evaluation.separation import SeparationMeter


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def maps(count: int, seed: int = 0, size: tuple[int, int] = (2, 3)) -> dict[str, Tensor]:
    """Made-up maps of some images."""
    images, content, style = normal(count, 3, 8, 12), normal(count, 6, *size, seed=seed + 1), normal(count, 4)
    return {
        "images": images,
        "content": content,
        "style": style,
        "rebuilt": images + normal(*images.shape, seed=seed + 2),
        "content_again": content + 0.1 * normal(*content.shape, seed=seed + 3),
        "style_again": 0.2 * normal(*style.shape, seed=seed + 4),
    }


def test_values() -> None:
    """The linear model: c = (2.5, 1), c0 = (1.625, 0.25), E_s(x0) = 0.45, G(c, s) = (2.28, 0.52, 0.85)."""
    meter = SeparationMeter()
    own = {
        "images": torch.tensor([1.0, 2.0, 3.0]),
        "content": torch.tensor([2.5, 1.0]),
        "rebuilt": torch.tensor([2.28, 0.52, 0.85]),
        "content_again": torch.tensor([1.625, 0.25]),
    }
    given = {name: one.double().view(1, -1, 1, 1) for name, one in own.items()}
    style = {"style": torch.tensor([[1.2]]), "style_again": torch.tensor([[0.45]])}
    for domain in (0, 1):
        meter.add(domain, **given, **style)
    found = meter.result()
    assert found.drift == pytest.approx(0.8125 / 1.75, rel=1e-10)
    assert found.emptiness == pytest.approx(0.45, rel=1e-7)
    assert found.reconstruction == pytest.approx(1.6366666666666667, rel=1e-7)
    assert math.isnan(found.content_accuracy), "one image of each domain cannot be held out"


def test_values_accuracy() -> None:
    """Domains that differ in style alone are told apart by it and not by content; and the other way round."""
    for content_shift, style_shift, wanted in ((0, 9, (0.5, 1.0)), (9, 0, (1.0, 0.5))):
        meter = SeparationMeter()
        for domain in (0, 1):
            one = maps(40, seed=7 * domain)
            one["content"] = one["content"] + domain * content_shift
            one["style"] = normal(40, 4, seed=50 + domain) + domain * style_shift
            meter.add(domain, **one)
        found = meter.result(seed=1)
        assert (found.content_accuracy, found.style_accuracy) == pytest.approx(wanted, abs=0.15)


def test_values_groups() -> None:
    """Copies of a few images give their domain away unless they are held out together."""
    meter = SeparationMeter()
    for domain in (0, 1):
        content = normal(10, 20, 2, 2, seed=domain).repeat_interleave(10, 0)
        meter.add(domain, **maps(100, size=(2, 2)) | {"content": content, "content_again": content})
    together = torch.arange(100) // 10
    loose, whole = meter.result(), meter.result(groups=(together, together))
    assert loose.content_accuracy > 0.8
    assert whole.content_accuracy < 0.7
    assert whole.drift == loose.drift == 0


def test_reference() -> None:
    """Means over all elements of a domain, then over domains, whatever the batches; accuracies are 1 - error."""
    first, second = maps(7), maps(5, seed=20, size=(4, 5))
    meter = SeparationMeter()
    for places in ([0, 1, 2], [3], [4, 5, 6]):
        meter.add(0, **{name: one[places] for name, one in first.items()})
    meter.add(1, **second)
    groups = blocks(7, 3), blocks(5, 3)
    found = meter.result(3, groups)
    for place, name in enumerate(("drift", "emptiness", "reconstruction")):
        each = []
        for one in (first, second):
            drift = (one["content_again"] - one["content"]).abs().mean() / one["content"].abs().mean()
            each.append(
                (drift, one["style_again"].abs().mean(), (one["rebuilt"] - one["images"]).abs().mean())[place]
            )
        assert getattr(found, name) == pytest.approx(float(sum(each)) / 2, rel=1e-12)
        assert [domain[place] for domain in found.by_domain] == pytest.approx([*map(float, each)], rel=1e-12)
    pooled = [one["content"].mean((2, 3)) for one in (first, second)]
    assert found.content_accuracy == 1 - domain_error(*pooled, 3, groups=groups)
    assert found.style_accuracy == 1 - domain_error(first["style"], second["style"], 3, groups=groups)


def test_reference_domain_error() -> None:
    """The proxy A-distance is 2 (1 - 2 e), cut at 0; an error above chance is kept as it is."""
    errors = []
    for seed in range(8):
        rows = normal(12, 3, seed=seed), normal(9, 3, seed=seed + 50) + 0.4 * (seed % 3)
        errors.append(domain_error(*rows, seed))
        assert proxy_a_distance(*rows, seed) == max(0.0, 2 * (1 - 2 * errors[-1]))
    assert min(errors) < 0.5 < max(errors)


def test_dtypes() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        meter = SeparationMeter()
        for domain in (0, 1):
            one = {name: value.to(dtype) for name, value in maps(6, seed=domain).items()}
            one["content"], one["content_again"] = one["content"] * 1e4, one["content_again"] * 1e4
            meter.add(domain, **one)
        found = meter.result()
        assert 0.05 < found.drift < 0.2
        assert all(math.isfinite(value) for row in found.by_domain for value in row)


def test_degenerate() -> None:
    """Nothing, one domain, content that is 0, one group, values that are not finite."""
    found = SeparationMeter().result()
    assert all(math.isnan(value) for value in (found.content_accuracy, found.style_accuracy, found.drift))
    meter = SeparationMeter()
    meter.add(0, **maps(3))
    found = meter.result()
    assert math.isnan(found.drift)
    assert math.isfinite(found.by_domain[0][0])
    assert math.isnan(found.style_accuracy)
    meter.add(1, **maps(3) | {"content": torch.zeros(3, 6, 2, 3), "content_again": torch.zeros(3, 6, 2, 3)})
    found = meter.result()
    assert math.isnan(found.drift)
    assert math.isfinite(found.emptiness)
    assert math.isfinite(found.content_accuracy)
    assert math.isnan(meter.result(groups=(torch.zeros(3).long(), None)).style_accuracy)
    meter.add(1, **maps(1) | {"style": torch.full((1, 4), torch.nan)})
    assert math.isnan(meter.result().style_accuracy)
    assert math.isfinite(meter.result().content_accuracy)


def test_errors() -> None:
    meter = SeparationMeter()
    for name, like in (("rebuilt", "images"), ("content_again", "content"), ("style_again", "style")):
        one = maps(3)
        wanted = tuple(one[like].shape)
        one[name] = one[name][:2]
        with pytest.raises(ValueError, match=f"{name} must be") as caught:
            meter.add(0, **one)
        assert str(wanted) in str(caught.value)
    one = maps(3)
    one["style"], one["style_again"] = one["style"][:2], one["style_again"][:2]
    with pytest.raises(ValueError, match="3 images need a content and a style each, got 3 and 2"):
        meter.add(0, **one)


def test_state() -> None:
    """The same seed, the same numbers; asking changes nothing; no gradient is kept."""
    meter = SeparationMeter()
    for domain in (0, 1):
        one = maps(8, seed=domain)
        one["content"].requires_grad_()
        meter.add(domain, **one)
    first, again = meter.result(2), meter.result(2)
    assert (first.content_accuracy, first.style_accuracy, first.by_domain) == (
        *(again.content_accuracy, again.style_accuracy),
        again.by_domain,
    )


def test_doctests() -> None:
    assert doctest.testmod(separation).failed == 0
    assert doctest.testmod(domain_classifier).failed == 0
