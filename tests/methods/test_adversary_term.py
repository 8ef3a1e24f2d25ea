"""The adversary as a term: what reaches the network, what reaches the discriminator, and several ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from leanlabel import dist, rng
from leanlabel.errors import InputError
from leanlabel.methods.dense_step import DenseBatch, Step
from leanlabel.methods.terms import Setting
from leanlabel.methods.terms.adversary import Adversary, AdversarySettings
from leanlabel.models.segmenters import DenseOutput

KNOWN = Setting(("road", "sky", "car"), (10, 5, 1), width=4, steps=10, seed=0)
NAME = "term_1_discriminator"


class Owner:
    """A method of one convolution, whose own networks take steps of plain gradient descent."""

    def __init__(self, term: Adversary, parallel: bool = False) -> None:
        torch.manual_seed(1)
        self.network = nn.Conv2d(3, 3, 4, stride=4).double()
        self.discriminator = term.networks()["discriminator"].double()
        with torch.no_grad():  # scores of both signs
            for value in (*self.network.parameters(), *self.discriminator.parameters()):
                value.mul_(5 if value.ndim > 1 else 0)
        term.names = {"discriminator": NAME}
        self.wrapped = DistributedDataParallel(self.discriminator) if parallel else self.discriminator
        self.reports: dict[str, float] = {}
        self.passes = 0

    def student(self, images: Tensor) -> DenseOutput:
        self.passes += 1
        logits = self.network(images)
        return DenseOutput(logits, logits)

    def enlarge(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(logits, size=list(size), mode="bilinear", align_corners=False)

    def own_network(self, name: str) -> nn.Module:
        assert name == NAME
        return self.wrapped

    def report(self, **terms: Tensor | float) -> None:
        self.reports.update({name: float(torch.as_tensor(value).detach()) for name, value in terms.items()})

    def update(self, loss: Tensor, which: str = "main") -> None:
        assert which == NAME
        self.discriminator.zero_grad()
        loss.backward()


def made(seed: int = 0, **settings: Any) -> Adversary:
    torch.manual_seed(seed)
    return Adversary(AdversarySettings(**{"width": 2, "layers": 3, **settings}), KNOWN)


def batch(count: int, height: int, width: int, seed: int) -> DenseBatch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, height, width, generator=generator, dtype=torch.float64)
    return DenseBatch(torch.arange(count), images, torch.zeros(count, height, width, dtype=torch.int64))


def stepped(owner: Owner, source: DenseBatch | None = None, target: DenseBatch | None = None) -> Step:
    def draw(name: str) -> rng.Draw:
        return rng.draw(0, name, 0, None)

    own = source or batch(2, 16, 24, seed=0)
    other = Step(cast(Any, owner), 0, target or batch(3, 8, 20, seed=1), draw)
    return Step(cast(Any, owner), 0, own, draw, target=other)


def gradients(network: nn.Module) -> list[Tensor | None]:
    return [value.grad for value in network.parameters()]


@pytest.mark.parametrize("maps", ["probabilities", "self-information"])
def test_reference(maps: str) -> None:
    """Both losses and the reported share, computed here from the two networks; sizes and numbers differ."""
    term = made(maps=maps)
    owner = Owner(term)
    step = stepped(owner)
    found = term.loss(step)
    term.after(step)

    def read(images: Tensor, divisor: float) -> Tensor:
        p = torch.softmax(owner.enlarge(owner.network(images), images.shape[2:]) / divisor, 1)
        return p if maps == "probabilities" else -p * p.log() / torch.tensor(3.0).double().log()

    own = owner.discriminator(read(step.images, 1.8))
    other = owner.discriminator(read(step.target.images, 1.0))
    assert other.shape == (3, 1, 1, 2)
    expected = -F.logsigmoid(-other).mean()
    torch.testing.assert_close(found["adversary"], expected)
    both = -F.logsigmoid(-own).mean() / 2 - F.logsigmoid(other).mean() / 2
    assert owner.reports["discriminator"] == pytest.approx(float(both.detach()), rel=1e-10)
    assert owner.reports["fooled"] == pytest.approx(float((other < 0).double().mean()))
    assert 0 < owner.reports["fooled"] < 1
    slopes = torch.autograd.grad(both, list(owner.discriminator.parameters()))
    for slope, (name, value) in zip(slopes, owner.discriminator.named_parameters(), strict=True):
        torch.testing.assert_close(value.grad, slope, msg=name)


def test_gradient() -> None:
    """The loss moves the network and never the discriminator; the discriminator's step never the network."""
    term = made()
    owner = Owner(term)
    step = stepped(owner)
    loss = term.loss(step)["adversary"]
    loss.backward()
    assert all(one is None for one in gradients(owner.discriminator))
    assert all(value.requires_grad for value in owner.discriminator.parameters())
    before = [one.clone() for one in gradients(owner.network) if one is not None]
    assert any(bool(one.any()) for one in before)
    term.after(step)
    assert any(one is not None and bool(one.any()) for one in gradients(owner.discriminator))
    after = [one for one in gradients(owner.network) if one is not None]
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))
    assert owner.passes == 2  # one of each domain


def test_gradient_direction() -> None:
    """A small step against the gradient makes the discriminator take more of the target for source."""
    term = made()
    owner = Owner(term)
    first = term.loss(stepped(owner))["adversary"]
    first.backward()
    with torch.no_grad():
        for value in owner.network.parameters():
            assert value.grad is not None
            value -= 0.1 * value.grad
    assert float(term.loss(stepped(owner))["adversary"].detach()) < float(first.detach())


def test_wrapper_is_left_alone() -> None:
    """The pass that trains the network does not go through the discriminator's wrapper, whose hooks would wait."""
    term = made()
    owner = Owner(term)
    calls = []

    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, maps: Tensor) -> Tensor:
            calls.append(maps.requires_grad)
            return self.module(maps)

    owner.wrapped = Wrapper(owner.discriminator)
    step = stepped(owner)
    term.loss(step)
    assert calls == []
    term.after(step)
    assert calls == [False, False]


def test_dtypes() -> None:
    """Scores in half precision, weights of the discriminator in single precision."""
    term = made()
    owner = Owner(term)
    owner.discriminator.float()
    step = stepped(owner)
    for one in (step, step.target):
        one.__dict__["full_logits"] = one.full_logits.bfloat16()
    found = term.loss(step)["adversary"]
    assert found.dtype == torch.float32
    term.after(step)
    assert owner.reports["discriminator"] > 0


def test_degenerate() -> None:
    """No image of a domain on this rank: zeros, and a gradient all the same."""
    term = made()
    owner = Owner(term)
    step = stepped(owner, target=batch(0, 8, 8, seed=1))
    loss = term.loss(step)["adversary"]
    loss.backward()
    term.after(step)
    assert float(loss.detach()) == 0
    assert all(one is not None for one in gradients(owner.discriminator))


def test_errors() -> None:
    """Images that are too small, in words that name the settings; and but one domain."""
    term = made(layers=4)
    owner = Owner(term)
    with pytest.raises(
        InputError, match=r"adversary: images of 8 x 20 pixels; its 4 layers need 16\. .* 3 or less"
    ):
        term.loss(stepped(owner))
    term, owner = made(), Owner(made())
    term.names = {"discriminator": NAME}
    lone = Step(cast(Any, owner), 0, batch(2, 16, 16, seed=0), lambda name: rng.draw(0, name, 0, None))
    with pytest.raises(InputError, match="second domain"):
        term.loss(lone)


def test_state() -> None:
    """The discriminator belongs to the method alone; its optimiser is the published one; the draw is torch's."""
    term = made()
    assert dict(term.state_dict()) == {}
    assert list(term.parameters()) == []
    assert term.networks()["discriminator"] is term.networks()["discriminator"]
    chosen = term.optimiser("discriminator")
    assert (chosen.name, chosen.lr, chosen.betas, chosen.weight_decay) == ("adam", 1e-4, (0.9, 0.99), 0.0)
    needs = Adversary.needs(term.settings)
    assert (needs.source, needs.target, needs.stored, needs.teacher) == (True, True, False, False)
    one, two = (made(seed=3).networks()["discriminator"].state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def rows(source: DenseBatch, part: slice) -> DenseBatch:
    return DenseBatch(source.ids[part], source.images[part], source.labels[part])


def ranked(
    own: list[int], other: list[int], parallel: bool
) -> tuple[dict[str, float], list[Tensor], list[Tensor]]:
    """Losses, gradients of the network, gradients of the discriminator, of this rank's images."""
    term = made()
    owner = Owner(term, parallel)
    parts = []
    for sizes, (height, width), seed in ((own, (16, 24), 5), (other, (8, 20), 6)):
        start = sum(sizes[: dist.rank()])
        whole = batch(sum(sizes), height, width, seed)
        parts.append(rows(whole, slice(start, start + sizes[dist.rank()])))
    step = stepped(owner, *parts)
    loss = term.loss(step)["adversary"]
    loss.backward()
    term.after(step)
    values = {**owner.reports, "adversary": float(loss.detach())}
    slopes = [
        [one.clone() for one in gradients(net) if one is not None]
        for net in (owner.network, owner.discriminator)
    ]
    return values, slopes[0], slopes[1]


@pytest.mark.parametrize(("own", "other"), [([2, 2], [1, 2]), ([3, 1], [2, 1])])
def test_ranks(pool: Any, own: list[int], other: list[int]) -> None:
    """Two ranks, whose discriminator is wrapped for them, equal one: losses, gradients, what is logged."""
    values, network, discriminator = ranked([sum(own)], [sum(other)], False)
    results = pool.run(ranked, own, other, True)
    for name, value in values.items():
        assert sum(one[0][name] for one in results) / 2 == pytest.approx(value, rel=1e-10)
    for k, slope in enumerate(network):
        torch.testing.assert_close((results[0][1][k] + results[1][1][k]) / 2, slope, rtol=1e-9, atol=1e-14)
    for k, slope in enumerate(discriminator):  # averaged by the wrapper
        torch.testing.assert_close(results[0][2][k], slope, rtol=1e-9, atol=1e-14)
        assert torch.equal(results[0][2][k], results[1][2][k])
