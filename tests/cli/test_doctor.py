"""``leanlabel doctor``, its check of the arithmetic, and the completion of words in a shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from leanlabel import verify
from leanlabel.cli import doctor
from leanlabel.recipe import packaged_recipes
from leanlabel.verify import gca
from leanlabel.verify.case import PRECISIONS
from smallrun import cli


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LEANLABEL_DATA", raising=False)


# --------------------------------------------------------------------------------------------------- doctor


def test_values_diagnosis() -> None:
    found = json.loads(cli("doctor", "--json").out)
    assert found["disk"]["total"] > found["disk"]["free"] >= 0
    assert set(found["optional"]) == set(doctor.OPTIONAL)
    assert found["optional"]["torch_geometric"]
    assert "verify" not in found
    table = cli("doctor").out
    assert "GiB free of" in table
    assert "torch_geometric" in table
    assert "known answers" not in table


def test_degenerate_diagnosis(monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder that is gone, and packages that are missing."""

    def gone(path: str) -> None:
        raise FileNotFoundError(path)

    monkeypatch.setattr("shutil.disk_usage", gone)
    monkeypatch.setattr(doctor, "OPTIONAL", ("no-such-package",))
    found = json.loads(cli("doctor", "--json").out)
    assert found["disk"] is None
    assert found["optional"] == {"no-such-package": None}
    table = cli("doctor")
    assert table.code == 0
    assert "unknown" in table.out
    assert "no-such-package" not in table.out


# ------------------------------------------------------------------------------------------------- --verify


def test_values_verify() -> None:
    """By default every system on the best device in float32 and float64."""
    answer = cli("doctor", "--verify", "--json")
    assert answer.code == 0, answer.err
    rows = json.loads(answer.out)["verify"]
    assert [(row["system"], row["precision"]) for row in rows] == [
        (system, precision) for precision in ("float32", "float64") for system in verify.TABLE
    ]
    best = "cuda" if torch.cuda.is_available() else "cpu"
    for row in rows:
        assert row["ok"]
        assert row["failed"] == []
        assert row["device"] == best
        assert 0 <= row["largest"] <= row["tolerance"] == PRECISIONS[row["precision"]][1]
        assert row["cases"] > 0
    threads = torch.get_num_threads()
    assert threads == min(2, threads) or best == "cuda"  # left as it was


def test_values_verify_table() -> None:
    answer = cli(
        "doctor", "--verify", "--device", "cpu", "--precision", "bfloat16", "--precision", "bfloat16"
    )
    assert answer.code == 0
    (line,) = [line for line in answer.out.splitlines() if line.startswith("gca ")]
    assert line.split()[1:4] == ["cpu", "bfloat16", str(len(gca.cases()))]
    assert line.split()[-1] == "ok"
    assert "LEANLABEL_DATA" in answer.out


def test_values_verify_sabotaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """One wrong number is named, and the command ends with 1."""
    right = gca.degree

    def wrong(adjacency: object) -> Tensor:
        return right(adjacency) + torch.tensor([0, 0, 0, 0, 0.01])  # type: ignore[arg-type]

    monkeypatch.setattr(gca, "degree", wrong)
    answer = cli("doctor", "--verify", "--device", "cpu")
    assert answer.code == 1
    assert "FAILED: gca, float32: degree: relative deviation 0.0033 (counted by hand)" in answer.out
    assert answer.out.count("FAILED\n") == 2
    found = json.loads(cli("doctor", "--verify", "--device", "cpu", "--json").out)["verify"]
    assert [row["ok"] for row in found if row["system"] == "gca"] == [False, False]
    assert all(row["ok"] for row in found if row["system"] != "gca")
    assert "degree" in [one["name"] for one in found[0]["failed"]]


def test_values_verify_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A case that cannot even be computed is a failed one with its reason, not a fault of the command."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(gca, "drop_probabilities", broken)
    answer = cli("doctor", "--verify", "--device", "cpu", "--precision", "float64")
    assert answer.code == 1
    assert "edge drop probabilities: degree, sink: RuntimeError: no such kernel" in answer.out
    assert "Traceback" not in answer.err


def test_errors() -> None:
    for wrong in (["--device", "cpu"], ["--precision", "float32"]):
        answer = cli("doctor", *wrong)
        assert answer.code == 2
        assert "Add --verify." in answer.err
    for wrong in (["--device", "tpu"], ["--precision", "float8"]):
        assert cli("doctor", "--verify", *wrong).code == 2
    if not torch.cuda.is_available():
        answer = cli("doctor", "--verify", "--device", "cuda")
        assert answer.code == 2
        assert "no GPU can be used here" in answer.err
        assert answer.out == ""


def test_precisions_are_the_same() -> None:
    assert [one.value for one in doctor.Precision] == list(PRECISIONS)


# ----------------------------------------------------------------------------------------------- completion


def asked(monkeypatch: pytest.MonkeyPatch, *words: str, shell: str = "bash") -> list[str]:
    """What a shell offers for the last of the words; the others are typed already."""
    typed = " ".join(("leanlabel", *words))
    monkeypatch.setenv("_LEANLABEL_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", typed)
    return cli().out.split()


def test_completion_of_verbs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch, "do") == ["doctor"]
    offered = asked(monkeypatch, "")
    assert {"recipes", "show", "fit", "resume", "evaluate", "compare", "report", "doctor", "data"} <= set(
        offered
    )
    assert asked(monkeypatch, "doctor", "--ver") == ["--verify"]
    assert asked(monkeypatch, "doctor", "--precision", "fl") == ["float64", "float32", "float16"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_in_shells(monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    assert "gca/cora-corrected" in " ".join(asked(monkeypatch, "show", "gca/cora-", shell=shell))


@pytest.mark.parametrize("verb", ["show", "fit", "compare"])
def test_completion_of_recipes(monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    known = list(packaged_recipes())
    assert asked(monkeypatch, verb, "gca/cora") == [name for name in known if name.startswith("gca/cora")]
    assert asked(monkeypatch, verb, "") == known
    assert asked(monkeypatch, verb, "my_file.y") == []  # then the shell offers files


def test_completion_of_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch, "recipes", "--task", "gr") == ["graph"]
    assert asked(monkeypatch, "recipes", "--task", "x") == []


def test_completion_is_light() -> None:
    """Whoever presses the tab key does not wait for torch."""
    code = (
        "import sys\n"
        "from leanlabel.cli import main\n"
        "try:\n"
        "    main([])\n"
        "finally:\n"
        "    heavy = {'torch', 'numpy', 'sklearn', 'scipy', 'rich', 'lightning_fabric'} & set(sys.modules)\n"
        "    print('heavy:', sorted(heavy))\n"
    )
    words = {
        "_LEANLABEL_COMPLETE": "complete_bash",
        "COMP_WORDS": "leanlabel show gca/gen",
        "COMP_CWORD": "2",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        encoding="utf-8",
        check=True,
        env={**os.environ, **words},
        timeout=60,
    )
    assert done.stdout.splitlines() == ["gca/generated", "heavy: []"]
