"""Advice for images: each rule at its thresholds, and recipes that load, fit their data, and train."""

from __future__ import annotations

import dataclasses
import doctest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leanlabel import methods
from leanlabel.advice import advise, ssl, ssl_cost, ssl_facts
from leanlabel.advice import ssl_rules as rules
from leanlabel.advice.recipe import Advice, Choice, to_text
from leanlabel.advice.ssl_facts import ImageFacts, measure
from leanlabel.data.images import Images, PixelArray
from leanlabel.errors import InputError
from leanlabel.methods.resolve import resolve
from leanlabel.models.backbones import BackboneSettings, build_backbone
from smallrun import train

FACTS = ImageFacts(
    images=60_000,
    trained=50_000,
    side=32,
    smallest=32,
    largest=32,
    one_size=True,
    in_memory=True,
    classes=(6000,) * 10,
    crowding=0.1,
    domains=1,
    grey=0.0,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.2, 0.2),
    unreadable=0,
    split="sound",
    gpu=True,
)
TRAINABLE = {"steps": "2", "engine.loggers": "[]", "engine.threads": "1", "engine.accelerator": "cpu"}


def _facts(**changes: Any) -> ImageFacts:
    return dataclasses.replace(FACTS, **changes)


def _chosen(found: list[Choice] | Advice) -> dict[str, Any]:
    return {choice.key: choice.value for choice in (found if isinstance(found, list) else found.choices)}


def _written(advice: Advice, folder: Path) -> Path:
    recipe = folder / "recipe.yaml"
    recipe.write_text(to_text(advice, "recipe.yaml"), encoding="utf-8")
    return recipe


def image_file(path: Path, count: int = 64, size: int = 12, classes: int | None = 4, **more: Any) -> Path:
    """Images whose brightness tells the class."""
    numbers = np.random.default_rng(0)
    label = np.arange(count) % (classes or 1)
    image = (
        numbers.integers(0, 120, (count, size, size, 3)) + (120 * label / (classes or 1))[:, None, None, None]
    )
    labels = {"label": label} if classes else {}
    np.savez(path, image=image.astype(np.uint8), **labels, **more)
    return path


# ------------------------------------------------------------------------------------------------- facts


def test_values_facts() -> None:
    pixels = torch.zeros(6, 3, 4, 8, dtype=torch.uint8)
    pixels[0, 0] = 255
    pixels[1] = 51
    y = torch.tensor([0, 0, 0, 2, -100, 2])
    splits = {"train": torch.tensor([0, 1, 2]), "val": torch.tensor([3]), "test": torch.tensor([4, 5])}
    facts = measure(Images("six", PixelArray(pixels), y=y, splits=splits), gpu=False)
    assert (facts.images, facts.trained, facts.side, facts.largest) == (6, 4, 4, 8)
    assert (facts.one_size, facts.in_memory, facts.domains, facts.split) == (True, True, 1, "sound")
    assert (facts.classes, facts.labelled) == ((3, 2), 5)
    assert facts.crowding == pytest.approx((3 / 4) ** 2 + (1 / 4) ** 2)  # of those trained on
    assert facts.grey == pytest.approx(5 / 6)
    assert facts.mean == (0.2, 0.0333, 0.0333)
    assert facts.std[1] == pytest.approx(np.array([0, 0.2, 0, 0, 0, 0]).std(), abs=1e-4)
    leaking = {**splits, "val": torch.tensor([2])}
    assert measure(Images("six", PixelArray(pixels), y=y, splits=leaking), gpu=False).split == "unsound"
    unknown = {**splits, "test": torch.tensor([4])}
    assert measure(Images("six", PixelArray(pixels), y=y, splits=unknown), gpu=False).split == "incomplete"
    nothing = measure(Images("six", PixelArray(pixels)), gpu=False)
    assert (nothing.classes, nothing.crowding, nothing.split, nothing.trained) == ((), 1.0, "none", 6)


def test_reference_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks add up to the whole; of many images some are looked at."""
    pixels = torch.randint(
        0, 256, (50, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    monkeypatch.setattr(ssl_facts, "_BLOCK", 7)
    facts = measure(Images("fifty", PixelArray(pixels)), gpu=False)
    values = pixels.double() / 255
    assert facts.mean == pytest.approx(values.mean((0, 2, 3)).tolist(), abs=1e-4)
    assert facts.std == pytest.approx(values.std((0, 2, 3), correction=0).tolist(), abs=1e-4)
    monkeypatch.setattr(ssl_facts, "LOOKED_AT", 10)
    few = measure(Images("fifty", PixelArray(pixels)), gpu=False)
    assert few.mean == pytest.approx((values[::5].mean((0, 2, 3))).tolist(), abs=1e-4)


# ------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("trained", "keys", "batch"),
    [
        (2, 1, 2),
        (15, 2, 2),
        (100, 16, 8),
        (1023, 128, 64),
        (1024, 256, 128),
        (49_999, 8192, 128),
        (50_000, 8192, 256),
        (126_689, 16_384, 256),
        (1_281_167, 65_536, 256),
        (10**8, 65_536, 256),
    ],
)
def test_values_sizes(trained: int, keys: int, batch: int) -> None:
    """Published: 16,384 keys for ImageNet-100, 65,536 for ImageNet-1K, 4,096 for CIFAR, batches of 128 to 512."""
    assert rules.queue(trained).value == keys
    assert keys <= max(1, trained / 4)
    assert rules.epoch_batch(trained).value == batch
    assert batch <= max(2, trained / 8)


def test_values_length() -> None:
    assert rules.steps(_facts(trained=49_999), 128).value == 200 * 390
    assert rules.steps(_facts(trained=50_000), 256).value == 100 * 195
    assert rules.steps(_facts(trained=49_999, gpu=False), 128).value == rules.CPU_STEPS
    assert rules.steps(_facts(trained=1000, gpu=False), 64).value == 3000
    assert [rules.momentum(count).value for count in (99_999, 100_000)] == [0.99, 0.999]


@pytest.mark.parametrize(
    ("side", "gpu", "cpu"),
    [(3, 8, 8), (28, 28, 28), (64, 64, 64), (95, 95, 64), (96, 96, 64), (130, 128, 64), (500, 224, 64)],
)
def test_values_view(side: int, gpu: int, cpu: int) -> None:
    assert rules.view_size(_facts(side=side)).value == gpu
    assert rules.view_size(_facts(side=side, gpu=False)).value == cpu


def test_values_reading() -> None:
    assert _chosen(rules.reading(_facts(side=32), 32)) == {"data.resize": None}
    assert _chosen(rules.reading(_facts(side=448), 224)) == {"data.resize": None}
    assert _chosen(rules.reading(_facts(side=449), 224)) == {"data.resize": 256}
    small = {"data.resize": 73, "data.square": True}
    assert _chosen(rules.reading(_facts(side=500, gpu=False), 64)) == small
    assert _chosen(rules.reading(_facts(side=60, one_size=False, gpu=False), 60))["data.square"] is True


@pytest.mark.parametrize(
    ("changes", "keys", "hardest"),
    [
        ({"classes": (10,) * 63, "crowding": 1 / 63}, 8192, None),
        ({"classes": (10,) * 64, "crowding": 1 / 64}, 8192, 512),
        ({"classes": (10,) * 100, "crowding": 1 / 50}, 16_384, None),  # as crowded as 50 classes of one size
        ({"classes": (10,) * 100, "crowding": 1 / 100}, 16_384, 1024),  # the paper's ImageNet-100
        ({"classes": (10,) * 255, "crowding": 1 / 255}, 65_536, None),
        ({"classes": (10,) * 256, "crowding": 1 / 256}, 65_536, 1024),
        ({"classes": (10,) * 200, "crowding": 1 / 200}, 16, None),
        ({"classes": (), "crowding": 1.0, "trained": 99_999}, 16_384, None),
        ({"classes": (), "crowding": 1.0, "trained": 100_000}, 16_384, 1024),
        ({"classes": (), "crowding": 1.0, "trained": 100_000, "grey": 0.5}, 16_384, None),
    ],
)
def test_values_mixing(changes: dict[str, Any], keys: int, hardest: int | None) -> None:
    """On where N C / K >= 4; without labels only for large sets in colour, as an assumption that is said."""
    found = rules.mixing(_facts(**changes), keys, 4000)
    values = _chosen(found)
    if hardest is None:
        assert values == {"method.mixing": None}
        assert "MoCo-v2" in found[0].reason
    else:
        assert values == {
            "method.mixing.hardest": hardest,
            "method.mixing.pairs": hardest,
            "method.mixing.with_query": hardest // 8,
            "method.mixing.warmup": 200,
        }
        assert ("assumption" in found[0].reason) is (not changes["classes"])
    if keys > 16 and not changes["classes"]:
        assert "N C / K >= 4 needs C = 64 classes at N = 1,024, K = 16,384" in found[0].reason


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (8, ("group", None)),
        (16, ("group", None)),
        (32, ("split", 2)),
        (128, ("split", 8)),
        (512, ("split", 8)),
    ],
)
def test_values_normalisation(batch: int, expected: tuple[str, int | None]) -> None:
    values = _chosen(rules.normalisation(batch))
    assert (values["model.norm"], values.get("model.norm_groups")) == expected


def test_values_backbone() -> None:
    def name(size: int, **changes: Any) -> tuple[str, Any]:
        values = _chosen(rules.backbone(_facts(**changes), size))
        return values["model.name"], values.get("model.stem")

    assert name(64) == ("resnet18", "cifar")
    assert name(96) == ("resnet18", "imagenet")
    assert name(128) == name(224) == ("resnet50", "imagenet")
    assert name(224, trained=9_999) == ("resnet18", "imagenet")
    assert name(64, gpu=False) == ("small-cnn", None)
    assert _chosen(rules.backbone(_facts(gpu=False), 16))["model.first_stride"] == 1
    assert len(_chosen(rules.backbone(_facts(gpu=False), 48))["model.widths"]) == 4
    for size in (8, 16, 47, 64):  # every view passes its network
        chosen = _chosen(rules.backbone(_facts(gpu=False), size))
        widths = tuple(min(width, 4) for width in chosen["model.widths"])
        stride = chosen.get("model.first_stride", 2)
        net = build_backbone(
            BackboneSettings(name="small-cnn", widths=widths, first_stride=stride, norm="none")
        )
        assert net(torch.zeros(1, 3, size, size)).shape == (1, 4)


def test_values_augmentation() -> None:
    """What only colours, large images or no mirror allow."""
    colour = _chosen(rules.augmentation(_facts(side=224), 224))
    assert (colour["augment.flip"], colour["augment.grey"], colour["augment.blur"]) == (0.5, 0.2, 0.5)
    assert (colour["augment.hue"], colour["augment.mean"][0]) == ("hsv", 0.485)
    grey = _chosen(rules.augmentation(_facts(grey=0.5, gpu=False), 16))
    assert (grey["augment.flip"], grey["augment.grey"], grey["augment.blur"]) == (0.0, 0.0, 0.0)
    assert (grey["augment.jitter"][2:], grey["augment.scale"]) == ([0.0, 0.0], [0.5, 1.0])
    assert (grey["augment.hue"], grey["augment.mean"]) == ("fast", [0.5, 0.4, 0.3])


def test_values_optimiser() -> None:
    """Linear scaling: 0.03 for 256 is 0.06 for 512."""
    assert _chosen(rules.optimiser(FACTS, 224, 256)) == {
        "optim.name": "sgd",
        "optim.lr": 0.03,
        "optim.momentum": 0.9,
        "optim.weight_decay": 1e-4,
        "optim.schedule": "cosine",
    }
    assert _chosen(rules.optimiser(FACTS, 32, 512))["optim.lr"] == 0.06
    assert _chosen(rules.optimiser(FACTS, 32, 512))["optim.weight_decay"] == 5e-4
    assert [_chosen(rules.optimiser(_facts(gpu=False), 32, b))["optim.lr"] for b in (64, 128, 256)] == [
        0.15,
        0.3,
        0.3,
    ]


def test_values_evaluation() -> None:
    few = _facts(classes=(10, 10), split="none")
    assert _chosen(rules.evaluation(FACTS, 32))["evaluation.protocol"] == "knn"
    assert _chosen(rules.evaluation(few, 32)) | {"evaluation.shares": 0} == {
        "evaluation.protocol": "logistic-l2",
        "evaluation.knn_k": 20,
        "evaluation.split": "random",
        "evaluation.splits": 4,
        "evaluation.shares": 0,
        "evaluation.resize": None,
    }
    assert _chosen(rules.evaluation(FACTS, 224))["evaluation.resize"] == 256
    for classes in ((), (100,), (4, 5)):
        assert _chosen(rules.evaluation(_facts(classes=classes), 32))["evaluation.protocol"] == "none"


@pytest.mark.parametrize(("count", "epoch"), [(2, 1), (300, 7), (11_200, 56), (500_000, 5004)])
def test_values_watching(count: int, epoch: int) -> None:
    """Looks fall on iterations that are logged."""
    found = _chosen([*rules.watching(FACTS, count, epoch), *rules.engine(FACTS, count)])
    assert found["watch.every"] % found["engine.log_every"] == 0
    assert found["watch.knn_every"] % found["engine.log_every"] == 0
    assert found["watch.every"] <= max(1, count // 20, epoch) + found["engine.log_every"]
    assert count / found["watch.knn_every"] >= min(count, 9)
    assert found["engine.checkpoint_every"] == max(1, count // 50)
    assert "watch.knn_every" not in _chosen(rules.watching(_facts(classes=()), count, epoch))


def test_values_cautions() -> None:
    assert rules.cautions(FACTS, 32) == []
    said = "\n".join(
        rules.cautions(_facts(trained=499, unreadable=3, split="incomplete", smallest=9, largest=73), 32)
    )
    for text in (
        "499 images are few",
        "3 files cannot be read",
        "side of 9 pixels",
        "from 9 to 73",
        "lacks train",
    ):
        assert text in said


def test_reference_cost() -> None:
    """Operations and maps of a network, counted by hand."""
    model = BackboneSettings(name="small-cnn", widths=(4, 8), norm="none")
    first, second = 4 * 8 * 8 * 3 * 9, 8 * 4 * 4 * 4 * 9
    operations, values, weights = ssl_cost.per_image(model, 16)
    assert operations == 2 * (first + second)
    assert values == 4 * 64 + 8 * 16
    assert weights == 4 * 27 + 4 + 8 * 36 + 8
    cost = ssl_cost.estimate(model, 16, 32, 64, 8, gpu=False)
    work = 4 * 32 * operations + 6 * 32 * 64 * 8
    assert cost.seconds == pytest.approx(0.01 + work / 100e9 + 40e-9 * 2 * 32 * 256)
    assert ssl_cost.estimate(model, 16, 32, 64, 8, gpu=True).seconds < 0.03


def test_values_docstring() -> None:
    assert doctest.testmod(rules) == (0, 1)


# ------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"method.mixing": None, "data.batch_size": 8, "method.queue": 16, "evaluation.split": "random"}),
        ({"classes": None}, {"evaluation.protocol": "none", "method.mixing": None}),
        ({"count": 4, "classes": None}, {"data.batch_size": 2, "method.queue": 1, "model.norm": "group"}),
        (
            {"count": 400, "classes": 80},
            {"method.queue": 64, "method.mixing.hardest": 4, "model.norm": "split"},
        ),
        ({"size": 100}, {"evaluation.resize": 110}),
    ],
    ids=["sound", "no labels", "four images", "many classes", "larger"],
)
def test_values(
    changes: dict[str, Any],
    expected: dict[str, Any],
    gpu: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The recipe says what fits, loads, and its method accepts the data, on machines of both kinds."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    advice = advise("ssl", [str(image_file(tmp_path / "images.npz", **changes))])
    chosen = _chosen(advice)
    if not gpu and changes.get("size") == 100:
        expected = {"evaluation.resize": None, "data.resize": 73, "augment.size": 64}
    assert {key: chosen[key] for key in expected} == expected
    config = resolve(_written(advice, tmp_path))
    values = config.model_dump(mode="json")
    for key, value in chosen.items():
        found = values
        for part in key.split("."):
            found = found[part] if found is not None else None
        assert found == value, key
    monkeypatch.undo()
    assert len(methods.find(config.method.name).read(config)) == changes.get("count", 64)
    assert chosen["fidelity"] == ("corrected" if gpu else "small")


@pytest.mark.parametrize(
    "changes",
    [{}, {"count": 3, "classes": None}, {"count": 300, "classes": 75}],
    ids=["sound", "three images", "many classes"],
)
def test_values_trains(changes: dict[str, Any], tmp_path: Path) -> None:
    advice = advise("ssl", [str(image_file(tmp_path / "images.npz", **changes))])
    narrow = {"model.widths": "[4,8]", "method.width": "8"}
    mixed = {"method.mixing.warmup": "0"} if changes.get("classes") else {}
    sets = [f"{key}={value}" for key, value in {**TRAINABLE, **narrow, **mixed}.items()]
    method = train(tmp_path / "run", resolve(_written(advice, tmp_path), sets))
    z = method.embed()
    assert z.shape == (changes.get("count", 64), 8)
    assert bool(torch.isfinite(z).all())
    assert (method.cfg.method.mixing is None) is (changes.get("classes", 4) != 75)


def test_values_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of various sizes: read to one size; a broken one is named, left out, and does not stop the training."""
    Image = pytest.importorskip("PIL.Image")
    numbers = np.random.default_rng(0)
    for row in range(24):
        place = tmp_path / "data" / ("even" if row % 2 == 0 else "odd") / f"{row}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numbers.integers(0, 256, (20 + row, 30, 3), dtype=np.uint8)).save(place)
    (tmp_path / "data" / "odd" / "broken.png").write_bytes(b"nothing")
    advice = advise("ssl", [str(tmp_path / "data")])
    chosen = _chosen(advice)
    assert {"data.square": True, "data.skip_unreadable": True, "augment.size": 30}.items() <= chosen.items()
    assert "1 files cannot be read and are left out" in "\n".join(advice.warnings)
    config = resolve(_written(advice, tmp_path))
    images = methods.find("mochi").read(config)
    assert (len(images), images.shape) == (24, (3, 34, 34))
    monkeypatch.setattr(ssl, "DECODED", 10)  # as for a large set: only heads are read
    assert _chosen(advise("ssl", [str(tmp_path / "data" / "even")]))["augment.size"] == 30


def test_values_data_check_speaks(tmp_path: Path) -> None:
    """What the check of the data warns of stands beside the recipe."""
    image = np.zeros((40, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "same.npz", image=image)
    said = "\n".join(advise("ssl", [str(tmp_path / "same.npz")]).warnings)
    assert "warning: 40 images (100 %) have one colour only" in said
    assert "exact copies" in said


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        advise("ssl", ["nowhere"])
    with pytest.raises(InputError, match="at least two"):
        advise("ssl", [str(image_file(tmp_path / "one.npz", count=1, classes=None))])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image files"):
        advise("ssl", [str(tmp_path / "empty")])


@pytest.mark.real
def test_reference_public_set(data_root: Path) -> None:
    """Ten classes of grey digits with a published test part: no mixing, no mirror, its own split."""
    chosen = _chosen(advise("ssl", ["digits/usps.npz"]))
    assert (chosen["method.queue"], chosen["method.mixing"], chosen["evaluation.split"]) == (
        1024,
        None,
        "public",
    )
    assert (chosen["augment.flip"], chosen["method.tau"], chosen["method.momentum"]) == (0.0, 0.1, 0.99)
