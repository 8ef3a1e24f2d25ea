"""The list of stages of an adaptation: what each depends on, and so what several runs may share."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from leanlabel import __version__
from leanlabel.banks.class_thresholds import ClassThresholds
from leanlabel.data.class_sampling import class_table
from leanlabel.data.dense import fingerprint_dense
from leanlabel.data.pseudo_labels import images_fingerprint, write_labels
from leanlabel.engine.checkpoint import save_tensors, state_of
from leanlabel.engine.pipeline import Stage
from leanlabel.engine.progress import Bar
from leanlabel.engine.stage_training import TrainingStage
from leanlabel.errors import InputError
from leanlabel.methods.adapt_settings import frozen_of, needs_of

if TYPE_CHECKING:
    from leanlabel.methods.adapt import Adapt
    from leanlabel.methods.domains import Domains

TABLE = "class-pixels"
LABELS = "pseudo-labels"


def stages_of(method: Adapt, cfg: Any, data: Domains) -> list[Stage]:
    """Everything that comes before the last training, in order.

    Args:
        method: with the weights that the first stage starts from.
        cfg: its configuration.
        data: both domains.
    """
    configs = {name: method.stage_config(cfg, name) for name in cfg.stages}
    found: list[Stage] = []
    if any(one.method.sampling.name != "uniform" for one in (cfg, *configs.values())):
        found.append(_table(method, data))
    after = {"start": digest(method.network)}
    anchors = {"anchor": digest(method.anchor)} if method.anchor is not None else {}
    for name, one in configs.items():
        labels = _labels(f"{LABELS}-{name}", method, one, data, after)
        found += labels
        inputs = {**inputs_of(one, data), **after, **(anchors if "initial" in frozen_of(one) else {})}
        inputs |= {"labels": labels[0].key} if labels else {}
        stage = TrainingStage(
            name, inputs, _unused, config=one, build=lambda one=one: method.stage_method(one)
        )
        found.append(stage)
        after = {"after": stage.key}
    return [*found, *_labels(LABELS, method, cfg, data, after)]


def inputs_of(cfg: Any, data: Domains) -> dict[str, Any]:
    """What the result of a training depends on, besides its start: settings, and the data that its terms read."""
    needs, every = needs_of(cfg), cfg.model_dump(mode="json")
    kept = {key: every[key] for key in ("seed", "steps", "method", "model", "optim", "augment")}
    kept["method"] = {key: value for key, value in every["method"].items() if key != "watch_every"}
    kept["engine"] = {key: every["engine"][key] for key in ("precision", "bf16_products")}
    kept["network"] = every["evaluation"]["network"]
    sizes = {"source": cfg.data.source.batch_size} if needs.source else {}
    read = {"source": fingerprint_dense(data.source)} if needs.source or needs.pairs else {}
    if needs.target or cfg.method.adabn:
        read["target"] = (fingerprint_dense if needs.target_labels else images_fingerprint)(data.target)
        sizes["target"] = cfg.data.target.batch_size
        kept["target_augment"] = every["target_augment"]
    if needs.pairs:
        kept["pairs"] = every["data"]["pairs"]
    if cfg.evaluation.select != "last":
        kept["evaluation"] = every["evaluation"]
        read |= {"source": fingerprint_dense(data.source), "target": fingerprint_dense(data.target)}
    return {"config": kept, "data": read, "batch_sizes": sizes, "version": __version__}


def digest(module: nn.Module) -> str:
    """Hash of all tensors of a module."""
    found = hashlib.sha256()
    for name, value in sorted(state_of(module).items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _unused(_: Path) -> None:
    raise RuntimeError("a training stage is trained, not run")


def _table(method: Adapt, data: Domains) -> Stage:
    rows: Tensor = method.pool
    names = hashlib.sha256(str(rows.tolist()).encode()).hexdigest()
    inputs = {"data": fingerprint_dense(data.source), "rows": names, "version": 1}

    def count(folder: Path) -> None:
        with Bar(len(rows), label="count classes", show=len(rows) >= 256) as bar:
            table = class_table(data.source, rows, progress=lambda done, _: bar.advance(done))
        save_tensors(folder / "counts.safetensors", {"counts": table}, {"classes": list(data.classes.names)})

    return Stage(TABLE, inputs, count)


def _labels(name: str, method: Adapt, cfg: Any, data: Domains, after: dict[str, str]) -> list[Stage]:
    """The stage that writes pseudo labels for a training, where its terms read them and no folder holds them."""
    settings = cfg.method.pseudo_labels
    if not needs_of(cfg).stored or settings.folder is not None:
        return []
    if not cfg.stages and "start" in after and not method.started_elsewhere:
        raise InputError(
            "method.terms: stored pseudo labels need a network that has learned the classes.",
            "Add a stage under stages that trains on the source before, or give --from a trained run.",
        )
    rows, every = method.target_rows, cfg.model_dump(mode="json")
    reading = {key: every["evaluation"][key] for key in ("window", "overlap", "scales", "flip")}
    look = cfg.plain_target()
    inputs = {
        **after,
        "settings": {key: getattr(settings, key) for key in ("quantile", "cap", "exact")},
        "reading": reading,
        "look": [list(look.mean), list(look.std), look.base],
        "target": images_fingerprint(data.target),
        "rows": hashlib.sha256(str(rows.tolist()).encode()).hexdigest(),
        "version": __version__,
    }

    def label(folder: Path) -> None:
        method.eval()
        with Bar(2 * len(rows), label="pseudo labels", show=len(rows) >= 32) as bar:
            write_labels(
                folder,
                data.target,
                rows,
                method.label_images,
                method.classes,
                digest(method.deployed),
                counter=ClassThresholds(len(method.classes), exact=settings.exact),
                quantile=settings.quantile,
                cap=settings.cap,
                batch=cfg.evaluation.batch,
                progress=lambda done, _: bar.advance(done),
                about={"after": after, "reading": reading},
            )

    return [Stage(name, inputs, label, everywhere=True)]
