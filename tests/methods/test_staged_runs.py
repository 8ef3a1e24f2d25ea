"""Whole chains of trainings: SPCL and content transfer stopped anywhere, models without training parts, arms."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from test_adapt import TINY, built, config, save
from test_staged_terms import PASTE, STILL, STYLE, same, terms
from torch import Tensor

from leanlabel import api
from leanlabel.augment.tail import tail_classes
from leanlabel.compare.arms import arms_of
from leanlabel.compare.request import Request
from leanlabel.config import to_yaml
from leanlabel.data.pseudo_labels import MANIFEST
from leanlabel.engine import checkpoint, training
from leanlabel.engine import fit as fit_file
from leanlabel.engine.fit import Plan, fit, make_fabric
from leanlabel.engine.runfolder import RunFolder, read_json, read_lines, write_json, write_text
from leanlabel.engine.stage_training import WEIGHTS
from leanlabel.engine.stop import Interrupted
from leanlabel.errors import InputError
from leanlabel.methods import find
from leanlabel.methods.adapt import Adapt
from leanlabel.methods.adapt_handing import CARRIED, FIRST
from leanlabel.methods.adapt_stages import LABELS, LOOK
from leanlabel.methods.terms.mixing import ContentTransfer
from leanlabel.methods.terms.prototypes import Prototypical
from leanlabel.recipe import packaged_recipes
from smallrun import cli, train

pytestmark = pytest.mark.slow

# ------------------------------------------------------------------------------------------------- whole chains


def through(folder: Path, cfg: Any, shared: Path | None = None) -> tuple[Adapt, list[str]]:
    """All stages of a run and the last training, or what is left of them; what was said meanwhile."""
    run, told = RunFolder(folder), []
    run.path.mkdir(parents=True, exist_ok=True)
    write_text(run.config, to_yaml(cfg))
    write_json(run.origin, {"stages": str((shared or folder / "shared").absolute())})
    method = built(cfg)
    training.train(run, cfg, method.data, method, make_fabric(cfg.engine), quiet=True, say=told.append)
    return method, told


QUIET = [one for one in TINY if not one.startswith(("stages.", "steps=", "method.watch_every"))]
ADVERSARY = {"name": "adversary", "weight": 0.01, "settings": {"layers": 3, "width": 4, "divisor": 1.0}}
CHAINS = {
    "spcl/scenes-2021": [
        "stages.warm-up.steps=3",
        terms("cross-entropy", ADVERSARY, key="stages.warm-up.method"),
        "stages.warm-up.method.watch_every=0",
        "stages.contrast.steps=4",
        "stages.contrast.method.watch_every=0",
    ],
    "content-transfer/scenes-small": [
        "stages.separate.steps=3",
        terms("cross-entropy", ADVERSARY, STYLE, key="stages.separate.method"),
        "stages.separate.method.watch_every=0",
        "stages.round-1={steps: 4, method: {watch_every: 0, sampling: {name: balanced}, "
        + terms("cross-entropy", "self-training", PASTE, STYLE, key="").replace(".terms=", "terms: ")
        + "}}",
        terms("cross-entropy", "self-training", PASTE, STYLE),
    ],
}


def chain(recipe: str, *more: str) -> Any:
    changes = [*QUIET, *CHAINS[recipe], "steps=5", "method.watch_every=0", "engine.checkpoint_every=2"]
    return api.resolve(recipe, [*changes, *more])


class Stopping:
    """Stops training at some places, each once; notes what each training begins with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *places: tuple[int, int], look: bool = False) -> None:
        self.left, self.begun = {*places}, {}
        step, observe = Adapt.step, Prototypical.observe
        looks = iter([True]) if look else iter(())

        def guarded(method: Adapt, t: int, batch: Any) -> None:
            trains = isinstance(method._updater, fit_file._Loop)  # no rehearsal
            if trains and t == 0:
                self.begun.setdefault(method.cfg.steps, checkpoint.state_of(method))
            if trains and (method.cfg.steps, t) in self.left:
                self.left.remove((method.cfg.steps, t))
                raise KeyboardInterrupt
            step(method, t, batch)

        def observed(term: Prototypical, output: Any, labels: Tensor) -> None:
            if next(looks, False):
                raise KeyboardInterrupt
            observe(term, output, labels)

        monkeypatch.setattr(Adapt, "step", guarded)
        monkeypatch.setattr(Prototypical, "observe", observed)


def interrupted(call: Callable[[], Any]) -> None:
    with pytest.raises((Interrupted, KeyboardInterrupt)):
        call()


def compared(whole: Path, parts: Path) -> None:
    """Weights, metrics and what every stage left are the same, bit for bit."""
    one, two = (checkpoint.load_weights(folder / "model.safetensors") for folder in (whole, parts))
    assert one.keys() == two.keys()
    assert same(one, two)
    assert (whole / "metrics.jsonl").read_bytes() == (parts / "metrics.jsonl").read_bytes()
    left = {place.parent.name for place in (whole / "shared").glob("*/stage.json")}
    assert left == {place.parent.name for place in (parts / "shared").glob("*/stage.json")}
    for key in left:
        for file in (whole / "shared" / key).rglob("*"):
            if file.name in (WEIGHTS, FIRST, "metrics.jsonl") or file.suffix == ".png":
                assert (
                    file.read_bytes()
                    == (parts / "shared" / key / file.relative_to(whole / "shared" / key)).read_bytes()
                )


def stage_folders(shared: Path) -> dict[str, Path]:
    return {read_json(place)["name"]: place.parent for place in shared.glob("*/stage.json")}


@pytest.mark.slow
def test_state_chain_of_spcl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm-up, first look, pseudo labels, contrast, pseudo labels, self-training: stopped in each, and resumed."""
    cfg = chain("spcl/scenes-2021")
    noted = Stopping(monkeypatch)
    through(tmp_path / "whole", cfg)
    monkeypatch.undo()
    stops = Stopping(monkeypatch, (3, 2), (4, 3), (5, 3), look=True)
    for _ in range(4):
        interrupted(lambda: through(tmp_path / "parts", cfg))
    assert not stops.left
    through(tmp_path / "parts", cfg)
    compared(tmp_path / "whole", tmp_path / "parts")

    found = stage_folders(tmp_path / "whole" / "shared")
    names = ["warm-up", f"{LABELS}-contrast", f"{LOOK}-contrast", "contrast", LABELS]
    assert set(found) == {"class-pixels", *names}
    first = checkpoint.load_weights(found[f"{LOOK}-contrast"] / FIRST)
    begun = noted.begun[4]
    assert torch.equal(begun["term_1.bank.values"], first["prototype-contrast.bank.values"])
    contrast = checkpoint.load_weights(found["contrast"] / WEIGHTS)
    assert not torch.equal(
        contrast[f"{CARRIED}prototype-contrast.state.bank.values"], begun["term_1.bank.values"]
    )
    rows = read_lines(found["contrast"] / "metrics.jsonl")
    assert all(torch.isfinite(torch.tensor(row["prototype"])) for row in rows)


@pytest.mark.slow
def test_state_chain_of_content_transfer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage 1, pseudo labels and a round, and these once more: stopped in each training, and resumed."""
    cfg = chain("content-transfer/scenes-small")
    noted = Stopping(monkeypatch)
    through(tmp_path / "whole", cfg)
    monkeypatch.undo()
    stops = Stopping(monkeypatch, (3, 2), (4, 3), (5, 3))
    for _ in range(3):
        interrupted(lambda: through(tmp_path / "parts", cfg))
    assert not stops.left
    through(tmp_path / "parts", cfg)
    compared(tmp_path / "whole", tmp_path / "parts")

    found = stage_folders(tmp_path / "whole" / "shared")
    assert set(found) == {"class-pixels", "separate", f"{LABELS}-round-1", "round-1", LABELS}
    for before, steps in (("separate", 4), ("round-1", 5)):
        left = checkpoint.load_weights(found[before] / WEIGHTS)
        own = {
            name.removeprefix(f"{CARRIED}zero-style."): one
            for name, one in left.items()
            if "zero-style" in name
        }
        assert len(own) > 8
        for name, value in own.items():
            part, _, inside = name.partition(".")
            full = f"term_3.{inside}" if part == "state" else f"term_3_{part}.{inside}"
            assert torch.equal(noted.begun[steps][full], value), name
        assert any("decoder" in name for name in own)


@pytest.mark.slow
def test_values_tail_of_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before every training whose terms read stored labels these are told, and what is rare follows from them."""
    told: list[Tensor] = []
    right = ContentTransfer.stored_pixels

    def noting(term: ContentTransfer, pixels: Tensor) -> None:
        told.append(pixels.clone())
        right(term, pixels)

    monkeypatch.setattr(ContentTransfer, "stored_pixels", noting)
    noted = Stopping(monkeypatch)
    through(tmp_path, chain("content-transfer/scenes-small", "stages.round-1.optim.lr=0.2"))
    found = stage_folders(tmp_path / "shared")
    kept = {}
    for steps, name in ((4, f"{LABELS}-round-1"), (5, LABELS)):
        kept[steps] = torch.tensor(read_json(found[name] / MANIFEST)["kept"])
        assert any(torch.equal(kept[steps], one) for one in told)
        tail = noted.begun[steps]["term_2.tail"]
        assert bool((tail_classes(kept[steps], 0.04) <= tail).all())
        assert bool((kept[steps][tail] <= kept[steps].sum() * 0.04).all())
    assert not torch.equal(kept[4], kept[5])
    assert torch.equal(told[-1], kept[5])


# ---------------------------------------------------------------------------- networks that only training reads


@pytest.fixture(scope="module")
def separated(tmp_path_factory: pytest.TempPathFactory) -> api.Run:
    changes = [*TINY, terms("cross-entropy", STYLE), *STILL, "steps=3", "engine.checkpoint_every=2"]
    folder = tmp_path_factory.mktemp("separated") / "run"
    return api.fit(api.read_recipe("adapt/scenes-small"), run=folder, overrides=changes, quiet=True)


def stripped(place: Path) -> set[str]:
    """Take the networks of terms out of a model; their names."""
    with safe_open(place, "pt") as file:
        about = file.metadata()
    state = checkpoint.load_weights(place)
    gone = {name for name in state if name.startswith(("term_1_style.", "term_1_decoder."))}
    save_file({name: value for name, value in state.items() if name not in gone}, place, about)
    return gone


def test_values_model_alone(separated: api.Run, tmp_path: Path) -> None:
    """A model without what only training reads loads and predicts the same."""
    image = separated.data.target.read([0])[0][0]
    (tmp_path / "new").mkdir()
    save(tmp_path / "new" / "one.png", image.permute(1, 2, 0).numpy())
    before = separated.method.read_batch(image[None]).confidence
    assert len(stripped(separated.folder.weights)) > 10
    run = api.load(separated.path)
    assert torch.equal(run.method.read_batch(image[None]).confidence, before)
    answer = cli("predict", separated.path, tmp_path / "new", "--out", tmp_path / "masks")
    assert answer.code == 0, answer.err
    assert list((tmp_path / "masks").rglob("*.png"))


def test_state_checkpoint_without(
    separated: api.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint without them goes on, and says what begins anew; half a network is a mistake."""
    cfg = separated.config
    train(tmp_path, cfg, steps=2)
    path = checkpoint.saved(tmp_path / "checkpoints")[-1]
    found = checkpoint.load(path)
    assert found.t == 2
    kept = {name: one for name, one in found.method.items() if not name.startswith("term_1_style.")}
    told: list[str] = []
    monkeypatch.setattr(fit_file.console, "print", lambda text, **_: told.append(text))

    def go_on(state: dict[str, Tensor]) -> dict[str, Tensor]:
        rest = checkpoint.Checkpoint(found.t, state, found.optimisers, found.best, found.scaler)
        checkpoint.save(path.parent, rest, keep_last=1)
        method = built(cfg)
        fit(
            method,
            RunFolder(tmp_path),
            Plan(2, cfg.seed, cfg.optim, cfg.engine, quiet=True),
            make_fabric(cfg.engine),
        )
        return checkpoint.state_of(method)

    after = go_on(kept)
    assert told == ["Begun anew, because the checkpoint lacks it: term_1_style."]
    assert same(checkpoint.state_of(built(cfg)), after, "term_1_style.")
    assert same(found.method, after, "term_1_decoder.")
    assert same(found.method, after, "network.")
    go_on(kept)
    path = checkpoint.saved(tmp_path / "checkpoints")[-1]
    assert read_lines(train(tmp_path, cfg) and tmp_path / "metrics.jsonl")[-1]["t"] == 2
    half = {name: one for name, one in found.method.items() if name != "term_1_style.last.weight"}
    assert len(half) == len(found.method) - 1
    for leftover in checkpoint.saved(tmp_path / "checkpoints"):
        leftover.unlink()
    with pytest.raises(InputError, match=r"term_1_style\.last\.weight is missing"):
        go_on(half)


# ---------------------------------------------------------------------------------------------- arms, asks


NAMES = {
    "spcl/gta5-cityscapes": {"source-only", "minus-prototypes", "minus-stage"},
    "spcl/synthia-cityscapes": {"source-only", "minus-prototypes", "minus-stage"},
    "spcl/scenes-2021": {"source-only", "minus-prototypes", "minus-stage"},
    "spcl/gta5-cityscapes-modern": {"source-only", "minus-prototypes"},
    "spcl/scenes-small": {"source-only", "minus-prototypes"},
    "spcl/scenes-target": {"source-only", "minus-prototypes"},
}
OURS = [name for name in packaged_recipes() if name.startswith(("spcl/", "content-transfer/"))]


@pytest.mark.parametrize("recipe", OURS)
def test_values_baselines(recipe: str) -> None:
    """Every arm is a valid recipe of as many iterations, and has what its name says."""
    both = {"source-only", "self-training", "minus-transfer", "minus-zero-style"}
    arms = arms_of(Request([recipe]))
    own = arms.pop(recipe.replace("/", "-"))
    assert set(arms) == NAMES.get(recipe, both)
    whole = api.resolve(own.recipe)
    for name, arm in arms.items():
        cfg = api.resolve(arm.recipe)
        method = find(cfg.method.name)
        listed = {key: method.stage_config(cfg, key) for key in cfg.stages}
        used = {entry.name for one in (cfg, *listed.values()) for entry in one.method.terms}
        gone = {
            "minus-prototypes": {"prototype-contrast"},
            "minus-stage": {"prototype-contrast"},
            "minus-transfer": {"content-transfer"},
            "minus-zero-style": {"zero-style"},
            "self-training": {"content-transfer", "zero-style"},
            "source-only": used - {"cross-entropy"},
        }[name]
        assert not gone & used, (name, used)
        assert "cross-entropy" in used
        assert cfg.steps == whole.steps
        assert (len(whole.stages) - len(cfg.stages)) == (name == "minus-stage")
        if name == "source-only":
            assert used == {"cross-entropy"}
            assert (cfg.method.ema, cfg.method.adabn) == (None, False)
        if name in ("minus-transfer", "self-training"):
            assert "self-training" in used


@pytest.mark.parametrize("changes", [{"mode": "decoded"}, {"style": "decoder"}], ids=str)
def test_errors_asks(changes: dict[str, str]) -> None:
    """A decoder that no term trains is missed before anything starts, in the recipe and in a stage."""
    paste = {"name": "content-transfer", "settings": {"style": "none", **changes}}
    with pytest.raises(InputError, match="zero-style beside content-transfer"):
        config(terms("cross-entropy", paste), *STILL)
    assert config(terms("cross-entropy", paste, STYLE), *STILL)
    stage = json.dumps({"steps": 2, "method": {"terms": [{"name": "cross-entropy"}, paste]}})
    with pytest.raises(InputError, match="zero-style"):
        built(config(terms("cross-entropy"), *STILL, f"stages.pasted={stage}"))
