"""Content and style apart: values of a linear model, what learns from which part, what is saved, two ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from test_adapt import built, config
from test_mixing_term import SIDE, Owner, batch_of, naive
from torch import Tensor, nn

from leanlabel import dist
from leanlabel.config import EngineSettings
from leanlabel.engine import checkpoint
from leanlabel.engine.runfolder import read_lines
from leanlabel.methods.dense_step import DenseBatch, Step
from leanlabel.methods.terms import Setting, find_term
from leanlabel.methods.terms.zero_style import REBUILT, ZeroStyle, restyle, zero_image
from leanlabel.models.segmenters import DenseOutput
from leanlabel.rng import draw
from smallrun import as_rank, train

KNOWN = Setting(("road", "car", "pole", "sky"), (50, 20, 5, 25), width=48, steps=10, seed=0, stride=4)
SMALL = {"style_width": 5, "widths": (8, 8, 6)}


class Parting(Owner):
    """A method that trains a term's networks."""

    def __init__(self, term: ZeroStyle) -> None:
        super().__init__()
        self.parts = {f"term_0_{key}": network.double() for key, network in term.networks().items()}
        term.names = {key: f"term_0_{key}" for key in term.networks()}
        self.passes: list[str] = []
        for name, part in self.parts.items():
            part.register_forward_hook(lambda *_, name=name: self.passes.append(name))

    def own_network(self, name: str) -> nn.Module:
        return self.parts[name]

    def report(self, **terms: Tensor | float) -> None:
        self.reported.update({name: float(torch.as_tensor(one).detach()) for name, one in terms.items()})


def made(**changes: Any) -> ZeroStyle:
    torch.manual_seed(0)
    return ZeroStyle(ZeroStyle.Settings.model_validate({**SMALL, **changes}), KNOWN)


def step_of(owner: Any, rows: slice = slice(4), stored: bool = True, t: int = 3, side: int = SIDE) -> Step:
    source = batch_of(rows, 10, True, side)
    target = batch_of(rows, 50, False, side)
    if stored:
        target = target._replace(labels=batch_of(rows, 90, True, side).labels)

    def draws(batch: DenseBatch) -> Any:
        return lambda name: draw(0, name, t, batch.ids)

    return Step(owner, t, source, draws(source), Step(owner, t, target, draws(target)))


def case(**changes: Any) -> tuple[ZeroStyle, Parting, Step]:
    term = made(**changes)
    owner = Parting(term)
    return term, owner, step_of(owner)


# ------------------------------------------------------------------------------------------------------- values


class Linear(Owner):
    """The written example: maps of one pixel, content max(A x, 0), style a product, scores W c."""

    A = torch.tensor([[1, 0, 0.5], [0, 2, -1]], dtype=torch.float64)
    W = torch.tensor([[1, 0], [0, 1], [0.5, -0.5]], dtype=torch.float64)

    def __init__(self, term: ZeroStyle) -> None:
        super().__init__()
        term.names = {"style": "style", "decoder": "decoder"}

    def student(self, images: Tensor) -> DenseOutput:
        content = torch.einsum("dc,bchw->bdhw", self.A, images).relu()
        return DenseOutput(torch.einsum("kd,bdhw->bkhw", self.W, content), content)

    def own_network(self, name: str) -> Any:
        return getattr(self, name)

    def report(self, **terms: Tensor | float) -> None:
        self.reported.update({name: float(torch.as_tensor(one).detach()) for name, one in terms.items()})

    def style(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) @ torch.tensor([[0.2], [-0.1], [0.4]], dtype=torch.float64)

    def decoder(self, content: Tensor, style: Tensor | None, size: Any) -> Tensor:
        assert list(size) == [1, 1]
        basis = torch.tensor([[0.5, 0.1], [0, 0.4], [0.3, -0.2]], dtype=torch.float64)
        scale, shift = torch.tensor([[0.5, -0.25, 1], [0.1, 0.2, -0.3]], dtype=torch.float64).view(
            2, 1, 3, 1, 1
        )
        drawn = torch.einsum("cd,bdhw->bchw", basis, content)
        s = torch.zeros(len(content), 1, dtype=torch.float64) if style is None else style
        return drawn * (1 + s[..., None, None] * scale) + s[..., None, None] * shift


def test_values() -> None:
    """The written example for both domains, of which the second has no labels: every part, and their sum."""
    term = made()
    owner = Linear(term)
    images = torch.tensor([1.0, 2, 3], dtype=torch.float64).view(1, 3, 1, 1)

    def stepped(label: int, target: Step | None = None) -> Step:
        batch = DenseBatch(torch.tensor([1]), images, torch.full((1, 1, 1), label))
        return Step(owner, 0, batch, lambda name: draw(0, name, 0, batch.ids), target)

    term.double()
    found = term.loss(stepped(0, stepped(-100)))["zero_style"]
    parts = {
        "reconstruction": 2 * 1.6366666666666667,
        "zero_content": 2 * 0.46428544897974344,
        "zero_emptiness": 2 * 0.45,
        "zero_semantics": 0.7226460667243314,
    }
    assert owner.reported == pytest.approx(parts, rel=1e-10)
    assert float(found) == pytest.approx(0.1 * sum(parts.values()), rel=1e-10)
    assert float(term.rebuilt) == pytest.approx(parts["reconstruction"], rel=1e-10)


def test_reference() -> None:
    """With a real network: the sum of the parts, each computed on its own."""
    term, owner, step = case(reconstruction=0.3, zero=0.7, content=2.0, empty=3.0, semantics=0.5)
    style, decoder = (owner.parts[f"term_0_{key}"] for key in ("style", "decoder"))
    expected = dict.fromkeys(("reconstruction", "zero_content", "zero_emptiness", "zero_semantics"), 0.0)
    for one, divisor in ((step, 1.8), (step.target, 1.0)):
        with torch.no_grad():
            content = owner.network(one.images).features
            drawn = decoder(content, style(one.images), (SIDE, SIDE))
            empty = decoder(content, torch.zeros(4, 5).double(), (SIDE, SIDE))
            again = owner.network(empty)
            expected["reconstruction"] += float((drawn - one.images).abs().mean())
            drift = (again.features - content).abs().mean() / (content.abs().mean() + 1e-6)
            expected["zero_content"] += float(drift)
            expected["zero_emptiness"] += float(style(empty).abs().mean())
            ones = torch.ones(4, SIDE, SIDE)
            expected["zero_semantics"] += naive(again.logits / divisor, one.labels, ones)
    found = float(term.loss(step)["zero_style"].detach())
    assert owner.reported == pytest.approx(expected, rel=1e-9)
    total = 0.3 * expected["reconstruction"] + 0.7 * (
        2 * expected["zero_content"] + 3 * expected["zero_emptiness"] + 0.5 * expected["zero_semantics"]
    )
    assert found == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize(
    ("changes", "reads", "draws", "styles"),
    [
        ({}, 4, 4, 4),
        ({"zero": 0.0}, 2, 2, 2),
        ({"reconstruction": 0.0}, 4, 2, 2),
        ({"content": 0.0, "semantics": 0.0}, 2, 4, 4),
        ({"content": 0.0, "semantics": 0.0, "empty": 0.0}, 2, 2, 2),
        ({"empty": 0.0}, 4, 4, 2),
        ({"semantics": 0.0}, 4, 4, 4),
        ({"every": 2}, 2, 2, 2),
        ({"reconstruction": 0.0, "zero": 0.0}, 0, 0, 0),
    ],
)
def test_values_passes(changes: dict[str, Any], reads: int, draws: int, styles: int) -> None:
    """Parts that are switched off cost no pass; those that take part now and then cost none in between."""
    term, owner, step = case(**changes)
    assert bool(term.loss(step)) == (reads > 0)
    assert len(owner.read) == reads
    assert owner.passes.count("term_0_decoder") == draws
    assert owner.passes.count("term_0_style") == styles
    assert ("zero_content" in owner.reported) == (reads == 4 and changes.get("content", 1) > 0)


def test_values_every() -> None:
    """In every second iteration."""
    term = made(every=2)
    owner = Parting(term)
    term.loss(step_of(owner, t=4))
    assert "zero_semantics" in owner.reported


def test_values_half() -> None:
    """Images without style of half the size, from averaged content; odd sides round up."""
    term = made(half=True, reconstruction=0.0)
    owner = Parting(term)
    step = step_of(owner, side=SIDE + 4)
    term.loss(step)["zero_style"].backward()
    sizes = [tuple(images.shape[-2:]) for images in owner.read]
    assert sizes.count((SIDE + 4, SIDE + 4)) == 2
    assert sizes.count((10, 10)) == 2
    content = nn.functional.adaptive_avg_pool2d(step.features.detach(), 3)
    decoder = owner.parts["term_0_decoder"]
    with torch.no_grad():
        drawn = zero_image(decoder, content, (10, 10))
    assert any(torch.equal(images.detach(), drawn) for images in owner.read if images.shape == drawn.shape)


def test_values_shared() -> None:
    """Other terms are told how well images were drawn again in the iteration before; never, at first."""
    term, _, step = case()
    assert float(term.rebuilt) == float("inf")
    term.before(step)
    told = step.shared[REBUILT]
    term.loss(step)
    assert float(told) == float("inf"), "what was told stays as it was"
    term.before(step)
    assert float(step.shared[REBUILT]) == float(term.rebuilt) < float("inf")


def test_values_needs() -> None:
    """Both domains; stored labels where the recipe has them, which it need not."""
    needs = ZeroStyle.needs(made().settings)
    assert (needs.source, needs.target, needs.stored, needs.teacher, needs.donors) == (
        True,
        True,
        False,
        False,
        False,
    )
    assert find_term("zero-style") is ZeroStyle
    term = made()
    assert set(ZeroStyle.joint) == set(term.networks())
    assert ZeroStyle.carried
    assert (term.optimiser("decoder").lr, term.optimiser("style").betas) == (1e-4, (0.9, 0.99))
    assert not list(term.parameters()), "the method keeps the networks"
    output = DenseOutput(torch.zeros(1), torch.ones(1))
    assert [len(made(**one).trained(output)) for one in ({}, {"semantics": 0.0}, {"zero": 0.0})] == [2, 1, 1]
    content, style = torch.rand(1, 48, 3, 3), torch.rand(1, 5)
    decoder = term.networks()["decoder"]
    assert torch.equal(restyle(decoder, content, style * 0, (9, 9)), zero_image(decoder, content, (9, 9)))
    assert not torch.equal(restyle(decoder, content, style, (9, 9)), zero_image(decoder, content, (9, 9)))


# ------------------------------------------------------------------------------------------------------- gradient


def gradients(owner: Parting, loss: Tensor) -> dict[str, Tensor | None]:
    """Of the network and of the term's networks."""
    names = dict(owner.network.named_parameters())
    names |= {f"{key}.{n}": p for key, part in owner.parts.items() for n, p in part.named_parameters()}
    found = torch.autograd.grad(loss, list(names.values()), allow_unused=True)
    return dict(zip(names, found, strict=True))


def test_gradient() -> None:
    """Everything learns from the whole; style encoder and decoder nothing from cross-entropy of the images."""
    term, owner, step = case()
    found = gradients(owner, term.loss(step)["zero_style"])
    assert all(one is not None and bool(one.any()) for one in found.values())
    step = step_of(owner)
    plain = nn.functional.cross_entropy(step.full_logits, step.labels)
    assert all(one is None for name, one in gradients(owner, plain).items() if name.startswith("term_0"))


def test_gradient_content_is_fixed() -> None:
    """Drift: no gradient to the content that is compared with; all through the image without style."""
    term, owner, step = case(reconstruction=0.0, zero=1.0, empty=0.0, semantics=0.0)
    found = gradients(owner, term.loss(step)["zero_style"])
    _, owner, step = case()
    expected: Any = 0
    for one in (step, step.target):
        content = one.features
        empty = owner.parts["term_0_decoder"](content, None, (SIDE, SIDE))
        fixed = content.detach()
        again = owner.network(empty).features
        expected = expected + (again - fixed).abs().mean() / (fixed.abs().mean() + 1e-6)
    for name, wanted in gradients(owner, expected).items():
        got = found[name]
        if wanted is None or got is None:
            assert wanted is None or not bool(wanted.any())
            assert got is None or not bool(got.any())
        else:
            torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12, msg=name)
    assert found["decoder.classifier.weight"] is None


@pytest.mark.parametrize("part", ["empty", "semantics"])
def test_gradient_parts(part: str) -> None:
    """Emptiness teaches style encoder, decoder and network; classes of images without style the classifier, too."""
    off = {"reconstruction": 0.0, "content": 0.0, "empty": 0.0, "semantics": 0.0}
    term, owner, step = case(**{**off, part: 1.0})
    found = gradients(owner, term.loss(step)["zero_style"])
    learns = {name for name, one in found.items() if one is not None and bool(one.any())}
    assert any(name.startswith("term_0_decoder.layers") for name in learns)
    assert any(name.startswith("encoder") for name in learns)
    assert any(name.startswith("term_0_style") for name in learns) == (part == "empty")
    assert ("decoder.classifier.weight" in learns) == (part == "semantics")
    modulated = [one for name, one in found.items() if "modulations" in name]
    assert all(one is not None and not one.any() for one in modulated), "in the graph, with gradient 0"


def test_dtypes() -> None:
    """In half precision the sums stay finite, in float32."""
    term, owner, step = case()
    owner.network.to(torch.bfloat16)
    for part in owner.parts.values():
        part.to(torch.bfloat16)
    for one in (step, step.target):
        one.batch = one.batch._replace(images=one.images.bfloat16())
    loss = term.loss(step)["zero_style"]
    assert loss.dtype == torch.float32
    assert bool(loss.isfinite())
    loss.backward()


# ------------------------------------------------------------------------------------------------------- degenerate


def test_degenerate_no_labels() -> None:
    """Without pseudo labels only labelled images have classes; without any label the part is 0 on the graph."""
    term, owner, _ = case()
    step = step_of(owner, stored=False)
    term.loss(step)
    with torch.no_grad():
        empty = zero_image(owner.parts["term_0_decoder"], owner.network(step.images).features, (SIDE, SIDE))
        logits = owner.network(empty).logits / 1.8
    expected = naive(logits, step.labels, torch.ones(4, SIDE, SIDE))
    assert owner.reported["zero_semantics"] == pytest.approx(expected, rel=1e-9)
    off = {"reconstruction": 0.0, "content": 0.0, "empty": 0.0}
    term, owner, _ = case(**off)
    step = step_of(owner, stored=False)
    step.batch = step.batch._replace(labels=torch.full_like(step.labels, -100))
    value = term.loss(step)["zero_style"]
    assert float(value.detach()) == 0
    value.backward()


def test_degenerate_dead_content() -> None:
    """Content that is 0 everywhere: finite, with finite gradients."""
    term, owner, step = case()
    with torch.no_grad():
        for parameter in owner.network.parameters():
            parameter.zero_()
    value = term.loss(step)["zero_style"]
    assert bool(value.isfinite())
    assert all(bool(one.isfinite().all()) for one in gradients(owner, value).values() if one is not None)


@pytest.mark.parametrize(
    "wrong", [{"widths": ()}, {"style_width": 0}, {"zero": -1.0}, {"every": 0}, {"divisor": 0.0}]
)
def test_errors(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ZeroStyle.Settings.model_validate(wrong)


# ------------------------------------------------------------------------------------------------------- state


def test_state() -> None:
    """Saved and loaded, another term tells the same; its networks are the method's."""
    first, _, step = case()
    first.loss(step)
    second = made()
    second.load_state_dict(first.state_dict())
    assert first.state_dict().keys() == {"rebuilt"}
    second.before(step)
    assert torch.equal(step.shared[REBUILT], first.rebuilt)


TERMS = [
    {"name": "cross-entropy"},
    {
        "name": "content-transfer",
        "settings": {"min_pixels": 5, "mode": "decoded", "reliable": 1e6, "online": True},
    },
    {"name": "zero-style", "settings": {"style_width": 4, "widths": [6, 6, 6]}},
]
"""The term that draws stands before the one that learns to, which must not matter."""


def run_config(*more: str) -> Any:
    still = ("model.norm=none", "engine.precision=64-true", "method.adabn=false", "method.ema=0.9")
    return config(
        "method.terms=" + json.dumps(TERMS), *still, "method.watch_every=0", "optim.lr=0.001", *more
    )


def trained(folder: Path, cfg: Any, steps: int | None = None) -> Any:
    method = built(cfg)
    method.use_table(torch.full((8, len(method.classes)), 50))
    return train(folder, cfg, steps, method=method)


def test_state_carried() -> None:
    """The next stage goes on with style encoder, decoder and the error that is known; other shapes begin anew."""
    first, second = built(run_config()), built(run_config("seed=5"))
    first.get_submodule("term_2").rebuilt.fill_(0.125)  # type: ignore[operator]
    second.take({**first.handed_on(), **first.carried()})
    one, two = (checkpoint.state_of(method) for method in (first, second))
    learned = [name for name in one if name.startswith("term_2")]
    assert any("decoder" in name for name in learned)
    assert any("style" in name for name in learned)
    assert all(torch.equal(one[name], two[name]) for name in learned)
    assert float(two["term_2.rebuilt"]) == 0.125


@pytest.mark.slow
def test_whole_run(tmp_path: Path) -> None:
    """Together with images that its decoder draws; killed and resumed as if nothing had been."""
    cfg = run_config()
    before = checkpoint.state_of(built(cfg))
    whole = checkpoint.state_of(trained(tmp_path / "whole", cfg))
    trained(tmp_path / "parts", cfg, 2)
    parts = checkpoint.state_of(trained(tmp_path / "parts", cfg))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    assert all(not torch.equal(whole[name], before[name]) for name in whole if name.startswith("term_2_"))
    rows = read_lines(tmp_path / "whole" / "metrics.jsonl")
    assert [row["fell_back"] for row in rows] == [1.0, 0.0, 0.0, 0.0]
    assert {"reconstruction", "zero_content", "zero_emptiness", "zero_semantics", "pasted_share"} <= rows[
        0
    ].keys()


# ------------------------------------------------------------------------------------------------------- ranks


def ranked() -> dict[str, Any]:
    """Loss, gradients and reports of one rank's half of the batch."""
    rows = slice(0, 4) if dist.world() == 1 else slice(2 * dist.rank(), 2 * dist.rank() + 2)
    term = made()
    owner = Parting(term)
    loss = term.loss(step_of(owner, rows))["zero_style"]
    return {"loss": loss.detach(), "gradients": gradients(owner, loss), "rebuilt": term.double().rebuilt}


def test_ranks(pool: Any) -> None:
    """Two ranks with other numbers of labelled pixels equal one; the error that is kept is that of both."""
    whole, parts = ranked(), pool.run(ranked)
    assert float(parts[0]["loss"]) != pytest.approx(float(parts[1]["loss"]))
    torch.testing.assert_close((parts[0]["loss"] + parts[1]["loss"]) / 2, whole["loss"], rtol=1e-6, atol=0)
    for name, expected in whole["gradients"].items():
        found = (parts[0]["gradients"][name] + parts[1]["gradients"][name]) / 2
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9, msg=name)
    for part in parts:
        torch.testing.assert_close(part["rebuilt"], whole["rebuilt"], rtol=1e-6, atol=0)


def two_ranks(folder: str) -> dict[str, Tensor]:
    as_rank(29986)
    cfg = run_config()
    two = cfg.model_copy(update={"engine": EngineSettings(**{**cfg.engine.model_dump(), "devices": 2})})
    return checkpoint.state_of(trained(Path(folder), two))


@pytest.mark.slow
def test_ranks_whole_run(pool: Any, tmp_path: Path) -> None:
    """Two processes that train together: networks, style encoder, decoder, counts and logged parts of one."""
    whole = checkpoint.state_of(trained(tmp_path / "one", run_config()))
    results = pool.run(two_ranks, str(tmp_path / "two"), timeout=180.0)
    for name, value in whole.items():
        for result in results:
            torch.testing.assert_close(result[name], value, rtol=1e-6, atol=1e-8, msg=name)
    one, two = (read_lines(tmp_path / part / "metrics.jsonl") for part in ("one", "two"))
    for left, right in zip(one, two, strict=True):
        assert left == pytest.approx(right, rel=1e-5, abs=1e-7)
