from __future__ import annotations

import doctest
import math

import pytest
import torch
from sklearn import metrics
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize

from leanlabel import rng
from leanlabel.evaluation import confusion, probe
from leanlabel.evaluation.confusion import accuracy, class_recall, confusion_matrix, macro_f1
from leanlabel.evaluation.probe import linear_probe, linear_probes, logistic_l2
from leanlabel.sparse import Csr, from_dense, take_rows


def clouds(
    rows: int = 150, dim: int = 6, classes: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (rows,), generator=generator)
    centres = torch.randn(classes, dim, generator=generator, dtype=torch.float64)
    return (centres[y] + torch.randn(rows, dim, generator=generator, dtype=torch.float64)).to(dtype), y


def split_of(rows: int, seed: int = 0, train: int = 40, val: int = 40) -> dict[str, torch.Tensor]:
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    return {"train": order[:train], "val": order[train : train + val], "test": order[train + val :]}


def naive_probe(z, y, split, epochs, every, lr, seed):
    """The protocol with autograd and torch's own Adam; test accuracy measured whenever validation is."""
    classes = int(y.max()) + 1
    layer = torch.nn.Linear(z.shape[1], classes).to(z.dtype)
    start = rng.draw(seed, "probe weights", 0).uniform((classes, z.shape[1]), torch.float64)
    bound = math.sqrt(6 / (classes + z.shape[1]))
    with torch.no_grad():
        layer.weight.copy_((2 * start - 1) * bound)
        layer.bias.zero_()
    adam = torch.optim.Adam(layer.parameters(), lr=lr)
    best = (-1.0, 0.0, 0)
    for epoch in range(1, epochs + 1):
        adam.zero_grad()
        torch.nn.functional.cross_entropy(layer(z[split["train"]]), y[split["train"]]).backward()
        adam.step()
        if epoch % every == 0 or epoch == epochs:
            val, test = (
                float((layer(z[split[part]]).argmax(1) == y[split[part]]).double().mean())
                for part in ("val", "test")
            )
            if val > best[0]:
                best = (val, test, epoch)
    return best


def test_values_confusion():
    truth = torch.tensor([0, 0, 1, 3, 3, 3, -100])
    predicted = torch.tensor([0, 1, 1, 3, 3, 0, 2])
    counts = confusion_matrix(truth, predicted, 5)
    assert counts.dtype == torch.int64
    expected = torch.zeros(5, 5, dtype=torch.int64)
    expected[0, 0] = expected[0, 1] = expected[1, 1] = expected[3, 0] = 1
    expected[3, 3] = 2
    assert torch.equal(counts, expected)
    assert accuracy(counts) == 4 / 6
    # Classes 2 and 4 occur nowhere: excluded, not zero.
    assert class_recall(counts) == (0.5, 1.0, None, 2 / 3, None)
    assert macro_f1(counts) == pytest.approx((2 / 4 + 2 / 3 + 4 / 5) / 3, rel=1e-12)
    other = truth.masked_fill(truth == -100, 255)
    assert torch.equal(confusion_matrix(other, predicted, 5, ignore=255), expected)


def test_values_start():
    z, y = torch.zeros(30, 7), torch.arange(30) % 3
    layers = probe._Layers(2, 3, z, 0.01, seed=5)
    bound = math.sqrt(6 / 10)
    assert layers.weight.shape == (2, 3, 7)
    assert torch.equal(layers.weight[0], layers.weight[1])
    assert bound * 0.7 < float(layers.weight.abs().max()) <= bound
    assert not layers.bias.any()
    assert not torch.equal(layers.weight, probe._Layers(2, 3, z, 0.01, seed=6).weight)
    # Zero embeddings leave the bias: the most frequent training class everywhere.
    split = {
        "train": torch.tensor([0, 3, 1]),
        "val": torch.tensor([6, 4]),
        "test": torch.tensor([9, 5, 8, 12]),
    }
    result = linear_probe(z, y, split, epochs=40)
    assert (result.accuracy, result.val_accuracy, result.epoch) == (0.5, 0.5, 20)
    assert result.recall == (1.0, None, 0.0)


@pytest.mark.parametrize("seed", [0, 1])
def test_reference_probe(seed):
    z, y = clouds(seed=seed)
    split = split_of(150, seed)
    result = linear_probe(z, y, split, epochs=130, every=20, lr=0.02, seed=seed)
    val, test, epoch = naive_probe(z, y, split, 130, 20, 0.02, seed)
    assert (result.val_accuracy, result.accuracy, result.epoch) == (
        pytest.approx(val),
        pytest.approx(test),
        epoch,
    )


def test_reference_weights():
    z, y = clouds(rows=60)
    split = split_of(60, train=20, val=20)
    layers = probe._Layers(1, 3, z, 0.05, seed=3)
    rows = probe._Rows(z, y, [split["train"]], layers)
    weight = layers.weight[0].clone().requires_grad_()
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([weight, bias], lr=0.05)
    for epoch in range(1, 31):
        adam.zero_grad()
        torch.nn.functional.cross_entropy(z[split["train"]] @ weight.T + bias, y[split["train"]]).backward()
        adam.step()
        error = rows.logits(layers.weight, layers.bias).softmax(-1) * rows.shares - rows.targets
        layers.step(epoch, rows.weight_gradient(error), error.sum(1, keepdim=True))
    torch.testing.assert_close(layers.weight[0], weight.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(layers.bias[0, 0], bias.detach(), rtol=1e-9, atol=1e-12)


def test_reference_several_splits(monkeypatch):
    z, y = clouds()
    splits = [split_of(150, s, train=20 + 7 * s, val=30 + s) for s in range(4)]
    alone = [linear_probe(z, y, split, epochs=60, seed=2) for split in splits]
    assert linear_probes(z, y, splits, epochs=60, seed=2) == alone
    monkeypatch.setattr(probe, "BLOCK_ELEMENTS", {"cpu": 2 * 41 * 6, "cuda": 1})
    assert linear_probes(z, y, splits, epochs=60, seed=2) == alone
    assert linear_probes(z, y, [], epochs=60) == []


def test_reference_scores():
    z, y = clouds(classes=5)
    split = split_of(150)
    result = linear_probe(z, y, split, epochs=100)
    truth = y[split["test"]].numpy()
    predicted = torch.repeat_interleave(
        torch.arange(25) % 5, result.confusion.flatten()
    )  # in the order of the matrix
    true_again = torch.repeat_interleave(torch.arange(25) // 5, result.confusion.flatten())
    assert sorted(true_again.tolist()) == sorted(truth.tolist())
    assert result.accuracy == pytest.approx(metrics.accuracy_score(true_again, predicted))
    assert result.macro_f1 == pytest.approx(metrics.f1_score(true_again, predicted, average="macro"))


@pytest.mark.parametrize("normalised", [True, False])
def test_reference_logistic(normalised):
    z, y = clouds()
    split = split_of(150)
    grid = [0.01, 1.0, 100.0]
    found = []
    rows = normalize(z.numpy()) if normalised else z.numpy()
    for strength in grid:
        model = LogisticRegression(C=strength, tol=1e-8, max_iter=5000)
        model.fit(rows[split["train"]], y[split["train"]])
        found.append([model.score(rows[split[part]], y[split[part]]) for part in ("val", "test")])
    best = max(range(3), key=lambda i: found[i][0])
    result = logistic_l2(z, y, split, grid=grid[::-1], normalise=normalised)
    assert result.strength == grid[best]
    assert [result.val_accuracy, result.accuracy] == pytest.approx(found[best])
    assert result.converged


def test_reference_stored_features():
    z, y = clouds(dim=12)
    z = z * (z > 0.3)
    split = split_of(150)
    stored = from_dense(z)
    for readout in (lambda x: linear_probe(x, y, split, epochs=60), lambda x: logistic_l2(x, y, split)):
        assert readout(stored) == readout(z)
    ones = Csr(stored.crow, stored.col, None, stored.shape)
    dense = ones.to_dense(torch.float64)
    assert logistic_l2(ones, y, split) == logistic_l2(dense, y, split)
    ids = torch.tensor([5, 0, 149, 0])
    part = take_rows(stored, ids)
    assert isinstance(part, Csr)
    assert torch.equal(part.to_dense(), z[ids])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    z, y = clouds(dtype=dtype)
    split = split_of(150)
    assert 0.4 < linear_probe(z, y, split, epochs=100).accuracy <= 1
    assert 0.4 < logistic_l2(z, y, split).accuracy <= 1


def test_degenerate():
    z, y = clouds()
    split = split_of(150)
    # No split needs every class; rows outside it need no label; masks are splits too.
    train = split["train"][y[split["train"]] != 2]
    one = split["train"][y[split["train"]] == 1]
    for ids in (train, one):
        for readout in (linear_probe, logistic_l2):
            assert 0 <= readout(z, y, {**split, "train": ids}).accuracy <= 1
    assert logistic_l2(z, y, {**split, "train": one}).accuracy == pytest.approx(
        float((y[split["test"]] == 1).double().mean())
    )
    masks = {part: torch.zeros(150, dtype=torch.bool).index_fill(0, ids, True) for part, ids in split.items()}
    assert linear_probe(z, y, masks, epochs=20).accuracy == linear_probe(z, y, split, epochs=20).accuracy
    # The first of equal maxima wins, and the last epoch is always measured.
    assert linear_probe(torch.zeros_like(z), y, split, epochs=90, every=30).epoch == 30
    assert linear_probe(z, y, split, epochs=3).epoch == 3
    assert logistic_l2(torch.zeros_like(z), y, split, grid=[4.0, 0.5, 1.0]).strength == 0.5
    hidden = y.clone()
    kept = torch.cat([split["train"], split["val"], split["test"][:20]])
    hidden[~torch.zeros(150, dtype=torch.bool).index_fill(0, kept, True)] = -100
    few = {**split, "test": split["test"][:20]}
    assert linear_probe(z, hidden, few, epochs=20) == linear_probe(z, y, few, epochs=20)
    assert not logistic_l2(z, y, split, grid=[1e4], max_iter=2).converged


def test_errors():
    z, y = clouds(rows=30)
    split = split_of(30, train=10, val=10)
    bad = z.clone()
    bad[3, 1] = float("nan")
    for readout in (linear_probe, logistic_l2):
        with pytest.raises(ValueError, match="1 values that are not finite"):
            readout(bad, y, split)
        with pytest.raises(ValueError, match=r"\(30, 6\) and \(29,\)"):
            readout(z, y[1:], split)
        with pytest.raises(ValueError, match="integer classes"):
            readout(z, y.float(), split)
        with pytest.raises(ValueError, match="no label"):
            readout(z, torch.full_like(y, -100), split)
        with pytest.raises(ValueError, match="no part val"):
            readout(z, y, {"train": split["train"], "test": split["test"]})
        with pytest.raises(ValueError, match="part val of the split must hold row ids"):
            readout(z, y, {**split, "val": split["val"][:0]})
        with pytest.raises(ValueError, match=r"part test has ids 30\.\.30 outside"):
            readout(z, y, {**split, "test": torch.tensor([30])})
        with pytest.raises(ValueError, match="1 rows are listed more than once"):
            readout(z, y, {**split, "test": split["train"][:1]})
        with pytest.raises(ValueError, match="part train of the split has 1 rows without a label"):
            readout(z, y.index_fill(0, split["train"][:1], -1), split)
    with pytest.raises(ValueError, match="must be positive"):
        linear_probe(z, y, split, epochs=0)
    with pytest.raises(ValueError, match="positive values"):
        logistic_l2(z, y, split, grid=[])
    with pytest.raises(ValueError, match=r"outside \[0, 2\)"):
        confusion_matrix(torch.tensor([2]), torch.tensor([0]), 2)
    with pytest.raises(ValueError, match="differ in shape"):
        confusion_matrix(torch.zeros(2), torch.zeros(3), 2)
    for score in (accuracy, macro_f1):
        with pytest.raises(ValueError, match="at least one counted row"):
            score(torch.zeros(2, 2, dtype=torch.int64))


def test_state_global_generator_untouched():
    z, y = clouds()
    before = torch.get_rng_state()
    first = linear_probe(z, y, split_of(150), epochs=40, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert linear_probe(z, y, split_of(150), epochs=40, seed=1) == first


def test_examples():
    for module in (confusion, probe):
        assert doctest.testmod(module, extraglobs={"torch": torch}).failed == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_values_gpu():
    z, y = clouds()
    split = split_of(150)
    assert linear_probe(z.cuda(), y, split, epochs=60) == linear_probe(z, y, split, epochs=60)


@pytest.mark.real
def test_values_real(data_root):
    import numpy as np

    from leanlabel.sparse import from_parts

    file = np.load(data_root / "graphs" / "amazon_photo.npz", allow_pickle=False)
    shape = (int(file["x_shape"][0]), int(file["x_shape"][1]))
    x = from_parts(file["x_indptr"], file["x_indices"], file["x_data"].astype("float32"), shape)
    y = torch.from_numpy(file["y"]).long()
    order = rng.permutation(0, "split", 0, len(y))
    split = {"train": order[:765], "val": order[765:1530], "test": order[1530:]}
    assert 0.82 < linear_probe(x, y, split, epochs=200).accuracy < 0.93
    assert 0.82 < logistic_l2(x, y, split, grid=[1.0, 16.0]).accuracy < 0.93
