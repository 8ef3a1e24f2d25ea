"""The list of stages of an adaptation: what each depends on, and so what several runs may share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from leanlabel import __version__
from leanlabel.banks.class_thresholds import ClassThresholds
from leanlabel.data.class_sampling import class_table
from leanlabel.data.dense import fingerprint_dense
from leanlabel.data.pseudo_labels import MANIFEST, images_fingerprint, write_labels
from leanlabel.engine.checkpoint import restore, save_tensors, state_of
from leanlabel.engine.pipeline import Stage
from leanlabel.engine.progress import Bar
from leanlabel.engine.stage_training import TrainingStage
from leanlabel.errors import InputError
from leanlabel.methods.adapt_handing import look_at_source
from leanlabel.methods.adapt_settings import frozen_of, needs_of
from leanlabel.methods.domains import Domains, training_rows
from leanlabel.methods.terms import find_term

if TYPE_CHECKING:
    from leanlabel.methods.adapt import Adapt

TABLE = "class-pixels"
LABELS = "pseudo-labels"
LOOK = "first-look"


def stages_of(method: Adapt, cfg: Any, data: Domains) -> list[Stage]:
    """Everything that comes before the last training, in order.

    Args:
        method: with the weights that the first stage starts from.
        cfg: its configuration.
        data: both domains.
    """
    asks = cfg.steps > 0 and "reference" in frozen_of(cfg)
    if asks and not cfg.stages and not method.started_elsewhere:
        raise InputError(
            "method.terms: the frozen network that is to be repeated has learned nothing.",
            "Add a stage under stages that trains on the source before, or give --from a trained run.",
        )
    configs = {name: method.stage_config(cfg, name) for name in cfg.stages}
    found: list[Stage] = []
    every = (cfg, *configs.values())
    if any(one.method.sampling.name != "uniform" or needs_of(one).donors for one in every):
        found.append(_table(method, data))
    for one in configs.values():
        rehearse(method.stage_method(one))
    if configs:
        rehearse(method)
    able = method.started_elsewhere
    after = {"start": digest(method.network)}
    anchors = {"anchor": digest(method.anchor)} if method.anchor is not None else {}
    for name, one in configs.items():
        labels = _labels(f"{LABELS}-{name}", method, one, data, after, able=able)
        able = able or (one.steps > 0 and learns(one))
        looks = _looks(f"{LOOK}-{name}", method, one, data, after, lambda one=one: method.stage_method(one))
        found += [*labels, *looks]
        inputs = {**inputs_of(one, data), **after, **(anchors if "initial" in frozen_of(one) else {})}
        inputs |= {"labels": labels[0].key} if labels else {}
        inputs |= {"look": looks[0].key} if looks else {}
        stage = TrainingStage(
            *(name, inputs, _unused),
            config=one,
            build=lambda one=one, name=name: method.stage_method(one, name),
        )
        found.append(stage)
        after = {"after": stage.key}
    found += _labels(LABELS, method, cfg, data, after, able=able)
    return [*found, *_looks(LOOK, method, cfg, data, after, lambda: method)]


def learns(cfg: Any) -> bool:
    """Whether some term of a training reads labels of people."""
    needs = needs_of(cfg)
    return needs.source or needs.target_labels or needs.pairs


def inputs_of(cfg: Any, data: Domains) -> dict[str, Any]:
    """What the result of a training depends on, besides its start: settings, and the data that its terms read."""
    needs, every = needs_of(cfg), cfg.model_dump(mode="json")
    kept = {key: every[key] for key in ("seed", "steps", "method", "model", "optim", "augment")}
    kept["method"] = {key: value for key, value in every["method"].items() if key != "watch_every"}
    kept["engine"] = {key: every["engine"][key] for key in ("precision", "bf16_products")}
    if cfg.method.ema is not None:
        kept["network"] = every["evaluation"]["network"]
    if cfg.method.adabn:
        kept["batch"] = every["evaluation"]["batch"]
    sizes = {"source": cfg.data.source.batch_size} if needs.source else {}
    weighted = needs.stored or needs.target_labels  # classes may weigh by their pixels in the source
    read = {"source": fingerprint_dense(data.source)} if needs.source or needs.pairs or weighted else {}
    if needs.target or cfg.method.adabn:
        read["target"] = (fingerprint_dense if needs.target_labels else images_fingerprint)(data.target)
        read["rows"] = hashed(training_rows(data.target).tolist())
        sizes["target"] = cfg.data.target.batch_size
        kept["target_augment"] = every["target_augment"]
    if needs.pairs:
        kept["pairs"] = every["data"]["pairs"]
        read["partners"] = "" if data.partners is None else data.partners_digest
    given = cfg.method.pseudo_labels.folder
    if needs.stored and given is not None:
        read["labels"] = hashlib.sha256((Path(given) / MANIFEST).read_bytes()).hexdigest()
    if cfg.evaluation.select != "last":
        kept["evaluation"] = every["evaluation"]
        read |= {"source": fingerprint_dense(data.source), "target": fingerprint_dense(data.target)}
    return {"config": kept, "data": read, "batch_sizes": sizes, "version": __version__}


def hashed(value: Any) -> str:
    """Hash of plain data."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def rehearse(method: Adapt) -> None:
    """Go through one iteration without learning, so that what cannot work is said before anything is trained.

    Every term takes part, whenever it starts. State and gradients are as before; so nothing depends on it.

    Raises:
        InputError: what a term says.
    """
    if method.cfg.steps == 0:
        return
    before = state_of(method)
    first = max(entry.start for entry in method.cfg.method.terms)
    batch = next(
        method.batches(1)
    )  # not 0: labels of a folder may be by weights that are still to be trained
    was, method._updater = method._updater, _Rehearsal()
    try:
        with torch.no_grad():
            method.train()
            method.step(first, moved(batch, method.device))
    finally:
        method._updater = was
        restore(method, before)


class _Rehearsal:
    """Stands in for the engine: nothing is learned or logged."""

    def update(self, loss: Tensor, which: str | Sequence[str]) -> None:
        """Nothing."""

    def report(self, terms: dict[str, Tensor | float]) -> None:
        """Nothing."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Full precision."""
        return nullcontext()


def moved(batch: Any, device: Any) -> Any:
    """A batch of nested tuples and lists on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, tuple | list):
        return type(batch)(moved(one, device) for one in batch)
    return batch


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


def _looks(
    name: str, method: Adapt, cfg: Any, data: Domains, after: dict[str, str], made: Callable[[], Adapt]
) -> list[Stage]:
    """The stage in which terms look at all labelled images before a training, where some term asks for it."""
    every = cfg.model_dump(mode="json")
    asking = [one for one in cfg.method.terms if find_term(one.name).prepares(one.typed())]
    if not asking or cfg.steps == 0:
        return []
    inputs = {
        **after,
        "terms": [{"name": entry.name, "settings": entry.settings} for entry in asking],
        "label_noise": cfg.method.label_noise,
        "model": every["model"],
        "look": [list(cfg.augment.mean), list(cfg.augment.std), cfg.augment.base],
        "data": fingerprint_dense(data.source),
        "rows": hashed(method.pool.tolist()),
        "version": __version__,
    }
    return [Stage(name, inputs, lambda folder: look_at_source(made(), folder), everywhere=True)]


def _labels(
    name: str, method: Adapt, cfg: Any, data: Domains, after: dict[str, str], *, able: bool
) -> list[Stage]:
    """The stage that writes pseudo labels for a training, where its terms read them and no folder holds them."""
    settings = cfg.method.pseudo_labels
    if not needs_of(cfg).stored or settings.folder is not None:
        return []
    if not able:
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
