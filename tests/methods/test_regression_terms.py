"""Terms that learn from pairs: what is compared, what learns, what does not, and several ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from leanlabel import dist, rng
from leanlabel.errors import InputError
from leanlabel.losses.feature_regression import Kind, distillation_loss, mean_square, regression_loss
from leanlabel.losses.pixel import pixel_cross_entropy
from leanlabel.methods.dense_step import DenseBatch, Step
from leanlabel.methods.terms import Setting, Term, find_term
from leanlabel.methods.terms.regression import (
    FeatureRegression,
    eroded,
    paired_reference,
)
from leanlabel.models.segmenters import DenseOutput, SegmenterSettings, build_segmenter

KNOWN = Setting(("road", "sky", "car"), (10, 5, 1), width=4, steps=10, seed=0)


class Net(nn.Module):
    """Two maps, features, logits, and a batch norm."""

    def __init__(self, width: int = 4, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(3, 5, 2, stride=2)
        self.norm = nn.BatchNorm2d(5)
        self.second = nn.Conv2d(5, width, 2, stride=2)
        self.head = nn.Conv2d(width, 3, 1)
        self.double()

    def forward(self, images: Tensor) -> DenseOutput:
        first = self.norm(self.first(images)).relu()
        second = self.second(first)
        return DenseOutput(self.head(second), second, (first, second))


class Owner:
    """A method with a student and a reference; its own networks take plain steps."""

    def __init__(self, term: Term, student: nn.Module, reference: nn.Module, parallel: bool = False) -> None:
        self.network, self.frozen = student, reference.eval().requires_grad_(False)
        self.made = {key: network.double() for key, network in term.networks().items()}
        term.names = {key: f"term_0_{key}" for key in self.made}
        self.wrapped: Mapping[str, nn.Module] = {
            f"term_0_{key}": DistributedDataParallel(network) if parallel else network
            for key, network in self.made.items()
        }
        self.reports: dict[str, float] = {}
        self.passes = 0

    def student(self, images: Tensor) -> DenseOutput:
        return self.network(images)

    def reference_output(self, images: Tensor) -> DenseOutput:
        self.passes += 1
        with torch.no_grad():
            return self.frozen(images)

    def enlarge(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)

    def own_network(self, name: str) -> nn.Module:
        return self.wrapped[name]

    def report(self, **terms: Tensor | float) -> None:
        self.reports.update({name: float(torch.as_tensor(one).detach()) for name, one in terms.items()})

    def update(self, loss: Tensor, which: str = "main") -> None:
        self.wrapped[which].zero_grad()
        loss.backward()


def made(name: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    kind = find_term(name)
    return kind(kind.Settings.model_validate(settings), KNOWN)


def images(count: int = 3, seed: int = 0, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64)


def paired(count: int = 3, *, holes: bool = True) -> tuple[DenseBatch, DenseBatch]:
    """Unlabelled images, and partners with masks; some pixels of the second pair show nothing."""
    generator = torch.Generator().manual_seed(7)
    labels = torch.randint(-1, 3, (count, 8, 8), generator=generator)
    weights = torch.ones(count, 8, 8)
    if holes:
        weights[min(1, count - 1), :3, 5:] = 0
    target = DenseBatch(torch.arange(count), images(count), torch.full_like(labels, -100))
    other = DenseBatch(
        torch.arange(count),
        images(count, seed=1),
        labels.where(labels >= 0, -100),
        weights if holes else None,
    )
    return target, other


def stepped(owner: Owner, target: DenseBatch, other: DenseBatch | None, t: int = 0) -> Step:
    def draw(name: str) -> rng.Draw:
        return rng.draw(0, name, t, None)

    inner = Step(cast(Any, owner), t, target, draw)
    return Step(cast(Any, owner), t, target, draw, target=inner, partner=other)


def case(term: Term, *, holes: bool = True, width: int = 4, parallel: bool = False) -> tuple[Owner, Step]:
    owner = Owner(term, Net(width, seed=1).eval(), Net(4, seed=2), parallel)
    return owner, stepped(owner, *paired(holes=holes))


# ------------------------------------------------------------------------------------------------------- values


def test_values_needs() -> None:
    """What the method must provide for them, and no more."""
    for name, frozen in (
        ("feature-regression", "reference"),
        ("mask-reuse", ""),
        ("logit-distillation", "reference"),
    ):
        needs = find_term(name).needs(find_term(name).Settings())
        assert (needs.source, needs.target, needs.pairs, needs.frozen) == (False, True, True, frozen)
        assert (needs.stored, needs.target_labels, needs.teacher) == (False, False, False)


def test_values_one_layer() -> None:
    """By default the squared error of the last map before the classifier, where both images show something."""
    term = made("feature-regression")
    owner, step = case(term)
    target, other = paired()
    assert other.weights is not None
    expected = regression_loss(
        owner.network(target.images).features, owner.frozen(other.images).features, valid=other.weights > 0
    )
    found = term.loss(step)
    assert list(found) == ["regression"]
    torch.testing.assert_close(found["regression"], expected, rtol=1e-12, atol=0)
    assert owner.reports == {"regression_valid": pytest.approx(1 - 9 / 192)}


def test_values_layers() -> None:
    """Weights, kinds, and every layer by its own name; relative is the rule for several."""
    layers = ("map1", "features", "logits")
    cases: list[tuple[Kind | None, Any]] = [("l1", (0.25, 0.0, 2.0)), (None, None)]
    for kind, weights in cases:
        term = made("feature-regression", layers=layers, kind=kind, weights=weights)
        owner, step = case(term, holes=False)
        own, other = owner.network(step.target.images), owner.frozen(paired()[1].images)
        losses = [
            regression_loss(a, b, kind=kind or "relative")
            for a, b in (
                (own.maps[0], other.maps[0]),
                (own.features, other.features),
                (own.logits, other.logits),
            )
        ]
        expected = sum(w * loss for w, loss in zip(weights or [1 / 3] * 3, losses, strict=True))
        found = term.loss(step)["regression"]
        torch.testing.assert_close(
            found, torch.as_tensor(expected), rtol=1e-6, atol=0
        )  # the scale is in float32
        assert owner.reports == {
            f"regression_{name}": pytest.approx(loss.item(), rel=1e-6)
            for name, loss in zip(layers, losses, strict=True)
        }


def test_values_scale() -> None:
    """The mean square over the first batches weighted by their positions, then a constant."""
    term = made("feature-regression", kind="relative", scale_batches=2).double()
    owner, _ = case(term)
    squares, counts, scales = [], [], []
    for t, holes in enumerate((True, False, True)):
        target, other = paired(count=t + 1, holes=holes)
        valid = None if other.weights is None else other.weights > 0
        mean, count = mean_square(owner.frozen(other.images).features, valid=valid)
        squares.append(mean)
        counts.append(count)
        value = term.loss(stepped(owner, target, other, t))["regression"]
        plain = regression_loss(
            owner.network(target.images).features, owner.frozen(other.images).features, valid=valid
        )
        scales.append(float(plain.detach() / value.detach()))
    both = sum(float(s * n) for s, n in zip(squares[:2], counts[:2], strict=True)) / float(sum(counts[:2]))
    assert scales == [pytest.approx(float(squares[0])), pytest.approx(both), pytest.approx(both)]


def test_values_mask_reuse() -> None:
    """The partner's labels where both images show something, at both places of comparison."""
    target, other = paired()
    assert other.weights is not None
    labels = other.labels.where(other.weights > 0, -100)
    for at in ("input", "feature"):
        term = made("mask-reuse", at=at, class_weights=(1.0, 2.0, 0.5), smoothing=0.1)
        owner, step = case(term)
        logits = owner.network(target.images).logits
        logits = owner.enlarge(logits, (8, 8)) if at == "input" else logits
        expected = pixel_cross_entropy(
            logits,
            labels if at == "input" else labels[:, ::4, ::4],
            class_weights=torch.tensor([1.0, 2.0, 0.5]),
            smoothing=0.1,
        )
        torch.testing.assert_close(term.loss(step)["mask_reuse"], expected, rtol=1e-12, atol=0)


def test_values_eroded() -> None:
    """A border between classes, a pixel without label, and the edge of the image, which is no border."""
    labels = torch.zeros(1, 4, 6, dtype=torch.int64)
    labels[0, :, 4:] = 2
    labels[0, 0, 0] = -100
    found = eroded(labels, 1)
    expected = labels.clone()
    expected[0, :, 3:5] = -100
    expected[0, :2, :2] = -100
    assert found.equal(expected)
    assert eroded(labels, 0) is labels
    assert (eroded(labels, 9) == -100).all()


def test_values_distillation() -> None:
    target, other = paired()
    assert other.weights is not None
    term = made("logit-distillation", temperature=2.0)
    owner, step = case(term)
    expected = distillation_loss(
        owner.network(target.images).logits,
        owner.frozen(other.images).logits,
        temperature=2.0,
        valid=other.weights > 0,
    )
    torch.testing.assert_close(term.loss(step)["logit_distillation"], expected, rtol=1e-12, atol=0)


def test_values_pixels_of_both() -> None:
    """A pixel that the unlabelled image does not show does not count either."""
    target, other = paired()
    assert other.weights is not None
    hidden = torch.ones_like(other.weights)
    hidden[0] = 0
    term = made("feature-regression")
    owner, _ = case(term)
    found = term.loss(stepped(owner, target._replace(weights=hidden), other))["regression"]
    part = term.loss(
        stepped(
            owner,
            DenseBatch(target.ids[1:], target.images[1:], target.labels[1:]),
            DenseBatch(other.ids[1:], other.images[1:], other.labels[1:], other.weights[1:]),
        )
    )["regression"]
    torch.testing.assert_close(found, part, rtol=1e-12, atol=0)


def test_values_reference_once() -> None:
    """Two terms that ask the reference share its pass."""
    owner, step = case(made("feature-regression"))
    made("feature-regression").loss(step)
    made("logit-distillation").loss(step)
    paired_reference(step)
    assert owner.passes == 1


# ----------------------------------------------------------------------------------------------------- gradient


def test_gradient_student_only() -> None:
    """Training moves the student and leaves the reference as it is, bit for bit."""
    term = made("feature-regression", layers=("map1", "features"))
    owner, _ = case(term)
    owner.network.train()
    before = {name: value.clone() for name, value in owner.frozen.state_dict().items()}
    optimiser = torch.optim.SGD(owner.network.parameters(), lr=0.05)
    losses = []
    for t in range(8):
        loss = term.loss(stepped(owner, *paired(), t))["regression"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(before[name].equal(value) for name, value in owner.frozen.state_dict().items())
    assert cast(Net, owner.network).head.weight.grad is None  # no gradient, so no step and no decay
    assert term.state_dict().keys() == {"scales", "seen", "batches"}


def test_gradient_adaptor() -> None:
    """Student and adaptor get the gradients of one common loss, each in its own step."""
    term = made("feature-regression", layers=("features",), adaptors={"features": (6, 4)})
    owner, step = case(term, width=6)
    adaptor = owner.made["adaptor_features"]
    target, other = paired()
    assert other.weights is not None
    joint = regression_loss(
        adaptor(owner.network(target.images).features),
        owner.frozen(other.images).features,
        valid=other.weights > 0,
    )
    parameters = [*adaptor.parameters(), *cast(Net, owner.network).second.parameters()]
    expected = torch.autograd.grad(joint, parameters)
    loss = term.loss(step)["regression"]
    torch.testing.assert_close(loss, joint, rtol=1e-12, atol=0)
    loss.backward()
    assert all(one.grad is None for one in adaptor.parameters())
    student = [one.grad for one in cast(Net, owner.network).second.parameters()]
    term.after(step)
    for found, wanted in zip([*(one.grad for one in adaptor.parameters()), *student], expected, strict=True):
        assert found is not None
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-15)
    assert term.optimiser("adaptor_features").lr == 1e-3
    assert not list(term.parameters())


# --------------------------------------------------------------------------------------------------- degenerate


@pytest.mark.parametrize("name", ["feature-regression", "logit-distillation"])
def test_degenerate_identity(name: str) -> None:
    """The same domain, norms in evaluation mode: loss 0, nothing moves."""
    term = made(name)
    owner = Owner(term, Net(seed=2).eval(), Net(seed=2))
    target, _ = paired()
    (loss,) = term.loss(stepped(owner, target, target)).values()
    loss.backward()
    assert loss.item() == 0
    gradients = [one.grad for one in owner.network.parameters() if one.grad is not None]
    assert gradients
    most = max(float(one.abs().max()) for one in gradients)
    assert most <= (0 if name == "feature-regression" else 1e-15)


@pytest.mark.parametrize("name", ["feature-regression", "mask-reuse", "logit-distillation"])
def test_degenerate_nothing_valid(name: str) -> None:
    """No pixel that both images show: 0 on the graph; such a batch says nothing about the scale either."""
    settings = {"kind": "relative"} if name == "feature-regression" else {}
    term = made(name, **settings)
    owner, _ = case(term)
    target, other = paired()
    other = other._replace(weights=torch.zeros(3, 8, 8))
    (loss,) = term.loss(stepped(owner, target, other)).values()
    loss.backward()
    assert loss.item() == 0
    gradients = [one.grad for one in owner.network.parameters() if one.grad is not None]
    assert gradients
    assert not any(one.any() for one in gradients)
    assert all(not value.any() for value in term.state_dict().values())


def test_degenerate_other_size() -> None:
    """A student of another stride: the reference is resized, and one warning says so."""

    class Finer(Net):
        def forward(self, images: Tensor) -> DenseOutput:
            return super().forward(F.interpolate(images, scale_factor=2, mode="bilinear"))

    term = made("feature-regression")
    owner = Owner(term, Finer(), Net(seed=2))
    with pytest.warns(
        UserWarning, match="features has 4 x 4 positions in the trained network and 2 x 2 in the"
    ):
        first = term.loss(stepped(owner, *paired()))["regression"]
    assert math.isfinite(first.item())
    term.loss(
        stepped(owner, *paired())
    )  # silent: warnings are errors in this suite where they are not expected


def test_degenerate_half_precision() -> None:
    """Maps in float16 whose squares overflow there."""
    term = made("feature-regression", layers=("features", "map1"))
    owner, _ = case(term)
    network, frozen = owner.network, owner.frozen

    def halved(net: nn.Module) -> Any:
        def call(images: Tensor) -> DenseOutput:
            out = net(images)
            return DenseOutput(
                out.logits.half(), (1e4 * out.features).half(), tuple((1e4 * m).half() for m in out.maps)
            )

        return call

    owner.network, owner.frozen = halved(network), halved(frozen)
    loss = term.loss(stepped(owner, *paired()))["regression"]
    loss.backward()
    assert loss.dtype == torch.float32
    assert math.isfinite(loss.item())


def test_real_network() -> None:
    """With a network of the library, whose encoder has maps."""
    torch.manual_seed(0)
    student, reference = (build_segmenter(SegmenterSettings(name="tiny-fcn"), 3).double() for _ in range(2))
    maps = student(images(size=32)).maps
    layers = ("features", f"map{len(maps)}")
    term = made("feature-regression", layers=layers, tolerance={"kind": "local", "size": 1})
    owner = Owner(term, student, reference)
    target = DenseBatch(torch.arange(2), images(2, size=32), torch.full((2, 32, 32), -100))
    other = target._replace(images=images(2, seed=1, size=32), weights=torch.ones(2, 32, 32))
    loss = term.loss(stepped(owner, target, other))["regression"]
    loss.backward()
    assert loss.item() > 0
    assert any(one.grad is not None and one.grad.any() for one in student.encoder.parameters())


# ------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("name", ["feature-regression", "mask-reuse", "logit-distillation"])
def test_errors_no_pairs(name: str) -> None:
    term = made(name)
    owner, _ = case(term)
    with pytest.raises(InputError, match=r"images that belong together\. Set data\.pairs"):
        term.loss(stepped(owner, paired()[0], None))


def test_errors_layers() -> None:
    term = made("feature-regression", layers=("map3",))
    with pytest.raises(InputError, match=r"no map3; the encoder has 2 maps\. Name one of map1 to map2"):
        term.loss(case(term)[1])


@pytest.mark.parametrize("adaptors", [{}, {"features": (5, 4)}])
def test_errors_channels(adaptors: dict[str, Any]) -> None:
    term = made("feature-regression", adaptors=adaptors)
    with pytest.raises(
        InputError, match=r"features has 6 channels .* 4 in the reference\. Set .*features: \[6, 4\]"
    ):
        term.loss(case(term, width=6)[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ()}, "at least 1 item"),
        ({"layers": ("map0",)}, "should match pattern"),
        ({"layers": ("map1", "map1")}, "each of the layers once"),
        ({"weights": (1.0, 2.0)}, "2 weights for 1 layers"),
        ({"adaptors": {"map1": (2, 3)}}, "map1 is none of the layers"),
        ({"tolerance": {"kind": "pool", "size": 0}}, "greater than or equal to 1"),
    ],
)
def test_errors_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FeatureRegression.Settings.model_validate(settings)


# -------------------------------------------------------------------------------------------------------- state


def test_state() -> None:
    """Saved after one batch and loaded into a new term, the scale goes on as if nothing had happened."""
    terms = [made("feature-regression", layers=("map1", "features"), scale_batches=3) for _ in range(2)]
    owner, _ = case(terms[0])
    found: list[list[float]] = [[], []]
    for number, term in enumerate(terms):
        for t in range(4):
            if number == 1 and t == 1:
                later = made("feature-regression", layers=("map1", "features"), scale_batches=3)
                later.load_state_dict(term.state_dict())
                term = later
            target, other = paired(count=t + 1)
            found[number].append(term.loss(stepped(owner, target, other, t))["regression"].item())
    assert found[0] == found[1]


# -------------------------------------------------------------------------------------------------------- ranks


def ranked(
    name: str, settings: dict[str, Any], sizes: list[int]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Loss, gradients of the student and gradients of the adaptor on this rank's pairs."""
    term = made(name, **settings).double()
    owner, _ = case(term, width=6 if settings.get("adaptors") else 4, parallel=len(sizes) > 1)
    start = sum(sizes[: dist.rank()])
    rows = slice(start, start + sizes[dist.rank()])
    target, other = paired()
    target, other = (
        DenseBatch(
            b.ids[rows], b.images[rows], b.labels[rows], None if b.weights is None else b.weights[rows]
        )
        for b in (target, other)
    )
    step = stepped(owner, target, other)
    (loss,) = term.loss(step).values()
    loss.backward()
    term.after(step)
    own = [one.grad for one in owner.network.parameters() if one.grad is not None]
    adaptor = [
        one.grad for network in owner.made.values() for one in network.parameters() if one.grad is not None
    ]
    return loss.detach(), own, adaptor


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("feature-regression", {"layers": ("map1", "features")}),
        ("feature-regression", {"adaptors": {"features": (6, 4)}, "kind": "cosine"}),
        ("mask-reuse", {"at": "feature"}),
        ("logit-distillation", {}),
    ],
    ids=["relative", "adaptor", "mask-reuse", "distillation"],
)
def test_ranks(pool, name: str, settings: dict[str, Any]) -> None:
    """Two ranks with unequal numbers of pairs and of valid pixels are one."""
    loss, own, adaptor = ranked(name, settings, [3])
    results = pool.run(ranked, name, settings, [1, 2])
    torch.testing.assert_close((results[0][0] + results[1][0]) / 2, loss, rtol=1e-6, atol=0)
    for first, second, wanted in zip(results[0][1], results[1][1], own, strict=True):
        torch.testing.assert_close((first + second) / 2, wanted, rtol=1e-6, atol=1e-12)
    for result in results:  # averaged by the wrapper already
        for found, wanted in zip(result[2], adaptor, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-12)
