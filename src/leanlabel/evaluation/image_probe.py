"""Readouts that need the images: a linear layer on a frozen backbone, or the whole network on a few labels.

Both train on random windows of the images, epoch after epoch, so that features kept from one pass do not do.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from leanlabel import rng
from leanlabel.augment.image import ViewSettings, plain_view, random_view
from leanlabel.errors import InputError, RunError
from leanlabel.evaluation.image_recipes import RECIPES, Recipe
from leanlabel.evaluation.probe import Parts, Split, split_parts

if TYPE_CHECKING:
    from leanlabel.data.images import Images

Triple = tuple[float, float, float]


WINDOW = 256 / 224
"""Length of the shorter side in relation to the square that is cut from it, at test time."""


def run_probe(
    name: str,
    backbone: nn.Module,
    images: Images,
    y: Tensor,
    split: Split,
    *,
    size: int,
    mean: Triple,
    std: Triple,
    seed: int,
    device: torch.device | str | None = None,
    epochs: int | None = None,
    flip: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Train a named readout on the images of the training part, and score those of validation and test.

    Training sees random windows (8 % to 100 % of the area) of side `size`, mirrored half the time; validation and test
    see the central square of the image resized to 256/224 of it. The weights of the last epoch are scored, as no
    published script selects them by data that are not its test set; what the epoch with the best validation accuracy
    would have given is told beside it.

    The backbone is copied: the given one is neither changed, moved nor set to another mode. A frozen one must not move:
    every tensor of the copy is compared bit by bit after the first epoch and at the end.

    Args:
        name: a key of `leanlabel.evaluation.image_recipes.RECIPES`.
        backbone: images (B, 3, size, size) float32 -> features (B, ...), flattened to (B, width).
        images: N images.
        y: (N,) int64 classes in [0, C); rows outside the split may carry a negative label.
        split: row ids under "train", "val", "test".
        size: side of the views in pixels.
        mean, std: per channel, of the normalisation that the backbone was trained with.
        seed: of first weights, order, views, and of the rows that a share is drawn from.
        device: where to compute; None for that of the backbone's first tensor.
        epochs: other than the recipe's, for a quick look; named in what is told.
        flip: mirror the training views. Not for images whose classes are no mirror images: digits, letters.
        progress: called with (finished epochs, all epochs).

    Returns:
        Logits (N, C) float32 on the CPU, 0 for rows outside validation and test, to be handed to
        `leanlabel.evaluation.readouts.evaluate_readouts` as predictions; and plain data, its details: accuracies of the
        last and of the best epoch by validation, and what was trained.

    Raises:
        InputError: unknown name.
        RunError: the loss is not finite.
        RuntimeError: the frozen backbone has moved; names the tensor.
        ValueError: images, labels, split or epochs do not fit.
    """
    if name not in RECIPES:
        raise InputError(f"There is no readout of images {name!r}.", f"There are {', '.join(RECIPES)}.")
    recipe = RECIPES[name]
    if len(images) != len(y):
        raise ValueError(f"{len(images)} images for {len(y)} labels")
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs must be positive, got {epochs}")
    parts = split_parts(split, y)
    first = next(iter((*backbone.parameters(), *backbone.buffers())), torch.zeros(0))
    device = first.device if device is None else torch.device(device)
    views = _Views(images, size, mean, std, seed, flip, device)
    # Networks may draw from the global generator, by dropout for example.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        trained = _Readout(recipe, epochs or recipe.epochs, backbone, views, y, parts)
        told = trained.run(name, progress)
    scores = torch.zeros(len(y), trained.classes)
    for rows, logits in zip(parts[1:], trained.logits, strict=True):
        scores[rows] = logits
    return scores, {"readout": name, "seed": seed, "size": size, "flip": flip, **told}


def share_of_classes(y: Tensor, rows: Tensor, share: float, seed: int) -> Tensor:
    """Draw a share of labelled rows, the same number of each class as far as it has them, and at least one.

    A smaller share of the same seed is contained in a larger one.

    Args:
        y: (N,) int64 classes, >= 0 where `rows` point.
        rows: (n,) int64.
        share: in (0, 1].
        seed: of the draw.

    Returns:
        Row ids, int64, ascending; about share * n of them.

    Example:
        >>> y = torch.arange(40) % 4
        >>> y[share_of_classes(y, torch.arange(40), 0.1, seed=0)].sort().values.tolist()
        [0, 1, 2, 3]
    """
    if share >= 1:
        return rows.sort().values
    own = y.cpu()[rows]
    classes = torch.unique(own).tolist()
    each = max(1, round(share * len(rows) / len(classes)))
    drawn = []
    for c in classes:
        members = rows[own == c].sort().values
        drawn.append(members[rng.permutation(seed, "probe share", c, len(members))[:each]])
    return torch.cat(drawn).sort().values


@dataclass(frozen=True)
class _Views:
    """Images as a network reads them."""

    images: Images
    size: int
    mean: Triple
    std: Triple
    seed: int
    flip: bool
    device: torch.device

    def random(self, rows: Tensor, epoch: int) -> Tensor:
        """Training views of some rows, (B, 3, size, size)."""
        settings = ViewSettings(
            size=self.size,
            scale=(0.08, 1.0),
            flip=0.5 if self.flip else 0.0,
            jitter=(0.0, 0.0, 0.0, 0.0),
            jitter_probability=0.0,
            grey=0.0,
            blur=0.0,
            mean=self.mean,
            std=self.std,
        )
        return random_view(self._read(rows), settings, rng.draw(self.seed, "probe view", epoch, rows))

    def plain(self, rows: Tensor) -> Tensor:
        """Test-time views of some rows, (B, 3, size, size)."""
        resize = round(self.size * WINDOW)
        return plain_view(self._read(rows), self.size, resize=resize, mean=self.mean, std=self.std)

    def _read(self, rows: Tensor) -> Tensor | list[Tensor]:
        found = self.images.read(rows)
        if isinstance(found, Tensor):
            return found.to(self.device)
        return [one.to(self.device) for one in found]


class _Readout:
    """A backbone with a linear layer, and the course of its training."""

    def __init__(
        self, recipe: Recipe, epochs: int, backbone: nn.Module, views: _Views, y: Tensor, parts: Parts
    ) -> None:
        self.recipe, self.epochs, self.views = recipe, epochs, views
        self.y, self.classes = y.cpu().long(), int(y.max()) + 1
        self.rows = share_of_classes(self.y, parts[0], recipe.share, views.seed)
        self.val, self.test = parts[1:]
        self.backbone = copy.deepcopy(backbone).to(views.device).requires_grad_(not recipe.frozen).eval()
        # A frozen backbone sees every image of these parts the same way each time.
        self.fixed = [self._features(part) for part in parts[1:]] if recipe.frozen else None
        self.head = self._start()
        self.logits: tuple[Tensor, Tensor] = (torch.zeros(0), torch.zeros(0))

    def _start(self) -> nn.Linear:
        with torch.no_grad():
            width = self._batch_features(self.views.plain(self.rows[:1])).shape[1]
            head = nn.Linear(width, self.classes, device=self.views.device)
            draw = rng.draw(self.views.seed, "probe weights", 0)
            if self.recipe.start == "normal":
                head.weight.copy_(0.01 * draw.normal((self.classes, width)))
                head.bias.zero_()
            else:
                head.weight.copy_((2 * draw.uniform((self.classes, width)) - 1) / math.sqrt(width))
                head.bias.copy_((2 * draw.uniform((self.classes,)) - 1) / math.sqrt(width))
        return head

    def run(self, name: str, progress: Callable[[int, int], None] | None) -> dict[str, Any]:
        """Train, and tell what came of it; `logits` are then those of validation and test rows."""
        groups: list[dict[str, Any]] = [{"params": list(self.head.parameters()), "lr": self.recipe.lr}]
        if not self.recipe.frozen:
            groups.append({"params": list(self.backbone.parameters()), "lr": self.recipe.backbone_lr})
        optimiser = torch.optim.SGD(groups, momentum=0.9, nesterov=self.recipe.nesterov)
        highest = [group["lr"] for group in optimiser.param_groups]
        before = tensor_hashes(self.backbone) if self.recipe.frozen else {}
        best_hits, best_epoch, best = -1, 0, {}
        val, hits = torch.zeros(0), 0
        for epoch in range(self.epochs):
            loss = self._epoch(epoch, optimiser, highest)
            if not math.isfinite(loss):
                raise RunError(
                    f"{name}: the loss of epoch {epoch + 1} is not finite.",
                    "The features may be very large or not finite themselves: try linear-lightly or logistic-l2.",
                )
            if epoch in (0, self.epochs - 1) and self.recipe.frozen:
                _unmoved(before, tensor_hashes(self.backbone))
            val = self._predict(0)
            hits = int((val.argmax(1) == self.y[self.val]).sum())
            if hits > best_hits:
                best_hits, best_epoch, best = hits, epoch + 1, self._state()
            if progress is not None:
                progress(epoch + 1, self.epochs)
        self.logits = (val, self._predict(1))
        last = best_test = self._share(self.logits[1])
        if best_epoch < self.epochs:
            self.head.load_state_dict(best["head"])
            if not self.recipe.frozen:
                self.backbone.load_state_dict(best["backbone"])
            best_test = self._share(self._predict(1))
        return {
            "settings": {**self.recipe.settings, "epochs": self.epochs, "drops": self._drops()},
            "training_rows": len(self.rows),
            "epoch": self.epochs,
            "accuracy": last,
            "val_accuracy": hits / len(self.val),
            "best_epoch": best_epoch,
            "best_val_accuracy": best_hits / len(self.val),
            "best_accuracy": best_test,
        }

    def _epoch(self, epoch: int, optimiser: torch.optim.Optimizer, highest: list[float]) -> float:
        """Train on every row once; the mean loss of the steps."""
        order = self.rows[rng.permutation(self.views.seed, "probe order", epoch, len(self.rows))]
        batches = self._batches(order)
        total = torch.zeros((), device=self.views.device)
        self.backbone.train(not self.recipe.frozen)
        for step, rows in enumerate(batches):
            scale = self._scale(epoch, epoch * len(batches) + step, self.epochs * len(batches))
            for group, lr in zip(optimiser.param_groups, highest, strict=True):
                group["lr"] = lr * scale
            with torch.set_grad_enabled(not self.recipe.frozen):
                features = self._batch_features(self.views.random(rows, epoch))
            loss = cross_entropy(self.head(features), self.y[rows].to(self.views.device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.detach()
        self.backbone.eval()
        return float(total) / len(batches)

    def _batches(self, order: Tensor) -> list[Tensor]:
        size = self.recipe.batch
        if not self.recipe.frozen:
            # Even parts: the batch norm of a network that is trained cannot use a last batch of one row.
            return list(order.tensor_split(-(-len(order) // size)))
        if self.recipe.drop_last and len(order) >= size:
            order = order[: len(order) // size * size]
        return list(order.split(size))

    def _drops(self) -> list[int]:
        return [round(drop * self.epochs / self.recipe.epochs) for drop in self.recipe.drops]

    def _scale(self, epoch: int, step: int, steps: int) -> float:
        """Learning rate in relation to the highest."""
        if self.recipe.schedule == "cosine":
            return (1 + math.cos(math.pi * step / steps)) / 2
        return self.recipe.factor ** sum(epoch >= drop for drop in self._drops())

    def _state(self) -> dict[str, Any]:
        """Copies of the present weights."""
        modules = {"head": self.head} | ({} if self.recipe.frozen else {"backbone": self.backbone})
        return {
            name: {key: value.detach().clone() for key, value in module.state_dict().items()}
            for name, module in modules.items()
        }

    @torch.no_grad()
    def _predict(self, part: int) -> Tensor:
        """Logits of the rows of validation (0) or test (1), on the CPU."""
        features = self.fixed[part] if self.fixed else self._features((self.val, self.test)[part])
        found = [self.head(block.to(self.views.device)).float().cpu() for block in features.split(4096)]
        return torch.cat(found)

    @torch.no_grad()
    def _features(self, rows: Tensor) -> Tensor:
        """Features of some rows as seen at test time, on the CPU."""
        blocks = rows.split(self.recipe.batch)
        return torch.cat([self._batch_features(self.views.plain(block)).cpu() for block in blocks])

    def _batch_features(self, views: Tensor) -> Tensor:
        return self.backbone(views).flatten(1).float()

    def _share(self, logits: Tensor) -> float:
        return int((logits.argmax(1) == self.y[self.test]).sum()) / len(self.test)


def tensor_hashes(module: nn.Module) -> dict[str, str]:
    """Hash of every parameter and buffer of a module by its name, bits, type and shape included."""
    found = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        array = tensor.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{array.dtype} {tuple(array.shape)} ".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
        found[name] = digest.hexdigest()
    return found


def _unmoved(before: dict[str, str], after: dict[str, str]) -> None:
    """Refuse a backbone whose tensors differ from what they were."""
    moved = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if moved:
        more = f" and {len(moved) - 1} more" if len(moved) > 1 else ""
        raise RuntimeError(
            f"the frozen backbone has changed during the linear probe: {moved[0]}{more} differ from before, "
            f"so the accuracy would belong to another backbone"
        )
