"""What every method shares: `update`, `report`, `draw` and its typed settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from leanlabel import rng
from leanlabel.config import RunConfig

if TYPE_CHECKING:
    from leanlabel.engine.pipeline import Stage


class Updater(Protocol):
    """What the engine lends a method while it trains."""

    def update(self, loss: Tensor, which: str) -> None: ...

    def report(self, terms: dict[str, Tensor | float]) -> None: ...


class Method(nn.Module):
    """A training method. A subclass names its settings, builds its networks, and writes one step.

    Everything that changes during training must be a parameter or a buffer of the method (or of a child): the
    state dict is what a checkpoint holds. Child modules with trainable parameters are wrapped by the engine for
    data-parallel training; the method itself never is, so losses, banks and gathers see all ranks through
    :mod:`leanlabel.dist`.

    A subclass defines:
        Config: the schema of its recipe.
        read(cfg): data from disk, checked (class method; runs before anything starts).
        stages(cfg, data): what must be computed once before training (optional).
        batches(start): the batches of iterations ``start``, ``start + 1``, … : ``batch = f(seed, t)``.
        optimisers(): name -> optimiser over its parameters.
        step(t, batch): one iteration; calls `report`, then `update` once per optimiser step.
        validate(t): a score to select checkpoints by, higher is better (optional).
        readouts(): name -> what is to be evaluated; evaluate(), embed(): see `leanlabel.api`.
    """

    Config: ClassVar[type[RunConfig]]
    baselines: ClassVar[dict[str, dict[str, Any]]] = {}
    """Arms that ``compare`` adds by itself: name -> keys that differ."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.cfg = cfg
        self._updater: Updater | None = None

    # ------------------------------------------------------------------------ what the engine provides

    def update(self, loss: Tensor, which: str = "main") -> None:
        """Backward pass and one step of optimiser ``which``; a non-finite loss stops the run instead."""
        self._lent().update(loss, which)

    def report(self, **terms: Tensor | float) -> None:
        """Log named scalars of this iteration. Call it before `update`: then a non-finite term can be named."""
        self._lent().report(terms)

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

    # ------------------------------------------------------------------------- what a subclass provides

    @classmethod
    def read(cls, cfg: Any, /) -> Any:
        """Data named by the settings; every mistake in them raises InputError here."""
        raise NotImplementedError

    @classmethod
    def stages(cls, cfg: Any, data: Any, /) -> list[Stage]:
        """What is computed once, before training, and shared between runs."""
        return []

    def use_stage(self, name: str, folder: Path) -> None:
        """Take over the result of a finished stage."""
        raise NotImplementedError

    def batches(self, start: int) -> Iterator[Any]:
        """Batches of iterations ``start``, ``start + 1``, and so on."""
        raise NotImplementedError

    def optimisers(self) -> dict[str, Optimizer]:
        """Optimisers by name; the engine sets their learning rates."""
        raise NotImplementedError

    def step(self, t: int, batch: Any) -> None:
        """One iteration."""
        raise NotImplementedError

    def validate(self, t: int) -> float:
        """Score of the present weights; higher is better."""
        raise NotImplementedError
