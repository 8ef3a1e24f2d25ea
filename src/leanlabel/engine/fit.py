"""The training loop, read from top to bottom.

The unit of progress is the iteration ``t``, a stored integer: ``batch = f(seed, t)``, random numbers belong to
(seed, t), the learning rate is a function of t. So a run that is killed and resumed goes on exactly where its last
checkpoint was, and a run on R processes equals the run on one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from leanlabel import dist, rng
from leanlabel.config import EngineSettings, OptimSettings
from leanlabel.engine import checkpoint, optim
from leanlabel.engine.fabric import make_fabric
from leanlabel.engine.method import Method
from leanlabel.engine.progress import Bar, Metrics, console, peak_memory
from leanlabel.engine.runfolder import RunFolder
from leanlabel.engine.stop import Interrupted, stop_signals
from leanlabel.errors import RunError

LONG_RUN = 50
"""From this many iterations on, one dry step is measured and its memory and time are printed first."""


@dataclass(frozen=True)
class Plan:
    """What the loop needs to know besides the method.

    Attributes:
        steps: iterations in all.
        seed: the run's seed.
        optim: learning-rate schedule and clipping.
        engine: devices, precision, checkpoint and log intervals.
        validate_every: iterations between calls of ``method.validate``; 0 for never.
        quiet: no progress line.
    """

    steps: int
    seed: int
    optim: OptimSettings = field(default_factory=OptimSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    validate_every: int = 0
    quiet: bool = False


def fit(method: Method, run: RunFolder, plan: Plan, fabric: Fabric | None = None) -> None:
    """Train ``method`` up to ``plan.steps`` iterations, going on from the newest checkpoint in the run folder.

    Args:
        method: built from the run's settings; its state is overwritten by the checkpoint's, if there is one.
        run: where checkpoints and metrics go.
        plan: length, seed, schedule, intervals.
        fabric: started processes; None starts those that ``plan.engine`` asks for.

    Raises:
        RunError: a non-finite loss (names iteration, term and last good checkpoint), a full disk.
        Interrupted: after Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    fabric = fabric or make_fabric(plan.engine)
    loop = _Loop(method, run, plan, fabric)
    metrics: Metrics | None = None
    try:
        start = loop.restore()
        if start >= plan.steps:
            return
        if start == 0 and plan.steps >= LONG_RUN and not plan.quiet:
            loop.dry_step()
        metrics = Metrics(run, plan.engine.loggers, start, write=fabric.is_global_zero)
        batches = method.batches(start)
        show = fabric.is_global_zero and not plan.quiet
        with Bar(plan.steps, start, show=show) as bar, stop_signals() as stop:
            for t in range(start, plan.steps):
                loop.run_step(t, batches)
                done = t + 1
                if done % plan.engine.log_every == 0 or done == plan.steps:
                    terms = loop.gathered_terms()
                    metrics.log(t, terms, loop.timing())
                    bar.advance(done, terms)
                if plan.validate_every and (done % plan.validate_every == 0 or done == plan.steps):
                    loop.validate(done)
                asked = dist.world() == 1 or done % plan.engine.log_every == 0
                stopping = asked and dist.any_true(stop())
                if stopping or done % plan.engine.checkpoint_every == 0 or done == plan.steps:
                    loop.save(done)
                if stopping and done < plan.steps:
                    raise Interrupted(
                        f"Stopped after iteration {done} of {plan.steps}; everything is saved.",
                        f"Go on with `leanlabel resume {run.path}`.",
                    )
    finally:
        if metrics is not None:
            metrics.close()
        loop.release()


@dataclass
class _Loop:
    """State of one call of :func:`fit`; also what lends the method its ``update`` and ``report``."""

    method: Method
    run: RunFolder
    plan: Plan
    fabric: Fabric
    optimisers: dict[str, Any] = field(default_factory=dict)
    terms: dict[str, Tensor | float] = field(default_factory=dict)
    best: dict[str, float] | None = None
    is_best: bool = False
    seconds: float = 0.0
    since: list[tuple[float, float]] = field(default_factory=list)
    t: int = 0

    def __post_init__(self) -> None:
        """Wrap each trained network, never the method, and the optimisers."""
        method = self.method
        method.to(self.fabric.device)
        if self.plan.engine.precision == "64-true":
            method.double()
        made = method.optimisers()
        for name, child in list(method.named_children()):
            if any(parameter.requires_grad for parameter in child.parameters()):
                setattr(method, name, self.fabric.setup_module(child))
        self.optimisers = {name: self.fabric.setup_optimizers(one) for name, one in made.items()}
        self.peak_lr = {name: [group["lr"] for group in one.param_groups] for name, one in made.items()}
        method._updater = self

    def release(self) -> None:
        """Give the method back its plain networks."""
        for name, child in list(self.method.named_children()):
            if hasattr(child, "_forward_module"):
                setattr(self.method, name, child.module)
        self.method._updater = None

    def run_step(self, t: int, batches: Iterator[Any]) -> None:
        """Iteration ``t``: reseed, set learning rates, next batch, the method's step."""
        began = time.perf_counter()
        self.t, self.terms = t, {}
        rng.reseed(self.plan.seed, t, self.fabric.global_rank)
        scale = optim.factor(self.plan.optim, t, self.plan.steps)
        for name, optimiser in self.optimisers.items():
            for group, lr in zip(optimiser.optimizer.param_groups, self.peak_lr[name], strict=True):
                group["lr"] = lr * scale
        batch = self.fabric.to_device(next(batches))
        waiting = time.perf_counter() - began
        self.method.train()
        self.method.step(t, batch)
        self.seconds = time.perf_counter() - began
        self.since.append((self.seconds, waiting))

    def timing(self) -> dict[str, float]:
        """Mean seconds per iteration, and of waiting for data, since the last call; iterations; peak memory."""
        count = len(self.since)
        seconds, waiting = (sum(column) / count for column in zip(*self.since, strict=True))
        self.since.clear()
        return {"seconds": seconds, "waiting": waiting, "iterations": count, **_memory(self.method)}

    def update(self, loss: Tensor, which: str | Sequence[str]) -> None:
        """Backward and one step of each optimiser, unless the loss is not finite on any rank."""
        if dist.any_true(not bool(torch.isfinite(loss.detach()).all())):
            raise RunError(self._non_finite(loss), self._last_good())
        chosen = [self.optimisers[name] for name in ([which] if isinstance(which, str) else which)]
        for optimiser in chosen:
            optimiser.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        # Of several, some may have no part in this loss; a scaler refuses a step without a gradient.
        chosen = [one for one in chosen if len(chosen) == 1 or _has_gradient(one.optimizer)]
        scaler = getattr(self.fabric.strategy.precision, "scaler", None) if len(chosen) > 1 else None
        for optimiser in chosen:
            self._step(optimiser, scaler)
        if scaler is not None:  # once for all: their gradients were scaled by the same number
            scaler.update()

    def _step(self, optimiser: Any, scaler: Any) -> None:
        if self.plan.optim.clip is not None:
            self.fabric.strategy.precision.unscale_gradients(optimiser.optimizer)
            parameters = [
                p for group in optimiser.optimizer.param_groups for p in group["params"] if p.grad is not None
            ]
            torch.nn.utils.clip_grad_norm_(parameters, self.plan.optim.clip)
        try:
            if scaler is None:
                optimiser.step()
            else:
                scaler.step(optimiser.optimizer)
        except RuntimeError as error:
            if "without overflow" not in str(error):
                raise
            told = f"Iteration {self.t}: the update is not finite ({error})."
            raise RunError(told, self._last_good()) from error

    def report(self, terms: dict[str, Tensor | float]) -> None:
        """Remember scalars of this iteration."""
        self.terms.update({k: v.detach() if isinstance(v, Tensor) else v for k, v in terms.items()})

    def autocast(self) -> Any:
        """Fabric's precision, for networks that it does not wrap."""
        return self.fabric.autocast()

    def gathered_terms(self) -> dict[str, float]:
        """Terms of this iteration as numbers, averaged over ranks."""
        names = list(self.terms)
        values = torch.tensor([float(self.terms[name]) for name in names], dtype=torch.float64)
        if dist.world() > 1:
            values = dist.all_sum(values.to(self.fabric.device)).cpu() / dist.world()
        return dict(zip(names, values.tolist(), strict=True))

    def _non_finite(self, loss: Tensor) -> str:
        bad = [name for name, value in self.terms.items() if not math.isfinite(float(value))]
        what = f"term {', '.join(bad)}" if bad else f"the loss ({float(loss.detach())})"
        return f"Iteration {self.t}: {what} is not finite, the run was stopped before the update."

    def _last_good(self) -> str:
        paths = checkpoint.saved(self.run.checkpoints)
        if not paths:
            return (
                "There is no checkpoint yet; lower optim.lr or look at the data with `leanlabel data check`."
            )
        return (
            f"Last good checkpoint: {paths[-1]}; lower optim.lr, or set optim.clip, in a new run "
            f"(`leanlabel resume` would meet the same iteration again)."
        )

    def restore(self) -> int:
        """Load the newest checkpoint, if any; return the next iteration."""
        found = checkpoint.latest(self.run.checkpoints)
        if found is None:
            return 0
        lacking = checkpoint.restore(self.method, found.method, self.method.optional())
        if lacking and self.fabric.is_global_zero:
            names = ", ".join(name.rstrip(".") for name in lacking)
            console.print(
                f"Begun anew, because the checkpoint lacks it: {names}.", highlight=False, soft_wrap=True
            )
        for name, state in found.optimisers.items():
            if name + "." not in lacking:
                self.optimisers[name].load_state_dict(state)
        if found.scaler:
            self.fabric.strategy.precision.load_state_dict(found.scaler)
        self.best = found.best
        return found.t

    def save(self, t: int) -> None:
        """Write the state before iteration ``t``; rank 0 writes, all wait."""
        if self.fabric.is_global_zero:
            optimisers = {name: one.state_dict() for name, one in self.optimisers.items()}
            scaler = self.fabric.strategy.precision.state_dict()
            state = checkpoint.Checkpoint(t, checkpoint.state_of(self.method), optimisers, self.best, scaler)
            keep = self.plan.engine.keep_last
            checkpoint.save(self.run.checkpoints, state, keep_last=keep, is_best=self.is_best)
        self.is_best = False
        dist.barrier()

    def validate(self, t: int) -> None:
        """Ask the method for its score; a new best is saved at once."""
        self.method.eval()
        # One rank's word counts: scores that differ by rounding must not send ranks different ways.
        score = float(dist.broadcast_object(self.method.validate(t)))
        if self.best is None or score > self.best["score"]:
            self.best, self.is_best = {"score": score, "t": float(t)}, True
            self.save(t)

    def dry_step(self) -> None:
        """Run the first iteration for its memory and time, and take it back."""
        before = checkpoint.state_of(self.method)
        scaler = self.fabric.strategy.precision.state_dict()
        batches = self.method.batches(0)
        for _ in range(2):  # the first one pays for set-up and cold caches, the second is timed
            self.run_step(0, batches)
            checkpoint.restore(self.method, before)
            for optimiser in self.optimisers.values():
                optimiser.optimizer.state.clear()
                optimiser.zero_grad(set_to_none=True)
        if scaler:
            self.fabric.strategy.precision.load_state_dict(scaler)
        self.since.clear()
        if self.fabric.is_global_zero:
            peak = _memory(self.method).get("peak_bytes")
            memory = f"peak memory {peak / 2**30:.2f} GiB, " if peak else ""
            total = self.seconds * self.plan.steps
            whole = f"{total:.0f} s" if total < 120 else f"{total / 60:.0f} min"
            text = f"One measured step: {memory}{self.seconds:.2g} s; {self.plan.steps} iterations take about {whole}."
            console.print(text, highlight=False, soft_wrap=True)


def _has_gradient(optimiser: torch.optim.Optimizer) -> bool:
    return any(p.grad is not None for group in optimiser.param_groups for p in group["params"])


def _memory(method: Method) -> dict[str, int]:
    peak = peak_memory(torch.device(method.device))
    return {} if peak is None else {"peak_bytes": peak}
