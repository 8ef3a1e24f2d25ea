"""Classes of pixels by the nearest prototype: of a run, of a few labelled images, from Python and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from leanlabel import api
from leanlabel.errors import InputError
from leanlabel.methods.nearest_prototype import has_own, support_prototypes
from smallrun import Answer, cli

Image = pytest.importorskip("PIL.Image")

ENGINE = ["engine.accelerator=cpu", "engine.threads=1", "engine.loggers=[]", "evaluation.protocol=none"]
SIZES = ("train=6", "val=2", "test=2", "height=32", "width=48", "batch_size=2")
CONTRAST = {"name": "prototype-contrast", "settings": {"target": "none", "initial": "batch", "head": 5}}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> api.Run:
    """A run that has learned no prototypes; rows of its masks belong to classes 0 to 10."""
    more = [*(f"data.{key}" for key in SIZES), "augment.crop=[32,32]", "steps=3", *ENGINE]
    folder = tmp_path_factory.mktemp("plain") / "run"
    return api.fit("segmentation/scenes-small", run=folder, overrides=more, quiet=True)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> api.Run:
    """A run with a bank behind a head."""
    terms = "method.terms=" + json.dumps([{"name": "cross-entropy"}, CONTRAST])
    more = [f"data.{domain}.{key}" for domain in ("source", "target") for key in SIZES]
    more += ["augment.crop=[32,32]", "steps=2", "stages.source=null", "method.ema=null", "method.adabn=false"]
    more += ["method.sampling={name: uniform}", terms, *ENGINE]
    folder = tmp_path_factory.mktemp("adapted") / "run"
    return api.load(api.fit("adapt/scenes-small", run=folder, overrides=more, quiet=True).path)


def images(run: api.Run, *rows: int) -> Tensor:
    return torch.stack(list(run.data.read(list(rows))[0]))


def features(run: api.Run, image: Tensor) -> Tensor:
    method: Any = run.method
    with torch.no_grad():
        return method.deployed.eval()(method.normalised(image[None])).features


def test_values_own(plain: api.Run) -> None:
    """Means over images of mean unit features of a class, where the network agrees; else over all, pixel by pixel."""
    names, values, counts = plain.prototypes
    method: Any = plain.method
    assert names == list(method.classes.names)
    means: dict[bool, list[list[Tensor]]] = {strict: [[] for _ in names] for strict in (True, False)}
    for row in method.pool.tolist():
        image, mask = plain.data.pixels[row], plain.data.masks[row]
        with torch.no_grad():
            found = method.deployed(method.normalised(image[None]))
        h, w = found.features.shape[-2:]
        guess = F.interpolate(found.logits, (h, w), mode="bilinear").argmax(1)[0]
        of: dict[tuple[bool, int], list[Tensor]] = {}
        for i in range(h):
            for j in range(w):
                k, f = int(mask[i * 32 // h, j * 48 // w]), found.features[0, :, i, j].double()
                if k < 255:
                    of.setdefault((False, k), []).append(f / f.norm())
                    if k == int(guess[i, j]):
                        of.setdefault((True, k), []).append(f / f.norm())
        for (strict, k), own in of.items():
            means[strict][k].append(torch.stack(own).mean(0))
    for k in range(len(names)):
        behind = means[True][k] or means[False][k]
        assert int(counts[k]) == len(behind)
        expected = torch.stack(behind).mean(0) if behind else torch.zeros(values.shape[1])
        torch.testing.assert_close(values[k].double(), expected.double(), rtol=1e-4, atol=1e-5)


def test_values_nearest(plain: api.Run) -> None:
    """Cosines are enlarged, the largest wins, and its softmax at 0.1 is the confidence."""
    _, values, counts = plain.prototypes
    some = images(plain, 0, 7)
    found = plain.nearest_prototype(some)
    assert found.classes.dtype == torch.uint8
    for place, image in enumerate(some):
        z = F.normalize(features(plain, image), dim=1)
        cosines = torch.einsum("bdhw,kd->bkhw", z, F.normalize(values, dim=1))
        large = F.interpolate(cosines, (32, 48), mode="bilinear")[0]
        large[counts == 0] = -torch.inf
        p, best = (large / 0.1).softmax(0).max(0)
        torch.testing.assert_close(found.confidence[place], p, rtol=1e-4, atol=1e-5)
        assert (found.classes[place] == best).float().mean() > 0.999  # ties aside


def test_values_bank(adapted: api.Run) -> None:
    """What the term has learned is taken, in the space of its head."""
    _, values, counts = adapted.prototypes
    method: Any = adapted.method
    term = next(one for one, entry in method.terms() if entry.name == "prototype-contrast")
    assert torch.equal(values, term.bank.values)
    assert torch.equal(counts, term.bank.counts)
    assert values.shape[1] == 5
    reader = adapted.by_prototype()
    head = method.own_network(term.names["head"])
    image = images(adapted, 0)
    with torch.no_grad():
        z = F.normalize(head(features(adapted, image[0])), dim=1)
    known = counts > 0
    cosines = torch.einsum("bdhw,kd->bkhw", z, F.normalize(values[known], dim=1))
    found = reader.network(method.normalised(image))
    torch.testing.assert_close(found.logits, cosines / 0.1, rtol=1e-4, atol=1e-4)
    assert reader.network.prototypes.shape == (int(known.sum()), 5)


def test_values_support(plain: api.Run) -> None:
    """Classes of the support have its prototypes, the others those of the run, or none."""
    image, mask = plain.data.pixels[0], plain.data.masks[0].clone()
    mask[mask == 3] = 255
    own, counts = support_prototypes(plain.method, [(image, mask)])
    z, (h, w) = F.normalize(features(plain, image)[0], dim=0), features(plain, image).shape[-2:]
    thin = mask[torch.arange(h) * 32 // h][:, torch.arange(w) * 48 // w]
    present = sorted({*mask.unique().tolist()} - {255})
    assert counts.nonzero()[:, 0].tolist() == present
    assert 3 not in present
    k = int(thin[thin < 255].mode().values)
    torch.testing.assert_close(own[k], z[:, thin == k].mean(1), rtol=1e-4, atol=1e-5)

    reader = plain.by_prototype([(image, mask)])
    _, theirs, behind = plain.prototypes
    expected = torch.where((counts > 0)[:, None], own, theirs)[(counts > 0) | (behind > 0)]
    torch.testing.assert_close(reader.network.prototypes, F.normalize(expected, dim=1), rtol=1e-5, atol=1e-6)
    assert reader.supported == tuple(present)
    alone = plain.nearest_prototype(images(plain, 0, 1, 2), [(image, mask)], support_only=True)
    assert {*alone.classes.unique().tolist()} <= {*present}
    assert plain.by_prototype([(image, mask)], support_only=True).numbers.tolist() == present


def test_values_thin_class(plain: api.Run) -> None:
    """A class that no position of the features gets takes those whose part of the image has some of it."""
    mask = torch.zeros(32, 48, dtype=torch.uint8)
    mask[1, 1] = 4  # between the sampled pixels 0, 4, 8, ...
    values, counts = support_prototypes(plain.method, [(plain.data.pixels[0], mask)])
    assert counts.tolist()[:5] == [8 * 12, 0, 0, 0, 1]
    z = F.normalize(features(plain, plain.data.pixels[0])[0], dim=0)
    torch.testing.assert_close(values[4], z[:, 0, 0], rtol=1e-5, atol=1e-6)


def test_degenerate_channels(adapted: api.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that cannot read the labelled images has no prototypes but those of a support."""
    from leanlabel.methods import nearest_prototype as by

    run = api.load(adapted.path)
    method: Any = run.method
    monkeypatch.setattr(by, "_learned", lambda _: None)
    monkeypatch.setattr(by, "channels_of", lambda _: 1)
    with pytest.raises(InputError, match="other channels"):
        _ = run.prototypes
    with pytest.raises(InputError, match="No class has a prototype"):
        run.by_prototype()
    mask = torch.full((32, 48), 2, dtype=torch.uint8)
    assert run.by_prototype([(method.data.target.pixels[0], mask)]).numbers.tolist() == [2]


# ----------------------------------------------------------------------------------------------- command line


@pytest.fixture
def files(plain: api.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A labelled image, and others to predict, larger than those that were trained on."""
    monkeypatch.chdir(tmp_path)
    Path("new").mkdir()
    for row in (1, 2):
        enlarged = plain.data.pixels[row].permute(1, 2, 0).numpy().repeat(2, 0).repeat(2, 1)
        Image.fromarray(enlarged).save(f"new/{row}.png")
    Image.fromarray(plain.data.pixels[0].permute(1, 2, 0).numpy()).save("shot.png")
    Image.fromarray(plain.data.masks[0].numpy()).save("shot_mask.png")
    return tmp_path


def predict(run: api.Run, *options: object, inputs: str = "new") -> Answer:
    return cli("predict", run.path, inputs, "--out", "out", "--no-overlay", *options)


def test_command(plain: api.Run, files: Path) -> None:
    """Masks as of any prediction; the summary says by what, and promises nothing that was not measured."""
    answer = predict(plain, "--support", "shot.png", "--support-mask", "shot_mask.png", "--support-only")
    assert answer.code == 0, answer.err
    told = json.loads(Path("out/predictions.json").read_text(encoding="utf-8"))
    image, mask = plain.data.pixels[0], plain.data.masks[0]
    for row in (1, 2):
        new = torch.from_numpy(np.array(Image.open(f"new/{row}.png"))).permute(2, 0, 1)
        found = plain.nearest_prototype(new[None], [(image, mask)], support_only=True)
        assert np.array_equal(np.array(Image.open(f"out/masks/{row}.png")), found.classes[0].numpy())
    present = sorted({*mask.unique().tolist()} - {255})
    method: Any = plain.method
    names = method.classes.names
    assert told["expected"] is None
    assert told["model"]["classes by"] == "nearest prototype"
    assert told["model"]["support"] == [["shot.png", "shot_mask.png"]]
    assert told["model"]["classes of the support"] == [names[k] for k in present]
    assert told["model"]["never predicted"] == [name for k, name in enumerate(names) if k not in present]
    assert "mIoU unknown" in answer.out
    assert "prototypes  of the support" in answer.out

    own = predict(plain, "--prototypes", "--force")
    assert own.code == 0, own.err
    assert "prototypes  of the run" in own.out
    new = torch.from_numpy(np.array(Image.open("new/1.png"))).permute(2, 0, 1)
    written = np.array(Image.open("out/masks/1.png"))
    assert np.array_equal(written, plain.nearest_prototype(new[None]).classes[0].numpy())


def test_errors(plain: api.Run, files: Path) -> None:
    """Exit code 2, the files by name, nothing written."""
    Image.fromarray(np.zeros((32, 40), np.uint8)).save("narrow.png")
    Image.fromarray(np.full((32, 48), 77, np.uint8)).save("strange.png")
    Image.fromarray(np.full((32, 48), 11, np.uint8)).save("empty.png")  # ignored in CamVid
    both = ("--support", "shot.png", "--support-mask")
    cases: list[tuple[tuple[str, ...], list[str]]] = [
        ((*both, "narrow.png"), ["shot.png has 48 x 32 pixels", "narrow.png 40 x 32"]),
        ((*both, "strange.png"), ["strange.png: label value 77"]),
        ((*both, "empty.png"), ["empty.png: none of its pixels has a class"]),
        ((*both, "nowhere.png"), ["nowhere.png: there is no such file"]),
        ((*both, "shot.png"), ["shot.png: a colour picture"]),
        (("--support", "new", "--support-mask", "shot_mask.png"), ["new: there is no such file"]),
        (("--support", "shot.png"), ["--support was given 1 times, --support-mask 0 times"]),
        (("--support-only",), ["--support-only: there are no labelled images"]),
        (("--support-only", "--prototypes"), ["--support-only: --prototypes asks"]),
    ]
    for options, parts in cases:
        answer = predict(plain, *options)
        assert answer.code == 2, (options, answer)
        assert all(part in answer.err for part in parts), answer.err
        assert not Path("out").exists()
    plain.export("safetensors", "exported")
    answer = cli("predict", "exported", "new", "--out", "out", "--prototypes")
    assert answer.code == 2
    assert "prototypes need the run itself" in answer.err


def test_errors_in_python(plain: api.Run) -> None:
    image = plain.data.pixels[0]
    with pytest.raises(InputError, match=r"support 0: an image \(3, 32, 48\) and a mask \(32, 40\)"):
        plain.by_prototype([(image, torch.zeros(32, 40, dtype=torch.uint8))])
    with pytest.raises(ValueError, match="label 77, there are 11 classes"):
        plain.by_prototype([(image, torch.full((32, 48), 77, dtype=torch.uint8))])
    with pytest.raises(ValueError, match="needs labelled images"):
        plain.by_prototype(support_only=True)
    other = SimpleNamespace(cfg=SimpleNamespace(method=SimpleNamespace(name="gca")))
    with pytest.raises(InputError, match="gca: prototypes are those of classes of pixels"):
        has_own(other)


def test_dtypes(plain: api.Run) -> None:
    """A network in double precision gives the same classes."""
    run = api.load(plain.path)
    single = run.nearest_prototype(images(run, 0))
    run.method.double()
    double = run.nearest_prototype(images(run, 0))
    assert (single.classes == double.classes).float().mean() > 0.99
    assert double.confidence.dtype == torch.float32
