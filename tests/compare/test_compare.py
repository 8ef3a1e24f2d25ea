"""Comparisons: which runs there are, that none is made twice, that a stop loses nothing, and the table."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from leanlabel import compare
from leanlabel.compare import queue
from leanlabel.compare.jobs import lay_out, plan
from leanlabel.compare.records import recorded
from leanlabel.compare.request import PLAIN, Request, dial_points, grid_points
from leanlabel.compare.summary import is_comparison, main_value
from leanlabel.config import to_yaml
from leanlabel.engine.runfolder import read_json, read_lines
from leanlabel.errors import InputError
from leanlabel.recipe import read_recipe
from smallrun import RECIPE, arrays, cli, graph_file, overrides

QUICK = overrides(steps=2, augment__scheme="uniform", data__nodes=60)
"""Two iterations without a stage; the `grace` arm is then the same configuration as the main one."""


def go(out: Path, arms: tuple[str, ...] = ("gca-generated", "raw"), **changes: Any) -> dict[str, Any]:
    return compare.run(
        [RECIPE], **{"seeds": 1, "overrides": QUICK, "only": arms, "out": out, "quiet": True, **changes}
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Two arms, two seeds; tests look at it or at a copy."""
    out = tmp_path_factory.mktemp("compare") / "out"
    return out, go(out, seeds=2)


@pytest.fixture
def copied(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    shutil.copytree(finished[0], tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders of the runs that are started or gone on with."""
    seen: list[str] = []
    real_fit, real_resume = queue.api.fit, queue.api.resume

    def fit(recipe: Any, **options: Any) -> Any:
        seen.append("/".join(options["run"].parts[-2:]))
        return real_fit(recipe, **options)

    def resume(run: Any, **options: Any) -> Any:
        seen.append("resume " + "/".join(Path(run).parts[-2:]))
        return real_resume(run, **options)

    monkeypatch.setattr(queue.api, "fit", fit)
    monkeypatch.setattr(queue.api, "resume", resume)
    return seen


# ------------------------------------------------------------------------------------------------- plan


def test_values_plan() -> None:
    """Every arm has its first seed before any has its second; seeds count up from the recipe's."""
    jobs = plan([RECIPE], seeds=2, overrides=["seed=5"])
    assert [(job.arm, job.seed) for job in jobs] == [
        (arm, seed) for seed in (5, 6) for arm in ("gca-generated", "raw", "untrained", "grace")
    ]
    assert [job.baseline for job in jobs[:4]] == [False, True, True, True]
    configs = {job.arm: job.config for job in jobs[:4]}
    assert configs["raw"].steps == configs["untrained"].steps == 0
    assert (configs["raw"].evaluation.readout, configs["untrained"].evaluation.readout) == (
        "raw",
        "untrained",
    )
    assert configs["grace"].augment.scheme == "uniform"  # type: ignore[attr-defined]
    assert len({job.key for job in jobs}) == 8


def test_values_overrides_reach_every_arm_but_keep_what_makes_it() -> None:
    jobs = plan([RECIPE], seeds=1, overrides=["steps=7", "augment.scheme=pagerank", "optim.lr=0.25"])
    assert {job.config.optim.lr for job in jobs} == {0.25}
    assert [job.config.steps for job in jobs] == [7, 0, 0, 7]
    assert [job.config.augment.scheme for job in jobs][0::3] == ["pagerank", "uniform"]  # type: ignore[attr-defined]
    assert [job.arm for job in plan([RECIPE], seeds=1, baselines=False)] == ["gca-generated"]


def test_values_several_recipes(tmp_path: Path) -> None:
    """Names of arms never clash; baselines that differ are arms of their own."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        text = f"base: {RECIPE}\nsteps: {3 if folder == 'a' else 4}\n"
        (tmp_path / folder / "raw.yaml").write_text(text)
    names = [str(tmp_path / folder / "raw.yaml") for folder in ("a", "b")]
    jobs = plan(names, seeds=1)
    assert len({job.arm for job in jobs}) == len(jobs)
    assert [job.arm for job in jobs if not job.baseline] == ["raw", "raw-2"]


def test_values_names_of_arms_are_folders(tmp_path: Path) -> None:
    """On every system: no device, no folder of the comparison's own, none that differs by upper and lower case only."""
    names = []
    for place, stem in enumerate(("stages", "Aux", "Mine", "mine", "Grace")):
        (tmp_path / str(place)).mkdir()
        file = tmp_path / str(place) / f"{stem}.yaml"
        file.write_text(f"base: {RECIPE}\nsteps: {place + 2}\n", encoding="utf-8")
        names.append(str(file))
    jobs = plan(names, seeds=1)
    assert [job.arm for job in jobs if not job.baseline] == ["_stages", "_Aux", "Mine", "mine-2", "Grace"]
    arms = [job.arm.casefold() for job in jobs]
    assert len(set(arms)) == len(arms)
    with pytest.raises(InputError, match="--variant RAW: there is an arm of this name"):
        plan([RECIPE], variants=["RAW:steps=9"])


def test_values_keys() -> None:
    """What can change the result is in the key, what cannot is not."""

    def key(*changes: str) -> str:
        return plan([RECIPE], seeds=1, overrides=changes, baselines=False)[0].key

    plain = key()
    for same in ("about=other", "engine.devices=2", "engine.checkpoint_every=7", "engine.workers=3"):
        assert key(same) == plain, same
    for other in (
        "optim.lr=0.1",
        "seed=1",
        "data.nodes=50",
        "evaluation.splits=3",
        "engine.precision=64-true",
    ):
        assert key(other) != plain, other


def test_errors_plan() -> None:
    with pytest.raises(InputError, match="--arm nope, x: no such arm"):
        plan([RECIPE], only=["raw", "nope", "x"])
    with pytest.raises(InputError, match="steps: expected integer"):
        plan([RECIPE], overrides=["steps=x"])
    with pytest.raises(InputError, match="Unknown recipe"):
        plan([RECIPE, "gca/nope"])


# -------------------------------------------------------------------------------------------------- run


def test_values(finished: tuple[Path, dict[str, Any]]) -> None:
    """The table, the pairs, the files."""
    out, found = finished
    assert [(arm["name"], arm["n"]) for arm in found["arms"]] == [("gca-generated", 2), ("raw", 2)]
    rows = list(recorded(out / "results.jsonl").values())
    assert [(row["arm"], row["seed"]) for row in rows] == [
        ("gca-generated", 0),
        ("raw", 0),
        ("gca-generated", 1),
        ("raw", 1),
    ]
    main = [main_value(row) for row in rows if row["arm"] == "gca-generated"]
    assert found["arms"][0]["mean"] == pytest.approx(sum(main) / 2, rel=1e-10)
    readouts = rows[1]["results"]["protocols"]["logistic-l2"]["readouts"]
    assert main_value(rows[1]) == readouts["raw"]["mean"]
    (pair,) = found["pairs"]
    assert (pair["arm"], pair["against"], pair["n"]) == ("gca-generated", "raw", 2)
    means = [arm["mean"] for arm in found["arms"]]
    assert pair["difference"] == pytest.approx(means[0] - means[1], rel=1e-10)
    assert pair["low"] < pair["difference"] < pair["high"]
    assert found["pending"] == []
    assert found["protocol"] == "logistic-l2"
    assert found["split"] == "random (2 per seed)"
    assert [curve["t"] for curve in found["curves"]["gca-generated"]] == [[0, 1], [0, 1]]
    assert (out / "raw" / "seed-1" / "report.html").exists()
    assert {"comparison.csv", "pairs.csv", "comparison.json"} <= {path.name for path in out.iterdir()}
    assert all(row["seconds"] > 0 and row["resumed"] is False for row in rows)
    assert is_comparison(out)
    assert not is_comparison(out / "raw")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "gca-generated" in page
    assert read_json(out / "comparison.json")["pairs"] == found["pairs"]


def test_state_nothing_is_made_twice(copied: Path, fits: list[str]) -> None:
    """Finished rows stand, with the run folders gone too; only the new seed runs."""
    for arm in ("gca-generated", "raw"):
        shutil.rmtree(copied / arm)
    before = (copied / "results.jsonl").read_text()
    found = go(copied, seeds=2)
    assert fits == []
    assert found["pending"] == []
    assert (copied / "results.jsonl").read_text() == before
    go(copied, ("raw",), seeds=3)
    assert fits == ["raw/seed-2"]
    assert (copied / "results.jsonl").read_text().startswith(before)


def test_state_results_elsewhere(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, fits: list[str]
) -> None:
    """The results file alone carries a comparison to another machine."""
    found = go(tmp_path / "other", seeds=2, results=finished[0] / "results.jsonl")
    assert fits == []
    assert found["arms"][0]["mean"] == finished[1]["arms"][0]["mean"]
    assert found["curves"]["gca-generated"][0]["t"] == []


def test_state_killed_between_runs(tmp_path: Path, fits: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was recorded stands; a run that was finished but not recorded is not trained again."""
    real = queue.record

    def killed(file: Path, job: Any, *rest: Any) -> None:
        if job.arm == "raw":
            raise KeyboardInterrupt
        real(file, job, *rest)

    monkeypatch.setattr(queue, "record", killed)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path)
    assert [row["arm"] for row in read_lines(tmp_path / "results.jsonl")] == ["gca-generated"]
    monkeypatch.setattr(queue, "record", real)
    fits.clear()
    found = go(tmp_path)
    assert fits == ["resume raw/seed-0"]
    assert [row["resumed"] for row in read_lines(tmp_path / "results.jsonl")] == [False, True]
    assert [arm["n"] for arm in found["arms"]] == [1, 1]


def test_state_killed_while_recording(copied: Path, fits: list[str]) -> None:
    """Half a row is dropped, its run found again, and the rows that follow are kept."""
    file = copied / "results.jsonl"
    whole = file.read_text().splitlines(keepends=True)
    file.write_text("".join(whole[:3]) + whole[3][:-50])
    go(copied, seeds=2)
    assert fits == ["resume raw/seed-1"]
    assert len(recorded(file)) == 4
    fits.clear()
    go(copied, seeds=2)
    assert fits == []


def test_state_other_settings_in_the_same_folder(copied: Path, fits: list[str]) -> None:
    """Runs of other settings do not overwrite each other, and every table shows its own curves."""
    longer = [*QUICK, "steps=4"]
    found = go(copied, ("gca-generated",), overrides=longer)
    (name,) = fits
    assert name.startswith("gca-generated/seed-0-")
    assert found["curves"]["gca-generated"][0]["t"] == [0, 1, 2, 3]
    again = go(copied, ("gca-generated",))
    assert again["curves"]["gca-generated"][0]["t"] == [0, 1]
    assert len(fits) == 1


def test_values_variant_runs(copied: Path, fits: list[str]) -> None:
    """A variant is a run of its own beside those that are there."""
    found = go(copied, ("gca-generated", "cold", "raw"), variants=["cold:method.tau=0.1"])
    assert fits == ["cold/seed-0"]
    assert [(pair["arm"], pair["against"]) for pair in found["pairs"]] == [
        ("gca-generated", "cold"),
        ("gca-generated", "raw"),
        ("cold", "raw"),
    ]


def test_values_dial_runs(copied: Path, fits: list[str]) -> None:
    """Runs of a dial lie in folders of their settings; those of the plain comparison are used where they are equal."""
    found = go(copied, ("gca-generated",), dial="method.tau=0.4,0.5")
    assert fits == ["tau=0.5/seed-0"]
    assert (copied / "gca-generated" / "tau=0.5" / "seed-0" / "config.yaml").exists()
    assert [curve["t"] for curve in found["curves"]["gca-generated"]] == [[0, 1], [0, 1]]
    assert [curve["label"] for curve in found["curves"]["gca-generated"]] == ["tau=0.4", "tau=0.5"]


def test_state_tuning_passes_a_loss_that_is_not_finite(tmp_path: Path, fits: list[str]) -> None:
    """A learning rate far too high is left out of the choice, and not tried again."""
    settings: dict[str, Any] = {"grid": ["optim.lr=1e30,0.01"], "arms": ("gca-generated",)}
    found = go(tmp_path, **settings)
    first, second = found["tuning"]["arms"][0]["points"]
    assert "is not finite" in first["stopped"]
    assert 0 < second["score"] <= 1
    assert found["tuning"]["arms"][0]["chosen"] == "lr=0.01"
    assert go(tmp_path, **settings)["arms"][0]["n"] == 1
    assert fits == ["lr=1e30/seed-0", "lr=0.01/seed-0"]


def test_state_one_arm_diverges(tmp_path: Path, fits: list[str]) -> None:
    """It stops for good, the others go on; the next call passes it over unless its settings have changed."""
    hot = {
        "variants": ["hot:optim.lr=1e38", "warm:optim.lr=1e30"],
        "arms": ("gca-generated", "hot", "warm", "raw"),
    }
    found = go(tmp_path, **hot)
    assert fits == ["gca-generated/seed-0", "hot/seed-0", "warm/seed-0", "raw/seed-0"]
    assert {arm["name"]: arm["n"] for arm in found["arms"]} == {
        "gca-generated": 1,
        "hot": 0,
        "warm": 0,
        "raw": 1,
    }
    assert [one["run"] for one in found["stopped"]] == ["hot, seed 0", "warm, seed 0"]
    assert "update is not finite" in found["stopped"][0]["reason"]
    assert "is not finite" in found["stopped"][1]["reason"]
    assert found["pending"] == []
    assert "stopped: hot, seed 0: " in (tmp_path / "report.html").read_text(encoding="utf-8")
    sets = [part for text in QUICK for part in ("--set", text)]
    base = ("compare", RECIPE, "--seeds", "1", "--out", tmp_path, "--arm", "raw", *sets)
    answer = cli(*base, "--variant", "hot:optim.lr=1e38", "--arm", "hot")
    assert answer.code == 1
    assert "hot (1 stopped)" in answer.out
    assert "stopped: hot, seed 0: Iteration 0: the update is not finite" in answer.out
    assert len(fits) == 4
    assert cli(*base, "--variant", "hot:optim.lr=0.5", "--arm", "hot").code == 0
    assert fits[4].startswith("hot/seed-0-")


def test_state_embeddings_that_are_not_finite(tmp_path: Path, fits: list[str]) -> None:
    """The last update can spoil what no loss sees any more."""
    found = go(tmp_path, ("gca-generated", "raw"), overrides=[*QUICK, "steps=1", "optim.lr=1e30"])
    assert [one["run"] for one in found["stopped"]] == ["gca-generated, seed 0"]
    assert "not finite" in found["stopped"][0]["reason"]
    assert {arm["name"]: arm["n"] for arm in found["arms"]} == {"gca-generated": 0, "raw": 1}


def test_state_data_has_changed(tmp_path: Path, fits: list[str]) -> None:
    """Runs on other data of the same place are left alone, and everything is run again beside them."""
    path = graph_file(tmp_path / "g.npz")
    settings: dict[str, Any] = {
        "arms": ("raw",),
        "data": [str(path)],
        "overrides": [text for text in QUICK if not text.startswith("data.")],
    }
    go(tmp_path / "out", **settings)
    graph_file(path, x=arrays(seed=1)["x"])
    found = go(tmp_path / "out", **settings)
    assert found["arms"][0]["n"] == 1
    assert fits[0] == "raw/seed-0"
    assert fits[1].startswith("raw/seed-0-")
    go(tmp_path / "out", **settings)
    assert len(fits) == 2


def test_values_default_folder(tmp_path: Path) -> None:
    """Recipes of one name of two methods do not share a folder."""
    (tmp_path / "my graph.yaml").write_text(f"base: {RECIPE}\n", encoding="utf-8")
    names = ["gca/generated", "bgrl/generated", str(tmp_path / "my graph.yaml")]
    assert [queue.folder_of(Request([name])).as_posix() for name in names] == [
        "runs/compare/gca-generated",
        "runs/compare/bgrl-generated",
        "runs/compare/my graph",
    ]


def test_degenerate_no_time(tmp_path: Path, fits: list[str]) -> None:
    """--minutes 0 starts nothing, says so, and still writes table and page."""
    said: list[str] = []
    found = go(tmp_path, minutes=0, tell=said.append)
    assert fits == []
    assert said == ["Stopped after 0 minutes; the same command goes on."]
    assert found["pending"] == ["gca-generated, seed 0", "raw, seed 0"]
    assert [arm["mean"] for arm in found["arms"]] == [None, None]
    assert (tmp_path / "report.html").exists()
    assert go(tmp_path, ("raw",))["pending"] == []


def test_degenerate_equal_arms(tmp_path: Path, fits: list[str]) -> None:
    """Two arms of one configuration are one arm; asking for either name is asking for it."""
    found = go(tmp_path, ("gca-generated", "grace"))
    assert fits == ["gca-generated/seed-0"]
    assert [arm["name"] for arm in found["arms"]] == ["gca-generated"]
    assert found["pairs"] == []


def test_errors_nothing_to_compare(tmp_path: Path, fits: list[str]) -> None:
    """Without a result to compare, the queue stops after the first run, not after the last."""
    with pytest.raises(InputError, match="no result of protocol none"):
        go(tmp_path / "none", seeds=3, overrides=[*QUICK, "evaluation.protocol=none"])
    assert len(fits) == 1
    fits.clear()
    with pytest.raises(InputError, match=r"evaluation\.readout: expected 'trained', 'untrained' or 'raw'"):
        go(tmp_path / "readout", ("gca-generated",), seeds=3, overrides=[*QUICK, "evaluation.readout=rawe"])
    assert not fits
    path = graph_file(tmp_path / "g.npz", y=None)
    plain = [text for text in QUICK if not text.startswith("data.")]
    with pytest.raises(InputError, match="Comparisons need labels"):
        go(tmp_path / "unlabelled", ("raw",), seeds=3, data=[str(path)], overrides=plain)
    assert len(fits) == 1


# -------------------------------------------------------------------------------------------- front door


def test_command_line(copied: Path) -> None:
    sets = [part for text in QUICK for part in ("--set", text)]
    arguments = [
        "compare",
        RECIPE,
        "--seeds",
        "2",
        "--out",
        copied,
        "--arm",
        "gca-generated",
        "--arm",
        "raw",
        *sets,
    ]
    answer = cli(*arguments)
    assert answer.code == 0, answer.err
    for part in ("gca-generated - raw", "logistic-l2", "95 % low", f"report      {copied / 'report.html'}"):
        assert part in answer.out
    assert "not run" not in answer.out
    found = json.loads(cli(*arguments, "--json").out)
    assert [arm["n"] for arm in found["arms"]] == [2, 2]
    (copied / "report.html").unlink()
    assert cli("report", copied).code == 0
    assert (copied / "report.html").exists()
    stopped = cli(*[part if part != "2" else "3" for part in arguments], "--minutes", "0")
    assert stopped.code == 0
    assert "Stopped after 0 minutes" in stopped.out
    assert "not run: raw, seed 2" in stopped.out


def test_shown_recipe_is_the_same_arm(tmp_path: Path) -> None:
    """A recipe and its printed complete form have the same key: recorded results hold for both."""
    (job,) = plan([RECIPE], seeds=1, baselines=False)
    path = tmp_path / "complete.yaml"
    path.write_text(to_yaml(job.config), encoding="utf-8")
    (again,) = plan([str(path)], seeds=1, baselines=False)
    assert again.key == job.key
    assert read_recipe(path).values["steps"] == 80


# --------------------------------------------------------------------------------- commands that wait to be run


def waiting_commands() -> list[str]:
    """Comparisons in the queue for a GPU and in the scripts of the proofs, one a line."""
    root = Path(__file__).parents[2] / "proofs"
    found = []
    for path in (root / "gpu.queue", *root.glob("*/run.sh")):
        joined = path.read_text(encoding="utf-8").replace("\\\n", " ")
        named = re.findall(r"""^(\w+)=(?:\((.*)\)|"([^"$]*)")$""", joined, re.MULTILINE)
        for line in joined.splitlines():
            if line.startswith("leanlabel compare"):
                for name, several, one in named:
                    line = line.replace(f'"${{{name}[@]}}"', several).replace(f"${name}", one)
                found.append(line)
    return found


@pytest.mark.parametrize("line", waiting_commands())
def test_waiting_commands_can_be_planned(line: str) -> None:
    lists = ("overrides", "only", "data", "variants", "grid")
    fields = dict(zip(("--set", "--arm", "--data", "--variant", "--grid"), lists))
    fields |= {f"--{name.replace('_', '-')}": name for name in ("seeds", "grid_seeds", "dial", "against")}
    fields |= dict.fromkeys(("--out", "--results", "--minutes"), "")
    words, recipes, given = shlex.split(line)[2:], [], {}
    while words:
        word = words.pop(0)
        if word == "--no-baselines":
            given["baselines"] = False
        elif word not in fields:
            recipes.append(word)
        elif fields[word] in lists:
            given.setdefault(fields[word], []).append(words.pop(0))
        else:
            value = words.pop(0)
            given |= {fields[word]: int(value) if value.isdigit() else value} if fields[word] else {}
    request = Request(recipes, **given)
    points = (
        dial_points(request.dial) if request.dial else grid_points(request.grid) if request.grid else [PLAIN]
    )
    assert len(lay_out(request, points).jobs) >= 2 * request.seeds
