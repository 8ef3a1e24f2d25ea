"""Pre-training on images of both domains, and encoders that go into segmentation networks tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import leanlabel
from leanlabel import api
from leanlabel.engine import checkpoint
from leanlabel.engine.runfolder import read_json
from leanlabel.errors import InputError
from leanlabel.export import load
from leanlabel.methods import find

TINY = [
    "data.batch_size=8",
    "augment.size=32",
    "method.queue=20",
    "method.width=6",
    "steps=2",
    "watch.every=0",
    "engine.loggers=[]",
    "engine.checkpoint_every=2",
    "engine.log_every=1",
    "engine.accelerator=cpu",
    "engine.threads=1",
]
SMALL = {"train": 8, "height": 32, "width": 48}
SCENES = [f"data.{domain}.{key}={value}" for domain in ("source", "target") for key, value in SMALL.items()]
DENSE = [
    *[f"data.{key}={value}" for key, value in SMALL.items()],
    "data.val=4",
    "data.test=4",
    "data.batch_size=4",
    "augment.crop=[32, 48]",
    "engine.accelerator=cpu",
    "engine.threads=1",
]


def handed(folder: Path, recipe: str, pretrained: str, network: str) -> tuple[api.Run, Any, Any]:
    """A short pre-training, a segmentation network that its encoder is put into, and the report of the keys."""
    run = leanlabel.fit(recipe, run=folder, overrides=[*TINY, *SCENES, f"model={pretrained}"], quiet=True)
    cfg = api.resolve("segmentation/scenes-small", [*DENSE, f"model={network}"])
    method = api.build(cfg, find("segmentation").read(cfg))
    _, report = api._start(method, run.path, "backbone") or (None, None)
    return run, method, report


@pytest.mark.parametrize(
    ("recipe", "pretrained", "network"),
    [
        ("moco-v2/scenes", "{name: tiny-fcn, norm: split, norm_groups: 2}", "{name: tiny-fcn}"),
        ("dense-moco/scenes", "{name: small-fcn, norm: batch}", "{name: small-fcn}"),
        ("dense-moco/scenes", "{name: tiny-fcn, norm: batch}", "{name: tiny-fcn, norm: frozen}"),
        ("moco-v2/scenes", "{name: resnet18}", "{name: deeplab-v2, encoder: resnet18}"),
    ],
)
def test_every_tensor_fits(tmp_path: Path, recipe: str, pretrained: str, network: str) -> None:
    run, method, report = handed(tmp_path / "run", recipe, pretrained, network)
    assert (report.missing, report.left, report.shape) == ((), (), ())
    trained: Any = run.method
    theirs, own = checkpoint.state_of(trained.backbone), checkpoint.state_of(method.network.encoder)
    assert theirs.keys() == own.keys()
    assert set(report.taken) == {f"network.encoder.{name}" for name in own}
    assert all(torch.equal(own[name], theirs[name]) for name in own)


def test_the_encoder_says_the_same(tmp_path: Path) -> None:
    """The last map of the segmentation network's encoder has the embedding as its mean, also after an export."""
    run, method, _ = handed(
        tmp_path / "run", "dense-moco/scenes", "{name: tiny-fcn, norm: batch}", "{name: tiny-fcn}"
    )
    trained: Any = run.method
    x = torch.randn(2, 3, 32, 32)
    expected = trained.backbone.eval()(x)
    encoder = method.network.encoder.eval()
    torch.testing.assert_close(encoder.maps(x)[-1].mean((2, 3)), expected)
    torch.testing.assert_close(encoder(x, pooled=False).mean((2, 3)), expected)
    run.export("safetensors", tmp_path / "model")
    model: Any = load(tmp_path / "model")
    torch.testing.assert_close(model.backbone.eval()(x), expected)


def pictures(place: Path, count: int, side: int) -> Path:
    place.mkdir()
    for k in range(count):
        noise = np.random.default_rng(k).integers(0, 256, (side, side + 8, 3), dtype=np.uint8)
        Image.fromarray(noise).save(place / f"{k}.png")
    return place


def test_two_folders(tmp_path: Path) -> None:
    """`--data A --data B` are the two domains, of whatever sizes; one is the source alone."""
    first, second = pictures(tmp_path / "a", 6, 40), pictures(tmp_path / "b", 4, 32)
    run = leanlabel.fit(
        "dense-moco/scenes",
        run=tmp_path / "run",
        data=[str(first), str(second)],
        overrides=[*TINY, "steps=1"],
        quiet=True,
    )
    told = read_json(run.path / "data.json")
    assert told["counts"] == {"images": 10, "trained on": 10}
    assert told["facts"]["source"].startswith("6 images")
    assert told["facts"]["target"].startswith("4 images")
    data = run.config.model_dump(mode="json")["data"]
    assert [data[key]["path"] for key in ("source", "target")] == [str(first), str(second)]
    assert (data["kind"], data["source"]["kind"]) == ("domains", "file")
    assert run.results["label_free"]["effective_rank"] > 0


def test_data_of_every_number() -> None:
    """What `--data` replaces, for recipes of two domains and of one."""
    one = api.resolve("moco-v2/scenes", data=["there"]).model_dump()["data"]
    assert (one["kind"], one["source"]["path"], one["target"], one["batch_size"]) == (
        "domains",
        "there",
        None,
        64,
    )
    two = api.resolve("moco-v2/glyphs", data=["here", "there"]).model_dump()["data"]
    assert (two["kind"], two["source"]["path"], two["target"]["path"]) == ("domains", "here", "there")
    alone = api.resolve("moco-v2/glyphs", data=["here"]).model_dump()["data"]
    assert (alone["kind"], alone["path"]) == ("file", "here")
    with pytest.raises(InputError, match=r"data\.source: unknown key"):
        api.resolve("gca/generated", data=["here", "there"])
