"""What every method shares: `update`, `report`, `draw` and its typed settings."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from leanlabel import rng
from leanlabel.config import RunConfig, stage_config
from leanlabel.data.splits import Labelled, LabelledRows
from leanlabel.engine.checkpoint import state_of
from leanlabel.errors import InputError, RunError
from leanlabel.evaluation.protocols import PROTOCOLS
from leanlabel.evaluation.readouts import class_names, evaluate_readouts

if TYPE_CHECKING:
    from leanlabel.engine.pipeline import Stage
    from leanlabel.evaluation.classifier import Classifier


class Updater(Protocol):
    """What the engine lends a method while it trains."""

    def update(self, loss: Tensor, which: str | Sequence[str]) -> None: ...

    def report(self, terms: dict[str, Tensor | float]) -> None: ...

    def autocast(self) -> AbstractContextManager[Any]: ...


@dataclass(frozen=True, eq=False)
class Exported:
    """What a trained model is without its training: plain data that `leanlabel.export` writes and reads back.

    Attributes:
        kind: row of `leanlabel.export.KINDS`: which class uses the rest.
        config: settings of network and preprocessing, plain JSON data.
        tensors: name -> tensor on the CPU.
        backbone: what the names of the backbone's tensors start with, with the dot.
    """

    kind: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    backbone: str


class Method(nn.Module):
    """A training method. A subclass names its settings, builds its networks, and writes one step.

    Everything that changes during training must be a parameter or a buffer of the method (or of a child): the
    state dict is what a checkpoint holds. Child modules with trainable parameters are wrapped by the engine for
    data-parallel training; the method itself never is, so losses, banks and gathers see all ranks through
    :mod:`leanlabel.dist`.

    A subclass defines:
        Config: the schema of its recipe.
        __init__(cfg, data): networks and banks.
        read(cfg): data from disk, checked (class method; runs before anything starts).
        batches(start): the batches of iterations ``start``, ``start + 1``, … : ``batch = f(seed, t)``.
        optimisers(): name -> optimiser over its parameters.
        step(t, batch): one iteration; calls `report`, then `update` once per optimiser step.
        embed(data): embeddings of the data.
    and, where it has them: stages(cfg, data) with use_stage, validate(t), finish, open(cfg, path), readouts, describe,
    exported, classifier, figures, parts with sources and took.
    """

    Config: ClassVar[type[RunConfig]]
    baselines: ClassVar[dict[str, dict[str, Any]]] = {}
    """Arms that ``compare`` adds by itself: name -> keys that differ."""
    stage_names: ClassVar[tuple[str, ...] | None] = ()
    """Stages that a recipe may give settings of their own, under ``stages``; None: any, each a training of its own."""
    parts: ClassVar[dict[str, tuple[str, ...]]] = {}
    """What ``fit --from … --part`` can start: name -> the modules that the weights go into (* is any one name)."""
    sources: ClassVar[dict[str, str]] = {}
    """The module that a part of a trained model is taken from, where it is not the first one under ``parts``."""
    fixed: ClassVar[tuple[str, ...]] = ()
    """Keys below ``evaluation`` that the networks depend on: a started run cannot change them."""
    scores: ClassVar[tuple[str, ...]] = ()
    """Scores without labels that weights can be selected by."""
    reads_out: ClassVar[bool] = True
    """Whether a classifier of rows is fitted to its embeddings; not of a method that labels pixels."""
    supervised_only: ClassVar[bool] = False
    """Whether labels of rows train it: those of the training parts, and of the validation parts by selection."""

    def __init__(self, cfg: Any, data: Any = None) -> None:
        super().__init__()
        self.cfg = cfg
        self._updater: Updater | None = None
        self.initial: Tensor | None = None  # embeddings under the weights of another run, before training

    @classmethod
    def baselines_of(cls, values: Mapping[str, Any], /) -> dict[str, dict[str, Any]]:
        """Arms that ``compare`` adds to a recipe with these keys: name -> keys that differ; by default all alike."""
        return cls.baselines

    def update(self, loss: Tensor, which: str | Sequence[str] = "main") -> None:
        """Backward pass and one step of optimiser ``which``, or of several; a non-finite loss stops the run instead."""
        self._lent().update(loss, which)

    def report(self, **terms: Tensor | float) -> None:
        """Log named scalars of this iteration. Call it before `update`: then a non-finite term can be named."""
        self._lent().report(terms)

    def autocast(self) -> AbstractContextManager[Any]:
        """The run's precision for networks that are not trained, such as a teacher; those that are have it anyway."""
        return nullcontext() if self._updater is None else self._updater.autocast()

    def draw(self, stream: str, t: int, ids: Tensor | None = None) -> rng.Draw:
        """Random numbers that belong to (seed, t, stream, global sample id), never to a rank or a worker."""
        return rng.draw(self.cfg.seed, stream, t, ids, device=self.device)

    @property
    def device(self) -> Any:
        """Device of the parameters (or buffers)."""
        tensor = next(self.parameters(), None)
        return (next(self.buffers()) if tensor is None else tensor).device

    def _lent(self) -> Updater:
        if self._updater is None:
            raise RuntimeError("update and report work only inside leanlabel.engine.fit.fit")
        return self._updater

    @classmethod
    def read(cls, cfg: Any, /) -> Any:
        """Data named by the settings; every mistake in them raises InputError here, before anything starts."""
        raise NotImplementedError

    @classmethod
    def check_selection(cls, cfg: Any, splits: Sequence[Any], /) -> None:
        """Refuse a way of choosing weights that this method does not have, or that the data gives nothing for.

        Raises:
            InputError: names what it can select by.
        """
        select = cfg.evaluation.select
        if select == "best_val" and not splits:
            raise InputError(
                "evaluation.select=best_val needs labels and a protocol to read them out with.",
                "Use evaluation.select=last.",
            )
        if select not in ("last", "best_val", *cls.scores):
            raise InputError(
                f"evaluation.select={select}: {cfg.method.name} has no such score.",
                f"It can select by {', '.join(('last', 'best_val', *cls.scores))}.",
            )

    @classmethod
    def open(cls, cfg: Any, path: str, /) -> Any:
        """Other data for a trained model, in the same form as `read` returns."""
        raise InputError(f"{cfg.method.name}: this method can only embed the data it was trained on.")

    def stages(self, cfg: Any, data: Any, /) -> list[Stage]:
        """What is computed once, before training, and shared between runs."""
        return []

    @classmethod
    def stage_config(cls, cfg: Any, name: str, /) -> Any:
        """The complete configuration of a stage: the main one with its own keys laid over it.

        Raises:
            InputError: a mistake in its keys.
        """
        return stage_config(cfg, name)

    def use_stage(self, name: str, folder: Path) -> None:
        """Take over the result of a finished stage."""
        raise NotImplementedError

    def recall(self, name: str, folder: Path) -> None:
        """Take over what a finished stage left and the weights do not hold, when a trained model is measured."""

    def handed_on(self) -> dict[str, Tensor]:
        """What a training stage leaves for the stages after it, by name; all that the method holds by default."""
        return state_of(self)

    def carried(self) -> dict[str, Tensor]:
        """What a training stage leaves besides, such as memories of its losses, under names of its own."""
        return {}

    def optional(self) -> tuple[str, ...]:
        """What names of tensors begin with that only training reads: a trained model may come without them."""
        return ()

    def batches(self, start: int) -> Iterator[Any]:
        """Batches of iterations ``start``, ``start + 1``, and so on."""
        raise NotImplementedError

    def optimisers(self) -> dict[str, Optimizer]:
        """Optimisers by name; the engine sets their learning rates."""
        raise NotImplementedError

    def step(self, t: int, batch: Any) -> None:
        """One iteration."""
        raise NotImplementedError

    def notes(self) -> list[str]:
        """What training met that its user should know, one sentence each; goes into the run's warnings."""
        return []

    def validate(self, t: int) -> float:
        """Score of the present weights; higher is better."""
        raise NotImplementedError

    def finish(self) -> None:
        """Last touch on the weights that are handed out. No checkpoint holds it, so a longer run never sees it."""

    def embed(self, data: Any, /) -> Tensor:
        """Embeddings (N, d) of data, float32, without gradient."""
        raise NotImplementedError

    def took(self, names: Collection[str]) -> None:
        """Bring copies in line after weights of another run were put into the tensors of these names."""

    @classmethod
    def sees_labels(cls, settings: Mapping[str, Any], /) -> bool:
        """Whether a configuration (plain data) lets labels of rows into the weights."""
        return cls.supervised_only

    @classmethod
    def follows_steps(cls, cfg: Any, /) -> list[str]:
        """Settings whose course depends on the number of steps: an extended run differs in them from a longer one."""
        free = cfg.optim.schedule == "constant" or cfg.optim.horizon is not None
        return [] if free else [f"optim.schedule={cfg.optim.schedule}"]

    def exported(self) -> Exported:
        """The trained model as plain data, for `leanlabel export`."""
        raise InputError(f"{self.cfg.method.name}: a model of this method cannot be exported.")

    def classifier(self) -> Classifier | None:
        """The trained classifier over the embeddings, of a method that has one; else one is fitted to them."""
        return None

    @classmethod
    def labelled(cls, data: Any, /) -> Labelled:
        """Labels of the data: the data itself where it has ``y`` and ``splits``, or those of a pair (x, y)."""
        if all(hasattr(data, name) for name in ("name", "y", "splits", "class_names")):
            return data
        y = data[1] if isinstance(data, tuple) and len(data) == 2 else None
        return LabelledRows("data", y)

    @classmethod
    def describe(cls, cfg: Any, data: Any, /) -> dict[str, Any]:
        """What ``data.json`` says: name, kind, fingerprint, counts, classes, facts."""
        rows = cls.labelled(data)
        tensors = [
            part for part in (data if isinstance(data, tuple) else (rows.y,)) if isinstance(part, Tensor)
        ]
        names = class_names(rows)
        sizes = [] if rows.y is None else torch.bincount(rows.y[rows.y >= 0], minlength=len(names)).tolist()
        return {
            "name": rows.name,
            "kind": cfg.task or cfg.method.name,
            "fingerprint": _fingerprint(tensors),
            "counts": {"rows": len(tensors[0])} if tensors else {},
            "classes": [{"name": name, "count": size} for name, size in zip(names, sizes, strict=True)],
            "facts": {},
        }

    def keep_initial(self, initial: Method | None, data: Any, /) -> None:
        """Remember what the weights that training started from give, to be measured beside the trained ones."""
        self.initial = None if initial is None else initial.embed(data)

    def readouts(self, data: Any, untrained: Method, /) -> dict[str, Any]:
        """What is to be measured side by side: name -> (N, d)."""
        found = {"untrained": untrained.embed(data)}
        if self.initial is not None:
            found["initial"] = self.initial
        return found | ({"trained": self.embed(data)} if self.cfg.steps > 0 else {})

    def label_free(self, data: Any, /) -> dict[str, float]:
        """Scores of the present weights that need no labels, by name; recorded beside the results."""
        return {}

    def figures(self, data: Any, /) -> dict[str, Any]:
        """Plain data behind further pictures of the report, by name; each becomes ``figures/<name>.json``."""
        return {}

    def evaluate(
        self,
        data: Any,
        untrained: Method,
        protocol: str | None = None,
        splits_file: Path | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """Measure the readouts by a named protocol; see `leanlabel.evaluation.readouts.evaluate_readouts`.

        Raises:
            InputError: what that function raises.
            RunError: the trained embeddings are not finite.
        """
        readouts = self.readouts(data, untrained)
        trained = readouts.get("trained")
        if isinstance(trained, Tensor) and not bool(torch.isfinite(trained).all()):
            raise RunError(
                f"What the model gives after {self.cfg.steps} iterations is not finite.",
                "Lower optim.lr, or set optim.clip, in a new run.",
            )
        found = evaluate_readouts(
            self.labelled(data),
            readouts,
            self.cfg.evaluation,
            self.cfg.seed,
            protocol,
            splits_file,
            **more,
        )
        measured = found["protocol"]
        if self.sees_labels(self.cfg.model_dump()) and self.cfg.steps > 0 and measured is not None:
            name = measured["protocol"]
            if not PROTOCOLS[name].needs_splits:
                found["warnings"].append(
                    f"{name} scores all labelled rows, and labels of some of them trained these embeddings: it says "
                    f"nothing about unseen rows, and is not to be held against methods without labels"
                )
        return found


def _fingerprint(tensors: list[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        array = tensor.detach().cpu().contiguous()
        digest.update(
            f"{array.dtype} {tuple(array.shape)}".encode() + array.view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()
