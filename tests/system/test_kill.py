"""Real processes, killed by SIGKILL at every kind of moment, resumed, and compared bit by bit."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from leanlabel.engine import checkpoint

SETTINGS = {
    "steps": 12,
    "data.nodes": 80,
    "data.draws": 300,
    "data.noise_words": 60,
    "engine.checkpoint_every": 4,
    "engine.threads": 1,
    "engine.loggers": "[]",
}

# Each patch makes the process kill itself at one moment; what it kills is the real thing.
KILLS = {
    "before the first iteration": """
from leanlabel.methods.gca import GCA
GCA.batches = lambda self, start: die()
""",
    "in the middle of an iteration": """
from leanlabel.methods.gca import GCA
update = GCA.update
def guarded(self, loss, which="main"):
    if self._updater.t == 9:
        die()
    update(self, loss, which)
GCA.update = guarded
""",
    "while a checkpoint is being written": """
import torch
save = torch.save
def half(content, path):
    save(content, path)
    if content["t"] == 8:
        with open(path, "rb+") as file:
            file.truncate(path.stat().st_size // 2)
        die()
torch.save = half
""",
    "after a checkpoint was written, before it has its name": """
import os
replace = os.replace
def guarded(old, new):
    if str(new).endswith("t=00000008.ckpt"):
        die()
    replace(old, new)
os.replace = guarded
""",
    "between training and evaluation": """
from leanlabel.engine.method import Method
Method.evaluate = lambda *_, **__: die()
""",
}

START = """
import os, signal, sys
def die():
    os.kill(os.getpid(), signal.SIGKILL)
{patch}
from leanlabel.cli import main
main(sys.argv[1:])
"""


def command(*arguments: str, patch: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", START.format(patch=patch), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def fit_arguments(run: Path) -> list[str]:
    pairs = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    return ["fit", "gca/generated", "--run", str(run), *pairs]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    done = command(*fit_arguments(run))
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.slow
@pytest.mark.parametrize("moment", list(KILLS))
def test_resume_after_sigkill(moment: str, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    killed = command(*fit_arguments(run), patch=KILLS[moment])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (run / "results.json").exists()
    kept = checkpoint.latest(run / "checkpoints")  # whatever is there can be read
    resumed = command("resume", str(run))
    assert resumed.returncode == 0, resumed.stderr
    assert kept is None or kept.t in (4, 8, 12)
    for name in ("metrics.jsonl", "model.safetensors", "results.json", "config.yaml", "data.json"):
        left, right = (whole / name).read_bytes(), (run / name).read_bytes()
        if name == "results.json":  # it also holds seconds
            left, right = (
                b"\n".join(x for x in text.split(b"\n") if b"seconds" not in x) for text in (left, right)
            )
        assert left == right, name
    assert load_file(run / "model.safetensors").keys() == load_file(whole / "model.safetensors").keys()
    assert not list(run.rglob("*.tmp"))


@pytest.mark.slow
def test_disk_full_while_saving(tmp_path: Path) -> None:
    """A file-size limit stands in for a full disk: the earlier checkpoint is intact, and the run can go on."""
    run = tmp_path / "run"
    patch = """
import resource
from leanlabel.engine import checkpoint
save = checkpoint.save
def limited(folder, content, **rest):
    if content.t == 8:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    return save(folder, content, **rest)
checkpoint.save = limited
"""
    failed = command(*fit_arguments(run), patch=patch)
    assert failed.returncode == 1
    assert "could not be written" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert checkpoint.latest(run / "checkpoints").t == 4
    assert command("resume", str(run)).returncode == 0


@pytest.mark.slow
def test_two_processes_equal_one(whole: Path, tmp_path: Path) -> None:
    """The command line with two CPU processes: the same losses and weights as one process, up to rounding."""
    run = tmp_path / "two"
    extra = [
        "--set",
        "engine.devices=2",
        "--set",
        "engine.accelerator=cpu",
        "--set",
        "engine.precision=64-true",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "leanlabel", *fit_arguments(run), *extra],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    alone = tmp_path / "one"
    assert command(*fit_arguments(alone), "--set", "engine.precision=64-true").returncode == 0
    one, two = (load_file(folder / "model.safetensors") for folder in (alone, run))
    for name, value in one.items():
        assert float((two[name] - value).abs().max()) <= 1e-6 * float(value.abs().max()) + 1e-9, name
