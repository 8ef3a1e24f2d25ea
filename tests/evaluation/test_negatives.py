"""What is said about negatives: hardness, the proxy task, false negatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from leanlabel.evaluation.negatives import (
    expected_false_negatives,
    false_negative_share,
    hardness_curve,
    proxy_accuracy,
    synthetic_false_negatives,
)
from leanlabel.losses.contrastive import unit
from leanlabel.losses.mixing import Mixing, MixingDraws, draw_mixing, hardest, mixed_logits
from leanlabel.losses.relations import Distinct
from leanlabel.rng import draw

TAU = 0.2


def rows(count: int, seed: int, dim: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return unit(torch.randn(count, dim, generator=generator, dtype=torch.float64))


def case() -> tuple[Tensor, Tensor, Tensor]:
    """Query, keys and own keys of the oracle cases of MoCHi's specification."""
    query, keys, own = (
        [[1, 2, 2], [2, -1, 2]],
        [[0, 3, 4], [4, 0, 3], [-1, 2, 2], [1, 1, -1], [2, 1, -1]],
        [[2, 2, 1], [1, 0, 1]],
    )
    first, second, third = (unit(torch.tensor(part, dtype=torch.float64)) for part in (query, keys, own))
    return first, second, third


def labels(*values: int) -> Tensor:
    return torch.tensor(values)


def test_values_proxy_accuracy() -> None:
    """Case 1: row 0 wrong, row 1 right. The mixtures of case 2 change nothing; a harder point would."""
    query, keys, own = case()
    assert proxy_accuracy(query, keys, own) == (0.5, 0.5)
    extra = torch.tensor([[4.1, 4.8, 4.9], [4.0, 0.9, 2.1]], dtype=torch.float64)
    assert proxy_accuracy(query, keys, own, tau=TAU, extra=extra) == (0.5, 0.5)
    extra[1, 0] = 4.72  # just above 4.7140452079
    assert proxy_accuracy(query, keys, own, tau=TAU, extra=extra) == (0.5, 0.0)
    extra[1, 0] = 4.71
    assert proxy_accuracy(query, keys, own, tau=TAU, extra=extra) == (0.5, 0.5)
    # Without its hardest key row 0 is right as well.
    oracle = Distinct(labels(7, 8), labels(7, 0, 0, 0, 0))
    assert proxy_accuracy(query, keys, own, keep=oracle) == (1.0, 1.0)


def test_values_hardness_curve() -> None:
    """From the logits of case 1."""
    query, keys, own = case()
    positive = [4.4444444444, 4.7140452079]
    negatives = [
        [4.6666666667, 3.8888888889, 3.3333333333, 1.3608276349, 0.9622504486],
        [4.6666666667, 1.6666666667, 0.6804138174, 0.0, -0.9622504486],
    ]
    logits = torch.tensor([[one, *rest] for one, rest in zip(positive, negatives, strict=True)]).double()
    expected = logits.softmax(1)[:, 1:].mean(0)
    torch.testing.assert_close(hardness_curve(query, keys, own, tau=TAU), expected, rtol=1e-6, atol=0)
    short = hardness_curve(query, keys, own, tau=TAU, top=2)
    torch.testing.assert_close(short, expected[:2], rtol=1e-6, atol=0)


def test_values_false_negatives() -> None:
    index = torch.tensor([[0, 1, 2], [2, 1, -1], [0, 1, 2]])
    share = false_negative_share(labels(1, 2, -100), labels(1, 2, -100), index)
    # Known pairs: (0, 0) same, (0, 1) other, (1, 1) same.
    assert share == pytest.approx(2 / 3)
    assert false_negative_share(labels(-100), labels(1, 2), index[:1, :2]) is None
    assert false_negative_share(labels(1), labels(), torch.empty(1, 0, dtype=torch.int64)) is None


def test_values_expected_false_negatives() -> None:
    """The pilot of the specification: 10 classes in 512 keys are 51 of a kind, and ImageNet-100 is at 6."""
    pilot, paper = expected_false_negatives(10, 64, 512), expected_false_negatives(100, 1024, 16384)
    assert (pilot.same_class, pilot.ratio, pilot.enough) == (51.2, 1.25, False)
    assert (paper.ratio, paper.enough) == (6.25, True)
    assert expected_false_negatives(4, 1, 1).enough


def test_values_synthetic_false_negatives() -> None:
    # Ranked keys of the classes 1, 2, 1, unknown; the query is of class 1.
    index, key_labels = torch.tensor([[3, 0, 2, 1]]), labels(2, -100, 1, 1)
    first, second = torch.tensor([[0, 0, 1, 0, 3]]), torch.tensor([[1, 2, 1, 3, 3]])
    partner = torch.tensor([[0, 1, 3]])
    draws = MixingDraws(first, second, torch.zeros(1, 5), partner, torch.zeros(1, 3))
    # Known: three pairs (one, two, no member of the class) and two of type 2 (one of the class, one not).
    found = synthetic_false_negatives(draws, labels(1), key_labels, index)
    assert found == (3 / 5, 1 / 5)
    assert synthetic_false_negatives(draws, labels(-100), key_labels, index) is None
    assert synthetic_false_negatives(draws, labels(1), labels(-1, -1, -1, -1), index) is None


def test_reference() -> None:
    """Against full matrices, with a class oracle and mixed points."""
    query, keys = rows(9, 1), rows(70, 2)
    own = unit(query + 0.3 * rows(9, 3))
    mine, theirs = torch.arange(9) % 3, torch.arange(70) % 4
    keep = Distinct(mine, theirs)
    similar = (query @ keys.mT).masked_fill(mine[:, None] == theirs, -torch.inf)
    logits = torch.cat([(query * own).sum(1, keepdim=True), similar], 1) / TAU
    curve = logits.softmax(1)[:, 1:].sort(1, descending=True).values.mean(0)
    for chunk in (None, 7):
        found = hardness_curve(query, keys, own, tau=TAU, top=60, keep=keep, chunk=chunk)
        torch.testing.assert_close(found, curve[:60], rtol=1e-9, atol=1e-15)
    mixing, ids = Mixing(10, 6, 6), torch.arange(9)
    extra = mixed_logits(query, keys, mixing, draw(0, "mix", 0, ids), tau=TAU, keep=keep)
    best = similar.amax(1) / TAU
    plain = (logits[:, 0] > best).double().mean()
    mixed = (logits[:, 0] > torch.maximum(best, extra.amax(1))).double().mean()
    found = proxy_accuracy(query, keys, own, tau=TAU, extra=extra, keep=keep, chunk=16)
    assert found == (float(plain), float(mixed))
    assert 0 < found.mixed <= found.plain < 1


def test_reference_of_synthetic_points() -> None:
    """Against a loop over what was drawn; with the class oracle there are none."""
    query, keys = rows(6, 1), rows(40, 2)
    mine, theirs = torch.tensor([0, 1, 2, -100, 0, 1]), torch.arange(40) % 4
    theirs[::5] = -100
    mixing = Mixing(12, 30, 20)
    top = hardest(query, keys, 12)
    draws = draw_mixing(draw(0, "mix", 0, torch.arange(6)), mixing, top.count)
    one = two = count = 0
    for i in range(6):
        points = [*zip(draws.first[i].tolist(), draws.second[i].tolist(), strict=True)]
        points += [(place,) for place in draws.partner[i].tolist()]
        for point in points:
            classes = [int(theirs[top.index[i, place]]) for place in point]
            if int(mine[i]) < 0 or min(classes) < 0:
                continue
            false = sum(kind == int(mine[i]) for kind in classes)
            one, two, count = one + (false >= 1), two + (false == 2), count + 1
    found = synthetic_false_negatives(draws, mine, theirs, top.index)
    assert found == (one / count, two / count)
    assert found is not None
    assert 0 < found.two < found.one < 1
    theirs = torch.arange(40) % 4
    oracle = hardest(query, keys, 40, keep=Distinct(mine, theirs))
    assert false_negative_share(mine, theirs, oracle.index) == 0


def test_gradient() -> None:
    """None is kept: these are looks at a model, not losses."""
    query = rows(3, 1).requires_grad_()
    assert not hardness_curve(query, rows(5, 2), rows(3, 3), tau=TAU).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    query, keys, own = (part.to(dtype) for part in (rows(4, 1), rows(20, 2), rows(4, 3)))
    curve = hardness_curve(query, keys, own, tau=0.05)
    exact = hardness_curve(query.double(), keys.double(), own.double(), tau=0.05)
    torch.testing.assert_close(curve, exact, rtol=1e-4, atol=1e-7)


def test_degenerate() -> None:
    query, own = rows(3, 1), rows(3, 2)
    none = query[:0]
    assert hardness_curve(query, none, own, tau=TAU).shape == (0,)
    assert proxy_accuracy(query, none, own) == (1.0, 1.0)
    absent = torch.full((3, 2), -torch.inf, dtype=torch.float64)
    assert (
        proxy_accuracy(query, rows(4, 3), own, extra=absent).mixed
        == proxy_accuracy(query, rows(4, 3), own).plain
    )
    # The positive in the queue is a tie, and a tie is a no.
    assert proxy_accuracy(torch.eye(2), torch.eye(2), torch.eye(2)) == (0.0, 0.0)
    draws = MixingDraws(*(torch.empty(2, 0, dtype=torch.int64),) * 5)
    index = torch.zeros(2, 3, dtype=torch.int64)
    assert synthetic_false_negatives(draws, labels(0, 1), labels(0), index) is None
    assert synthetic_false_negatives(draws, labels(0, 1), labels(0), index[:, :0]) is None


def test_errors() -> None:
    query, keys = rows(3, 1), rows(5, 2)
    with pytest.raises(ValueError, match="no queries"):
        hardness_curve(query[:0], keys, query[:0], tau=TAU)
    with pytest.raises(ValueError, match="no queries"):
        proxy_accuracy(query[:0], keys, query[:0])
    with pytest.raises(ValueError, match="tau must be positive"):
        proxy_accuracy(query, keys, query, tau=0)
    with pytest.raises(ValueError, match=r"shape of query \(3, 5\), got \(2, 5\)"):
        proxy_accuracy(query, keys, query[:2])
    with pytest.raises(ValueError, match=r"extra must be \(3, E\), got \(2, 4\)"):
        proxy_accuracy(query, keys, query, extra=torch.zeros(2, 4))
    with pytest.raises(ValueError, match="do not fit"):
        false_negative_share(labels(1, 2), labels(1, 2), torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least 1, got 0, 1 and 1"):
        expected_false_negatives(0, 1, 1)
    draws = MixingDraws(*(torch.empty(2, 0, dtype=torch.int64),) * 5)
    with pytest.raises(ValueError, match="one row each"):
        synthetic_false_negatives(draws, labels(0), labels(0), torch.zeros(1, 1, dtype=torch.int64))
