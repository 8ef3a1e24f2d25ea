"""Content and style apart: oracle C1, what gradient reaches whom, dead content, half precision, two ranks as one."""

from __future__ import annotations

import doctest

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from leanlabel import dist
from leanlabel.losses import zero_style as module
from leanlabel.losses.pixel import pixel_cross_entropy
from leanlabel.losses.zero_style import content_drift, emptiness, reconstruction

DOUBLE = torch.float64


class Linear:
    """The model of oracle C1: maps of one pixel, every tensor with gradient."""

    def __init__(self) -> None:
        def tensor(values: list) -> Tensor:
            return torch.tensor(values, dtype=DOUBLE, requires_grad=True)

        self.content_map = tensor([[1, 0, 0.5], [0, 2, -1]])
        self.style_map = tensor([[0.2, -0.1, 0.4]])
        self.draw_map = tensor([[0.5, 0.1], [0, 0.4], [0.3, -0.2]])
        self.gain, self.shift = tensor([[0.5], [-0.25], [1]]), tensor([[0.1], [0.2], [-0.3]])
        self.classes = tensor([[1, 0], [0, 1], [0.5, -0.5]])
        self.image = torch.tensor([1.0, 2, 3], dtype=DOUBLE).view(1, 3, 1, 1)
        self.label = torch.zeros(1, 1, 1, dtype=torch.int64)

    def content(self, image: Tensor) -> Tensor:
        return torch.einsum("dc,bchw->bdhw", self.content_map, image).relu()

    def style(self, image: Tensor) -> Tensor:
        return torch.einsum("sc,bchw->bs", self.style_map, image)

    def decode(self, content: Tensor, style: Tensor | None = None) -> Tensor:
        drawn = torch.einsum("cd,bdhw->bchw", self.draw_map, content)
        if style is None:
            return drawn
        gain, shift = ((style @ one.T)[:, :, None, None] for one in (self.gain, self.shift))
        return drawn * (1 + gain) + shift

    def semantics(self, content: Tensor, divisor: float = 1.8) -> Tensor:
        logits = torch.einsum("kd,bdhw->bkhw", self.classes, content)
        return pixel_cross_entropy(logits / divisor, self.label)


def test_values() -> None:
    """Oracle C1."""
    net = Linear()
    for value in vars(net).values():
        value.requires_grad_(False)
    content, style = net.content(net.image), net.style(net.image)
    assert content.flatten().tolist() == pytest.approx([2.5, 1], rel=1e-12)
    assert style.flatten().tolist() == pytest.approx([1.2], rel=1e-12)
    rebuilt = net.decode(content, style)
    assert rebuilt.flatten().tolist() == pytest.approx([2.28, 0.52, 0.85], rel=1e-12)
    assert float(reconstruction(net.image, rebuilt)) == pytest.approx(1.6366666666666667, rel=1e-12)
    blank = net.decode(content)
    assert blank.flatten().tolist() == pytest.approx([1.35, 0.4, 0.55], rel=1e-12)
    again = net.content(blank)
    assert again.flatten().tolist() == pytest.approx([1.625, 0.25], rel=1e-12)
    a, b, c = content_drift(again, content), emptiness(net.style(blank)), net.semantics(again)
    assert float((again - content).abs().mean()) == pytest.approx(0.8125, rel=1e-12)
    assert float(a) == pytest.approx(0.46428544897974344, rel=1e-12)
    assert float(b) == pytest.approx(0.45, rel=1e-12)
    assert float(c) == pytest.approx(0.7226460667243314, rel=1e-12)
    assert float(a + b + c) == pytest.approx(1.6369315157040747, rel=1e-12)


def test_values_gradient() -> None:
    """Oracle C0: who learns from what. Supervision of images leaves style and decoder alone; the reference is fixed."""
    net = Linear()
    separating = [net.style_map, net.draw_map, net.gain, net.shift]
    content = net.content(net.image)
    assert torch.autograd.grad(net.semantics(content), separating, allow_unused=True) == (None,) * 4
    again = net.content(net.decode(content))
    reference = content.detach().clone().requires_grad_()
    slopes = torch.autograd.grad(
        content_drift(again, reference), (net.draw_map, reference), allow_unused=True
    )
    assert slopes[1] is None
    assert bool(slopes[0].any())
    # As with the reference's numbers written down: the encoder learns from both passes, not from the reference.
    fixed = torch.tensor([2.5, 1.0], dtype=DOUBLE).view(1, 2, 1, 1)
    found, expected = (
        torch.autograd.grad(loss, net.content_map)[0]
        for loss in (
            content_drift(net.content(net.decode(net.content(net.image))), net.content(net.image)),
            (net.content(net.decode(net.content(net.image))) - fixed).abs().mean() / (1.75 + 1e-6),
        )
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    blank = net.decode(net.content(net.image))
    slopes = torch.autograd.grad(emptiness(net.style(blank)), (net.style_map, net.draw_map))
    assert all(bool(one.any()) for one in slopes), "of (b) both the style encoder and the decoder learn"
    assert bool(torch.autograd.grad(net.semantics(net.content(blank)), net.classes)[0].any())
    images = net.image.clone().requires_grad_()
    reconstruction(images, net.decode(content, net.style(net.image))).backward()
    assert images.grad is None


def test_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 2, 3, 4, 5, generator=generator, dtype=DOUBLE)
    apart = [abs(a - b) for a, b in zip(one.flatten().tolist(), other.flatten().tolist(), strict=True)]
    size = [abs(b) for b in other.flatten().tolist()]
    assert float(reconstruction(other, one)) == pytest.approx(sum(apart) / 120, rel=1e-12)
    assert float(content_drift(one, other)) == pytest.approx(
        (sum(apart) / 120) / (sum(size) / 120 + 1e-6), rel=1e-12
    )
    assert float(emptiness(other[:, :, 0, 0])) == pytest.approx(
        float(other[:, :, 0, 0].abs().sum()) / 6, rel=1e-12
    )


def test_gradient() -> None:
    """Right by finite differences; 0 where nothing differs."""
    torch.manual_seed(0)
    one, other = torch.randn(2, 2, 3, 2, 2, dtype=DOUBLE).unbind(0)
    one.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: reconstruction(other, x), (one,))
    assert torch.autograd.gradcheck(lambda x: content_drift(x, other), (one,))
    assert torch.autograd.gradcheck(lambda x: emptiness(x), (one,))
    same = other.clone().requires_grad_()
    for loss in (reconstruction(other, same), content_drift(same, other), emptiness(same * 0)):
        same.grad = None
        loss.backward()
        assert float(loss.detach()) == 0
        assert same.grad is not None
        assert not bool(same.grad.any())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype: torch.dtype) -> None:
    """Sums that half precision does not hold; scalars in float32."""
    big = torch.full((1, 64, 8, 8), 3000.0, dtype=dtype, requires_grad=True)
    for loss, value in (
        (reconstruction(torch.zeros_like(big), big), 3000),
        (content_drift(big, torch.full_like(big, 1500.0)), 1),
        (emptiness(big), 3000),
    ):
        big.grad = None
        loss.backward()
        assert loss.dtype == torch.float32
        assert float(loss.detach()) == pytest.approx(value, rel=0.01)
        assert big.grad is not None
        assert bool(big.grad.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtypes_floor(dtype: torch.dtype) -> None:
    """In half precision the divisor is the mean size of the content itself, and 1e-3 at least."""
    ones = torch.ones(1, 2, 1, 1, dtype=dtype)
    assert float(content_drift(ones, ones * 0)) == pytest.approx(1000)
    assert float(content_drift(ones.float(), ones * 0)) == pytest.approx(1000), "one of the two is enough"
    assert float(content_drift(ones * 0, ones.float() * 1e-4)) == pytest.approx(0.1)
    assert float(content_drift(ones * 0, ones / 512)) == 1
    assert float(content_drift(ones.float(), ones.float() * 0)) == pytest.approx(1e6)


def test_degenerate() -> None:
    """Content of dead units, no image: finite, attached to the graph."""
    dead = torch.zeros(2, 3, 2, 2, dtype=DOUBLE)
    again = torch.full_like(dead, 2e-6).requires_grad_()
    loss = content_drift(again, dead)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(2)
    assert again.grad is not None
    assert bool(again.grad.isfinite().all())
    assert float(content_drift(dead, dead)) == 0
    none = torch.zeros(0, 3, 2, 2, requires_grad=True)
    for loss in (reconstruction(none.detach(), none), content_drift(none, none.detach()), emptiness(none)):
        none.grad = None
        loss.backward()
        assert float(loss.detach()) == 0
        assert none.grad is not None


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"images \(1, 3, 4, 4\) and rebuilt \(1, 3, 4, 5\)"):
        reconstruction(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5))
    with pytest.raises(ValueError, match=r"again \(1, 2, 1, 1\) and content \(2, 2, 1, 1\)"):
        content_drift(torch.zeros(1, 2, 1, 1), torch.zeros(2, 2, 1, 1))


@given(st.integers(0, 1000), st.floats(0.1, 1e4))
def test_invariance(seed: int, scale: float) -> None:
    """The drift is relative: units of the content do not matter, nor do signs or the order of channels."""
    generator = torch.Generator().manual_seed(seed)
    again, content = torch.randn(2, 1, 4, 3, 2, generator=generator, dtype=DOUBLE)
    drift = float(content_drift(again, content))
    assert float(content_drift(again * scale, content * scale)) == pytest.approx(drift, rel=1e-4)
    assert float(content_drift(-again.flip(1), -content.flip(1))) == pytest.approx(drift, rel=1e-12)


def ranked(sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Losses and gradients of this rank's rows; content grows from row to row, so that means of ranks differ."""
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 5, 3, 2, 4, generator=generator, dtype=DOUBLE)
    one, other = (torch.arange(1, 6, dtype=DOUBLE).view(5, 1, 1, 1) ** 2 * tensor for tensor in (one, other))
    one.requires_grad_()
    start = sum(sizes[: dist.rank()])
    rows = slice(start, start + sizes[dist.rank()])
    losses = (
        content_drift(one[rows], other[rows]),
        emptiness(one[rows, :, 0, 0]),
        reconstruction(other[rows], one[rows]),
    )
    return [(loss.detach(), torch.autograd.grad(loss, one)[0]) for loss in losses]


def test_ranks(pool) -> None:
    """Two ranks are one, also with unequal batches: the drift is the ratio of the means, no mean of ratios."""
    whole = ranked([5])
    for sizes in ([2, 3], [1, 4], [0, 5]):
        results = pool.run(ranked, sizes)
        for place, (loss, slope) in enumerate(whole):
            left, right = (one[place] for one in results)
            torch.testing.assert_close((left[0] + right[0]) / 2, loss, rtol=1e-12, atol=0)
            torch.testing.assert_close((left[1] + right[1]) / 2, slope, rtol=1e-12, atol=1e-15)


def test_doctests() -> None:
    assert doctest.testmod(module).failed == 0
