"""What one training of an adaptation hands to the next: weights, what terms remember, and first looks at the source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from leanlabel import dist, rng
from leanlabel.engine.checkpoint import load_weights, save_tensors, state_of
from leanlabel.engine.progress import Bar
from leanlabel.methods.dense_measuring import device_labels, plain_segmenter
from leanlabel.methods.dense_readouts import LONG, by_size
from leanlabel.methods.terms import Term

if TYPE_CHECKING:
    from leanlabel.methods.adapt import Adapt

CARRIED = "carried."
"""What names of tensors begin with that belong to terms: carried.TERM.state.… and carried.TERM.KEY.…"""
FIRST = "first.safetensors"
"""What a first look at the labelled images leaves in its stage."""


def carried_of(method: Adapt) -> dict[str, Tensor]:
    """What terms remember and have learned, where the same terms of the next stage go on with it."""
    found: dict[str, Tensor] = {}
    for term, entry in method.terms():
        if term.carried:
            parts = {"state": term, **{key: getattr(method, full) for key, full in term.names.items()}}
            for key, part in parts.items():
                for name, value in state_of(part).items():
                    found[f"{CARRIED}{entry.name}.{key}.{name}"] = value
    return found


def take_carried(method: Adapt, state: Mapping[str, Tensor]) -> list[str]:
    """Give terms what the same terms of an earlier stage remembered; one whose shapes differ begins anew.

    Returns:
        Names of the terms that took it over.
    """
    taken = []
    for term, entry in method.terms():
        start = f"{CARRIED}{entry.name}."
        own = {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
        parts = {"state": term, **{key: getattr(method, full) for key, full in term.names.items()}}
        asked = {
            f"{key}.{name}": value for key, part in parts.items() for name, value in state_of(part).items()
        }
        if term.carried and asked and all(fits(own.get(name), value) for name, value in asked.items()):
            for key, part in parts.items():
                inside = {
                    name.removeprefix(f"{key}."): own[name] for name in asked if name.startswith(f"{key}.")
                }
                fill(part, inside)
            taken.append(entry.name)
    return taken


def fits(value: Tensor | None, own: Tensor) -> bool:
    """Whether a tensor is there and of the same shape."""
    return value is not None and value.shape == own.shape


def looking_terms(method: Adapt) -> dict[str, Term]:
    """Terms by their name in the recipe that look at all labelled images before training."""
    return {entry.name: term for term, entry in method.terms() if term.prepares(entry.typed())}


@torch.no_grad()
def look_at_source(method: Adapt, folder: Path) -> None:
    """Show the labelled training images to the terms that ask for it, and write what these remember of them.

    Images are read whole, in evaluation mode, without augmentation; ranks share them.
    """
    terms, source, network = looking_terms(method), method.data.source, plain_segmenter(method.network)
    was = method.training
    method.eval()
    rows = method.pool[dist.shard(len(method.pool))]
    place_of = {row: place for place, row in enumerate(method.pool.tolist())}
    try:
        with method.reading(source), Bar(len(rows), label="look at source", show=len(rows) >= LONG) as bar:
            done = 0
            for numbers, images, masks in by_size(source, rows, method.cfg.evaluation.batch):
                with method.autocast():
                    output = network(method.normalised(images))
                if method.cfg.method.label_noise > 0:
                    places = torch.tensor([place_of[row] for row in numbers])
                    masks = torch.stack(method._noisy(places, masks))
                labels = device_labels(masks.to(output.logits.device))
                for term in terms.values():
                    term.observe(output, labels)
                done += len(numbers)
                bar.advance(done)
        for term in terms.values():
            term.observed()
    finally:
        method.train(was)
    if dist.is_main():
        found = {
            f"{name}.{key}": value for name, term in terms.items() for key, value in state_of(term).items()
        }
        save_tensors(folder / FIRST, found, {"terms": list(terms)})


def take_first_look(method: Adapt, folder: Path) -> None:
    """Give terms what they remembered of a first look at the labelled images."""
    state = load_weights(folder / FIRST)
    for name, term in looking_terms(method).items():
        own = {key.removeprefix(f"{name}."): one for key, one in state.items() if key.startswith(f"{name}.")}
        fill(term, own)


def next_method(method: Adapt, cfg: Any, first_look: Path | None) -> Adapt:
    """The method of an earlier stage, with the present weights and what terms carry.

    Args:
        method: of the whole run, with what earlier stages left.
        cfg: of the stage.
        first_look: folder of what its terms remember of a first look, where they had one.
    """
    rng.reseed(cfg.seed, 2**32 - 1, 0)
    made = type(method)(cfg, method.data).to(method.device)
    if method._dtype == torch.float64:
        made.double()
    made.begun.fill_(True)  # from the seed or from elsewhere: what it starts from is given
    start = method.left or plain_segmenter(method.network).state_dict()
    # What does not fit, of a network for other channels or another network, stays as its seed made it.
    own = plain_segmenter(made.network).state_dict()
    state = {**own, **fitting(start, own)}
    made.take({**{f"network.{name}": value for name, value in state.items()}, **method.carried_state})
    if made.anchor is not None and method.anchor is not None:
        made.anchor.follow(method.anchor.network, 0.0)
    if (cfg.method.sampling.name != "uniform" or made.needs.donors) and method.table is not None:
        made.use_table(method.table)
    made.stored = method.stored
    made.tell_stored()
    if first_look is not None:
        take_first_look(made, first_look)
    return made


def fitting(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of a state is in another one, too, in the same shape."""
    return {name: one for name, one in state.items() if name in own and own[name].shape == one.shape}


@torch.no_grad()
def fill(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load weights; a first convolution for another number of channels gets the mean over input channels.

    The mean is scaled by the ratio of the channels, so that an image with the same values in all of them gives the
    same response as before.
    """
    for name, own in network.state_dict(keep_vars=True).items():
        value = state[name].to(own)
        if value.shape != own.shape and value.ndim == 4:
            value = value.sum(1, keepdim=True).expand_as(own) / own.shape[1]
        own.copy_(value)
