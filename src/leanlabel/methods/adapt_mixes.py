"""What the page of an adaptation shows of transfer: mixed images of the training stream, images without their style."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from leanlabel.data.class_map import IGNORE
from leanlabel.data.dense import DenseImages
from leanlabel.engine.checkpoint import restore, state_of
from leanlabel.errors import InputError
from leanlabel.evaluation.transfer_pictures import MOST, Pasted, Unstyled, transfer_figure, zero_style_figure
from leanlabel.methods.adapt_separation import held_out
from leanlabel.methods.adapt_stages import _Rehearsal, moved
from leanlabel.methods.adapt_watch import evenly, windowed
from leanlabel.methods.dense_readouts import name_of
from leanlabel.methods.terms import Term

if TYPE_CHECKING:
    from leanlabel.methods.adapt import Adapt
    from leanlabel.methods.domains import Domains

MIXING = ("content-transfer", "class-mix")
"""Terms that paste, the one that is shown first."""
ZERO_STYLE = "zero-style"
TRIES = 16
"""Batches that are searched for something pasted."""


def mix_figure(method: Adapt, data: Domains) -> dict[str, Any]:
    """Mixed images as training makes them, and how many pixels of each class were pasted.

    The first batches of the training stream go through the views of all terms and through the first term that pastes;
    images are shown before their colours change. Nothing is learned, and what terms remember is as before. Stored
    pseudo labels and images drawn for rare classes are those that the method holds: where it holds none, everything
    around what is pasted is unlabelled, and the images are any ones.

    Args:
        method: trained.
        data: both domains.

    Returns:
        See :func:`~leanlabel.evaluation.transfer_pictures.transfer_figure`; empty where no term of the recipe pastes,
        or nothing was trained.
    """
    entries = [(term, entry) for name in MIXING for term, entry in method.terms() if entry.name == name]
    if not entries or method.cfg.steps == 0:
        return {}
    term: Any = entries[0][0]
    entry, stored, online = entries[0][1], method.stored, term.settings.online
    around = "the average of the network, as it labels them after training"
    if not online:
        around = "" if stored is None else "stored pseudo labels"
    pixels = torch.tensor(method.class_pixels(data.source), dtype=torch.float64)
    pasted = term.pasted_pixels()
    kept = None if stored is None or online else torch.tensor(stored.manifest["kept"], dtype=torch.float64)
    return transfer_figure(
        method.classes,
        term=entry.name,
        around=around,
        examples=_mixes(method, data, term),
        tail=_pasted_classes(term, len(pixels)),
        pasted=None if pasted is None or not int(pasted.sum()) else pasted.tolist(),
        source_share=_shares(pixels),
        target_share=None if kept is None else _shares(kept),
    )


def _shares(pixels: Tensor) -> list[float]:
    return (pixels / pixels.sum().clamp_min(1)).tolist()


def _pasted_classes(term: Any, count: int) -> list[bool] | None:
    """Which classes a term may paste; None: all."""
    if term.counted:
        return term.tail.tolist()
    return None if term.chosen is None else [k in term.chosen for k in range(count)]


@torch.no_grad()
def _mixes(method: Adapt, data: Domains, term: Any) -> list[Pasted]:
    """The first mixed images with something in them."""
    found: list[Pasted] = []
    kept, was, training = state_of(term), method._updater, method.training
    method._updater = _Rehearsal()
    method.eval()
    try:
        # From iteration 1 on: at 0 the stored labels are compared with the weights that training started from.
        for t, batch in zip(range(1, 1 + TRIES), method.batches(1), strict=False):
            found += _mixed(method, data, term, t, moved(_without_truth(method, batch), method.device))
            if len(found) >= MOST:
                break
    finally:
        method._updater = was
        method.train(training)
        restore(term, kept)
    return found[:MOST]


def _without_truth(method: Adapt, batch: tuple[Any, ...]) -> tuple[Any, ...]:
    """A raw batch without masks of the target that are no stored pseudo labels."""
    source, target, *rest = batch
    if target is None or method.stored is not None:
        return batch
    ids, (images, _, *more) = target
    return (source, (ids, (images, None, *more)), *rest)


def _mixed(method: Adapt, data: Domains, term: Any, t: int, batch: Any) -> list[Pasted]:
    step = method.begin(t, batch)
    for one, entry in method.terms():
        step.batch = one.views(step.batch, step.draw)
        if (
            entry.name == ZERO_STYLE
        ):  # it tells the others how well images are rebuilt, and changes nothing here
            one.before(step)
    try:
        mixed = term.mixed(step)
    except InputError:  # no image has a class that is pasted
        return []
    rows = method.target_rows[step.target.batch.ids.cpu() % len(method.target_rows)].tolist()
    images = _seen(method, mixed.images)
    labels = mixed.labels.masked_fill(mixed.labels < 0, IGNORE).to(torch.uint8).cpu()
    return [
        Pasted(name_of(data.target, row), image, label, region)
        for row, image, label, region in zip(rows, images, labels, mixed.region.cpu(), strict=True)
        if bool(region.any())
    ]


def _seen(method: Adapt, x: Tensor) -> Tensor:
    """Normalised images (B, C, H, W) in [0, 1], on the CPU."""
    mean, std = (
        torch.tensor(one, dtype=torch.float64).view(-1, 1, 1) for one in (method.look.mean, method.look.std)
    )
    return (x.detach().cpu().double() * std + mean).clamp(0, 1).float()


def zero_figure(method: Adapt, data: Domains) -> dict[str, Any]:
    """Images of both domains, rebuilt from content and style, and from content alone.

    Held-out images where there are some: the target's that are measured, the source's val part. Content is that of
    the network that is handed out.

    Args:
        method: trained.
        data: both domains.

    Returns:
        See :func:`~leanlabel.evaluation.transfer_pictures.zero_style_figure`; empty without the term zero-style.
    """
    term: Term | None = next((one for one, entry in method.terms() if entry.name == ZERO_STYLE), None)
    if term is None or not method.has_trained:
        return {}
    found: Mapping[str, list[Unstyled]] = {
        name: list(_unstyled(method, images, rows))
        for name, (images, rows) in zip(("source", "target"), held_out(method, data), strict=True)
    }
    return zero_style_figure(found["source"], found["target"])


@torch.no_grad()
def _unstyled(method: Adapt, images: DenseImages, rows: Tensor) -> Iterator[Unstyled]:
    from leanlabel.methods.terms.zero_style import restyle, zero_image

    encoder, decoder = (method.network_of(ZERO_STYLE, key) for key in ("style", "decoder"))
    assert encoder is not None
    assert decoder is not None
    was, network = method.training, method.deployed
    method.eval()
    try:
        with method.reading(images):
            for row in evenly(rows, MOST).tolist():
                x = windowed(method, torch.stack(list(images.pixels.read([row]))))
                size = (int(x.shape[-2]), int(x.shape[-1]))
                content = network.eval()(x).features
                rebuilt = restyle(decoder, content, encoder(x), size)
                shown = [_seen(method, one)[0] for one in (x, rebuilt, zero_image(decoder, content, size))]
                error = float((rebuilt - x).abs().double().mean())
                yield Unstyled(name_of(images, row), *shown, error=error)
    finally:
        method.train(was)
