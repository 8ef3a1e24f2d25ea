"""Advice for two domains, end to end on folders: what is read, what is measured, recipes that load and train."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from leanlabel import api, methods
from leanlabel.advice import adapt_facts, adapt_places, advise
from leanlabel.advice.adapt_facts import compare_looks, compare_names, edges, likeness, target_facts
from leanlabel.advice.recipe import Advice, to_text
from leanlabel.advice.segmentation_facts import measure
from leanlabel.api import resolve
from leanlabel.data.checks import check_source
from leanlabel.data.dense import DenseImages
from leanlabel.data.dense_source import DenseFiles, open_dense
from leanlabel.data.generated.scenes import scene_images
from leanlabel.errors import InputError
from leanlabel.evaluation.domain_gap import style_statistics
from smallrun import cli, train

SIZE: dict[str, Any] = {"height": 40, "width": 56}
TRAINABLE = [
    "steps=2",
    "stages.source.steps=2",
    "optim.warmup=0",
    "engine.loggers=[]",
    "engine.threads=1",
    "engine.accelerator=cpu",
]


def scenes(seed: int, train: int = 12, val: int = 4, test: int = 0, **more: Any) -> DenseImages:
    return scene_images(train=train, val=val, test=test, seed=seed, **{**SIZE, **more})


def write(
    folder: Path, data: DenseImages, masks: tuple[str, ...] = ("train", "val", "test"), names: Any = True
) -> str:
    """Folders of images, and of masks of some parts; names of classes beside them unless none are wanted."""
    for part, rows in data.splits.items():
        for row in rows.tolist():
            image, mask = data.read([row])
            for kind, array in (("images", image[0].permute(1, 2, 0).numpy()), ("masks", mask[0].numpy())):
                if kind == "images" or part in masks:
                    (folder / kind / part).mkdir(parents=True, exist_ok=True)
                    Image.fromarray(array).save(folder / kind / part / f"{row:03}.png")
    if names:
        told = list(data.classes.names) if names is True else names
        (folder / "classes.json").write_text(json.dumps({"names": told}), encoding="utf-8")
    return str(folder)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A source; a target with labels, one without, one of the source's own streets."""
    root = tmp_path_factory.mktemp("domains")
    other: dict[str, Any] = {"rendering": "target"}
    return {
        "source": write(root / "clean", scenes(0)),
        "labelled": write(root / "camera", scenes(1, test=3, **other)),
        "bare": write(root / "bare", scenes(1, val=0, **other), masks=(), names=None),
        "twins": write(root / "twins", scenes(0, **other), masks=("val",)),
    }


def images_of(data: DenseImages, side: int | None) -> list[torch.Tensor]:
    """Training images, scaled down antialiased."""
    found = [data.pixels[row] for row in data.splits["train"].tolist()]
    if side is None:
        return found
    size = (side, round(side * found[0].shape[2] / found[0].shape[1]))
    shrunk = (F.interpolate(one[None].float(), size, mode="bilinear", antialias=True)[0] for one in found)
    return [one.round().to(torch.uint8) for one in shrunk]


def chosen(advice: Advice) -> dict[str, Any]:
    return {one.key: one.value for one in advice.choices}


def written(advice: Advice, folder: Path) -> Path:
    recipe = folder / "recipe.yaml"
    recipe.write_text(to_text(advice, "recipe.yaml"), encoding="utf-8")
    return recipe


# ------------------------------------------------------------------------------------------------- facts


def test_values_target_facts() -> None:
    """Shares are of held-out parts alone, whatever the training part holds."""
    source = measure(scenes(0), gpu=False)
    data = scenes(1, test=2, rendering="target")
    found = target_facts(data, source)
    held = torch.cat([data.splits["val"], data.splits["test"]])
    assert data.masks is not None
    pixels = torch.bincount(data.masks.read(held.tolist()).flatten().long(), minlength=11).double()
    assert found.shares == pytest.approx((pixels / pixels.sum()).tolist())
    assert (found.images, found.trained, found.parts) == (18, 12, {"train": 12, "val": 4, "test": 2})
    assert set(found.lacking) == {"val", "test"}
    assert (found.height, found.width, found.one_size, found.channels) == (40, 56, True, 3)
    bare = target_facts(dataclasses.replace(data, masks=None, instances=None), source)
    assert (bare.lacking, bare.present, sum(bare.shares)) == ({}, [], 0)


def test_values_looks() -> None:
    """One rendering is one look; another is far; a smaller size is measured at that size."""
    one, two, far = scenes(0, train=24), scenes(1, train=24), scenes(1, train=24, rendering="target")
    same, other = compare_looks(one, two), compare_looks(one, far)
    assert same.gap is not None
    assert other.gap is not None
    assert same.gap < 0.8
    assert other.gap > 1.8
    assert other.largest > 3 * max(same.largest, 0.8)
    assert other.images == (24, 24)
    half = compare_looks(one, two, (20, None))
    small = (images_of(one, 20), images_of(two, None))
    assert half.source["sharpness"] == pytest.approx(style_statistics(small[0]).sharpness)
    assert half.target["sharpness"] == pytest.approx(style_statistics(small[1]).sharpness)
    assert half.source["sharpness"] != pytest.approx(same.source["sharpness"], rel=0.1)
    single = compare_looks(scenes(0, train=1), scenes(1, train=1))
    assert (single.gap, dict(single.distances), single.largest) == (None, {}, 0.0)


def test_values_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of a sequence are left out together; where sequences are not known, neighbours are."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    monkeypatch.setattr(adapt_facts, "proxy_a_distance", lambda *_, groups, **__: seen.append(groups) or 0.0)
    plain = scenes(0, train=12)
    groups = torch.arange(len(plain)) % 6
    many = dataclasses.replace(plain, groups=groups, group_names=list("abcdef"))
    few = dataclasses.replace(plain, groups=groups % 2, group_names=["a", "b"])
    compare_looks(many, plain)
    compare_looks(few, plain)
    assert seen[0][0].tolist() == [0, 1, 2, 3, 4, 5] * 2
    for found in (seen[0][1], *seen[1]):
        assert found.tolist() == sorted(found.tolist())
        assert len(found.unique()) == 5


def test_values_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal names say nothing; equal streets do, in whatever rendering."""

    def named(data: DenseImages) -> DenseImages:
        return dataclasses.replace(data, ids=[f"{row}.png" for row in range(len(data))])

    source = named(scenes(0))
    other, twins = (named(scenes(seed, rendering="target")) for seed in (1, 0))
    assert (compare_names(source, twins).alike, compare_names(source, twins).share) == (1.0, 1.0)
    assert compare_names(source, twins).one_size
    assert 0.2 < compare_names(source, other).alike < 0.8
    assert compare_names(source, scenes(0)).share == 0  # without names
    assert not compare_names(source, named(scenes(0, height=48))).one_size
    few = named(scenes(0, train=3, val=0))
    assert compare_names(source, few).alike == 0
    renamed = dataclasses.replace(twins, ids=[f"{row + 9}.png" for row in range(len(twins))])
    assert compare_names(source, renamed).share == pytest.approx(7 / 12)


def test_reference_likeness() -> None:
    numbers = torch.Generator().manual_seed(0)
    source, target = (torch.randn(6, 9, generator=numbers) for _ in range(2))
    won = [float(target[k] @ source[k] > target[k] @ source[j]) for k in range(6) for j in range(6) if j != k]
    assert likeness(source, target) == pytest.approx(sum(won) / len(won))
    image = torch.zeros(3, 60, 70, dtype=torch.uint8)
    image[:, 20:40, 30:50] = 200
    found = edges([image, 255 - image, image.float() / 255, torch.full_like(image, 9)])
    assert torch.allclose(found[0], found[1], atol=1e-5)  # an inverted image has the same edges
    assert torch.allclose(found[0], found[2], atol=1e-5)
    assert bool((found[3] == 0).all())


# ------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("target", "gpu", "expected"),
    [
        (
            "labelled",
            False,
            {
                "data.target.labels": "held-out",
                "evaluation.part": "test",
                "evaluation.further": ["val"],
                "evaluation.select": "last",
                "augment.crop": [40, 56],
                "data.source.batch_size": 2,
                "data.target.batch_size": 2,
                "augment.noise": 0.5,
                "method.ema": 0.99,
            },
        ),
        ("labelled", True, {"fidelity": "corrected", "data.target.labels": "held-out", "steps": 4000}),
        ("bare", False, {"data.target.labels": "none", "evaluation.part": "auto"}),
        ("twins", False, {"data.pairs.by": "name", "method.terms": [{"name": "feature-regression"}]}),
    ],
)
def test_values(
    target: str,
    gpu: bool,
    expected: dict[str, Any],
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The recipe says what fits, loads, and its method accepts the data, on machines of both kinds."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    advice = advise("adapt", [places["source"], places[target]])
    found = chosen(advice)
    assert {key: found.get(key) for key in expected} == expected
    assert ("data.pairs.by" in found) is (target == "twins")
    config = resolve(written(advice, tmp_path))
    values = json.loads(config.model_dump_json())
    key: str
    for key, value in found.items():
        own: Any = values
        for part in key.split("."):
            own = own[part]
        if not key.endswith("terms"):  # these are written out
            assert own == value, key
    monkeypatch.undo()
    data = methods.find("adapt").read(config)
    assert (len(data.source), len(data.target)) == (16, {"labelled": 19, "bare": 12, "twins": 16}[target])
    assert "\n" not in "".join(advice.facts)
    text = to_text(advice, "recipe.yaml")
    assert all(line == line.rstrip() for line in text.splitlines())
    assert "\\n" not in text  # descriptions of several lines


@pytest.mark.parametrize("target", ["labelled", "bare", "twins"])
def test_values_trains(target: str, places: dict[str, str], tmp_path: Path) -> None:
    advice = advise("adapt", [places["source"], places[target]])
    method = train(tmp_path / "run", resolve(written(advice, tmp_path), TRAINABLE))
    assert all(bool(torch.isfinite(p).all()) for p in method.parameters())


def test_values_other_channels(places: dict[str, str], tmp_path: Path) -> None:
    """Pairs need not have equal channels: one that saw the same streets in one band of 16 bits."""
    bands = tmp_path / "bands" / "images" / "train"
    bands.mkdir(parents=True)
    for file in (Path(places["source"]) / "images" / "train").iterdir():
        grey = np.asarray(Image.open(file).convert("L")).astype(np.uint16)
        Image.fromarray(60_000 - 200 * grey).save(bands / f"{file.stem}.tif")
    advice = advise("adapt", [places["source"], str(tmp_path / "bands")])
    found = chosen(advice)
    assert (found["data.pairs.by"], found["data.target.bands"], len(found["augment.mean"])) == ("name", [], 1)
    method = train(tmp_path / "run", resolve(written(advice, tmp_path), TRAINABLE))
    classes, _ = method.segment(torch.zeros(1, 40, 56))
    assert classes.shape == (40, 56)


def test_values_command_line(places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The written recipe goes through init, data check and fit, which measures the part that it names."""
    monkeypatch.chdir(tmp_path)
    answer = cli("init", "adapt", places["source"], places["labelled"], "--out", "mine.yaml")
    assert answer.code == 0, answer.err
    assert "12 masks of target training images are there and not read" in answer.err
    answer = cli("data", "check", "mine.yaml", "--json")
    assert answer.code == 0, answer.err
    said = {one["message"] for one in json.loads(answer.out)}
    assert {"source: 16 images, all with masks", "target: 19 images, 7 with masks"} <= said
    sets = [part for text in TRAINABLE for part in ("--set", text)]
    answer = cli("fit", "mine.yaml", "--run", "runs/one", "--json", *sets)
    assert answer.code == 0, answer.err
    assert set(json.loads(answer.out)["protocols"]) == {"miou", "miou:val", "miou:source"}


def test_values_training_labels_unread(places: dict[str, str], tmp_path: Path) -> None:
    """Masks of the target's training part may hold anything: the advice and the check are the same."""
    first = advise("adapt", [places["source"], places["labelled"]])
    folder = Path(write(tmp_path / "camera", scenes(1, test=3, rendering="target")))
    for file in (folder / "masks" / "train").iterdir():
        Image.fromarray(np.full((40, 56), 77, np.uint8)).save(file)
    second = advise("adapt", [places["source"], str(folder)])
    skipped = {"data.target.path"}
    assert {k: v for k, v in chosen(first).items() if k not in skipped} == {
        k: v for k, v in chosen(second).items() if k not in skipped
    }
    assert first.facts[2:] == second.facts[2:]
    found = check_source(DenseFiles(path=str(folder), labels="held-out"))
    assert not any(one.severity == "error" for one in found)
    assert any(one.severity == "error" for one in check_source(DenseFiles(path=str(folder))))


def test_values_parts(tmp_path: Path, places: dict[str, str]) -> None:
    """A target of one part with all masks has some held out; with a few, none is read, and that is said."""
    flat = tmp_path / "flat"
    data = scenes(1, val=0, rendering="target")
    write(flat, data)
    for kind in ("images", "masks"):
        for file in (flat / kind / "train").iterdir():
            file.rename(flat / kind / file.name)
        (flat / kind / "train").rmdir()
    found = chosen(advise("adapt", [places["source"], str(flat)]))
    assert (found["data.target.labels"], found["data.target.val_share"]) == ("held-out", 0.2)
    assert found["evaluation.part"] == "val"
    for file in sorted((flat / "masks").iterdir())[2:]:
        file.unlink()
    advice = advise("adapt", [places["source"], str(flat)])
    assert chosen(advice)["data.target.labels"] == "none"
    assert any("2 images of the target have masks, but not all" in one for one in advice.warnings)
    only_test = write(tmp_path / "tested", scenes(1, val=0, test=3, rendering="target"), masks=("test",))
    found = chosen(advise("adapt", [places["source"], only_test]))
    assert (found["data.target.val_share"], found["evaluation.part"]) == (0.0, "test")
    assert open_dense(DenseFiles(path=only_test, labels="held-out", val_share=0.0)).masks is not None


def test_values_classes(tmp_path: Path, places: dict[str, str]) -> None:
    """Names beside one domain serve both; another order is put right; none at all become values."""
    names = scenes(0).classes.names
    target = scenes(1, rendering="target")
    unnamed = write(tmp_path / "unnamed", target, names=None)
    found = chosen(advise("adapt", [places["source"], unnamed]))
    assert found["data.source.classes"] is None
    assert found["data.target.classes"]["names"] == list(names)
    found = chosen(advise("adapt", [write(tmp_path / "clean", scenes(0), names=None), places["labelled"]]))
    assert found["data.source.classes"]["names"] == list(names)
    assert found["data.target.classes"] is None
    backward = write(tmp_path / "backward", target, names=names[::-1])
    advice = advise("adapt", [places["source"], backward])
    section = chosen(advice)["data.target.classes"]
    assert section["names"] == list(names)
    assert section["ids"] == {raw: 10 - raw for raw in range(11)}
    data = methods.find("adapt").read(resolve(written(advice, tmp_path)))
    assert data.target.classes.names == names
    advice = advise("adapt", [str(tmp_path / "clean"), unnamed])
    assert chosen(advice)["data.target.classes"] == chosen(advice)["data.source.classes"]
    assert any("each became a class" in one for one in advice.warnings)


def test_values_warnings(tmp_path: Path, places: dict[str, str]) -> None:
    said = "\n".join(advise("adapt", [places["source"], places["bare"]]).warnings)
    assert "label 20 to 50 images" in said
    assert "too poor on the target to teach itself" in said
    assert "source: 12 training images, fewer than 20" in said
    assert "not read" not in said
    lacking = scenes(0)
    assert lacking.masks is not None
    masks: Any = lacking.masks
    masks.array[masks.array == 5] = 0  # no car in the source
    advice = advise("adapt", [write(tmp_path / "carless", lacking), places["labelled"]])
    said = "\n".join(advice.warnings)
    name = lacking.classes.names[5]
    assert (
        f"no pixel of {name} in the source's training part: cannot be learned; the target has {name}" in said
    )


@pytest.mark.parametrize(
    ("gap", "text"), [(0.29, "may buy little"), (0.3, None), (1.79, None), (1.8, "too poor")]
)
def test_values_gap(
    gap: float, text: str | None, places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapt_facts, "proxy_a_distance", lambda *_, **__: gap)
    said = "\n".join(advise("adapt", [places["source"], places["bare"]]).warnings)
    assert text is None or text in said
    assert ("A-distance" in said) is (text is not None)


def test_errors(tmp_path: Path, places: dict[str, str]) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        advise("adapt", [places["source"], "nowhere"])
    with pytest.raises(InputError, match="source and target are the same place"):
        advise("adapt", [places["source"], places["source"]])
    with pytest.raises(InputError, match="nothing that looks like masks"):
        advise("adapt", [places["bare"], places["source"]])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no image files"):
        advise("adapt", [places["source"], str(tmp_path / "empty")])
    other = write(tmp_path / "other", scenes(1), names=[*scenes(0).classes.names[:10], "tram"])
    with pytest.raises(InputError, match="classes differ: bicyclist only in") as caught:
        advise("adapt", [places["source"], other])
    assert "tram only in" in caught.value.message
    assert "(11 classes)" in caught.value.message
    held = write(tmp_path / "held", scenes(1, train=0, val=4))
    with pytest.raises(InputError, match="no image to train on; all of the 4 belong to other parts"):
        advise("adapt", [places["source"], held])
    bands = tmp_path / "bands" / "images"
    bands.mkdir(parents=True)
    for row in range(5):
        Image.fromarray(np.full((40, 56), 100 * row, np.uint16)).save(bands / f"x{row}.tif")
    with pytest.raises(
        InputError, match=r"images of 3 channels in .* and of 1 in .* cannot be trained on together"
    ):
        advise("adapt", [places["source"], str(bands.parent)])


@pytest.mark.slow
def test_values_check_domains(places: dict[str, str], tmp_path: Path) -> None:
    """A check of two domains says whose each finding is, and that classes differ."""
    recipe = tmp_path / "recipe.yaml"
    sets = ["data.source.train=4", "data.target.train=4", "data.target.test=2"]
    config: Any = resolve("adapt/scenes-small", sets)
    found = check_source(config.data)
    assert {one.message.partition(":")[0] for one in found} == {"source", "target"}
    assert not any(one.code == "classes_differ" for one in found)
    other = write(tmp_path / "other", scenes(1), names=[*scenes(0).classes.names[:10], "tram"])
    recipe.write_text(
        "method: {name: adapt}\nsteps: 2\n"
        f"data: {{source: {{kind: file, path: {places['source']}}}, target: {{kind: file, path: {other}}}}}\n"
    )
    (one,) = (one for one in api.check(str(recipe)) if one["code"] == "classes_differ")
    assert one["severity"] == "error"
    assert "class 10 is bicyclist in the source and tram in the target" in one["message"]
    twin = "{kind: transformed, sensor: infrared, of: {kind: scenes, train: 3, val: 1, test: 1}}"
    text = (
        f"method: {{name: adapt}}\nsteps: 2\ndata: {{source: {{kind: scenes, train: 3}}, target: {twin}}}\n"
    )
    recipe.write_text(text)
    assert "target: 5 images, all with masks" in {one["message"] for one in api.check(str(recipe))}


def test_values_many(places: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large set only heads and some images are read, and nothing is checked."""
    monkeypatch.setattr(adapt_places, "DECODED", 5)
    monkeypatch.setattr(adapt_facts, "LOOKED_AT", 3)
    advice = advise("adapt", [places["source"], places["labelled"]])
    assert "gradients of 3 and 3 images" in " ".join(advice.facts)
    assert not any(
        one.startswith(("warning: target:", "warning: source: 1 of")) and "hash" in one
        for one in advice.warnings
    )


@pytest.mark.real
@pytest.mark.slow
def test_reference_public_set(data_root: Path, tmp_path: Path) -> None:
    """Day and dusk of the driving scenes, as folders: other light, rare classes, labels of dusk to measure."""
    day = open_dense(DenseFiles(path="camvid/camvid.zip", resize=90))
    parts = {name: rows for name, rows in day.splits.items() if "dusk" not in name}
    dusk = torch.cat([rows for name, rows in day.splits.items() if "dusk" in name])
    assert len(dusk) > 10
    source = dataclasses.replace(day, splits=parts)
    target = dataclasses.replace(day, splits={"train": dusk[::2], "val": dusk[1::2]})
    advice = advise("adapt", [write(tmp_path / "day", source), write(tmp_path / "dusk", target)])
    found = chosen(advice)
    assert (found["evaluation.part"], found["method.sampling.name"]) == ("val", "rare")
    assert found["augment.jitter"] != [0.0] * 4
    assert "A-distance" in " ".join(advice.facts)
