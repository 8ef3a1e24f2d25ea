"""Unlabelled images with hidden blocks: what the student reads, what it is compared with, two ranks as one."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from test_mixing_term import PLAIN, SIDE, Owner, batch_of, made, naive, step_of

from leanlabel import dist
from leanlabel.augment.photometric import ColourSettings
from leanlabel.methods.terms.masked import MaskedConsistency
from leanlabel.methods.terms.mixing import ClassMix
from leanlabel.methods.terms.online import online_labels

masked = partial(made, MaskedConsistency, block=4)


def test_values_masked() -> None:
    """Whole blocks are 0 in all channels, about 70 % of them, others on every image; the rest is as it was."""
    step = step_of(Owner())
    found = masked(strong=PLAIN).masked(step)
    blocks = found.abs().amax(1).unfold(1, 4, 4).unfold(2, 4, 4).flatten(3)
    hidden = (blocks == 0).all(3)
    assert bool(((blocks == 0).all(3) | (blocks > 0).all(3)).all())
    assert 0.5 < float(hidden.double().mean()) < 0.9
    assert not torch.equal(hidden[0], hidden[1])
    kept = found != 0
    torch.testing.assert_close(found[kept], step.target.images[kept], rtol=0, atol=1e-6)


def test_values_colours() -> None:
    """Hidden pixels are exactly 0 whatever the colours become: colours change first."""
    step = step_of(Owner())
    strong = ColourSettings(jitter=(0.5, 0.5, 0.5, 0.2), jitter_probability=1.0)
    plain, found = (masked(strong=one).masked(step) for one in (PLAIN, strong))
    assert torch.equal(plain == 0, found == 0)
    assert float((plain - found).abs().max()) > 0.05


@pytest.mark.parametrize("margins", [(0.0, 0.0), (0.25, 0.25)])
def test_reference(margins: tuple[float, float]) -> None:
    """The loss of a naive loop over what the student read and the teacher said of the whole images."""
    owner = Owner()
    step = step_of(owner)
    losses = masked(margins=margins).loss(step)
    assert list(losses) == ["masked"]
    taught = online_labels(step, 0.4, *margins)
    expected = naive(owner.network(owner.read[0]).logits, taught.labels, taught.weights)
    assert float(losses["masked"].detach()) == pytest.approx(expected, rel=1e-9)
    assert 0.05 < owner.reported["confident"] < 0.95


def test_values_teacher_is_shared() -> None:
    """With mixing beside it the teacher reads once, and the two students' images have colours of their own."""
    owner = Owner()
    step = step_of(owner)
    made(ClassMix).loss(step)
    masked().loss(step)
    assert owner.asked == ["teacher", "student", "student"]
    assert len(vars(step.target)["online labels"]) == 1


def test_values_source_is_not_read() -> None:
    """It needs no labelled images."""
    needs = MaskedConsistency.needs(masked().settings)
    assert (needs.source, needs.target, needs.teacher, needs.stored) == (False, True, True, False)
    source = batch_of(slice(1), 10, True, side=24)
    assert float(masked().loss(step_of(Owner(), source))["masked"].detach()) > 0


def test_gradient() -> None:
    """The student learns; the teacher has no gradient."""
    owner = Owner()
    masked().loss(step_of(owner))["masked"].backward()
    assert any(bool(p.grad.any()) for p in owner.network.parameters() if p.grad is not None)
    assert all(parameter.grad is None for parameter in owner.average.parameters())


def test_degenerate() -> None:
    """Nobody sure: exactly 0, attached. Everything hidden, nothing hidden, one block larger than the image: a loss."""
    owner = Owner()
    value = masked(threshold=1.0).loss(step_of(owner))["masked"]
    assert float(value.detach()) == 0
    value.backward()
    assert all(not bool(p.grad.any()) for p in owner.network.parameters() if p.grad is not None)
    for settings in ({"ratio": 1.0}, {"ratio": 0.0}, {"block": 64}):
        assert bool(masked(**settings).loss(step_of(owner))["masked"].isfinite())
    assert not bool(masked(ratio=1.0).masked(step_of(owner)).any())


def test_errors() -> None:
    for settings in ({"block": 0}, {"ratio": 1.1}, {"sides": 0.5}, {"margins": (0.7, 0.4)}):
        with pytest.raises(ValidationError):
            masked(**settings)


def test_state() -> None:
    assert not masked().state_dict()


def ranked() -> dict[str, Any]:
    """Loss and gradients of one rank's part of the batch: one image and three."""
    rows = slice(4) if dist.world() == 1 else (slice(1), slice(1, 4))[dist.rank()]
    owner = Owner()
    step = step_of(owner, batch_of(rows, 10, True), batch_of(rows, 50, False))
    value = masked(sides=2 / SIDE).loss(step)["masked"]
    value.backward()
    gradients = {n: p.grad for n, p in owner.network.named_parameters() if p.grad is not None}
    return {"loss": value.detach(), "share": owner.reported["confident"], "gradients": gradients}


def test_ranks(pool: Any) -> None:
    """Two ranks with one image and with three equal one."""
    whole, parts = ranked(), pool.run(ranked)
    assert [part["share"] for part in parts] == [whole["share"]] * 2
    torch.testing.assert_close((parts[0]["loss"] + parts[1]["loss"]) / 2, whole["loss"], rtol=1e-6, atol=0)
    for name, expected in whole["gradients"].items():
        found = (parts[0]["gradients"][name] + parts[1]["gradients"][name]) / 2
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8, msg=name)
