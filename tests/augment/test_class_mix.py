"""Regions of classes, instances and boxes, pasted where they are or moved; every sample on its own."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from leanlabel.augment.class_mix import (
    Mixed,
    class_mix_masks,
    class_region,
    copy_paste,
    cutmix_boxes,
    mix_pair,
    paste,
    some_instances,
)
from leanlabel.rng import Draw, draw

IDS = torch.tensor([5, 900, 12, 2**40])


def mix_draw(ids: Tensor = IDS, t: int = 0) -> Draw:
    return draw(0, "mix", t, ids)


def label_maps(count: int = 4, seed: int = 0, classes: int = 5, side: int = 12) -> Tensor:
    """Random classes, every fifth pixel or so unlabelled."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes + 1, (count, side, side), generator=generator)
    return labels.masked_fill(labels == classes, -100)


def pictures(count: int = 4, seed: int = 0, side: int = 12) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_values() -> None:
    """Half of the classes, rounded up; whole classes; never an unlabelled pixel."""
    labels = label_maps()
    for share, count in ((0.0, 0), (0.2, 1), (0.5, 3), (0.6, 3), (1.0, 5)):
        region = class_mix_masks(labels, mix_draw(), share)
        for mask, label in zip(region, labels, strict=True):
            chosen = label[mask].unique()
            assert len(chosen) == count
            assert torch.equal(mask, torch.isin(label, chosen))
            assert -100 not in chosen
    one = torch.full((1, 2, 2), 7)
    assert bool(class_mix_masks(one, mix_draw(IDS[:1])).all()), "one class: all of it"


def test_values_listed() -> None:
    """Only listed classes are chosen and counted; all of them with share 1."""
    labels = label_maps()
    assert torch.equal(
        class_mix_masks(labels, mix_draw(), 1.0, classes=[1, 3, 200]), (labels == 1) | (labels == 3)
    )
    for mask, label in zip(class_mix_masks(labels, mix_draw(), classes=[1, 3]), labels, strict=True):
        assert label[mask].unique().tolist() in ([1], [3])
    assert not bool(class_mix_masks(labels, mix_draw(), classes=[77]).any())


def test_values_shares() -> None:
    """Every class is chosen equally often (1,200 samples: standard error 0.014), and so is every pair."""
    labels = torch.arange(4).view(1, 2, 2).expand(1200, 2, 2)
    region = class_mix_masks(labels, mix_draw(torch.arange(1200))).flatten(1).float()
    assert torch.equal(region.sum(1), torch.full((1200,), 2.0))
    torch.testing.assert_close(region.mean(0), torch.full((4,), 0.5), rtol=0, atol=0.06)
    together = region.T @ region / 1200
    for one, other in ((0, 1), (0, 3), (1, 2)):
        assert float(together[one, other]) == pytest.approx(1 / 6, abs=0.045)


def test_values_regions() -> None:
    labels = torch.tensor([[[0, 3, 5, -100]], [[3, 3, 0, 0]]])
    assert class_region(labels, [3, 5]).int().tolist() == [[[0, 1, 1, 0]], [[1, 1, 0, 0]]]
    own = torch.tensor([[0, -100], [3, 0]])
    assert class_region(labels, own).int().tolist() == [[[1, 0, 0, 0]], [[1, 1, 1, 1]]]
    assert not bool(class_region(labels, []).any())
    instances = torch.tensor([[[0, 2, 2, 9, 9, 9, 4]], [[0, 0, 0, 0, 0, 0, 1]]]).int()
    few = some_instances(instances, mix_draw(IDS[:2]), count=4)
    assert sorted(few[0].tolist()) == [0, 2, 4, 9]
    assert sorted(few[1].tolist()) == [0, 0, 0, 1]
    assert some_instances(instances, mix_draw(IDS[:2]), count=2, least=3).tolist() == [[9, 0], [0, 0]]
    assert torch.equal(class_region(instances, few, ignore=0), instances > 0)
    many = some_instances(instances[:1].expand(1200, -1, -1), mix_draw(torch.arange(1200)))[:, 0]
    for number in (2, 4, 9):
        assert float((many == number).float().mean()) == pytest.approx(1 / 3, abs=0.05)


def test_values_boxes() -> None:
    """One box each, of the asked area up to rounding, anywhere in the image, lying and standing."""
    ids = torch.arange(500)
    for size in ((64, 64), (48, 80)):
        boxes = cutmix_boxes(size, mix_draw(ids), (0.2, 0.5))
        heights, widths = boxes.any(2).sum(1), boxes.any(1).sum(1)
        assert torch.equal(boxes.flatten(1).sum(1), heights * widths), "boxes are boxes"
        for side, extent in ((2, heights), (1, widths)):
            lines = boxes.any(side).int()
            assert torch.equal(
                lines.diff(dim=1).abs().sum(1) + lines[:, 0] + lines[:, -1], torch.full((500,), 2)
            )
            assert int(extent.min()) < 0.35 * boxes.shape[3 - side]
            assert int(extent.max()) > 0.9 * boxes.shape[3 - side]
        area = boxes.double().mean((1, 2))
        assert 0.18 < float(area.min()) < 0.23
        assert 0.47 < float(area.max()) < 0.52
        assert bool(boxes.any(0).all()), "every pixel is in some box"
        assert not bool(boxes.all(0).any())
    half = cutmix_boxes((100, 100), mix_draw(ids)).double().mean((1, 2))
    torch.testing.assert_close(half, torch.full_like(half, 0.5), rtol=0, atol=0.01)


def test_values_mix() -> None:
    """Pixels, labels and weights come from the same place."""
    images_from, images_to = pictures(seed=0), pictures(seed=1)
    labels_from, labels_to = label_maps(seed=0), label_maps(seed=1).int()
    region = cutmix_boxes((12, 12), mix_draw())
    confident = torch.tensor([0.1, 0.2, 0.3, 0.4])
    mixed = mix_pair(images_from, labels_from, images_to, labels_to, region, weights_to=confident)
    for b in range(4):
        for y in range(12):
            for x in range(12):
                inside = bool(region[b, y, x])
                image, label = (images_from, labels_from) if inside else (images_to, labels_to)
                assert torch.equal(mixed.images[b, :, y, x], image[b, :, y, x])
                assert int(mixed.labels[b, y, x]) == int(label[b, y, x])
                assert float(mixed.weights[b, y, x]) == pytest.approx(1.0 if inside else 0.1 * (b + 1))
    assert mixed.labels.dtype == torch.int64
    assert torch.equal(mixed.region, region)
    maps = torch.rand(4, 12, 12)
    assert torch.equal(
        mix_pair(
            images_from, labels_from, images_to, labels_to, region, weights_from=0.5, weights_to=maps
        ).weights,
        torch.where(region, 0.5, maps),
    )


def test_values_copy_paste() -> None:
    """Without scale and shift it is a paste; a shift keeps every pixel of a small region; labels move with pixels."""
    images_from, images_to, labels_from, labels_to = (
        pictures(seed=0),
        pictures(seed=1),
        label_maps(),
        label_maps(seed=1),
    )
    region = class_mix_masks(labels_from, mix_draw())
    plain = copy_paste(images_from, labels_from, images_to, labels_to, region, mix_draw())
    expected = mix_pair(images_from, labels_from, images_to, labels_to, region)
    for one, other in zip(plain, expected, strict=True):
        assert torch.equal(one, other)
    halves = torch.tensor([0.1, 0.2, 0.3, 0.4])
    weighted = copy_paste(
        *(images_from, labels_from, images_to, labels_to, region, mix_draw()),
        shift=0.3,
        weights_from=halves,
        weights_to=0.5,
    )
    assert torch.equal(weighted.weights, torch.where(weighted.region, halves.view(-1, 1, 1), 0.5))
    unlabelled = copy_paste(
        images_from, labels_from, images_to, labels_to, torch.ones_like(region), mix_draw()
    )
    assert torch.equal(unlabelled.region, labels_from != -100)


def shifted(ids: Tensor, scale: tuple[float, float], shift: float) -> tuple[Mixed, Tensor]:
    """A block of 6 x 4 pixels, each with its own value, pasted onto nothing."""
    count, side = len(ids), 40
    labels = torch.full((count, side, side), -100)
    labels[:, 10:16, 20:24] = torch.arange(24).view(6, 4)
    image = (labels[:, None].float() + 1).clamp(min=0).expand(-1, 3, -1, -1)
    region = labels >= 0
    mixed = copy_paste(
        image, labels, torch.full_like(image, -1.0), torch.full_like(labels, 99), region, mix_draw(ids),
        scale=scale, shift=shift,
    )  # fmt: skip
    return mixed, region


def test_reference_moved() -> None:
    mixed, region = shifted(torch.arange(50), (1.0, 1.0), 0.2)
    places = set()
    for row in range(50):
        assert int(mixed.region[row].sum()) == 24
        assert torch.equal(mixed.labels[row][mixed.region[row]], torch.arange(24))
        assert torch.equal(mixed.images[row, 0][mixed.region[row]], torch.arange(24) + 1.0)
        assert bool((mixed.labels[row][~mixed.region[row]] == 99).all())
        assert bool((mixed.images[row, 1][~mixed.region[row]] == -1).all())
        top, left = mixed.region[row].nonzero()[0].tolist()
        assert abs(top - 10) <= 8
        assert abs(left - 20) <= 8
        places.add((top, left))
    assert len(places) > 30
    assert len({top for top, _ in places}) > 10
    assert not torch.equal(mixed.region[0], region[0])


def test_reference_scaled() -> None:
    """Resized about its middle; log-uniform."""
    mixed, _ = shifted(torch.arange(200), (0.5, 2.0), 0.0)
    heights = mixed.region.any(2).sum(1)
    middles = []
    for row in range(200):
        lines = mixed.region[row].any(1).nonzero()
        middles.append(float(lines[0, 0] + lines[-1, 0] + 1) / 2)
        widest = int(mixed.region[row].any(0).sum())
        assert widest == pytest.approx(int(heights[row]) * 4 / 6, abs=1.4)
    assert abs(sum(middles) / 200 - 13) < 0.3
    assert max(abs(middle - 13) for middle in middles) <= 1.5
    assert int(heights.min()) == 3
    assert int(heights.max()) == 12
    assert float((heights <= 6).float().mean()) == pytest.approx(0.5 + math.log2(6.5 / 6) / 2, abs=0.12)


@given(st.integers(0, 10**6), st.permutations(range(4)))
def test_reference_order(seed: int, order: list[int]) -> None:
    """Permuted samples give permuted results; a sample alone gives the same."""
    labels, instances = label_maps(seed=seed), label_maps(seed=seed, classes=9).clamp(min=0)
    images = pictures(seed=seed)
    region = class_mix_masks(labels, mix_draw())
    assert torch.equal(class_mix_masks(labels[order], mix_draw(IDS[order])), region[order])
    assert torch.equal(class_mix_masks(labels[2:3], mix_draw(IDS[2:3])), region[2:3])
    boxes = cutmix_boxes((9, 7), mix_draw())
    assert torch.equal(cutmix_boxes((9, 7), mix_draw(IDS[order])), boxes[order])
    chosen = some_instances(instances, mix_draw(), 2)
    assert torch.equal(some_instances(instances[order], mix_draw(IDS[order]), 2), chosen[order])
    assert torch.equal(some_instances(instances[:1], mix_draw(IDS[:1]), 2), chosen[:1])

    def moved(rows: list[int]) -> Mixed:
        one, label, part = images[rows], labels[rows], region[rows]
        numbers = mix_draw(IDS[rows])
        return copy_paste(one, label, one.flip(3), label.flip(2), part, numbers, scale=(0.5, 2.0), shift=0.3)

    for one, other in zip(moved(order), moved([0, 1, 2, 3]), strict=True):
        assert torch.equal(one, other[order])


@given(st.integers(0, 10**6), st.permutations(range(5)))
def test_reference_relabelled(seed: int, names: list[int]) -> None:
    """The number of classes that are chosen does not depend on how classes are numbered."""
    labels = label_maps(seed=seed)
    table = torch.tensor(names)
    other = torch.where(labels >= 0, table[labels.clamp(min=0)], labels)
    for one, two, label in zip(
        class_mix_masks(labels, mix_draw()), class_mix_masks(other, mix_draw()), labels, strict=True
    ):
        assert len(label[one].unique()) == len(label[two].unique()) == 3


def test_reference_draws() -> None:
    labels, state = label_maps(), torch.get_rng_state()
    first = class_mix_masks(labels, mix_draw())
    assert torch.equal(first, class_mix_masks(labels, mix_draw()))
    assert not torch.equal(first, class_mix_masks(labels, mix_draw(t=1)))
    assert not torch.equal(first, class_mix_masks(labels, mix_draw(IDS + 1)))
    assert torch.equal(torch.get_rng_state(), state)


def test_gradient() -> None:
    """Every pixel of the result passes its gradient to where it comes from."""
    region = cutmix_boxes((4, 5), mix_draw(IDS[:2]))
    one, other = (
        torch.rand(
            2, 2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(k)
        ).requires_grad_()
        for k in (0, 1)
    )
    assert torch.autograd.gradcheck(lambda a, b: paste(a, b, region), (one, other))
    image = pictures().requires_grad_()
    labels = label_maps()
    mixed = copy_paste(
        image, labels, torch.zeros(4, 3, 12, 12), labels, labels == 1, mix_draw(), scale=(0.8, 1.3), shift=0.1
    )
    mixed.images.sum().backward()
    assert image.grad is not None
    assert float(image.grad.sum()) > 0


def test_dtypes() -> None:
    labels = label_maps()
    region = class_mix_masks(labels, mix_draw())
    bytes_ = labels.masked_fill(labels == -100, 255).byte()
    for form in (labels.int(), bytes_):
        ignore = 255 if form.dtype == torch.uint8 else -100
        assert torch.equal(class_mix_masks(form, mix_draw(), ignore=ignore), region)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        images = pictures().to(dtype)
        mixed = copy_paste(
            images, labels, images.flip(2), labels, region, mix_draw(), scale=(0.5, 2.0), shift=0.2
        )
        assert mixed.images.dtype == dtype
        assert bool(mixed.images.isfinite().all())
        assert mixed.weights.dtype == torch.float32


def test_degenerate() -> None:
    """All unlabelled, an empty region, no samples, a single pixel."""
    images, labels = pictures(), torch.full((4, 12, 12), -100)
    region = class_mix_masks(labels, mix_draw())
    assert not bool(region.any())
    for shift in (0.0, 1.0):
        mixed = copy_paste(
            images, labels, images + 1, labels, region, mix_draw(), scale=(0.1, 3.0), shift=shift
        )
        assert torch.equal(mixed.images, images + 1)
        assert not bool(mixed.region.any())
    none, empty = labels[:0], mix_draw(IDS[:0])
    assert class_mix_masks(none, empty).shape == (0, 12, 12)
    assert cutmix_boxes((12, 12), empty).shape == (0, 12, 12)
    assert some_instances(none, empty, 3).shape == (0, 3)
    assert copy_paste(images[:0], none, images[:0], none, none == 1, empty, shift=0.1).images.shape == (
        0,
        3,
        12,
        12,
    )
    assert bool(cutmix_boxes((1, 1), mix_draw()).all())
    point = torch.zeros(4, 12, 12, dtype=torch.long)
    point[:, 0, 0] = 1
    for shift in (0.0, 0.5, 1.0):
        pasted = copy_paste(images, point, images, point * 0, point == 1, mix_draw(), shift=shift)
        assert torch.equal(pasted.labels.flatten(1).sum(1), torch.ones(4).long()), (
            "its middle stays in the image"
        )


def test_errors() -> None:
    labels, images = label_maps(), pictures()
    region = labels == 1
    for call, message in (
        (lambda: class_mix_masks(labels, mix_draw(), 1.5), "share must be in"),
        (lambda: class_mix_masks(labels + 300, mix_draw()), "labels must be classes 0..255 or -100"),
        (lambda: class_mix_masks(labels.float(), mix_draw()), "labels must be .B, h, w. integers"),
        (lambda: class_mix_masks(labels, mix_draw(IDS[:2])), "4 samples need a draw with as many ids"),
        (lambda: class_mix_masks(labels, draw(0, "mix", 0)), "4 samples need a draw with as many ids"),
        (lambda: class_region(labels, torch.zeros(2, 3)), "classes must be .n,. or .4, n."),
        (lambda: cutmix_boxes((4, 4), mix_draw(), (0.5, 0.2)), "share must be two shares"),
        (lambda: paste(images, images[..., :8], region), "cannot paste .4, 3, 12, 12. into .4, 3, 12, 8."),
        (lambda: paste(images, images, region[:, :4]), "by a region .4, 4, 12."),
        (
            lambda: copy_paste(images[..., :8], labels[..., :8], images, labels, region[..., :8], mix_draw()),
            "cannot paste",
        ),
        (
            lambda: copy_paste(images, labels, images, labels, region, mix_draw(), scale=(0, 1)),
            "scale must be",
        ),
        (lambda: copy_paste(images, labels, images, labels, region, mix_draw(), shift=2), "shift in .0, 1."),
        (
            lambda: copy_paste(
                images, labels, images, labels, region, mix_draw(), weights_from=torch.ones(4, 12, 12)
            ),
            "weights of what is moved",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
