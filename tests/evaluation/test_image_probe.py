"""Readouts that need the images: on pictures of plain colours, with backbones small enough to see through."""

from __future__ import annotations

import dataclasses
import doctest
import json

import pytest
import torch
from torch import Tensor, nn

from leanlabel import rng
from leanlabel.config import EvaluationSettings
from leanlabel.data.images import Images, PixelArray
from leanlabel.data.splits import LabelledRows, make_splits
from leanlabel.errors import InputError, RunError
from leanlabel.evaluation import image_probe
from leanlabel.evaluation.image_probe import run_probe, share_of_classes, tensor_hashes
from leanlabel.evaluation.image_recipes import RECIPES, Recipe
from leanlabel.evaluation.protocols import PROTOCOLS, readout
from leanlabel.evaluation.readouts import evaluate_readouts, planned_splits

VIEW = {"size": 8, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "seed": 3}


def pictures(count: int = 96, side: int = 10, classes: int = 3) -> Images:
    """Noise with one colour brighter: which one is the class."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(count) % classes
    pixels = 90 + 40 * torch.randn(count, 3, side, side, generator=generator)
    pixels[torch.arange(count), y] += 70
    return Images("pictures", PixelArray(pixels.clamp(0, 255).to(torch.uint8)), y=y)


def parts(images: Images) -> dict[str, Tensor]:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    n = len(images)
    return {"train": order[: n // 2], "val": order[n // 2 : 3 * n // 4], "test": order[3 * n // 4 :]}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


class Colours(nn.Module):
    """Mean of each colour: no parameter, no randomness."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Drifting(nn.Module):
    """A batch norm that learns its statistics in evaluation mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        self.norm.train()
        return self.norm(x).mean((2, 3))


def right(scores: Tensor, images: Images, rows: Tensor) -> float:
    return float((scores[rows].argmax(1) == images.y[rows]).double().mean())


@pytest.mark.parametrize(
    ("name", "epochs"), [("linear-moco", 8), ("linear-imagenet100", 8), ("linear-lightly", 50)]
)
def test_values(name, epochs):
    images = pictures()
    split = parts(images)
    scores, told = run_probe(name, Colours(), images, images.y, split, epochs=epochs, **VIEW)
    assert scores.shape == (96, 3)
    assert int(scores[split["train"]].count_nonzero()) == 0
    assert right(scores, images, split["test"]) == told["accuracy"] > 0.95
    assert right(scores, images, split["val"]) == told["val_accuracy"]
    assert told["best_val_accuracy"] >= told["val_accuracy"]
    assert 1 <= told["best_epoch"] <= told["epoch"] == told["settings"]["epochs"] == epochs
    assert told["training_rows"] == 48
    assert json.loads(json.dumps(told, allow_nan=False)) == told


@pytest.mark.parametrize("name", ["finetune-1", "finetune-10"])
def test_values_finetune(name):
    images = pictures()
    split = parts(images)
    ticks = []
    scores, told = run_probe(
        name, network(), images, images.y, split, epochs=12, progress=lambda *a: ticks.append(a), **VIEW
    )
    # 1 % of 48 rows is none: one per class; 10 % is 5, so two per class.
    assert told["training_rows"] == {"finetune-1": 3, "finetune-10": 6}[name]
    assert right(scores, images, split["test"]) == told["accuracy"] > 0.6
    assert ticks == [(k, 12) for k in range(1, 13)]


def test_values_recipes():
    """The settings that the papers and their code state."""
    moco, cmc, lightly = (RECIPES[f"linear-{name}"] for name in ("moco", "imagenet100", "lightly"))
    assert (moco.epochs, moco.batch, moco.lr, moco.drops, moco.factor) == (100, 256, 30.0, (60, 80), 0.1)
    assert (cmc.epochs, cmc.batch, cmc.lr, cmc.drops, cmc.factor) == (60, 512, 10.0, (30, 40, 50), 0.2)
    assert (lightly.epochs, lightly.lr, lightly.schedule, lightly.drop_last) == (90, 0.1, "cosine", True)
    assert [(RECIPES[f"finetune-{k}"].share, RECIPES[f"finetune-{k}"].epochs) for k in (1, 10)] == [
        (0.01, 60),
        (0.1, 30),
    ]
    assert {name for name, one in RECIPES.items() if one.frozen} == {n for n in RECIPES if "linear" in n}
    assert all(
        PROTOCOLS[name].images and PROTOCOLS[name].settings == RECIPES[name].settings for name in RECIPES
    )


def plain_sgd(images: Images, split: dict[str, Tensor], recipe: Recipe, epochs: int) -> Tensor:
    """Softmax regression with momentum written out, on whole images (no window and no mirror is drawn)."""
    z = ((images.read(range(len(images))).float() / 255 - 0.5) / 0.25).mean((2, 3)).double()
    rows = split["train"].sort().values
    weight = 0.01 * rng.draw(3, "probe weights", 0).normal((3, 3)).double()
    bias, speed = torch.zeros(3).double(), [torch.zeros(3, 3).double(), torch.zeros(3).double()]
    for epoch in range(epochs):
        lr = recipe.lr * recipe.factor ** sum(epoch >= d * epochs / recipe.epochs for d in recipe.drops)
        for batch in rows[rng.permutation(3, "probe order", epoch, len(rows))].split(recipe.batch):
            error = (z[batch] @ weight.mT + bias).softmax(1)
            error[torch.arange(len(batch)), images.y[batch]] -= 1
            slopes = [error.mT @ z[batch] / len(batch), error.mean(0)]
            speed = [0.9 * v + slope for v, slope in zip(speed, slopes, strict=True)]
            weight, bias = weight - lr * speed[0], bias - lr * speed[1]
    return z @ weight.mT + bias


def test_reference(monkeypatch):
    """The course of training against one written out: order, drops, momentum, first weights."""
    images = pictures(side=8)
    split = parts(images)
    monkeypatch.setattr(
        image_probe._Views,
        "random",
        lambda self, rows, epoch: (self._read(rows).float() / 255 - 0.5) / 0.25,
    )
    monkeypatch.setattr(
        image_probe._Views, "plain", lambda self, rows: (self._read(rows).float() / 255 - 0.5) / 0.25
    )
    recipe = dataclasses.replace(RECIPES["linear-moco"], batch=20, lr=0.5)
    monkeypatch.setitem(image_probe.RECIPES, "linear-moco", recipe)
    scores, told = run_probe("linear-moco", Colours(), images, images.y, split, epochs=10, **VIEW)
    assert told["settings"]["drops"] == [6, 8]
    expected = plain_sgd(images, split, recipe, 10)
    for part in ("val", "test"):
        torch.testing.assert_close(scores[split[part]].double(), expected[split[part]], rtol=1e-4, atol=1e-4)


def test_reference_views(monkeypatch):
    """A frozen backbone is in evaluation mode and sees windows in training, the same square afterwards."""
    seen = []

    class Watching(Colours):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((self.training, torch.is_grad_enabled(), x.clone()))
            return super().forward(x)

    images = pictures()
    split = parts(images)
    run_probe("linear-moco", Watching(), images, images.y, split, epochs=2, **VIEW)
    assert [len(x) for _, _, x in seen] == [24, 24, 1, 48, 48]
    assert not any(training or gradient for training, gradient, _ in seen)
    assert all(x.shape[1:] == (3, 8, 8) for _, _, x in seen)
    first, second = seen[3][2], seen[4][2]
    assert not torch.equal(first.sort(0).values, second.sort(0).values)
    whole = (images.read(split["val"].tolist()[:1]).float() / 255 - 0.5) / 0.25
    # Resized to 9, of which the middle 8 remain: closer to the whole picture than a window is.
    assert float((seen[0][2][0].mean() - whole.mean()).abs()) < 0.1


def test_degenerate_frozen():
    """The given backbone stays as it is; one that moves is found out and named."""
    images = pictures()
    split = parts(images)
    for name in ("linear-moco", "finetune-10"):
        backbone = network().train()
        backbone[0].weight.requires_grad_(False)
        before = tensor_hashes(backbone)
        run_probe(name, backbone, images, images.y, split, epochs=2, **VIEW)
        assert tensor_hashes(backbone) == before
        assert all(module.training for module in backbone.modules())
        assert not backbone[0].weight.requires_grad
        assert all(p.grad is None for p in backbone.parameters())
    with pytest.raises(RuntimeError, match=r"has changed .* norm\.running_mean and 2 more differ"):
        run_probe("linear-moco", Drifting(), images, images.y, split, epochs=5, **VIEW)
    # Fine-tuning may move everything, and does.
    run_probe("finetune-10", Drifting(), images, images.y, split, epochs=1, **VIEW)


def test_degenerate_drifts_late(monkeypatch):
    """The comparison behind the last epoch counts, too."""
    calls = []

    class Late(Colours):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            if len(calls) == 6:  # two parts, the width, and epochs one to three
                self.count += 1
            return super().forward(x)

    images = pictures()
    with pytest.raises(RuntimeError, match="count differ"):
        run_probe("linear-moco", Late(), images, images.y, parts(images), epochs=4, **VIEW)
    assert len(calls) == 7


def test_degenerate_rows():
    """Labels with gaps, rows without a label, images of several sizes, a single epoch, a batch of one."""
    images = pictures(33)
    y = images.y * 2
    y[-1] = -100
    order = torch.arange(32)
    split = {"train": order[:16], "val": order[16:24], "test": order[24:]}
    scores, told = run_probe("linear-moco", Colours(), images, y, split, epochs=1, **VIEW)
    assert scores.shape == (33, 5)
    assert int(scores[-1].count_nonzero()) == 0
    assert told["best_epoch"] == told["epoch"] == 1
    assert told["best_accuracy"] == told["accuracy"]

    class Ragged:
        def __init__(self) -> None:
            self.whole = images

        def __len__(self) -> int:
            return len(self.whole)

        def read(self, rows: Tensor) -> list[Tensor]:
            return [self.whole[int(row)][:, : 8 + int(row) % 2] for row in rows]

    scores, _ = run_probe("linear-lightly", Colours(), Ragged(), y, split, epochs=2, **VIEW)
    assert bool(torch.isfinite(scores).all())


def test_degenerate_best_epoch(monkeypatch):
    """Where a later epoch is worse on validation, the last one is scored and the best one told."""
    images = pictures()
    split = parts(images)
    found = {}
    for epochs in (1, 2, 3):
        monkeypatch.setitem(
            image_probe.RECIPES,
            "linear-moco",
            # The learning rate is multiplied by -3 after the first epoch: it unlearns.
            dataclasses.replace(
                RECIPES["linear-moco"], epochs=epochs, drops=(1,), factor=-3.0, batch=16, lr=1.0
            ),
        )
        found[epochs] = run_probe("linear-moco", Colours(), images, images.y, split, **VIEW)
    (_, first), (scores, told) = found[1], found[3]
    assert told["val_accuracy"] < told["best_val_accuracy"] == first["val_accuracy"]
    assert (told["best_epoch"], told["epoch"]) == (1, 3)
    assert told["best_accuracy"] == first["accuracy"]
    assert told["accuracy"] == right(scores, images, split["test"]) < told["best_accuracy"]


def test_degenerate_share():
    y = torch.tensor([0] * 50 + [1] * 50 + [2] * 2 + [-100])
    rows = torch.arange(102)
    few, more = (share_of_classes(y, rows, share, seed=5) for share in (0.1, 0.5))
    assert torch.bincount(y[few]).tolist() == [3, 3, 2]  # 10.2 rows, 3.4 a class
    assert torch.bincount(y[more]).tolist() == [17, 17, 2]
    assert set(few.tolist()) <= set(more.tolist())
    assert torch.bincount(y[share_of_classes(y, rows, 1e-6, seed=5)]).tolist() == [1, 1, 1]
    assert not torch.equal(share_of_classes(y, rows, 0.1, seed=6), few)
    # The order in which a split lists its rows means nothing.
    assert torch.equal(share_of_classes(y, rows.flip(0), 0.1, seed=5), few)
    assert torch.equal(share_of_classes(y, rows.flip(0), 1.0, seed=5), rows)


def test_errors():
    images = pictures(12)
    split = parts(images)
    with pytest.raises(InputError, match=r"'linear'\. There are linear-moco, linear-imagenet100"):
        run_probe("linear", Colours(), images, images.y, split, **VIEW)
    with pytest.raises(ValueError, match="12 images for 11 labels"):
        run_probe("linear-moco", Colours(), images, images.y[:11], split, **VIEW)
    with pytest.raises(ValueError, match="epochs must be positive, got 0"):
        run_probe("linear-moco", Colours(), images, images.y, split, epochs=0, **VIEW)

    class Huge(Colours):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 1e38

    with pytest.raises(RunError, match=r"linear-moco: the loss of epoch \d is not finite"):
        run_probe("linear-moco", Huge(), images, images.y, split, epochs=3, **VIEW)


@pytest.mark.parametrize("name", ["linear-lightly", "finetune-10"])
def test_state(name):
    """The same seed gives the same bits whatever the global generator holds, and leaves that alone."""
    images = pictures(48)
    split = parts(images)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    backbone = network()
    torch.set_rng_state(before)
    first, _ = run_probe(name, backbone, images, images.y, split, epochs=3, **VIEW)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(77)
    second, _ = run_probe(name, backbone, images, images.y, split, epochs=3, **VIEW)
    assert torch.equal(first, second)
    other, _ = run_probe(name, backbone, images, images.y, split, epochs=3, **{**VIEW, "seed": 4})
    assert not torch.equal(first, other)
    plain, _ = run_probe(name, backbone, images, images.y, split, epochs=3, flip=False, **VIEW)
    assert not torch.equal(first, plain)


def test_protocol():
    """Scores and details become a result beside the others; without images the protocol says what to do."""
    images = pictures()
    settings = EvaluationSettings(protocol="linear-moco", shares=(0.5, 0.25, 0.25), splits=2)
    splits = planned_splits(images, settings, 0)
    done = [
        run_probe(
            "linear-moco",
            Colours(),
            images,
            images.y,
            {part: getattr(split, part) for part in ("train", "val", "test")},
            epochs=4,
            **VIEW,
        )
        for split in splits
    ]
    z = images.read(range(96)).float().mean((2, 3))
    found = evaluate_readouts(
        images,
        {"raw": z, "trained": z},
        settings,
        0,
        predictions={"trained": [scores for scores, _ in done]},
        details={"trained": [told for _, told in done]},
    )["protocol"]
    assert list(found["readouts"]) == ["trained"]
    trained = found["readouts"]["trained"]
    assert trained["per_split"] == [told["accuracy"] for _, told in done]
    assert [row["best_accuracy"] for row in trained["details"]] == [told["best_accuracy"] for _, told in done]
    assert [row["val_accuracy"] for row in trained["details"]] == [told["val_accuracy"] for _, told in done]
    assert found["settings"]["lr"] == 30.0
    assert "last epoch" in found["selection"]
    assert found["unit"] == "split"
    json.dumps(found, allow_nan=False)
    with pytest.raises(InputError, match="protocol trains on images, and rows has none"):
        planned_splits(LabelledRows("rows", images.y), settings, 0)
    (split,) = make_splits(images, shares=(0.5, 0.25, 0.25))
    ids = {part: getattr(split, part) for part in ("train", "val", "test")}
    for name in RECIPES:
        with pytest.raises(
            InputError, match=r"views of the images, and was given embeddings\. Use it with a"
        ):
            readout(name, z, images.y, ids)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["linear-moco", "finetune-10"])
def test_values_gpu(name):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    images = pictures()
    backbone = network().cuda()
    scores, told = run_probe(name, backbone, images, images.y, parts(images), epochs=8, **VIEW)
    assert scores.device.type == "cpu"
    assert told["accuracy"] > 0.6


def test_examples():
    assert doctest.testmod(image_probe, extraglobs={"torch": torch}).failed == 0
