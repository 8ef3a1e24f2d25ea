"""Methods on images: first losses against written-out equations, degenerate settings, resume, ranks, bad input."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from leanlabel import api, rng
from leanlabel.banks.teacher import rising_momentum
from leanlabel.config import EngineSettings
from leanlabel.data.images import Images, PixelArray
from leanlabel.engine import checkpoint
from leanlabel.engine.runfolder import read_lines
from leanlabel.errors import InputError, RunError
from leanlabel.losses.mixing import Mixing, draw_mixing, hardest
from leanlabel.methods import find
from leanlabel.methods.image import ImageMethod
from leanlabel.methods.image_settings import check_batch
from smallrun import as_rank, train

TINY = [
    "data.classes=6",
    "data.per_class=12",
    "data.size=16",
    "data.colour=0.0",
    "data.background=0.0",
    "data.batch_size=8",
    "augment.size=16",
    "model.widths=[4,8]",
    "model.norm=none",
    "steps=6",
    "optim.lr=0.05",
    "watch.every=2",
    "watch.knn_every=0",
    "evaluation.knn_k=3",
    "engine.loggers=[]",
    "engine.checkpoint_every=3",
    "engine.log_every=1",
    "engine.accelerator=cpu",
    "engine.threads=1",
]
QUEUE = ["method.queue=20", "method.width=6"]
MIX = [*QUEUE, "method.mixing.hardest=4", "method.mixing.pairs=5", "method.mixing.with_query=3"]
ARMS: dict[str, tuple[str, list[str]]] = {
    "mochi": ("mochi/glyphs", [*MIX, "method.mixing.warmup=1"]),
    "moco-v2": ("moco-v2/glyphs", QUEUE),
    "split": ("mochi/glyphs", [*MIX, "method.mixing.warmup=1", "model.norm=split", "model.norm_groups=2"]),
    "symmetric": ("mochi/glyphs", [*MIX, "method.mixing.warmup=0", "method.symmetric=true"]),
    "masked": (
        "mochi/glyphs",
        [*MIX, "method.mask_noise=true", "method.mask_same_image=true", "method.class_oracle=true"],
    ),
    "in batch": ("moco-v2/glyphs", [*QUEUE, "method.in_batch=true"]),
    "simclr": ("simclr/glyphs", ["method.hidden=8", "method.width=6"]),
    "simclr mixed": (
        "simclr/glyphs",
        ["method.hidden=8", "method.width=6", "method.mixing={hardest: 4, pairs: 5, with_query: 3}"],
    ),
    "byol": ("byol/glyphs", ["method.hidden=8", "method.width=6"]),
    "simsiam": ("simsiam/glyphs", ["method.hidden=8", "method.width=6", "method.bottleneck=4"]),
    "vicreg": ("vicreg/glyphs", ["method.hidden=8", "method.width=6"]),
    "supervised-image": ("supervised-image/glyphs", []),
}


def config(arm: str, *more: str) -> Any:
    recipe, changes = ARMS[arm]
    return api.resolve(recipe, [*TINY, *changes, *more])


def built(cfg: Any) -> tuple[Images, ImageMethod]:
    images = find(cfg.method.name).read(cfg)
    method = api.build(cfg, images)
    assert isinstance(method, ImageMethod)
    return images, method


def first_losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_lines(folder / "metrics.jsonl")]


def same(one: Any, two: Any) -> bool:
    first, second = checkpoint.state_of(one), checkpoint.state_of(two)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def two_views(method: ImageMethod, t: int = 0) -> tuple[torch.Tensor, list[torch.Tensor]]:
    batch = next(method.batches(t))
    return batch[0], [method.view(k, t, batch) for k in (0, 1)]


def test_reference_moco(tmp_path: Path) -> None:
    """The first loss: one key against the queue's noise, with a key network equal to the query network."""
    cfg = config("moco-v2", "engine.precision=64-true", "steps=1")
    _, method = built(cfg)
    method.double()
    _, (one, two) = two_views(method)
    query, key = (normalize(method.projector(method.backbone(x))) for x in (one, two))  # type: ignore[operator]
    queue: Any = method.queue
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.read().mT], 1) / cfg.method.tau
    expected = cross_entropy(logits, torch.zeros(len(query), dtype=torch.long))
    train(tmp_path, cfg)
    assert first_losses(tmp_path)[0] == pytest.approx(expected.item(), rel=1e-7)


def test_reference_mochi(tmp_path: Path) -> None:
    """The second loss, from vectors that are really mixed."""
    cfg = config("mochi", "engine.precision=64-true", "steps=2")
    method: Any = train(tmp_path / "one", cfg, steps=1)
    ids, (one, two) = two_views(method, 1)
    q = normalize(method.projector(method.backbone(one))).detach()
    method.key_backbone.follow(method.backbone, cfg.method.momentum, buffers=False)
    method.key_projector.follow(method.projector, cfg.method.momentum, buffers=False)
    k = normalize(method.key_projector(method.key_backbone(two)))
    queue = method.queue.read()
    real = queue[: method.queue.real()]
    mixing = Mixing(4, 5, 3)
    top = hardest(q, real, 4)
    draws = draw_mixing(rng.draw(cfg.seed, "mix 0", 1, ids), mixing, top.count)
    losses = []
    for i in range(len(q)):
        best = real[top.index[i]]
        a, b = draws.alpha[i, :, None].double(), draws.beta[i, :, None].double()
        pairs = normalize(a * best[draws.first[i]] + (1 - a) * best[draws.second[i]])
        with_query = normalize(b * q[i] + (1 - b) * best[draws.partner[i]])
        negatives = torch.cat([queue, pairs, with_query])
        logits = torch.cat([(q[i] @ k[i])[None], negatives @ q[i]]) / cfg.method.tau
        losses.append(logits.logsumexp(0) - logits[0])
    train(tmp_path / "two", cfg)
    assert first_losses(tmp_path / "two")[1] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-6)


@pytest.mark.parametrize("arm", ["byol", "simsiam"])
def test_reference_bootstrap(tmp_path: Path, arm: str) -> None:
    cfg = config(arm, "engine.precision=64-true", "steps=1")
    _, method = built(cfg)
    method.double()
    _, views = two_views(method)
    z = [method.projector(method.backbone(x)) for x in views]  # type: ignore[operator]
    p = [method.predictor(rows) for rows in z]  # type: ignore[operator]
    cosine = [torch.cosine_similarity(p[a], z[b]).mean() for a, b in ((0, 1), (1, 0))]
    expected = sum(2 - 2 * c for c in cosine) if arm == "byol" else -sum(cosine) / 2
    train(tmp_path, cfg)
    assert first_losses(tmp_path)[0] == pytest.approx(float(expected), rel=1e-7)


def test_reference_supervised(tmp_path: Path) -> None:
    cfg = config("supervised-image", "engine.precision=64-true", "steps=1")
    images, method = built(cfg)
    method.double()
    ids, (one, _) = two_views(method)
    assert images.y is not None
    y = images.y[images.splits["train"]][ids]
    expected = cross_entropy(method.head(method.backbone(one)), y)  # type: ignore[operator]
    train(tmp_path, cfg)
    assert first_losses(tmp_path)[0] == pytest.approx(expected.item(), rel=1e-7)


def test_no_mixing_is_moco(tmp_path: Path) -> None:
    """s = s' = 0, mixing null and a warm-up that never ends: the same bits."""
    runs = [
        train(tmp_path / "null", config("moco-v2")),
        train(tmp_path / "zero", config("mochi", "method.mixing.pairs=0", "method.mixing.with_query=0")),
        train(tmp_path / "late", config("mochi", "method.mixing.warmup=100")),
    ]
    assert same(runs[0], runs[1])
    assert same(runs[0], runs[2])
    assert not same(runs[0], train(tmp_path / "mixed", config("mochi")))


def test_queue_and_key_network(tmp_path: Path) -> None:
    """After one iteration: keys of the batch with their ids in the queue, the key network moved before it."""
    cfg = config("moco-v2", "steps=2")
    start: Any = built(cfg)[1]
    method: Any = train(tmp_path, cfg, steps=1)
    ids, _ = two_views(method)
    assert method.queue.real() == 8
    assert torch.equal(method.queue.ids_read()[:8], ids)
    # It follows before the first update, when both networks are equal.
    for name, value in start.backbone.state_dict().items():
        assert torch.equal(method.key_backbone.network.state_dict()[name], value)


def test_key_network_keeps_its_own_statistics(tmp_path: Path) -> None:
    method: Any = train(tmp_path, config("split", "method.shuffle=false"))
    own, keys = method.backbone.state_dict(), method.key_backbone.network.state_dict()
    means = [name for name in own if name.endswith("running_mean")]
    assert means
    assert all(not torch.equal(own[name], keys[name]) for name in means)


def test_byol_target_follows_after_the_update(tmp_path: Path) -> None:
    cfg = config("byol", "steps=2", "method.momentum=0.9")
    start: Any = built(cfg)[1]
    before = {name: value.clone() for name, value in start.backbone.state_dict().items()}
    method: Any = train(tmp_path, cfg, steps=1)
    m = rising_momentum(0, 2, 0.9)
    after, target = method.backbone.state_dict(), method.target_backbone.network.state_dict()
    name = next(name for name in after if after[name].ndim == 4)
    assert not torch.equal(after[name], before[name])
    torch.testing.assert_close(target[name], m * before[name] + (1 - m) * after[name])


@pytest.mark.parametrize("arm", ARMS)
def test_state(tmp_path: Path, arm: str) -> None:
    """Killed at iteration 5, saved at 3, resumed: the weights, queue and metrics of an uninterrupted run."""
    cfg = config(arm, "watch.knn_every=3")
    whole = train(tmp_path / "whole", cfg)
    train(tmp_path / "parts", cfg, steps=5)
    resumed = train(tmp_path / "parts", cfg)
    assert same(whole, resumed)
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "parts/metrics.jsonl").read_bytes()


def ranked(folder: str, arm: str, more: list[str]) -> dict[str, torch.Tensor]:
    as_rank(29996)
    engine = EngineSettings(accelerator="cpu", devices=2, precision="64-true", loggers=(), threads=1)
    return checkpoint.state_of(train(Path(folder), config(arm, *more).model_copy(update={"engine": engine})))


@pytest.mark.parametrize(
    ("arm", "more"),
    [
        ("mochi", ["method.shuffle=false"]),
        ("mochi", ["model.norm=sync"]),
        ("masked", []),
        ("in batch", []),
        ("simclr mixed", ["model.norm=sync"]),
        ("byol", ["model.norm=sync"]),
        ("vicreg", ["model.norm=sync"]),
        ("supervised-image", ["model.norm=sync"]),
    ],
)
def test_ranks(pool: Any, tmp_path: Path, arm: str, more: list[str]) -> None:
    """Two ranks equal one: weights, queue, logged terms."""
    alone = train(tmp_path / "one", config(arm, "engine.precision=64-true", *more))
    results = pool.run(ranked, str(tmp_path / "two"), arm, more, timeout=180.0)
    for name, value in checkpoint.state_of(alone).items():
        for result in results:
            torch.testing.assert_close(result[name], value, rtol=1e-6, atol=1e-9, msg=name)
    one, two = (read_lines(tmp_path / part / "metrics.jsonl") for part in ("one", "two"))
    for left, right in zip(one, two, strict=True):
        assert left == pytest.approx(right, rel=1e-5, abs=1e-7)


def test_ranks_split_norm(pool: Any, tmp_path: Path) -> None:
    """Plain batch norm on two ranks is split batch norm of two groups on one: the same shuffle, the same groups."""
    one = train(tmp_path / "one", config("split", "engine.precision=64-true"))
    results = pool.run(ranked, str(tmp_path / "two"), "mochi", ["model.norm=batch"], timeout=180.0)
    state = checkpoint.state_of(one)
    for name in (name for name in state if "running" not in name and "num_batches" not in name):
        torch.testing.assert_close(results[0][name], state[name], rtol=1e-6, atol=1e-9, msg=name)


def test_class_oracle(tmp_path: Path) -> None:
    """Keys of the query's class are neither negatives nor mixed: with one class left, nothing is."""
    cfg = config("moco-v2", "method.class_oracle=true", "method.mask_noise=true", "steps=3")
    images, method = built(cfg)
    assert images.y is not None
    images.y.zero_()
    fitted: Any = method
    fitted.report = lambda **terms: fitted.__dict__.setdefault("seen", []).append(terms)
    fitted.update = lambda loss: None
    for t, batch in zip(range(3), method.batches(0)):
        method.step(t, batch)
    assert all(float(terms["loss"]) == 0 for terms in fitted.seen if "loss" in terms)


def test_same_image_is_masked(tmp_path: Path) -> None:
    """A queue that holds only the query's own image leaves nothing to tell it from."""
    cfg = config("moco-v2", "method.mask_same_image=true", "method.mask_noise=true")
    _, built_method = built(cfg)
    method: Any = built_method
    ids, (one, _) = two_views(method)
    query = normalize(method.projector(method.backbone(one)))
    method.queue.push(query.detach()[:1].expand(20, -1), ids[:1].expand(20))
    total, count = method.contrasted(2, query[:1], query[:1].detach(), ids[:1])
    assert (float(total), float(count)) == (0.0, 1.0)
    total, _ = method.contrasted(2, query[1:2], query[1:2].detach(), ids[1:2])
    assert float(total) > 0


def test_watched_terms(tmp_path: Path) -> None:
    """Logged at every second iteration, within their ranges; the weights are those of a run that is not watched."""
    cfg = config("mochi", "watch.knn_every=2")
    watched = train(tmp_path / "a", cfg)
    rows = read_lines(tmp_path / "a/metrics.jsonl")
    told = {"effective_rank", "uniformity", "proxy_accuracy", "hardness_1", "false_negatives"}
    assert told <= rows[1].keys()
    assert not told & rows[2].keys()
    assert {"knn"} <= rows[1].keys()
    for name in ("proxy_accuracy", "hardness_1", "false_negatives", "knn"):
        assert all(0 <= row[name] <= 1 for row in rows if name in row)
    assert same(watched, train(tmp_path / "b", config("mochi", "watch.every=0")))


def test_embedding_leaves_no_trace(tmp_path: Path) -> None:
    method: Any = train(tmp_path, config("split"))
    before = checkpoint.state_of(method)
    method.train()
    first = method.embed()
    assert method.backbone.training
    again = method.embed(method.images.take(range(len(method.images))))
    assert all(torch.equal(value, before[name]) for name, value in checkpoint.state_of(method).items())
    torch.testing.assert_close(first, again)
    method.cfg = method.cfg.model_copy(
        update={"evaluation": method.cfg.evaluation.model_copy(update={"feature": "projection"})}
    )
    assert method.embed(method.images.take([0, 1])).shape == (2, 6)


def test_test_images_are_never_trained_on(tmp_path: Path) -> None:
    """Black test images change no weight, with labels or without."""
    for arm in ("mochi", "supervised-image"):
        cfg = config(arm)
        images, _ = built(cfg)
        pixels = images.read(range(len(images)))
        assert isinstance(pixels, torch.Tensor)
        pixels = pixels.clone()
        pixels[images.splits["test"]] = 0
        changed = Images("other", PixelArray(pixels), images.y, images.class_names, images.splits)
        first, second = (api.build(cfg, one) for one in (images, changed))
        rows = [next(method.batches(3)) for method in (first, second)]
        assert torch.equal(rows[0][1], rows[1][1])
        assert not set(images.splits["test"].tolist()) & set(first.pool.tolist())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("method.queue=4000", "the queue holds 4000 keys of 54 images"),
        ("method.momentum=0.0", "training is known to fail"),
        ("model.norm=batch", "behaves like several devices"),
        ("method.mixing.hardest=1", "method.mixing=null"),
    ],
)
def test_notes(change: str, told: str) -> None:
    _, method = built(config("mochi", change))
    assert any(told in note for note in method.notes())


def test_no_notes_where_nothing_is_odd() -> None:
    _, method = built(config("mochi", "method.mixing.hardest=20", "model.norm=split", "model.norm_groups=2"))
    assert method.notes() == []


@pytest.mark.parametrize(
    ("arm", "change", "told"),
    [
        ("mochi", "data.batch_size=100", "data.batch_size: 100 is more than the 54 images"),
        ("split", "data.batch_size=2", "leaves batch normalisation 1 image"),
        ("mochi", "method.tau=0.0", "method.tau"),
        ("mochi", "watch.every=3", None),
        ("mochi", "evaluation.resize=8", "evaluation.resize of at least augment.size"),
        ("mochi", "model.widths=[4,4,4,4,4]", "augment.size: views of 16 pixels"),
        ("byol", "data.batch_size=1", "needs at least 2 in each"),
        ("supervised-image", "evaluation.feature=projection", "no projector"),
        ("mochi", "evaluation.select=entropy", "mochi has no such score"),
        ("mochi", "evaluation.protocol=knm", "Did you mean knn"),
        ("simclr", "method.queue=3", "unknown key"),
        ("supervised-image", "evaluation.protocol=none", "needs labels"),
        ("supervised-image", "evaluation.split=random", None),
        ("supervised-image", "data.batch_size=50", "more than the 48 labelled training images"),
    ],
)
def test_errors(arm: str, change: str, told: str | None) -> None:
    more = [change] if told is not None else [change, "evaluation.splits=2", "engine.log_every=2"]
    with pytest.raises(InputError, match=told or "one split|a multiple of engine.log_every"):
        built(config(arm, *more))


def test_one_image() -> None:
    cfg = config(
        "mochi", "data.batch_size=1", "data.classes=2", "data.per_class=1", "evaluation.protocol=none"
    )
    images = find("mochi").read(config("mochi"))
    with pytest.raises(InputError, match="needs at least two"):
        check_batch(cfg, images, 1)


def test_official_schedule() -> None:
    """Cosine by epoch: the spec's values at epochs 0, 50, 100 and 199 of 200 (oracle 6)."""
    from leanlabel.engine.optim import factor

    cfg = api.resolve("moco-v2/cifar10-demo")
    values = [0.03 * factor(cfg.optim, 97 * epoch + 50, cfg.steps) for epoch in (0, 50, 100, 199)]
    assert values == pytest.approx([0.03, 0.0256066017, 0.015, 1.8505127751e-6], rel=1e-9)
    drops = cfg.optim.model_copy(update={"schedule": "drops", "stair": 1})
    assert [factor(drops, t, 200) for t in (119, 120, 160)] == pytest.approx([1.0, 0.1, 0.01])
    assert math.isclose(factor(cfg.optim, 96, cfg.steps), 1.0)


def test_terms_are_logged_at_larger_intervals(tmp_path: Path) -> None:
    train(tmp_path, config("mochi", "watch.every=4", "engine.log_every=2"))
    rows = read_lines(tmp_path / "metrics.jsonl")
    assert [row["t"] for row in rows if "effective_rank" in row] == [3]


def test_start_from_another_run(tmp_path: Path) -> None:
    """The queue of another run holds keys of other images: it is forgotten, whatever its size."""
    first = api.fit(
        "moco-v2/glyphs",
        run=tmp_path / "a",
        overrides=[*TINY, *QUEUE, "evaluation.also=[]"],
        quiet=True,
    )
    for size in (20, 40):
        cfg = config("moco-v2", f"method.queue={size}", "data.per_class=8", "data.batch_size=4")
        _, method = built(cfg)
        source, _ = api._start(method, first.path, None) or (None, None)
        assert source is not None
        fresh: Any = method
        assert fresh.queue.real() == 0
        theirs: Any = first.method
        for own, other in ((fresh.backbone, theirs.backbone), (fresh.key_backbone, theirs.key_backbone)):
            assert same(own, other)


def test_a_diverging_run_says_so(tmp_path: Path) -> None:
    """Also on an iteration that is watched."""
    with pytest.raises(RunError, match="not finite"):
        train(tmp_path, config("mochi", "optim.lr=1e20", "watch.every=1", "watch.knn_every=1"))


def test_unlabelled_rows_of_published_parts() -> None:
    """They train without labels, and are left out of what is read out."""
    cfg = config("supervised-image")
    images, _ = built(cfg)
    assert images.y is not None
    images.y[images.splits["train"][:5]] = -100
    method = api.build(cfg, images)
    assert len(method.pool) == len(images.splits["train"]) - 5  # type: ignore[arg-type]
    assert bool((images.y[method.pool] >= 0).all())  # type: ignore[index]


def test_selection_reads_no_test_image() -> None:
    cfg = config("mochi", "evaluation.select=effective_rank")
    images, method = built(cfg)
    pixels = images.read(range(len(images)))
    assert isinstance(pixels, torch.Tensor)
    before = method.validate(1)
    pixels = pixels.clone()
    pixels[images.splits["test"]] = torch.randint_like(pixels[images.splits["test"]], 256)
    other = api.build(cfg, Images("other", PixelArray(pixels), images.y, images.class_names, images.splits))
    assert other.validate(1) == before


def test_class_oracle_counts_as_supervised() -> None:
    kind = find("mochi")
    assert kind.sees_labels(config("masked").model_dump())
    assert not kind.sees_labels(config("mochi").model_dump())


def test_label_free_scores() -> None:
    """At both levels, in their ranges; without a projector at one."""
    images, method = built(config("mochi"))
    found = method.label_free(images)
    assert {"uniformity", "same_class_alignment", "projection_uniformity"} <= found.keys()
    assert all(0 <= found[name] <= 4 for name in found if name.endswith("alignment"))
    assert all(found[name] <= 0 for name in ("uniformity", "projection_uniformity"))
    images, method = built(config("supervised-image"))
    assert not any(name.startswith("projection") for name in method.label_free(images))
