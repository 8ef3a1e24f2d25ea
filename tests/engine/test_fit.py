"""The loop: resume bit for bit, ranks, several optimisers, stops."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
import toymethod as toy

from leanlabel import dist
from leanlabel.config import EngineSettings, OptimSettings
from leanlabel.engine import checkpoint
from leanlabel.engine import fit as fit_file
from leanlabel.engine.fit import Interrupted
from leanlabel.engine.runfolder import RunFolder, read_lines
from leanlabel.errors import RunError


def equal(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_values_of_an_iteration(tmp_path: Path) -> None:
    """The schedule reaches the optimisers, and both networks and the bank move."""
    cfg = toy.toy_config()
    start = toy.state(toy.build(cfg))
    end = toy.state(toy.run(tmp_path, cfg))
    for name in ("student.0.weight", "critic.weight", "bank", "student.1.running_mean"):
        assert not torch.equal(start[name], end[name])
    rows = read_lines(tmp_path / "metrics.jsonl")
    assert [row["t"] for row in rows] == list(range(6))
    assert set(rows[0]) == {"t", "fit", "spread", "critic"}


def test_seeds(tmp_path: Path) -> None:
    cfg = toy.toy_config(method={"dropout": 0.3})
    first, second = toy.run(tmp_path / "a", cfg), toy.run(tmp_path / "b", cfg)
    assert equal(toy.state(first), toy.state(second))
    other = toy.run(tmp_path / "c", toy.toy_config(seed=1, method={"dropout": 0.3}))
    assert not equal(toy.state(first), toy.state(other))


@pytest.mark.parametrize("workers", [0, 1])
def test_resume_is_bit_exact(tmp_path: Path, workers: int) -> None:
    """3 steps, save, load into fresh objects, 3 more = 6 steps; dropout and a loader with workers included."""
    settings = EngineSettings(loggers=(), checkpoint_every=3, workers=workers)
    cfg = toy.toy_config(method={"dropout": 0.3}, engine=settings)
    whole = toy.run(tmp_path / "whole", toy.toy_config(method={"dropout": 0.3}))
    toy.run(tmp_path / "parts", cfg, steps=5)  # iterations 3 and 4 are lost with the process
    assert checkpoint.latest(tmp_path / "parts" / "checkpoints").t == 3
    resumed = toy.run(tmp_path / "parts", cfg)
    assert equal(toy.state(whole), toy.state(resumed))
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "parts/metrics.jsonl").read_bytes()


def test_resume_with_half_a_metrics_line(tmp_path: Path) -> None:
    cfg = toy.toy_config()
    toy.run(tmp_path / "whole", cfg)
    toy.run(tmp_path / "cut", cfg, steps=4)
    with open(tmp_path / "cut/metrics.jsonl", "a") as file:
        file.write('{"t": 4, "fit": 0.1')
    toy.run(tmp_path / "cut", cfg)
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "cut/metrics.jsonl").read_bytes()


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    cfg = toy.toy_config()
    toy.run(tmp_path, cfg)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    toy.run(tmp_path, cfg)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}


def test_dry_step_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = toy.toy_config(method={"dropout": 0.3})
    plain = toy.run(tmp_path / "plain", cfg)
    monkeypatch.setattr(fit_file, "LONG_RUN", 1)
    dry = toy.run(tmp_path / "dry", cfg)
    assert equal(toy.state(plain), toy.state(dry))
    assert (tmp_path / "plain/metrics.jsonl").read_bytes() == (tmp_path / "dry/metrics.jsonl").read_bytes()


def test_keeps_last_and_best(tmp_path: Path) -> None:
    cfg = toy.toy_config(engine=EngineSettings(loggers=(), checkpoint_every=1, keep_last=2))
    toy.run(tmp_path, cfg, validate_every=1)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best.ckpt", "t=00000005.ckpt", "t=00000006.ckpt"]
    assert checkpoint.load(tmp_path / "checkpoints/best.ckpt").t == 4


def test_non_finite_loss_names_iteration_term_and_checkpoint(tmp_path: Path) -> None:
    cfg = toy.toy_config()
    method = toy.build(cfg)
    method.fail_at = 5
    with pytest.raises(RunError) as caught:
        toy.run(tmp_path, cfg, method=method)
    assert "Iteration 5: term spread is not finite" in caught.value.message
    assert "t=00000004.ckpt" in (caught.value.suggestion or "")
    assert checkpoint.latest(tmp_path / "checkpoints").t == 4


def test_timing_counts_every_iteration(tmp_path: Path) -> None:
    """With fewer log lines than iterations, each line stands for several."""
    toy.run(tmp_path, toy.toy_config(engine=EngineSettings(loggers=(), log_every=4)))
    assert [(row["t"], row["iterations"]) for row in read_lines(tmp_path / "timing.jsonl")] == [
        (3, 4),
        (5, 2),
    ]


def test_clipping_sees_unscaled_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under loss scaling the gradients are scaled back before their norm is taken."""
    from lightning_fabric.plugins.precision.precision import Precision

    order: list[str] = []
    monkeypatch.setattr(Precision, "unscale_gradients", lambda self, optimizer: order.append("unscale"))
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda *a, **k: (order.append("clip"), clip(*a, **k))[1]
    )
    toy.run(tmp_path, toy.toy_config(steps=1, optim=OptimSettings(clip=1.0)))
    assert order == ["unscale", "clip"] * 2


def test_clipping_limits_the_step(tmp_path: Path) -> None:
    cfg = toy.toy_config(steps=1, optim=OptimSettings(name="sgd", lr=1.0, momentum=0.0, clip=1e-3))
    start = toy.state(toy.build(cfg))
    end = toy.state(toy.run(tmp_path, cfg))
    moved = sum(
        (end[k] - start[k]).square().sum()
        for k in start
        if k.startswith("student") and "running" not in k and "tracked" not in k
    ).sqrt()
    assert float(moved) == pytest.approx(1e-3, rel=1e-4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_saves_and_says_how_to_go_on(tmp_path: Path, number: int) -> None:
    cfg = toy.toy_config(engine=EngineSettings(loggers=(), checkpoint_every=100))
    method = toy.build(cfg)
    step = method.step

    def interrupted(t: int, batch: object) -> None:
        if t == 2:
            os.kill(os.getpid(), number)
        step(t, batch)

    method.step = interrupted
    with pytest.raises(Interrupted, match="leanlabel resume"):
        toy.run(tmp_path, cfg, method=method)
    assert checkpoint.latest(tmp_path / "checkpoints").t == 3
    whole = toy.run(tmp_path / "whole", cfg)
    assert equal(toy.state(toy.run(tmp_path, cfg)), toy.state(whole))


def test_runs_outside_the_main_thread(tmp_path: Path) -> None:
    thread = threading.Thread(target=toy.run, args=(tmp_path, toy.toy_config()))
    thread.start()
    thread.join()
    assert checkpoint.latest(tmp_path / "checkpoints").t == 6


def test_errors_of_update_outside_a_run() -> None:
    with pytest.raises(RuntimeError, match="only inside"):
        toy.build(toy.toy_config()).update(torch.zeros(()))


# --------------------------------------------------------------------------------------------- ranks


def join() -> None:
    """Make a worker of the pool look like one that torchrun has started."""
    rank = str(dist.rank())
    os.environ.update({"TORCHELASTIC_RUN_ID": "pool", "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"})
    os.environ.update(
        {"LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999"}
    )


def disagreeing(folder: str) -> int:
    """Ranks whose validation scores differ, as rounding may make them."""
    join()
    engine = EngineSettings(accelerator="cpu", devices=2, loggers=(), checkpoint_every=1, threads=1)
    cfg = toy.toy_config(engine=engine)
    method = toy.build(cfg)
    method.validate = lambda t: float(t if dist.rank() == 0 else -t)
    toy.run(Path(folder), cfg, method=method, validate_every=1)
    return checkpoint.load(Path(folder) / "checkpoints/best.ckpt").t


def test_ranks_agree_on_the_best(pool, tmp_path: Path) -> None:
    assert pool.run(disagreeing, str(tmp_path), timeout=120.0) == [6, 6]


def ranked(folder: str, resume: bool) -> dict:
    """One rank's share of a run through the engine."""
    join()
    settings = EngineSettings(
        accelerator="cpu",
        devices=2,
        precision="64-true",
        loggers=(),
        checkpoint_every=2 if resume else 100,
        threads=1,
    )
    cfg = toy.toy_config(engine=settings)
    if resume:
        toy.run(Path(folder), cfg, steps=3)
    return toy.state(toy.run(Path(folder), cfg))


@pytest.mark.parametrize("resume", [False, True])
def test_ranks(pool, tmp_path: Path, resume: bool) -> None:
    """Two ranks with half the batch each train the same networks and bank as one rank, to 1e-6 in float64."""
    alone = toy.run(
        tmp_path / "one",
        toy.toy_config(engine=EngineSettings(precision="64-true", loggers=(), accelerator="cpu")),
    )
    results = pool.run(ranked, str(tmp_path / "two"), resume, timeout=120.0)
    for name, value in toy.state(alone).items():
        for result in results:
            torch.testing.assert_close(result[name], value, rtol=1e-6, atol=1e-9, msg=name)
    one, two = (read_lines(tmp_path / part / "metrics.jsonl") for part in ("one", "two"))
    for left, right in zip(one, two, strict=True):
        assert left == pytest.approx(right, rel=1e-6)


def test_metrics_are_json(tmp_path: Path) -> None:
    toy.run(tmp_path, toy.toy_config())
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        assert isinstance(json.loads(line), dict)
    assert RunFolder(tmp_path).timing.exists()
