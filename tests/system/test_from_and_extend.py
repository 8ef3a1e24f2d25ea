"""Starting from the weights of another run, and training a finished run longer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import leanlabel
from leanlabel import api
from leanlabel.engine import checkpoint, extend
from leanlabel.engine.runfolder import read_json
from leanlabel.errors import InputError, RunError
from smallrun import RECIPE, cli, options, overrides

SAME = (
    "metrics.jsonl",
    "model.safetensors",
    "config.yaml",
    "readout.safetensors",
    "splits.npz",
    "warnings.json",
)
FEW = {"data__nodes": 48}
"""So few that the picture of the report costs nothing."""
UNMEASURED = {"evaluation__protocol": "none", "augment__scheme": "uniform"}


def fit(
    folder: Path, recipe: str = RECIPE, source: Path | None = None, part: str | None = None, **changes: Any
) -> api.Run:
    chosen = overrides(**{**FEW, **changes})
    if not recipe.startswith(("gca", "bgrl")):
        chosen = [text for text in chosen if not text.startswith("augment.")]
    return leanlabel.fit(recipe, run=folder, overrides=chosen, source=source, part=part, quiet=True)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> api.Run:
    """A run of six iterations; tests that write take a copy."""
    return fit(tmp_path_factory.mktemp("extend") / "run")


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> api.Run:
    """The same run with twelve iterations from the start."""
    return fit(tmp_path_factory.mktemp("extend") / "run", steps=12)


@pytest.fixture
def copy(small: api.Run, tmp_path: Path) -> Path:
    shutil.copytree(small.path, tmp_path / "copy")
    return tmp_path / "copy"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def encoder(state: dict[str, torch.Tensor], prefix: str = "encoder.") -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[k]) for k, value in first.items())


# -------------------------------------------------------------------------------------------- starting


def test_values_of_a_start(small: api.Run, tmp_path: Path) -> None:
    """All weights of the run; the readout of the start stands beside the seed's own and the trained one."""
    answer = cli(
        "fit", RECIPE, "--run", tmp_path / "run", "--from", small.path, *options(steps=2, seed=3, **FEW)
    )
    assert answer.code == 0, answer.err
    assert "9 taken: encoder.layers.0.weight" in answer.out
    run = leanlabel.load(tmp_path / "run")
    initial = run.initial()
    assert initial is not None
    assert same(dict(initial.state_dict()), dict(small.method.state_dict()))
    assert not same(dict(run.untrained().state_dict()), dict(initial.state_dict()))
    assert not same(dict(run.method.state_dict()), dict(initial.state_dict()))
    assert same(load_file(run.path / "initial.safetensors"), dict(initial.state_dict()))
    readouts = run.results["protocols"]["logistic-l2"]["readouts"]
    assert list(readouts) == ["raw", "untrained", "initial", "trained"]
    told = read_json(run.path / "run.json")["from"]
    assert (told["source"], told["part"]) == (str(small.path), None)
    assert len(told["report"]["taken"]) == 9
    assert told["report"]["missing"] == told["report"]["left"] == told["report"]["shape"] == []
    assert len(told["sha256"]) == 64
    assert small.initial() is None


def test_values_of_every_form(small: api.Run, tmp_path: Path) -> None:
    """Run, unfinished run, export, backbone, checkpoint: the same encoder, other parts untouched."""
    small.export("safetensors", tmp_path / "model")
    small.export("backbone", tmp_path / "backbone")
    shutil.copytree(small.path, tmp_path / "unfinished")
    (tmp_path / "unfinished" / "model.safetensors").unlink()
    places = (
        small.path,
        tmp_path / "unfinished",
        tmp_path / "model",
        tmp_path / "backbone" / "backbone.safetensors",
        small.path / "checkpoints" / "t=00000006.ckpt",
    )
    wanted = encoder(dict(small.method.state_dict()))
    for k, place in enumerate(places):
        run = fit(tmp_path / f"run-{k}", source=place, part="backbone", steps=0, seed=5, **UNMEASURED)
        state, fresh = dict(run.method.state_dict()), dict(run.untrained().state_dict())
        assert same(encoder(state), wanted), place
        assert same(encoder(state, "projector."), encoder(fresh, "projector.")), place


@pytest.mark.parametrize(("first", "then"), [("gca", "supervised-graph"), ("supervised-graph", "bgrl")])
def test_values_of_other_methods(first: str, then: str, tmp_path: Path) -> None:
    """A backbone goes from any method to any other, and to every copy of the encoder there."""
    plain = {"model__norm": "none", "model__activation": "prelu", "steps": 2, "evaluation__splits": 2}
    source = fit(tmp_path / "source", f"{first}/generated", **plain)
    run = fit(tmp_path / "run", f"{then}/generated", source.path, "backbone", seed=9, **plain)
    initial = run.initial()
    assert initial is not None
    assert torch.equal(initial.embed(run.data), source.embed())
    members = tuple(f"{where}.members.{k}.encoder." for where in ("networks", "kept.network") for k in (0, 1))
    copies = ("encoder.", "teacher.network.") if then == "bgrl" else members
    state = dict(initial.state_dict())
    assert all(same(encoder(state, prefix), encoder(state, copies[0])) for prefix in copies)


def test_values_of_a_replaced_export(small: api.Run, tmp_path: Path) -> None:
    """A start takes the weights that an export's settings are about, not a file that lies beside them."""
    other = fit(tmp_path / "other", steps=1, seed=8, **UNMEASURED)
    small.export("safetensors", tmp_path / "model")
    (tmp_path / "kept").write_bytes((tmp_path / "model" / "model.safetensors").read_bytes())
    other.export("backbone", tmp_path / "model", force=True)
    (tmp_path / "kept").rename(tmp_path / "model" / "model.safetensors")
    run = fit(tmp_path / "run", source=tmp_path / "model", part="backbone", steps=0, **UNMEASURED)
    assert same(encoder(dict(run.method.state_dict())), encoder(dict(other.method.state_dict())))


def test_values_of_labels_in_the_source(small: api.Run, tmp_path: Path) -> None:
    """Weights that labels trained are told of in every form, and through a run in between."""
    tiny = {"steps": 1, "model__norm": "none", "model__activation": "prelu"}
    source = fit(tmp_path / "source", "supervised-graph/generated", **tiny)
    for form in ("safetensors", "backbone"):
        source.export(form, tmp_path / form)
        assert json.loads((tmp_path / form / "config.json").read_text())["provenance"]["supervised"] is True
    between = fit(tmp_path / "between", source=source.path, part="backbone", steps=0)
    assert any("trained with labels" in text for text in between.warnings)
    places = (
        source.path / "model.safetensors",
        source.path / "checkpoints" / "t=00000001.ckpt",
        tmp_path / "safetensors",
        tmp_path / "backbone" / "backbone.safetensors",
        between.path,
        small.path,
    )
    for k, place in enumerate(places):
        part = None if place.suffix == ".ckpt" else "backbone"
        recipe = "supervised-graph/generated" if part is None else RECIPE
        measured = {"evaluation__protocol": "logistic-l2"} if part is None else UNMEASURED
        run = fit(tmp_path / f"run-{k}", recipe, place, part, **{**tiny, "steps": 0, **measured})
        taught = place != small.path
        assert read_json(run.path / "run.json")["from"]["supervised"] is taught, place
        assert any("trained with labels" in text for text in run.warnings) is taught, place


def test_resume_without_the_source(tmp_path: Path) -> None:
    """The source may go: a run killed before, in or after training ends with the same bits."""
    source = fit(tmp_path / "source", steps=2, **UNMEASURED)
    run = fit(tmp_path / "run", source=source.path, part="backbone", steps=4, seed=3, **UNMEASURED)
    shutil.rmtree(source.path)
    names = ("metrics.jsonl", "model.safetensors", "initial.safetensors")
    before = {name: (run.path / name).read_bytes() for name in names}
    for gone in (["checkpoints"], ["checkpoints/t=00000004.ckpt"], []):
        for name in gone:
            path = run.path / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        (run.path / "model.safetensors").unlink()
        leanlabel.resume(run.path, quiet=True)
        assert {name: (run.path / name).read_bytes() for name in names} == before, gone


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "nowhere"], "nowhere: no such run, export or file of weights"),
        (["--from", "RUN", "--part", "tail"], "--part tail: this method has no part of that name"),
        (["--from", "RUN", "--part", "tail"], "Its parts: backbone"),
        (["--part", "backbone"], "--part backbone: of what?"),
        (["--from", "RUN", "--set", "data.noise_words=61", "--set", "model.width=8"], "no tensor fits"),
        (["--from", "EMPTY"], "no such run, export or file of weights"),
    ],
    ids=str,
)
def test_errors_of_a_start(arguments: list[str], message: str, small: api.Run, tmp_path: Path) -> None:
    """Before anything is written."""
    (tmp_path / "empty").mkdir()
    places = {"RUN": small.path, "EMPTY": tmp_path / "empty"}
    given = [places.get(one, one) for one in arguments]
    answer = cli(
        "fit", RECIPE, "--run", tmp_path / "run", *options(steps=1, model__projection=8, **FEW), *given
    )
    assert answer.code == 2
    assert message in answer.err
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


# ------------------------------------------------------------------------------------------- extending


def test_values_of_an_extension(long: api.Run, copy: Path) -> None:
    """Six iterations and six more are twelve, bit for bit; what was measured is measured again."""
    answer = cli("resume", copy, "--set", "steps=12")
    assert answer.code == 0, answer.err
    for name in SAME:
        assert (copy / name).read_bytes() == (long.path / name).read_bytes(), name
    run = leanlabel.load(copy)
    assert run.results["protocols"] == long.results["protocols"]
    assert run.results["t"] == 12
    assert "12 iterations" in (copy / "report.html").read_text(encoding="utf-8")
    (noted,) = read_json(copy / "run.json")["changes"]
    assert noted["keys"] == {"steps": [6, 12]}
    assert noted["date"].startswith("20")
    assert "follows steps" not in answer.out


@pytest.mark.parametrize(("steps", "more"), [(7, 9), (2, 5)])
def test_values_of_a_supervised_extension(steps: int, more: int, tmp_path: Path) -> None:
    """Seven iterations and two more are nine, bit for bit, though validation is looked at after the last one."""
    chosen = {"method__every": 3, "optim__lr": 0.05}
    whole = fit(tmp_path / "whole", "supervised-graph/generated", steps=more, **chosen)
    fit(tmp_path / "run", "supervised-graph/generated", steps=steps, **chosen)
    leanlabel.resume(tmp_path / "run", overrides=[f"steps={more}"], quiet=True)
    last = f"checkpoints/t={more:08d}.ckpt"
    for name in ("metrics.jsonl", "model.safetensors", "readout.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (whole.path / name).read_bytes(), name
    first, second = (checkpoint.load(folder / last).method for folder in (tmp_path / "run", whole.path))
    assert same(first, second)


def test_values_of_an_unfinished_run(long: api.Run, copy: Path) -> None:
    """Stopped after four of six iterations, then asked for twelve; a second change is noted beside the first."""
    (copy / "checkpoints" / "t=00000006.ckpt").unlink()
    (copy / "model.safetensors").unlink()
    leanlabel.resume(copy, overrides=["steps=8"], quiet=True)
    leanlabel.resume(copy, overrides=["steps=12"], quiet=True)
    for name in SAME:
        assert (copy / name).read_bytes() == (long.path / name).read_bytes(), name
    assert [one["keys"] for one in read_json(copy / "run.json")["changes"]] == [
        {"steps": [6, 8]},
        {"steps": [8, 12]},
    ]


@pytest.mark.parametrize("killed", ["before the configuration", "in training"])
def test_resume_of_a_killed_extension(
    killed: str, long: api.Run, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at any point: the folder is a sound run, and the same command ends with the same bits."""

    def kill(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    where: tuple[Any, str] = (extend, "write_text") if killed.startswith("before") else (api, "train")
    monkeypatch.setattr(*where, kill)
    with pytest.raises((KeyboardInterrupt, RunError)):
        leanlabel.resume(copy, overrides=["steps=12"], quiet=True)
    monkeypatch.undo()
    left = leanlabel.load(copy)
    assert left.config.steps == (6 if killed.startswith("before") else 12)
    assert (left.iterations, left.results) == (6, {})
    assert torch.isfinite(left.embed()).all()
    leanlabel.resume(copy, overrides=["steps=12"], quiet=True)
    for name in SAME:
        assert (copy / name).read_bytes() == (long.path / name).read_bytes(), name


def test_values_of_another_measurement(copy: Path) -> None:
    """Evaluation settings: the weights stay, all numbers are new. Engine settings: nothing is measured again."""
    leanlabel.evaluate(copy, "none")
    before, weights = contents(copy), checkpoint.load_weights(copy / "model.safetensors")
    leanlabel.resume(copy, overrides=["engine.keep_last=1", "engine.log_every=3"], quiet=True)
    after = contents(copy)
    changed = {name for name, value in after.items() if before.get(name) != value}
    assert changed <= {"config.yaml", "run.json", "model.safetensors", "report.html", "results.json"}
    run = api.resume(copy, overrides=["evaluation.splits=3"], quiet=True)
    assert same(checkpoint.load_weights(copy / "model.safetensors"), weights)
    assert len(run.results["protocols"]["logistic-l2"]["readouts"]["trained"]["per_split"]) == 3
    assert run.classifier is not None
    assert run.classifier.about["expected"]["splits"] == 3
    run = api.resume(copy, overrides=["evaluation.protocol=none"], quiet=True)
    assert run.results["protocols"] == {}
    assert not (copy / "readout.safetensors").exists()


def test_values_of_a_schedule(tmp_path: Path) -> None:
    """A learning rate that follows the number of steps is told; so is BGRL's momentum."""
    said: list[str] = []
    fit(tmp_path / "cosine", steps=2, optim__schedule="cosine", **UNMEASURED)
    leanlabel.resume(tmp_path / "cosine", overrides=["steps=3"], quiet=True, tell=said.append)
    assert any("optim.schedule=cosine follows steps" in line for line in said)
    said.clear()
    fit(tmp_path / "bgrl", "bgrl/generated", steps=2, optim__schedule="constant", **UNMEASURED)
    leanlabel.resume(tmp_path / "bgrl", overrides=["steps=3"], quiet=True, tell=said.append)
    assert any("momentum follows steps" in line for line in said)


@pytest.mark.parametrize(("every", "told"), [(2, False), (3, True)])
def test_values_of_a_look_at_the_end(every: int, told: bool, tmp_path: Path) -> None:
    """A validation that only the shorter run had, at its end, is told of."""
    said: list[str] = []
    fit(tmp_path / "run", steps=2, evaluation__select="best_val", evaluation__every=every)
    leanlabel.resume(tmp_path / "run", overrides=["steps=4"], quiet=True, tell=said.append)
    assert any("validation after iteration 2" in line for line in said) is told


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["steps=4"], "steps=4: this run has already done 6 iterations. Give 6 or more."),
        (["optim.lr=0.5"], "optim.lr: cannot change once a run has started: a run is one configuration."),
        (["seed=4", "model.width=8"], "model.width: cannot change"),
        (["data.nodes=90"], "data.nodes: cannot change"),
        (["engine.precision=64-true"], "engine.precision: changes the numbers that are computed"),
        (["engine.bf16_products=true"], "engine.bf16_products: changes the numbers"),
        (["evaluation.select=best_val"], "not validated on the way"),
        (["evaluation.protocol=mean"], "there is no protocol 'mean'"),
        (["evaluation.shares=[0.01,0.1,0.89]"], "0 training"),
        (["steps=many"], "steps: expected integer"),
        (["step=12"], "step: unknown key; nearest valid key: steps"),
        (["steps=12", "engine.accelerator=mps"], "engine.accelerator: expected"),
    ],
    ids=str,
)
def test_errors_of_an_extension(assignments: list[str], message: str, copy: Path) -> None:
    """Exit 2 with the reason; the run is as it was."""
    before = contents(copy)
    given = [part for text in assignments for part in ("--set", text)]
    answer = cli("resume", copy, *given)
    assert answer.code == 2
    assert message in " ".join(answer.err.split())
    assert contents(copy) == before


def test_errors_of_selected_weights(tmp_path: Path) -> None:
    """What the choice of the weights rests on stays as it is."""
    fit(tmp_path / "run", steps=2, evaluation__select="best_val", evaluation__every=2)
    with pytest.raises(InputError, match=r"evaluation\.splits: the weights are selected by validation"):
        leanlabel.resume(tmp_path / "run", overrides=["evaluation.splits=3"], quiet=True)
    run = leanlabel.resume(tmp_path / "run", overrides=["steps=4"], quiet=True)
    assert checkpoint.load(run.path / "checkpoints" / "best.ckpt").t in (2, 4)


def test_errors_of_networks_per_split(tmp_path: Path) -> None:
    """A method with a network for each split keeps its splits."""
    fit(tmp_path / "run", "supervised-graph/generated", steps=1)
    with pytest.raises(InputError, match=r"evaluation\.splits: .* the networks of this method depend on it"):
        leanlabel.resume(tmp_path / "run", overrides=["evaluation.splits=3"], quiet=True)


def test_errors_without_checkpoints(copy: Path) -> None:
    """Without them a longer training would start over: refused, the finished model stays."""
    shutil.rmtree(copy / "checkpoints")
    before = contents(copy)
    with pytest.raises(InputError, match=r"its checkpoints are gone.*fit … --from"):
        leanlabel.resume(copy, overrides=["steps=12"], quiet=True)
    assert contents(copy) == before


def test_errors_of_changed_data(tmp_path: Path, file_run: Callable[[Path], Path]) -> None:
    """Noticed before the configuration is touched."""
    data = file_run(tmp_path)
    before = contents(tmp_path / "run")
    data.write_bytes(data.with_name("other.npz").read_bytes())
    with pytest.raises(InputError, match="the data is not what this run was started on"):
        leanlabel.resume(tmp_path / "run", overrides=["steps=3"], quiet=True)
    assert contents(tmp_path / "run") == before


@pytest.fixture
def file_run() -> Callable[[Path], Path]:
    """Makes a run on a file beside another file."""
    from smallrun import arrays, graph_file

    def make(folder: Path) -> Path:
        data = graph_file(folder / "graph.npz")
        graph_file(folder / "other.npz", **arrays(60, seed=4))
        plain = [text for text in overrides(steps=1, **UNMEASURED) if not text.startswith("data.")]
        leanlabel.fit(RECIPE, data=data, run=folder / "run", overrides=plain, quiet=True)
        return data

    return make


def test_values_of_json(copy: Path) -> None:
    answer = cli("resume", copy, "--set", "evaluation.splits=2", "--json")
    assert answer.code == 0
    assert json.loads(answer.out)["run"] == str(copy)
