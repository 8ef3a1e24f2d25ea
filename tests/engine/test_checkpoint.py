"""Checkpoints: whole or not at all, the right ones kept, nothing run from a file, equal bytes for equal states."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from leanlabel.engine import checkpoint
from leanlabel.engine.checkpoint import Checkpoint
from leanlabel.errors import InputError, RunError


def at(t: int, value: float = 0.0, best: dict[str, float] | None = None) -> Checkpoint:
    optimisers = {"main": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}}
    return Checkpoint(t, {"weight": torch.full((2, 2), value), "count": torch.tensor(t)}, optimisers, best)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_values(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, at(7, 1.5, {"score": 0.25, "t": 3.0}), keep_last=2)
    assert path.name == "t=00000007.ckpt"
    found = checkpoint.load(path)
    assert (found.t, found.best) == (7, {"score": 0.25, "t": 3.0})
    assert torch.equal(found.method["weight"], torch.full((2, 2), 1.5))
    assert found.method["count"].dtype == torch.int64
    assert found.optimisers["main"]["param_groups"] == [{"lr": 0.1}]
    assert checkpoint.latest(tmp_path).t == 7  # type: ignore[union-attr]


def test_values_of_what_is_kept(tmp_path: Path) -> None:
    """The newest k, and the best whatever its age; iterations sort as numbers."""
    for t in (9, 10, 11, 100_000_000, 100_000_001):
        checkpoint.save(tmp_path, at(t), keep_last=3, is_best=t == 9)
    assert names(tmp_path) == ["best.ckpt", "t=00000011.ckpt", "t=100000000.ckpt", "t=100000001.ckpt"]
    assert checkpoint.load(tmp_path / "best.ckpt").t == 9
    assert checkpoint.latest(tmp_path).t == 100_000_001  # type: ignore[union-attr]


def test_degenerate(tmp_path: Path) -> None:
    """No folder, an empty one, and files that are not finished checkpoints."""
    assert checkpoint.latest(tmp_path / "none") is None
    for name in ("t=x.ckpt", ".t=00000009.ckpt.12.tmp", "t=00000009.ckpt.tmp", "best.ckpt"):
        (tmp_path / name).write_bytes(b"half")
    assert checkpoint.latest(tmp_path) is None
    checkpoint.save(tmp_path, at(1), keep_last=1)
    assert ".t=00000009.ckpt.12.tmp" not in names(tmp_path)  # what a killed process left is swept


def test_errors_of_damaged_files(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, at(4), keep_last=2)
    content = path.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"\0" * len(content), pickle.dumps([1, 2], 2)):
        path.write_bytes(damaged)
        with pytest.raises(RunError) as caught:
            checkpoint.latest(tmp_path)
        assert str(path) in caught.value.message
        assert "Delete it" in (caught.value.suggestion or "")
    torch.save({"format": 99}, path)
    with pytest.raises(RunError, match="format 99, this version reads 1"):
        checkpoint.load(path)
    torch.save([1], path)
    with pytest.raises(RunError, match="cannot be read"):
        checkpoint.load(path)


class Attack:
    """Unpickling this would run a command."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


def test_errors_code_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "t=00000001.ckpt"
    torch.save(
        {"format": 1, "t": 1, "method": Attack(tmp_path / "ran"), "optimisers": {}, "best": None}, path
    )
    with pytest.raises(RunError):
        checkpoint.load(path)
    assert not (tmp_path / "ran").exists()


def test_errors_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk leaves the earlier checkpoint, and no half one."""
    checkpoint.save(tmp_path, at(4, 1.0), keep_last=1)

    def full(content: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match="No space left on device"):
        checkpoint.save(tmp_path, at(8, 2.0), keep_last=1)
    assert names(tmp_path) == ["t=00000004.ckpt"]
    assert checkpoint.latest(tmp_path).t == 4  # type: ignore[union-attr]


def test_errors_between_best_and_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that names a best comes after that best: a kill between the two cannot lose it."""
    replace = os.replace

    def killed(old: Path, new: Path) -> None:
        if Path(new).name.startswith("t="):
            raise KeyboardInterrupt
        replace(old, new)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, at(5, best={"score": 1.0, "t": 5.0}), keep_last=2, is_best=True)
    assert names(tmp_path) == ["best.ckpt"]


def test_state(tmp_path: Path) -> None:
    """Own copies out, every value back in, and a list of all that does not fit."""
    torch.manual_seed(0)
    linear, norm = nn.Linear(3, 2), nn.BatchNorm1d(2)
    net = nn.Sequential(linear, norm)
    state = checkpoint.state_of(net)
    kept = {name: value.clone() for name, value in state.items()}
    with torch.no_grad():
        linear.weight.add_(1)
    assert torch.equal(state["0.weight"], kept["0.weight"])
    checkpoint.restore(net, state)
    assert all(torch.equal(value, kept[name]) for name, value in net.state_dict().items())
    wrong = {**state, "extra": torch.zeros(1), "0.weight": torch.zeros(5, 5)}
    del wrong["0.bias"]
    with pytest.raises(InputError) as caught:
        checkpoint.restore(net, wrong)
    for part in (
        "0.bias is missing",
        "extra is unknown",
        "0.weight has shape (5, 5), expected (2, 3)",
    ):
        assert part in caught.value.message
    assert torch.equal(net.state_dict()["1.running_mean"], kept["1.running_mean"])


def test_weights(tmp_path: Path) -> None:
    """Equal weights are equal files, byte by byte; a damaged file is named."""
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    net.register_buffer("shared", net.weight.detach()[:1].t())  # neither contiguous nor its own storage
    about = {"method": "sample", "weights": "last", "config": {"steps": 3}}
    for name in ("a", "b"):
        checkpoint.save_weights(tmp_path / name, net, about)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    found = checkpoint.load_weights(tmp_path / "a")
    assert all(torch.equal(found[name], value) for name, value in net.state_dict().items())
    (tmp_path / "a").write_bytes((tmp_path / "b").read_bytes()[:30])
    for name in ("a", "missing"):
        with pytest.raises(InputError, match=f"{name}: cannot be read as safetensors"):
            checkpoint.load_weights(tmp_path / name)
