"""Prototype contrast as a term: values, where gradients go, what prototypes begin with, two ranks as one."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from leanlabel import dist
from leanlabel.errors import InputError
from leanlabel.methods.dense_step import DenseBatch, Step
from leanlabel.methods.terms import Setting, find_term
from leanlabel.methods.terms.prototypes import Prototypical, source_prototypes
from leanlabel.models.decoders import upsample
from leanlabel.models.segmenters import DenseOutput, SegmenterSettings, build_segmenter
from leanlabel.rng import draw

K, WIDTH, SIDE, GRID, IGNORED = 4, 48, 24, 6, -100
KNOWN = Setting(("road", "car", "pole", "sky"), (50, 20, 5, 25), width=WIDTH, steps=10, seed=0, stride=4)


class Owner:
    """A method with a network and another one as its average."""

    def __init__(self, term: Prototypical | None = None) -> None:
        torch.manual_seed(1)
        self.network = build_segmenter(SegmenterSettings(name="tiny-fcn", norm="none"), K).double()
        self.average = build_segmenter(SegmenterSettings(name="tiny-fcn", norm="none"), K).double()
        self.average.requires_grad_(False)
        with torch.no_grad():  # sure of some positions, and not all of one class
            for network in (self.network, self.average):
                last = network.get_submodule("decoder.classifier")
                for parameter in last.parameters():
                    parameter.mul_(300)
        self.asked: list[str] = []
        self.reported: dict[str, float] = {}
        self.head: nn.Module | None = None
        if term is not None and "head" in term.networks():
            self.head = term.networks()["head"].double()
            term.names = {"head": "term_0_head"}

    def student(self, images: Tensor) -> DenseOutput:
        self.asked.append("student")
        found = self.network(images)
        found.features.retain_grad()
        return found

    def student_head(self, features: Tensor) -> Tensor:
        return self.network.head(features)

    def teacher_output(self, images: Tensor) -> DenseOutput:
        self.asked.append("teacher")
        with torch.no_grad():
            return self.average(images)

    def enlarge(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        return upsample(logits, size)

    def own_network(self, name: str) -> nn.Module:
        assert name == "term_0_head"
        assert self.head is not None
        return self.head

    def report(self, **terms: Tensor | float) -> None:
        self.reported.update(
            {
                name: float(value.detach() if isinstance(value, Tensor) else value)
                for name, value in terms.items()
            }
        )

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(name)


def batch_of(rows: slice, seed: int, lowest: int = -1) -> DenseBatch:
    """Rows of a batch of three: images of patches, classes at random, some without one."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(3, 3, SIDE, SIDE, generator=generator, dtype=torch.float64) * 2 - 1
    labels = torch.randint(lowest, K, (3, SIDE // 3, SIDE // 3), generator=generator)
    labels = labels.masked_fill(labels < 0, IGNORED).repeat_interleave(3, 1).repeat_interleave(3, 2)
    return DenseBatch(torch.arange(seed, seed + 3)[rows], images[rows], labels[rows])


def step_of(
    owner: Owner, source: DenseBatch | None = None, target: DenseBatch | None = None, t: int = 3
) -> Step:
    source = batch_of(slice(3), 10) if source is None else source
    target = batch_of(slice(2), 50) if target is None else target
    made: Any = owner
    there = Step(made, t, target, lambda name: draw(0, name, t, target.ids))
    return Step(made, t, source, lambda name: draw(0, name, t, source.ids), there)


def made(**settings: Any) -> Prototypical:
    return Prototypical(Prototypical.Settings.model_validate(settings), KNOWN).double()


def begun(**settings: Any) -> Prototypical:
    """A term whose prototypes are there."""
    term = made(**settings)
    generator = torch.Generator().manual_seed(7)
    values = torch.randn(term.bank.values.shape, generator=generator, dtype=torch.float64) / 8
    term.bank.begin(values, torch.full((K,), 9.0, dtype=torch.float64))
    return term


def gone(term: Prototypical, step: Step) -> Tensor:
    term.before(step)
    (value,) = term.loss(step).values()
    return value


def coarse(labels: Tensor, size: tuple[int, int], thin: str) -> list[list[list[int]]]:
    """Labels of positions, position by position."""
    (height, width), found = labels.shape[1:], []
    for one in labels:
        rows = []
        for i in range(size[0]):
            row = []
            for j in range(size[1]):
                if thin == "nearest":
                    row.append(int(one[i * height // size[0], j * width // size[1]]))
                    continue
                cell = one[
                    i * height // size[0] : (i + 1) * height // size[0],
                    j * width // size[1] : (j + 1) * width // size[1],
                ]
                counts = [int((cell == k).sum()) for k in range(K)]
                best = max(range(K), key=lambda k: counts[k])
                row.append(best if counts[best] >= 0.75 * cell.numel() else IGNORED)
            rows.append(row)
        found.append(rows)
    return found


def rows_of(features: Tensor, labels: list[list[list[int]]]) -> list[tuple[Tensor, int]]:
    """Unit features and labels of all labelled positions."""
    return [
        (features[b, :, i, j] / features[b, :, i, j].norm(), label)
        for b, one in enumerate(labels)
        for i, row in enumerate(one)
        for j, label in enumerate(row)
        if label != IGNORED
    ]


@torch.no_grad()
def naive(
    owner: Owner,
    step: Step,
    values: Tensor,
    *,
    balance: str,
    agree: str,
    thin: str,
    features: str,
    tau: float,
) -> dict[str, float]:
    """Everything that the term says, from loops."""
    output, other = owner.network(step.images), owner.network(step.target.images)
    size = (output.features.shape[2], output.features.shape[3])
    labels = coarse(step.labels, size, thin)
    guess = output.logits.argmax(1)
    seen = [
        [[k if int(guess[b, i, j]) == k else IGNORED for j, k in enumerate(row)] for i, row in enumerate(one)]
        for b, one in enumerate(labels)
    ]
    labelled = [k for one in labels for row in one for k in row if k != IGNORED]
    kept = [k for one in seen for row in one for k in row if k != IGNORED]
    if agree == "labels":
        seen = labels
    if agree == "fallback":
        lost = set(labelled) - set(kept)
        seen = [
            [[k if k in lost else seen[b][i][j] for j, k in enumerate(row)] for i, row in enumerate(one)]
            for b, one in enumerate(labels)
        ]
    whose = owner.average(step.images).features if features == "teacher" else output.features
    values = values.clone()
    for k in range(K):
        own = [z for z, label in rows_of(whose, seen) if label == k]
        if own:
            values[k] = 0.1 * values[k] + 0.9 * torch.stack(own).mean(0)
    found = {"agreed": len(kept) / len(labelled)}
    names = {
        "source": ("own_similarity", "other_similarity", "similarity_gap"),
        "target": ("target_own_similarity", "target_other_similarity", "target_gap"),
    }
    given = {
        "source": rows_of(output.features, seen),
        "target": rows_of(other.features, coarse(step.target.labels, size, thin)),
    }
    for domain, rows in given.items():
        losses: dict[int, list[float]] = {}
        for z, label in rows:
            scores = values @ z / tau
            losses.setdefault(label, []).append(float(torch.logsumexp(scores, 0) - scores[label]))
        means = [sum(one) / len(one) for one in losses.values()]
        every = [value for one in losses.values() for value in one]
        found[f"prototype_{domain}"] = sum(means if balance == "class" else every) / len(
            means if balance == "class" else every
        )
        similar = [(values @ z, label) for z, label in rows]
        own = sum(float(one[label]) for one, label in similar) / len(similar)
        rest = sum(float(one.sum() - one[label]) / (K - 1) for one, label in similar) / len(similar)
        found |= dict(zip(names[domain], (own, rest, own - rest), strict=True))
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {"agree": "agreed", "balance": "pixel"},
        {"agree": "fallback", "balance": "class", "tau": 0.1},
        {"agree": "labels", "balance": "class", "tau": 1.0, "thin": "pure"},
        {"agree": "fallback", "balance": "pixel", "tau": 1.0, "features": "teacher"},
    ],
    ids=json.dumps,
)
def test_reference(settings: dict[str, Any]) -> None:
    """Losses, similarities and the share of agreed positions of loops over positions."""
    term = begun(**settings)
    owner = Owner(term)
    step = step_of(owner)
    before = term.bank.values.clone()
    total = gone(term, step)
    chosen = {"balance": "class", "agree": "fallback", "thin": "nearest", "features": "student", "tau": 100.0}
    expected = naive(owner, step, before, **{**chosen, **settings})
    assert 0 < expected["agreed"] < 1
    assert owner.reported == pytest.approx(expected, rel=1e-9)
    both = expected["prototype_source"] + expected["prototype_target"]
    assert float(total.detach()) == pytest.approx(both, rel=1e-9)
    assert owner.asked.count("teacher") == (settings.get("features") == "teacher")
    assert owner.asked.count("student") == 2


def test_values_order() -> None:
    """The loss reads prototypes that hold the batch already: with alpha 0 they are its class means alone."""
    term = begun(alpha=0.0, agree="labels", tau=1.0, target="none", balance="pixel")
    owner = Owner(term)
    value = gone(term, step_of(owner))
    features, labels = owner.network(batch_of(slice(3), 10).images).features, batch_of(slice(3), 10).labels
    rows = rows_of(features, coarse(labels, (GRID, GRID), "nearest"))
    means = torch.stack([torch.stack([z for z, k in rows if k == label]).mean(0) for label in range(K)])
    torch.testing.assert_close(term.bank.values, means.detach(), rtol=1e-12, atol=0)
    expected = [torch.logsumexp(means @ z, 0) - means[k] @ z for z, k in rows]
    assert float(value.detach()) == pytest.approx(float(torch.stack(expected).mean().detach()), rel=1e-12)
    assert not any(name.startswith(("target", "prototype_target")) for name in owner.reported)


@pytest.mark.parametrize("thin", ["nearest", "pure"])
def test_values_online(thin: str) -> None:
    """The teacher's class where it is sure; padding has none."""
    term = begun(target="online", threshold=0.32, thin=thin, balance="pixel", tau=1.0)
    owner = Owner(term)
    target = batch_of(slice(2), 50)
    weights = torch.ones(2, SIDE, SIDE)
    weights[:, :, 20:] = 0
    step = step_of(owner, target=target._replace(weights=weights))
    gone(term, step)
    logits = owner.average(target.images).logits
    if thin == "pure":
        sure, labels = upsample(logits, (SIDE, SIDE)).softmax(1).max(1)
        labels = labels.where((sure >= 0.32) & (weights > 0), IGNORED)
        grid = torch.tensor(coarse(labels, (GRID, GRID), thin))
    else:
        sure, labels = logits.softmax(1).max(1)
        grid = labels.where(sure >= 0.32, IGNORED)
        grid[:, :, 5] = IGNORED
    rows = rows_of(owner.network(target.images).features, grid.tolist())
    assert 0 < len(rows) < 60
    values = term.bank.values
    expected = torch.stack([torch.logsumexp(values @ z, 0) - values[k] @ z for z, k in rows]).mean()
    assert owner.reported["prototype_target"] == pytest.approx(float(expected.detach()), rel=1e-9)
    assert owner.asked.count("teacher") == 1


def test_values_other_stride() -> None:
    """Scores of another stride than the features, as with several resolutions, are brought to the features' size."""
    term, owner = begun(agree="agreed"), Owner()
    step = step_of(owner)
    fine = upsample(step.logits, (3 * GRID, 3 * GRID)).detach()
    step.__dict__["output"] = step.output._replace(logits=fine)
    gone(term, step)
    _, labels = step.shared["prototype-contrast"]
    guess = upsample(fine, (GRID, GRID)).argmax(1)
    thin = torch.tensor(coarse(step.labels, (GRID, GRID), "nearest"))
    assert torch.equal(labels, thin.where(thin == guess, IGNORED))


def test_values_wait() -> None:
    """Before the wait is over prototypes move, nothing is contrasted, and the target is not read."""
    term = begun(wait=4)
    owner, before = Owner(term), term.bank.values.clone()
    value = gone(term, step_of(owner, t=3))
    assert float(value.detach()) == 0
    value.backward()
    assert not torch.equal(before, term.bank.values)
    assert owner.asked == ["student"]
    assert "own_similarity" in owner.reported
    assert float(gone(term, step_of(owner, t=4)).detach()) > 2


def test_values_spread() -> None:
    """The regulariser is added with its weight and logged by itself."""
    plain, spread = (begun(spread=weight, tau=0.1) for weight in (0.0, 0.5))
    owners = Owner(), Owner()
    without, total = (
        float(gone(term, step_of(owner)).detach())
        for term, owner in zip((plain, spread), owners, strict=True)
    )
    told = owners[1].reported["prototype_spread"]
    assert told > 0
    assert total == pytest.approx(without + 0.5 * told, rel=1e-12)
    assert "prototype_spread" not in owners[0].reported


def test_values_head() -> None:
    """Prototypes live behind the head; it learns, and the teacher's features go through it without gradient."""
    term = begun(head=6, features="teacher", tau=0.1)
    assert term.bank.values.shape == (K, 6)
    owner = Owner(term)
    step = step_of(owner)
    before = term.bank.values.clone()
    value = gone(term, step)
    assert owner.head is not None
    taught = owner.head(owner.average(step.images).features)
    labels = coarse(step.labels, (GRID, GRID), "nearest")
    logits, guess = owner.network(step.images).logits, None
    guess = logits.argmax(1)
    agreed = [
        (z, k)
        for z, k in rows_of(
            taught,
            [
                [
                    [k if int(guess[b, i, j]) == k else IGNORED for j, k in enumerate(row)]
                    for i, row in enumerate(one)
                ]
                for b, one in enumerate(labels)
            ],
        )
    ]
    seen = {k for _, k in agreed}
    for k in seen:
        mean = torch.stack([z for z, label in agreed if label == k]).mean(0)
        torch.testing.assert_close(term.bank.values[k], (0.1 * before[k] + 0.9 * mean).detach())
    value.backward()
    assert all(one.grad is not None and bool(one.grad.any()) for one in owner.head.parameters())
    assert all(one.grad is None for one in owner.average.parameters())
    chosen = term.optimiser("head")
    assert (chosen.name, chosen.lr) == ("adamw", 1e-3)
    assert Prototypical.joint == ("head",)
    assert not list(term.parameters()), "the method keeps the head's weights"
    assert not made().networks()


def test_gradient() -> None:
    """Encoder and features learn, prototypes and classifier get nothing; rows without a label get nothing."""
    term = begun(tau=0.1, agree="agreed")
    owner = Owner(term)
    step = step_of(owner)
    gone(term, step).backward()
    for name, parameter in owner.network.named_parameters():
        if "classifier" in name:
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
    assert not term.bank.values.requires_grad
    features, labels = step.shared["prototype-contrast"]
    slope = features.grad.abs().sum(1)
    assert bool((slope[labels == IGNORED] == 0).all())
    assert bool((slope[labels != IGNORED] > 0).all())
    guessed = torch.tensor(coarse(step.target.labels, (GRID, GRID), "nearest"))
    theirs = step.target.features.grad
    assert theirs is not None
    assert torch.equal(theirs.abs().sum(1) > 0, guessed != IGNORED)


def test_gradient_zero_feature() -> None:
    """A position whose feature is zero counts log K and gets a gradient of exactly 0."""
    term = begun(tau=0.1, agree="labels", target="none", balance="pixel")
    owner = Owner(term)
    step = step_of(owner, batch_of(slice(3), 10, lowest=0))
    output = step.output
    features = output.features.detach().clone()
    features[0, :, 0, 0] = 0
    features.requires_grad_()
    step.__dict__["output"] = output._replace(features=features)
    gone(term, step).backward()
    assert features.grad is not None
    assert not bool(features.grad[0, :, 0, 0].any())
    assert bool(features.grad.isfinite().all())
    assert bool((features.grad.abs().sum(1) > 0).sum() == 3 * GRID**2 - 1)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(kind: torch.dtype) -> None:
    """Half precision is compared in single precision: the value is that of the same features in double precision."""
    wanted, found, expected = begun(), begun().float(), 0.0
    for term, wide in ((wanted, True), (found, False)):
        owner = Owner(term)
        step = step_of(owner)
        for one in (step, step.target):
            output = one.output
            features = output.features.detach().to(kind)
            one.__dict__["output"] = output._replace(
                features=(features.double() if wide else features).requires_grad_()
            )
        value = gone(term, step)
        value.backward()
        assert value.dtype == (torch.float64 if wide else torch.float32)
        assert step.features.grad is not None
        assert bool(step.features.grad.isfinite().all())
        if wide:
            expected = float(value.detach())
        else:
            assert float(value.detach()) == pytest.approx(expected, rel=1e-5)


def empty(batch: DenseBatch) -> DenseBatch:
    return batch._replace(labels=torch.full_like(batch.labels, IGNORED))


def test_degenerate() -> None:
    """Nothing labelled, nothing agreed, no prototype, an absent class: exactly 0 or log K, with a gradient."""
    term, owner = begun(), Owner()
    before = term.bank.values.clone()
    value = gone(term, step_of(owner, empty(batch_of(slice(3), 10)), empty(batch_of(slice(2), 50))))
    assert float(value.detach()) == 0
    value.backward()
    assert all(not bool(p.grad.any()) for p in owner.network.parameters() if p.grad is not None)
    assert torch.equal(term.bank.values, before), "absent classes keep their prototypes"
    assert owner.reported["agreed"] == 0
    assert all(math.isfinite(one) for one in owner.reported.values())
    assert "similarity_gap" not in owner.reported

    fading = begun(absent="decay")
    gone(fading, step_of(Owner(), empty(batch_of(slice(3), 10))))
    torch.testing.assert_close(fading.bank.values, before * 0.1)

    # The network sees one class only, and labels have others only.
    for agree, share in (("agreed", 0), ("fallback", 1)):
        term, owner = made(agree=agree), Owner()
        guess = owner.network(batch_of(slice(3), 10).images).logits.argmax(1)
        other = (guess + 1) % K
        source = batch_of(slice(3), 10)
        labels = other.repeat_interleave(4, 1).repeat_interleave(4, 2)
        value = gone(term, step_of(owner, source._replace(labels=labels)))
        assert owner.reported["agreed"] == 0
        lost = [k for k in range(K) if bool((other == k).any())]
        assert bool(term.bank.known.any()) == bool(share)
        assert torch.equal(term.bank.known.nonzero()[:, 0], torch.tensor(lost if share else []).long())
        value.backward()
        assert math.isfinite(float(value.detach()))
        if not share:  # no prototype: no position has a class that is known
            assert float(value.detach()) == 0

    # Zero prototypes that count as known: log K for each domain, and a gradient of 0.
    term, owner = made(absent="keep", agree="labels"), Owner()
    term.bank.begin(torch.zeros(K, WIDTH, dtype=torch.float64), torch.ones(K, dtype=torch.float64))
    value = gone(term, step_of(owner, empty(batch_of(slice(3), 10))))
    assert float(value.detach()) == pytest.approx(math.log(K), rel=1e-12)
    value.backward()
    assert all(not bool(p.grad.any()) for p in owner.network.parameters() if p.grad is not None)


def test_degenerate_unknown_class() -> None:
    """A class without a prototype is no positive; in the denominator it counts as similarity 0, or not at all."""
    values = {}
    for mask in (False, True):
        term, owner = begun(mask_unknown=mask, tau=1.0, balance="pixel", agree="labels"), Owner()
        counts = torch.tensor([9.0, 9.0, 9.0, 0.0], dtype=torch.float64)
        term.bank.begin(torch.where(counts[:, None] > 0, term.bank.values, 0), counts)
        source = batch_of(slice(3), 10)
        source = source._replace(labels=source.labels.masked_fill(source.labels == 3, IGNORED))
        target = batch_of(slice(2), 50)
        step = step_of(owner, source, target)
        gone(term, step)
        rows = rows_of(step.target.features.detach(), coarse(target.labels, (GRID, GRID), "nearest"))
        assert any(k == 3 for _, k in rows)
        prototypes = term.bank.values[:3] if mask else term.bank.values
        expected = [torch.logsumexp(prototypes @ z, 0) - prototypes[k] @ z for z, k in rows if k != 3]
        values[mask] = owner.reported["prototype_target"]
        assert values[mask] == pytest.approx(float(torch.stack(expected).mean()), rel=1e-9)
    assert values[True] < values[False]


def test_degenerate_one_class() -> None:
    known = Setting(("all",), (5,), width=WIDTH, steps=10, seed=0)
    term = Prototypical(Prototypical.Settings.model_validate({"agree": "labels"}), known).double()
    owner = Owner()
    source, target = (
        one._replace(labels=one.labels.clamp(max=0))
        for one in (batch_of(slice(3), 10), batch_of(slice(2), 50))
    )
    assert float(gone(term, step_of(owner, source, target)).detach()) == pytest.approx(0, abs=1e-15)
    assert all(math.isfinite(one) for one in owner.reported.values())


def test_errors() -> None:
    for settings, said in (
        ({"head": 8, "initial": "pass"}, "batch with a head"),
        ({"spread": 0.1, "target": "none"}, "target: none"),
        ({"tau": 0.0}, "greater than 0"),
        ({"alpha": 1.5}, "less than or equal to 1"),
        ({"layer": "logits"}, "features"),
    ):
        with pytest.raises(ValidationError, match=said):
            made(**settings)
    owner = Owner()
    source = batch_of(slice(3), 10)
    wrong = source._replace(labels=torch.full_like(source.labels, 7))
    with pytest.raises(InputError, match="label 7"):
        gone(begun(agree="labels"), step_of(owner, wrong))
    with pytest.raises(InputError, match="label 7"):
        gone(begun(), step_of(owner, wrong))
    lone: Any = Step(owner, 0, source, lambda name: draw(0, name, 0, source.ids))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="second domain"):
        gone(begun(), lone)
    with pytest.raises(ValueError, match="at least one batch"):
        source_prototypes(owner.network, [], K)


def test_state() -> None:
    """What it reads follows from its settings; prototypes are all that it remembers."""
    assert find_term("prototype-contrast") is Prototypical
    for settings, expected in (
        ({}, (True, True, True, False)),
        ({"target": "online"}, (True, True, False, True)),
        ({"target": "none"}, (True, False, False, False)),
        ({"target": "none", "features": "teacher"}, (True, False, False, True)),
    ):
        needs = Prototypical.needs(made(**settings).settings)
        assert (needs.source, needs.target, needs.stored, needs.teacher) == expected
    begins = [Prototypical.prepares(made(**one).settings) for one in ({}, {"head": 4}, {"initial": "batch"})]
    assert begins == [True, False, False]
    assert Prototypical.carried
    term = begun()
    assert all(name.startswith("bank.") for name in term.state_dict())
    other = made()
    other.load_state_dict(term.state_dict())
    values = [gone(one, step_of(Owner())).detach() for one in (term, other)]
    assert torch.equal(*values)
    assert all(torch.equal(term.state_dict()[name], value) for name, value in other.state_dict().items())


def passed(term: Prototypical, parts: list[slice]) -> None:
    """Show a term the images of a batch in some parts."""
    owner = Owner()
    for part in parts:
        given = batch_of(part, 10)
        with torch.no_grad():
            term.observe(owner.network(given.images), given.labels)
    term.observed()


@pytest.mark.parametrize("agree", ["agreed", "fallback", "labels"])
def test_values_pass(agree: str) -> None:
    """A mean over images of means over agreed positions, whatever images come together."""
    owner, whole = Owner(), batch_of(slice(3), 10)
    guess = owner.network(whole.images).logits.argmax(1)
    labels = torch.tensor(coarse(whole.labels, (GRID, GRID), "nearest"))
    agreed = labels.where(guess == labels, IGNORED)
    features = owner.network(whole.images).features.detach()
    used = {"agreed": agreed, "labels": labels}.get(agree)
    if used is None:
        lost = [k for k in range(K) if bool((labels == k).any()) and not bool((agreed == k).any())]
        used = labels.where(torch.isin(labels, torch.tensor(lost).long()), agreed)
    expected, images = torch.zeros(K, WIDTH, dtype=torch.float64), torch.zeros(K, dtype=torch.int64)
    for k in range(K):
        means = [
            torch.stack(rows).mean(0)
            for b in range(3)
            if (
                rows := [
                    z for z, label in rows_of(features[b : b + 1], used[b : b + 1].tolist()) if label == k
                ]
            )
        ]
        images[k] = len(means)
        if means:
            expected[k] = torch.stack(means).mean(0)
    for parts in ([slice(3)], [slice(0, 1), slice(1, 3)]):
        term = made(agree=agree)
        passed(term, parts)
        torch.testing.assert_close(term.bank.values, expected)
        assert torch.equal(term.bank.known, images > 0)
        counts = torch.tensor([int((used == k).sum()) for k in range(K)])
        assert torch.equal(term.bank.counts, counts.double())
    network = owner.network.train()
    network.get_submodule("decoder").eval()
    batches = [(whole.images[part], whole.labels[part]) for part in (slice(0, 2), slice(2, 3))]
    values, seen = source_prototypes(network, batches, K, agree=agree)  # type: ignore[arg-type]
    torch.testing.assert_close(values, expected)
    assert torch.equal(seen, images)
    assert network.training
    assert not network.get_submodule("decoder").training


def shared_pass() -> dict[str, Tensor]:
    """The state after a pass of which this rank sees its part; three images, unequal parts."""
    term = made()
    passed(term, [dist.shard(3)])
    return dict(term.state_dict())


def test_ranks_pass(pool: Any) -> None:
    whole, parts = shared_pass(), pool.run(shared_pass)
    for part in parts:
        for name, value in whole.items():
            torch.testing.assert_close(part[name], value, rtol=1e-12, atol=1e-15)


def ranked(unequal: bool) -> tuple[float, dict[str, float], dict[str, Tensor], dict[str, Tensor]]:
    """Loss, what is logged, gradients and memory, of one rank's part."""
    term = begun(tau=0.1, spread=0.3)
    owner = Owner(term)
    step = step_of(owner, batch_of(dist.shard(3), 10), batch_of(dist.shard(3), 50))
    if unequal and dist.rank() == 0 and dist.world() > 1:
        step = step_of(owner, batch_of(slice(0, 1), 10), batch_of(slice(0, 0), 50))
    elif unequal:
        rows = slice(3) if dist.world() == 1 else slice(1, 3)
        step = step_of(owner, batch_of(rows, 10), batch_of(slice(3), 50))
    value = gone(term, step)
    value.backward()
    gradients = {n: p.grad for n, p in owner.network.named_parameters() if p.grad is not None}
    return float(value.detach()), owner.reported, gradients, dict(term.state_dict())


@pytest.mark.parametrize("unequal", [False, True])
def test_ranks(pool: Any, unequal: bool) -> None:
    """Two ranks with other numbers of images, or none of a domain, equal one; prototypes bit for bit on both."""
    whole, parts = ranked(unequal), pool.run(ranked, unequal)
    assert sum(part[0] for part in parts) / 2 == pytest.approx(whole[0], rel=1e-9)
    for name, value in whole[1].items():
        assert sum(part[1][name] for part in parts) / 2 == pytest.approx(value, rel=1e-9), name
    for name, slope in whole[2].items():
        mean = sum(part[2].get(name, torch.zeros_like(slope)) for part in parts) / 2
        torch.testing.assert_close(mean, slope, rtol=1e-8, atol=1e-12, msg=name)
    for name, value in whole[3].items():
        assert torch.equal(parts[0][3][name], parts[1][3][name])
        torch.testing.assert_close(parts[0][3][name], value, rtol=1e-12, atol=1e-15)
