"""Preview: what it writes is what training would see, and nothing that only a trained network or a person knows."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leanlabel import api
from leanlabel.augment.class_mix import class_mix_masks, paste
from leanlabel.evaluation.pictures import palette_picture
from leanlabel.methods import find
from leanlabel.methods.dense_preview import STAND_IN, UNLABELLED, UNTAUGHT, previewed
from smallrun import RECIPE, Answer, cli

Image = pytest.importorskip("PIL.Image")

TINY = [
    *(
        f"data.{domain}.{key}"
        for domain in ("source", "target")
        for key in ("train=6", "val=2", "test=2", "height=32", "width=48", "batch_size=2")
    ),
    "augment.crop=[32,32]",
    "augment.wanted_pixels=4",
    "stages.source=null",
    "steps=3",
    "evaluation.part=auto",
    "engine.accelerator=cpu",
]
TRANSFER = {"name": "content-transfer", "settings": {"min_pixels": 4, "tail": 0.2}}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def preview(recipe: str, *more: str, options: tuple[object, ...] = (), tiny: list[str] = TINY) -> Answer:
    chosen = [part for text in (*tiny, *more) for part in ("--set", text)]
    return cli("preview", recipe, "--out", "seen", *options, *chosen)


def terms(*listed: Any) -> str:
    return "method.terms=" + json.dumps([{"name": one} if isinstance(one, str) else one for one in listed])


def rows(name: str = "index.csv") -> list[dict[str, str]]:
    with open(Path("seen") / name, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def picture(name: str) -> np.ndarray:
    return np.array(Image.open(Path("seen") / name))


def tree() -> list[str]:
    return sorted(path.as_posix() for path in Path().rglob("*"))


def test_values() -> None:
    """Views and mixes of the first iterations are those of the training stream, to the rounding of 8 bits."""
    answer = preview("adapt/scenes-small", options=("--iterations", 2))
    assert answer.code == 0, answer.err
    cfg: Any = previewed(api.resolve("adapt/scenes-small", TINY))
    method: Any = api.build(cfg, find("adapt").read(cfg))
    method.use_table(
        torch.stack([torch.bincount(m.flatten().long(), minlength=256)[:11] for m in masks(method)])
    )
    count = torch.zeros(11, dtype=torch.int64)
    mean, std = (torch.tensor(one).view(-1, 1, 1) for one in (cfg.augment.mean, cfg.augment.std))
    for t, batch in zip(range(2), method.batches(0), strict=False):
        step = method.begin(t, batch)
        region = class_mix_masks(step.labels, step.draw("class mix"), 0.5)
        mixed = paste(step.images, step.target.images, region)
        for place in range(2):
            count += torch.bincount(step.labels[place][region[place]], minlength=11)
            for view, images in (
                ("source", step.images),
                ("target", step.target.images),
                ("class-mix", mixed),
            ):
                shown = picture(f"{t:04d}-{view}-{place:02d}-image.png").transpose(2, 0, 1) / 255.0
                assert np.abs(shown - (images[place] * std + mean).clamp(0, 1).numpy()).max() < 0.003
            inside = region[place].numpy()
            assert np.array_equal(picture(f"{t:04d}-class-mix-{place:02d}-region.png")[..., 0] == 255, inside)
            label = step.labels[place].masked_fill(step.labels[place] < 0, 255).to(torch.uint8)
            colours = method.classes.colours
            assert np.array_equal(
                picture(f"{t:04d}-source-{place:02d}-label.png"), palette_picture(label, colours)
            )
            around = label.masked_fill(~region[place], 255)
            shown = picture(f"{t:04d}-class-mix-{place:02d}-label.png")
            assert np.array_equal(shown, palette_picture(around, colours))
    table = rows("pasted.csv")
    assert [int(row["pixels"]) for row in table] == count.tolist()
    assert [row["class"] for row in table] == list(method.classes.names)
    assert UNTAUGHT in answer.out
    assert "pole" in answer.out


def masks(method: Any) -> list[torch.Tensor]:
    return [method.data.source.masks[row] for row in method.pool.tolist()]


def test_values_index() -> None:
    """Every picture has its row, and there are no others; a label of the target is not among them. No run is made."""
    assert preview("adapt/scenes-small", options=("--iterations", 9)).code == 0
    listed = rows()
    found = {path.name for path in Path("seen").glob("*.png")}
    assert {row["file"] for row in listed} == found - {"legend.png"}
    assert {row["iteration"] for row in listed} == {"0", "1", "2"}, "no more than the training has"
    assert {(row["view"], row["content"]) for row in listed} == {
        *(("source", content) for content in ("image", "label")),
        ("target", "image"),
        *(("class-mix", content) for content in ("image", "label", "region")),
    }
    mixes = [row for row in listed if row["view"] == "class-mix"]
    assert all(row["image"] and row["pasted_from"] and 0 <= float(row["pasted"]) <= 1 for row in mixes)
    by_place = {(row["iteration"], row["place"]): row["image"] for row in listed if row["view"] == "source"}
    assert all(by_place[row["iteration"], row["place"]] == row["pasted_from"] for row in mixes)
    assert tree() == ["seen", *sorted(f"seen/{path.name}" for path in Path("seen").iterdir())]


def test_values_content_transfer() -> None:
    """Rare classes of drawn images alone; without pseudo labels, everything around them has no label."""
    answer = preview(
        "adapt/scenes-small", terms("cross-entropy", "self-training", TRANSFER), options=("--json",)
    )
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)
    assert told == {"out": "seen", **json.loads(Path("seen/preview.json").read_text(encoding="utf-8"))}
    assert told["notes"] == [STAND_IN, UNLABELLED]
    (transfer,) = told["terms"]
    pasted = {one["name"] for one in transfer["classes"] if one["pixels"]}
    assert pasted
    assert not pasted & {"road", "sky", "building"}
    assert transfer["pixels"] == sum(one["pixels"] for one in transfer["classes"])
    assert {row["view"] for row in rows()} == {"source", "donor", "target", "content-transfer"}
    # The labels of pasted pixels have colours, all others are hatched in grey.
    for row in rows():
        if (row["view"], row["content"]) == ("content-transfer", "label"):
            shown = picture(row["file"])
            region = picture(row["file"].replace("label", "region"))[..., 0] == 255
            grey: Any = np.isin(shown, (232, 120)).all(-1)
            assert grey[~region].all()
            assert not grey[region].any()
            assert region.mean() == pytest.approx(float(row["pasted"]), abs=1e-6)


def test_values_true_labels_of_the_target() -> None:
    """Labels of people are no pseudo labels, whatever was read; a bound that trains on them shows them."""
    more = (terms("cross-entropy", "self-training"), "data.target.labels=auto")
    assert preview("adapt/scenes-small", *more, options=("--iterations", 1)).code == 0
    assert ("target", "label") not in {(row["view"], row["content"]) for row in rows()}
    bound = (terms("cross-entropy", "labelled-target"), "method.target_labels=true")
    assert preview("adapt/scenes-small", *bound, options=("--iterations", 1, "--force")).code == 0
    assert ("target", "label") in {(row["view"], row["content"]) for row in rows()}
    assert not Path("seen/pasted.csv").exists(), "an earlier preview's"


def test_values_other_recipes() -> None:
    """One domain; pairs of images of which the target alone is trained on."""
    plain = [
        *(f"data.{key}" for key in ("train=6", "val=2", "test=2", "height=32", "width=48", "batch_size=2")),
        *("augment.crop=[32,32]", "steps=2"),
    ]
    assert preview("segmentation/scenes-small", options=("--iterations", 1), tiny=plain).code == 0
    assert [row["file"] for row in rows()] == [
        f"0000-source-{place:02d}-{content}.png" for place in (0, 1) for content in ("image", "label")
    ]
    pairs = (terms("feature-regression"), "data.pairs={by: same}", "data.source.seed=1")
    answer = preview("adapt/scenes-small", *pairs, options=("--iterations", 1, "--force"))
    assert answer.code == 0, answer.err
    assert {row["view"] for row in rows()} == {"target", "partner"}
    assert "0000-source-00-image.png" not in {path.name for path in Path("seen").iterdir()}


def test_force() -> None:
    """A folder with something in it is left alone; with --force nothing of an earlier preview stays, all else does."""
    assert preview("adapt/scenes-small", options=("--iterations", 2)).code == 0
    Path("seen/notes.txt").write_text("mine", encoding="utf-8")
    before = tree()
    answer = preview("adapt/scenes-small", options=("--iterations", 1))
    assert answer.code == 2
    assert "not empty" in answer.err
    assert tree() == before
    assert preview("adapt/scenes-small", options=("--iterations", 1, "--force")).code == 0
    assert {path.name for path in Path("seen").iterdir()} == {
        *(row["file"] for row in rows()),
        *("index.csv", "pasted.csv", "preview.json", "legend.png", "notes.txt"),
    }


@pytest.mark.parametrize(
    ("recipe", "more", "told"),
    [
        (RECIPE, [], "method.name=gca"),
        ("adapt/scenes-small", [*TINY, "steps=0"], "steps: 0"),
        (
            "adapt/scenes-small",
            [*TINY, "data.target.batch_size=3"],
            "2 labelled images cannot be pasted into 3",
        ),
        ("adapt/scenes-small", [*TINY, "method.emma=0.9"], "method.ema"),
        ("adapt/nothing", [], "Unknown recipe"),
    ],
)
def test_errors(recipe: str, more: list[str], told: str) -> None:
    answer = preview(recipe, tiny=more)
    assert answer.code == 2
    assert told in answer.err
    assert tree() == [], "nothing half-written"
