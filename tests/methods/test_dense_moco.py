"""The dense contrast: first losses against loops over positions, hand-made windows, resume, ranks, hand-over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from leanlabel import api, rng
from leanlabel.augment.correspondence import counterparts, read_at
from leanlabel.augment.image import Places
from leanlabel.config import EngineSettings
from leanlabel.engine import checkpoint
from leanlabel.engine.runfolder import read_lines
from leanlabel.errors import InputError
from leanlabel.methods import find
from leanlabel.methods.dense_moco import DenseMoCo
from smallrun import as_rank, train

SCENES = [
    f"data.{domain}.{key}={value}"
    for domain in ("source", "target")
    for key, value in {"train": 8, "height": 32, "width": 48}.items()
]
TINY = [
    *SCENES,
    "data.batch_size=8",
    "augment.size=24",
    "augment.blur=0.0",
    "model={name: small-cnn, widths: [4, 8], norm: none}",
    "method.queue=20",
    "method.dense_queue=30",
    "method.width=6",
    "steps=6",
    "optim.lr=0.05",
    "watch.every=2",
    "engine.loggers=[]",
    "engine.checkpoint_every=3",
    "engine.log_every=1",
    "engine.accelerator=cpu",
    "engine.threads=1",
]
ARMS = {
    "pooled": ["method.dense_keys=0", "method.mask_same_image=false"],
    "sampled": ["method.dense_keys=3"],
    "symmetric": ["method.symmetric=true", "method.mask_noise=true", "augment.second={size: 20}"],
    "mixed": ["method.mixing={hardest: 4, pairs: 5, with_query: 3}", "method.in_batch=true"],
}


def config(*more: str) -> Any:
    return api.resolve("dense-moco/scenes", [*TINY, *more])


def built(cfg: Any) -> DenseMoCo:
    method = api.build(cfg, find(cfg.method.name).read(cfg))
    assert isinstance(method, DenseMoCo)
    return method


def first_row(folder: Path) -> dict[str, float]:
    return read_lines(folder / "metrics.jsonl")[0]


def same(one: Any, two: Any) -> bool:
    first, second = checkpoint.state_of(one), checkpoint.state_of(two)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def rows_like(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def filled(method: DenseMoCo) -> Tensor:
    """The dense queue, in float64."""
    method.double()
    return method.dense_queue.read()


def test_values_of_known_windows() -> None:
    """Left and right half of an image, mirrored or not: each cell finds its own; without overlap nothing counts."""
    method = built(config("method.mask_same_image=false"))
    queue, tau = filled(method), method.cfg.method.tau
    # Windows of 8 x 8 at columns 0 and 4 with maps of 2 x 2: the right column of the first is the left of the second.
    windows = torch.tensor([[0, 0, 8, 8], [0, 0, 8, 8], [0, 0, 8, 8]])
    shifted = torch.tensor([[0, 4, 8, 8], [0, 4, 8, 8], [0, 8, 8, 8]])
    first = Places(windows, torch.tensor([False, True, False]))
    second = Places(shifted, torch.tensor([False, False, False]))
    grid, inside = counterparts(first, second, 2, 2)
    assert inside.tolist() == [[[False, True]] * 2, [[True, False]] * 2, [[False, False]] * 2]
    query, keys = rows_like(3, 6, 2, 2), rows_like(3, 6, 2, 2, seed=1)
    total, count = method.located(query, keys, grid, inside, torch.arange(3))
    expected = []
    for b, column in ((0, 1), (1, 0)):
        for i in (0, 1):
            q, k = normalize(query[b, :, i, column], dim=0), normalize(keys[b, :, i, 0], dim=0)
            logits = torch.cat([(q @ k)[None], queue @ q]) / tau
            expected.append(logits.logsumexp(0) - logits[0])
    assert int(count) == 4
    assert float(total) == pytest.approx(float(torch.stack(expected).sum()), rel=1e-12)


def test_reference(tmp_path: Path) -> None:
    """The first losses, written out position by position from the views' windows."""
    cfg = config("engine.precision=64-true", "steps=1", "method.mask_same_image=false")
    method = built(cfg)
    negatives = filled(method)
    batch = next(method.batches(0))
    views = [method.view(k, 0, batch) for k in (0, 1)]
    first, second = (method.places(k, 0, batch) for k in (0, 1))
    maps = [method.backbone(x, pooled=False) for x in views]
    dense: list[Tensor] = [method.dense_projector(one) for one in maps]
    q, k = (normalize(method.projector(one.mean((2, 3)))) for one in maps)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ method.queue.read().mT], 1) / cfg.method.tau
    whole = cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))
    losses, places, (rows, columns) = [], 0, dense[0].shape[2:]
    for b in range(len(q)):
        (top, left, height, width), (top2, left2, height2, width2) = (
            one.windows[b].tolist() for one in (first, second)
        )
        for i in range(rows):
            for j in range(columns):
                places += 1
                a = (j + 0.5) / columns
                across = (left + width * (1 - a if first.mirrored[b] else a) - left2) / width2
                down = (top + height * (i + 0.5) / rows - top2) / height2
                if not (0 <= across <= 1 and 0 <= down <= 1):
                    continue
                across = 1 - across if second.mirrored[b] else across
                at = torch.tensor([[[[2 * across - 1, 2 * down - 1]]]], dtype=torch.float64)
                key = normalize(read_at(dense[1][b : b + 1], at)[0, :, 0, 0], dim=0)
                query = normalize(dense[0][b, :, i, j], dim=0)
                scores = torch.cat([(query @ key)[None], negatives @ query]) / cfg.method.tau
                losses.append(scores.logsumexp(0) - scores[0])
    assert 0 < len(losses) < places
    local = torch.stack(losses).mean()
    train(tmp_path, cfg)
    row = first_row(tmp_path)
    assert row["global_loss"] == pytest.approx(whole.item(), rel=1e-7)
    assert row["dense_loss"] == pytest.approx(local.item(), rel=1e-7)
    assert row["loss"] == pytest.approx((0.5 * whole + 0.5 * local).item(), rel=1e-7)
    assert row["overlap"] == pytest.approx(len(losses) / places, rel=1e-12)


def test_without_weight_it_is_moco(tmp_path: Path) -> None:
    """The same backbone, projector and queue as MoCo-v2 with the same seed."""
    dense = train(tmp_path / "dense", config("method.dense_weight=0.0", "steps=3"))
    changed = [one for one in TINY if not one.startswith("method.dense")]
    plain = train(tmp_path / "plain", api.resolve("moco-v2/scenes", [*changed, "steps=3"]))
    for name in ("backbone", "projector", "key_backbone", "queue"):
        assert same(getattr(dense, name), getattr(plain, name)), name


def test_gradient() -> None:
    """Of positions; none reaches those without a counterpart."""
    method = built(config())
    filled(method)
    ids, query, keys = torch.arange(2), rows_like(2, 6, 2, 2).requires_grad_(), rows_like(2, 6, 3, 3, seed=1)
    first = Places(torch.tensor([[0, 0, 8, 8], [4, 0, 8, 8]]), torch.tensor([False, True]))
    second = Places(torch.tensor([[0, 4, 8, 8], [0, 0, 8, 8]]), torch.tensor([False, False]))
    grid, inside = counterparts(first, second, 2, 2)

    def loss(one: Tensor) -> Tensor:
        return method.located(one, keys, grid, inside, ids)[0]

    assert torch.autograd.gradcheck(loss, query)
    (gradient,) = torch.autograd.grad(loss(query), query)
    assert torch.equal(gradient.abs().sum(1) > 0, inside)


def test_degenerate() -> None:
    """No pair of views overlaps: zero, attached to the graph."""
    method = built(config())
    apart = Places(torch.tensor([[0, 0, 4, 4]]), torch.tensor([False]))
    beside = Places(torch.tensor([[0, 4, 4, 4]]), torch.tensor([False]))
    grid, inside = counterparts(apart, beside, 2, 2)
    query = torch.randn(1, 6, 2, 2, requires_grad=True)
    total, count = method.located(query, torch.randn(1, 6, 2, 2), grid, inside, torch.tensor([0]))
    assert (total.item(), float(count)) == (0.0, 0.0)
    total.backward()
    assert query.grad is not None
    assert float(query.grad.abs().sum()) == 0.0


def test_same_image_is_masked() -> None:
    """Dense keys of the query's own image are no negatives."""
    method = built(config("method.mask_same_image=true", "method.mask_noise=true"))
    key = normalize(rows_like(3, 6), dim=1)
    method.double()
    method.dense_queue.push(key, torch.tensor([5, 6, 5]))
    everywhere = Places(torch.tensor([[0, 0, 4, 4]]), torch.tensor([False]))
    grid, inside = counterparts(everywhere, everywhere, 1, 1)
    query = rows_like(1, 6, 1, 1, seed=2)
    total, _ = method.located(query, query, grid, inside, torch.tensor([5]))
    q = normalize(query[0, :, 0, 0], dim=0)
    logits = torch.stack([q @ q, key[1] @ q]) / method.cfg.method.tau
    assert float(total) == pytest.approx(float(logits.logsumexp(0) - logits[0]), rel=1e-12)


def test_what_enters_the_queue(tmp_path: Path) -> None:
    """The mean of each map, or positions drawn for each image, with the ids of their images."""
    key_map, ids = rows_like(4, 6, 3, 3), torch.tensor([7, 1, 3, 2])
    pooled = built(config("method.dense_keys=0")).double()
    pooled.remember(0, key_map, ids, 0)
    expected = normalize(key_map.mean((2, 3)), dim=1)
    torch.testing.assert_close(pooled.dense_queue.real_rows(), expected)
    assert pooled.dense_queue.real_ids().tolist() == ids.tolist()
    sampled = built(config("method.dense_keys=2")).double()
    sampled.remember(5, key_map, ids, 1)
    chosen = rng.draw(sampled.cfg.seed, "dense keys 1", 5, ids).integers(0, 9, (2,))
    rows = [key_map[b].flatten(1)[:, place] for b in range(4) for place in chosen[b].tolist()]
    torch.testing.assert_close(sampled.dense_queue.real_rows(), normalize(torch.stack(rows), dim=1))
    assert sampled.dense_queue.real_ids().tolist() == [7, 7, 1, 1, 3, 3, 2, 2]


@pytest.mark.parametrize("arm", ARMS)
def test_state(tmp_path: Path, arm: str) -> None:
    """Killed at iteration 5, saved at 3, resumed: weights, queues and metrics of an uninterrupted run."""
    cfg = config(*ARMS[arm])
    whole = train(tmp_path / "whole", cfg)
    train(tmp_path / "parts", cfg, steps=5)
    resumed = train(tmp_path / "parts", cfg)
    assert same(whole, resumed)
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "parts/metrics.jsonl").read_bytes()


def ranked(folder: str, more: list[str]) -> dict[str, Tensor]:
    as_rank(29991)
    engine = EngineSettings(accelerator="cpu", devices=2, precision="64-true", loggers=(), threads=1)
    return checkpoint.state_of(train(Path(folder), config(*more).model_copy(update={"engine": engine})))


@pytest.mark.parametrize(
    "more",
    [
        [*ARMS["sampled"], "steps=3"],
        [*ARMS["symmetric"], "steps=3", "model={name: tiny-fcn, norm: sync}"],
    ],
)
def test_ranks(pool: Any, tmp_path: Path, more: list[str]) -> None:
    """Two ranks equal one: weights, both queues, although their views overlap differently."""
    alone = train(tmp_path / "one", config("engine.precision=64-true", *more))
    results = pool.run(ranked, str(tmp_path / "two"), more, timeout=180.0)
    for name, value in checkpoint.state_of(alone).items():
        for result in results:
            torch.testing.assert_close(result[name], value, rtol=1e-6, atol=1e-9, msg=name)


def test_start_from_another_run(tmp_path: Path) -> None:
    """Weights are taken, the dense key network from the run or from the projector; queues are forgotten."""
    first = api.fit("dense-moco/scenes", run=tmp_path / "a", overrides=TINY, quiet=True)
    theirs: Any = first.method
    fresh = built(config("seed=3"))
    api._start(fresh, first.path, None)
    assert same(fresh.key_dense, theirs.key_dense)
    assert (fresh.queue.real(), fresh.dense_queue.real()) == (0, 0)
    fresh = built(config("seed=3"))
    fresh.took(frozenset({"dense_projector.0.weight"}))
    assert same(fresh.key_dense.network, fresh.dense_projector)


def test_errors() -> None:
    vit = "model={name: vit-small, norm: batch, image_size: 32, patch: 8}"
    with pytest.raises(InputError, match=r"model\.name: the features of vit-small are not the mean"):
        built(config(vit, "augment.size=32"))
    with pytest.raises(InputError, match=r"method\.dense_weight"):
        config("method.dense_weight=1.5")


def test_notes() -> None:
    told = "the dense queue holds 30 keys of 16 images"
    assert any(told in one for one in built(config("method.dense_keys=1", *ARMS["pooled"])).notes())
    assert not any(told in one for one in built(config()).notes())
