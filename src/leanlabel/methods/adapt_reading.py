"""What is read before an adaptation, what of it is refused before anything starts, and what its user should know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from leanlabel.data.dense_source import open_dense
from leanlabel.data.pairs import check_pair_sizes, find_pairs
from leanlabel.errors import InputError
from leanlabel.methods.adapt_settings import needs_of
from leanlabel.methods.dense_readouts import main_part, parts_of
from leanlabel.methods.domains import Domains, check_classes, training_rows
from leanlabel.methods.segmentation import check_labels

if TYPE_CHECKING:
    from leanlabel.methods.adapt import Adapt

RESERVED = ("class-pixels", "pseudo-labels", "first-look")
"""What stages that train nothing are called."""
SHARED = ("precision", "bf16_products", "accelerator", "devices", "nodes", "strategy", "threads")
"""Keys below engine that hold for a whole run."""


def check_stage(name: str, own: Mapping[str, Any]) -> None:
    """Refuse keys that a stage cannot have of its own, and names that mean something else.

    Args:
        name: of the stage.
        own: its keys, as the recipe has them.

    Raises:
        InputError: names the key.
    """
    if name.startswith(RESERVED):
        raise InputError(
            f"stages.{name}: this name is taken.", "Call the stage source or warm-up, for example."
        )
    if "steps" not in own:
        raise InputError(f"stages.{name}.steps: missing; give it a value.")
    for domain, section in dict(own.get("data") or {}).items():
        keys = set(section) if isinstance(section, Mapping) and domain in ("source", "target") else {"*"}
        if keys - {"batch_size"}:
            raise InputError(
                f"stages.{name}.data.{domain}: all stages of a run are on the same data; only batch_size may differ."
            )
    for key in dict(own.get("engine") or {}):
        if key in SHARED:
            raise InputError(f"stages.{name}.engine.{key}: one value holds for all stages; set engine.{key}.")


def read_domains(cfg: Any, stages: Sequence[tuple[str, Any]]) -> Domains:
    """Both domains, with everything refused that can be known before training starts.

    Args:
        cfg: the configuration.
        stages: (what to write before a key, configuration) of each earlier stage.

    Raises:
        InputError: what is wrong, with the key.
    """
    chain = [*stages, ("", cfg)]
    labels = {"labels": "auto"} if any(one.method.target_labels for _, one in chain) else {}
    source, target = open_dense(cfg.data.source), open_dense(cfg.data.target.model_copy(update=labels))
    if source.masks is None:
        raise InputError(
            f"data.source: {source.name}: no masks, and adaptation needs labels of the source.",
            "Set data.source.masks to their folder.",
        )
    check_classes(source, target)
    trains = any(one.steps > 0 or one.method.adabn for _, one in chain)
    for key, data in (("source", source), ("target", target)):
        if trains and not len(training_rows(data)):
            raise InputError(f"data.{key}: {data.name} has no image to train on.")
    for before, one in chain:
        _check_training(before, one, source, target)
    check_labels(source, cfg.evaluation.subset, "data.source", trains=trains)
    partners = None
    if cfg.data.pairs is not None:
        rows = training_rows(target), training_rows(source)
        partners = find_pairs(source, target, cfg.data.pairs, *rows)
        check_pair_sizes(source, target, partners)
    found = Domains(source, target, partners)
    if cfg.evaluation.protocol != "none":
        measurable(found, cfg)
    return found


def _check_training(before: str, cfg: Any, source: Any, target: Any) -> None:
    """Refuse batches and selections that the data do not allow; ``before`` stands before the keys."""
    ranks = cfg.engine.devices * cfg.engine.nodes
    for key, section in (("source", cfg.data.source), ("target", cfg.data.target)):
        if section.batch_size % ranks:
            raise InputError(
                f"{before}data.{key}.batch_size: {section.batch_size} is global and must be divisible by the {ranks} "
                f"processes."
            )
    rows = len(training_rows(source))
    if cfg.steps > 0 and cfg.data.source.batch_size > rows:
        raise InputError(
            f"{before}data.source.batch_size: {cfg.data.source.batch_size} is more than the {rows} images to train on."
        )
    chosen = {"best_val": source, "best_target_val": target}.get(cfg.evaluation.select)
    if chosen is not None and not len(chosen.splits.get("val", ())):
        which = "source" if chosen is source else "target"
        raise InputError(
            f"{before}evaluation.select={cfg.evaluation.select}: data.{which} has no val part.",
            f"Set data.{which}.val_share, or evaluation.select=last.",
        )


def measurable(data: Domains, cfg: Any) -> tuple[bool, str]:
    """Whether it is the target that is measured, and on which part; else the source, for want of labels.

    Raises:
        InputError: a part that was asked for by name is not there, or nothing can be measured at all.
    """
    labelled = data.target.masks is not None
    try:
        return True, main_part(data.target, cfg.evaluation.part)
    except InputError:
        if labelled and cfg.evaluation.part != "auto":
            raise
        return False, main_part(data.source, "auto")


def notes_of(method: Adapt) -> list[str]:
    """What the user of an adaptation should know, one sentence each."""
    data, cfg = method.data, method.cfg
    chain = [*(method.stage_config(cfg, name) for name in cfg.stages), cfg]
    pixels = method.class_pixels(data.source)
    lacking = [name for name, count in zip(method.classes.names, pixels, strict=True) if count == 0]
    found = []
    if lacking:
        found.append(
            f"no training pixel of {', '.join(lacking)} in the source: these classes cannot be learned"
        )
    if any(needs_of(one).target_labels for one in chain):
        found.append("trained on labels of the target: an upper bound, no adaptation")
    elif cfg.data.target.labels == "auto" or any(one.method.target_labels for one in chain):
        found.append(
            "labels of target training images were read with the data, though no term trains on them"
        )
    if any(one.evaluation.select == "best_target_val" for one in chain):
        found.append(
            "weights were selected by labels of the target's val part: scores on it are too good, and no user "
            "without such labels can do the same"
        )
    if cfg.evaluation.protocol != "none" and not measurable(data, cfg)[0]:
        found.append(
            "the target has no labels to measure with, so the scores are of the source: nothing measured here says how "
            "good the network is on the target"
        )
    for key, images in (("source", data.source), ("target", data.target)):
        for part in parts_of(images):
            both = int(torch.isin(images.splits[part], training_rows(images)).sum())
            if both:
                found.append(f"{both} {key} images of {part} are trained on: scores on {part} are too good")
    if method.anchor is not None and not method.started_elsewhere:
        found.append("feature-distance holds the encoder at its random start: give --from a pre-trained one")
    if method.needs.stored and method.stored is not None and not sum(method.stored.manifest["kept"]):
        found.append("no target pixel has a stored pseudo label: what reads them taught nothing")
    found += [note for term, _ in method.terms() for note in term.notes()]
    note = None if data.partners is None else data.partners.note()
    return found if note is None else [*found, note]
