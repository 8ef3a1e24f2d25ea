"""Dense training: a segmentation network, an ordered list of terms, measured by intersection over union."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from leanlabel import dist
from leanlabel.augment.pairs import plain_image, random_pair
from leanlabel.augment.photometric import ColourSettings, check_colours, colours
from leanlabel.banks.teacher import Teacher, plain
from leanlabel.config import RunConfig
from leanlabel.data.class_map import IGNORE
from leanlabel.data.dense import DenseImages, fingerprint_dense
from leanlabel.data.dense_source import open_dense
from leanlabel.engine import loaders, optim
from leanlabel.engine.checkpoint import restore, state_of
from leanlabel.errors import InputError
from leanlabel.methods.dense_measuring import IGNORED, Measuring, device_labels, plain_segmenter
from leanlabel.methods.dense_readouts import (
    class_pixels,
    main_part,
    parts_of,
)
from leanlabel.methods.dense_settings import DenseConfig
from leanlabel.methods.dense_step import DenseBatch, Step
from leanlabel.methods.terms import Setting, Term, find_term
from leanlabel.models.map_probe import blank_image, parameters_behind
from leanlabel.models.multi_resolution import MultiResolution
from leanlabel.models.segmenters import (
    DenseOutput,
    build_segmenter,
    head_parameters,
    upsample,
)
from leanlabel.rng import Draw

Raw = tuple[Tensor, tuple[Any, Any]]


class Pairs:
    """Images with masks as the loader reads them."""

    def __init__(self, data: DenseImages) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, masks = self.data.read([index])
        assert masks is not None
        return images[0], masks[0]

    def read(self, rows: Sequence[int]) -> tuple[Any, Any]:
        """Images and masks of some rows."""
        return self.data.read(rows)


class Segmentation(Measuring):
    """Training of a segmentation network on images with masks, by the terms that its recipe lists."""

    Config: ClassVar[type[RunConfig]] = DenseConfig
    parts: ClassVar[dict[str, tuple[str, ...]]] = {"backbone": ("network.encoder",), "network": ("network",)}
    baselines: ClassVar[dict[str, dict[str, Any]]] = {
        "untrained": {
            "steps": 0,
            "evaluation": {"readout": "untrained"},
            "method": {"terms": [{"name": "cross-entropy"}]},  # one arm for all recipes of a network
        }
    }
    supervised_only: ClassVar[bool] = True
    reads_out: ClassVar[bool] = False

    def __init__(self, cfg: Any, data: Any) -> None:
        super().__init__(cfg)
        self.data = data
        self.classes = data.classes
        self._start = None
        self._found = {}
        self.build(data)

    def build(self, data: Any) -> None:
        """Make network, running average and terms; the network first: all recipes of a seed start from the same one."""
        self.pool = training_rows(data)
        self.make_network(channels_of(data), self.cfg.augment)
        self.check_sizes(data, self.cfg.data.batch_size)
        self.make_terms(self.class_pixels(data))

    def make_network(self, channels: int, augment: Any) -> None:
        """Make the network for images of so many channels."""
        check_channels(channels, augment)
        try:
            self.network = build_segmenter(self.cfg.model, len(self.classes), channels)
        except ValueError as error:
            raise InputError(f"model: {error}.") from error

    def make_terms(self, pixels: Sequence[int]) -> None:
        """Make the running average and the terms of the recipe; what these train of their own becomes a child, too."""
        cfg = self.cfg
        self.average = Teacher(self.network) if cfg.method.ema is not None else None
        network = plain_segmenter(self.network)
        known = Setting(
            *(self.classes.names, pixels, network.width, cfg.steps, cfg.seed),
            stride=network.stride,
            channels=channels_read(network),
        )
        self.term_names = [f"term_{number}" for number in range(len(cfg.method.terms))]
        for name, entry in zip(self.term_names, cfg.method.terms, strict=True):
            try:
                term = find_term(entry.name)(entry.typed(), known)
            except ValueError as error:
                raise InputError(f"method.terms, {entry.name}: {error}.") from error
            self.add_module(name, term)
            for key, network in term.networks().items():
                term.names[key] = f"{name}_{key}"
                self.add_module(term.names[key], network)
        self._freeze_unread()

    def _freeze_unread(self) -> None:
        """Freeze what no term's losses depend on, such as a classifier where features alone are compared.

        A parameter that is to learn and gets no gradient stops data-parallel training.
        """
        terms = [term for term, _ in self.terms()]
        if any(type(term).trained is Term.trained for term in terms):
            return  # the scores, and so everything
        network = plain_segmenter(self.network)
        was = network.training
        network.eval()
        with torch.enable_grad():
            output = network(blank_image(network.encoder, 2 * network.min_size))
            read = parameters_behind(one for term in terms for one in term.trained(output))
        network.train(was)
        for parameter in network.parameters():
            if id(parameter) not in read:
                parameter.requires_grad_(False)

    def check_sizes(
        self, data: DenseImages, batch_size: int, augment: Any = None, key: str = "augment"
    ) -> None:
        """Refuse crops, windows and images that the network cannot read or be trained on."""
        cfg, least = self.cfg, plain_segmenter(self.network).min_size
        augment = cfg.augment if augment is None else augment
        given = {f"{key}.crop": augment.crop, "evaluation.window": cfg.evaluation.window}
        if augment.crop is None and data.shape is not None:
            short = min(data.shape[1:])
            base = augment.base or short
            given["data"] = tuple(round(side * base / short) for side in data.shape[1:])
        for name, sides in given.items():
            if sides is not None and min(sides) < least:
                what = "images" if name == "data" else "windows"
                raise InputError(
                    f"{name}: {what} of {sides[0]} x {sides[1]} pixels; {cfg.model.name} needs {least}.",
                    f"Use larger windows or images, or set {key}.base to enlarge the images.",
                )
        if augment.crop is None and data.shape is None and batch_size > 1:
            raise InputError(
                f"{data.name}: images of different sizes cannot be trained on together as they are.",
                f"Set {key}.crop, such as [512, 512], or data.batch_size=1.",
            )
        alone = batch_size == cfg.engine.devices * cfg.engine.nodes
        if cfg.steps > 0 and cfg.model.name == "deeplab-v3+" and cfg.model.norm == "batch" and alone:
            raise InputError(
                "data.batch_size: one image per process, which deeplab-v3+ pools to one value: too few for batch norm.",
                "Use larger batches, or model.norm=group.",
            )

    def class_pixels(self, data: DenseImages) -> list[int]:
        """Labelled training pixels of each class: as the reader counted them, else counted now."""
        known = data.facts.get("train_class_pixels")
        return list(known) if known is not None else class_pixels(data, training_rows(data))

    @classmethod
    def read(cls, cfg: Any) -> Any:
        """Images and masks, with everything refused that can be known before training starts."""
        data = open_dense(cfg.data)
        if data.masks is None:
            raise InputError(
                f"{data.name}: no masks, and a segmentation network is trained on labels.",
                "Set data.masks to their folder, or adapt a network trained elsewhere.",
            )
        rows = len(training_rows(data))
        ranks = cfg.engine.devices * cfg.engine.nodes
        size = cfg.data.batch_size
        if cfg.steps > 0 and size > rows:
            raise InputError(
                f"data.batch_size: {size} is more than the {rows} images to train on.",
                f"Set it to {rows} or less.",
            )
        if size % ranks:
            raise InputError(
                f"data.batch_size: {size} is global and must be divisible by the {ranks} processes."
            )
        if cfg.evaluation.protocol != "none":
            main_part(data, cfg.evaluation.part)
        check_labels(data, cfg.evaluation.subset, "data", trains=cfg.steps > 0)
        cls.check_selection(cfg, [part for part in parts_of(data) if part == "val"])
        return data

    @classmethod
    def follows_steps(cls, cfg: Any) -> list[str]:
        """Settings whose course depends on the number of steps, those of terms included."""
        own = [
            f"method.terms.{entry.name}.settings.{key}"
            for entry in cfg.method.terms
            for key in find_term(entry.name).follows_steps(entry.typed())
        ]
        return [*super().follows_steps(cfg), *own]

    @classmethod
    def describe(cls, cfg: Any, data: Any) -> dict[str, Any]:
        """What ``data.json`` says."""
        rows = training_rows(data)
        known = data.facts.get("train_class_pixels") or class_pixels(data, rows)
        parts = {name: len(data.splits[name]) for name in parts_of(data)}
        return {
            "name": data.name,
            "kind": "segmentation",
            "fingerprint": fingerprint_dense(data),
            "counts": {"images": len(data), "trained on": len(rows), **parts},
            "classes": [{"name": n, "count": c} for n, c in zip(data.classes.names, known, strict=True)],
            "facts": {
                **{key: value for key, value in data.facts.items() if key != "train_class_pixels"},
                "size": list(data.shape) if data.shape else "various",
                "class_map": data.classes.as_dict(),
            },
        }

    def batches(self, start: int) -> Iterator[Raw]:
        """Images and masks of iterations ``start``, ``start + 1``, …, of the training part."""
        return loaders.batches(
            Pairs(self.data.take(self.pool)),
            self.cfg.data.batch_size,
            self.cfg.seed,
            start,
            workers=self.cfg.engine.workers,
            collate=collate_pairs,
            pin_memory=torch.device(self.device).type == "cuda",
        )

    def optimisers(self) -> dict[str, Optimizer]:
        """One, over everything that learns; what stands behind the encoder has a learning rate of its own."""
        settings = self.cfg.optim
        head = {id(parameter) for parameter in head_parameters(plain_segmenter(self.network))}
        found, terms = [], [term for term, _ in self.terms()]
        for group in optim.groups(settings, nn.ModuleList([self.network, *terms])):
            rest = {key: value for key, value in group.items() if key != "params"}
            for inside, factor in ((False, 1.0), (True, settings.head_factor)):
                chosen = [p for p in group["params"] if (id(p) in head) == inside]
                if chosen:
                    found.append({**rest, "params": chosen, "lr": settings.lr * factor})
        own = {
            full: optim.build(chosen, optim.groups(chosen, getattr(self, full)))
            for term in terms
            for key, full in term.names.items()
            for chosen in (term.optimiser(key),)
        }
        return {"main": optim.build(settings, found), **own}

    def step(self, t: int, batch: Raw) -> None:
        """Views; then of every term that has started: before, losses; update; after; the running average follows."""
        terms = [(term, entry.weight) for term, entry in self.terms() if t >= entry.start]
        network = plain_segmenter(self.network)
        if isinstance(network, MultiResolution):  # one place of the detail for all images and passes
            down, across = self.draw("detail", t).uniform(2).tolist()
            network.numbers = (down, across)
        step = self.begin(t, batch)
        for term, _ in terms:
            step.batch = term.views(step.batch, step.draw)
        for term, _ in terms:
            term.before(step)
        total: Tensor | None = None
        for term, weight in terms:
            for name, value in term.loss(step).items():
                self.report(**{name: value})
                total = weight * value if total is None else total + weight * value
        if total is None:  # no term has started, or none has a loss of its own
            total = step.logits.sum() * 0
        self.watch(step)
        self.report(loss=total, pixel_accuracy=self._right(step))
        joint = [term.names[key] for term, _ in terms for key in term.joint if key in term.names]
        self.update(total, ["main", *joint] if joint else "main")
        for term, _ in terms:
            term.after(step)
        if self.average is not None:
            self.average.follow(self.network, min(1 - 1 / (t + 2), self.cfg.method.ema))

    def begin(self, t: int, batch: Any) -> Step:
        """The iteration with its views, before any term."""
        return Step(self, t, self.views(t, batch), partial(self.stream, t, batch[0]))

    def watch(self, step: Step) -> None:
        """Report what is worth a curve beside the losses."""

    def _right(self, step: Step) -> Tensor:
        """Share of the labelled pixels whose class is right, at the network's stride."""
        if "output" not in step.__dict__:
            return torch.zeros(())
        guess = step.logits.detach().argmax(1)
        rows, columns = (
            torch.arange(small, device=guess.device) * large // small
            for small, large in zip(guess.shape[-2:], step.labels.shape[-2:], strict=True)
        )
        labels = step.labels[:, rows][:, :, columns]
        known = labels != IGNORED
        return dist.global_mean(((guess == labels) & known).double().sum(), known.sum())

    def stream(self, t: int, ids: Tensor, name: str) -> Any:
        return self.draw(name, t, ids)

    def terms(self) -> list[tuple[Term, Any]]:
        """Terms of the recipe with their entries, in its order."""
        found = []
        for name, entry in zip(self.term_names, self.cfg.method.terms, strict=True):
            term = plain(getattr(self, name))
            assert isinstance(term, Term)
            found.append((term, entry))
        return found

    def train(self, mode: bool = True) -> Self:
        """Switch to training; a running average always speaks as it would predict: no dropout, its own statistics."""
        super().train(mode)
        if self.average is not None:
            self.average.eval()
        return self

    def views(self, t: int, raw: Raw) -> DenseBatch:
        """The batch after augmentation: one geometry for image and mask, colours for the image."""
        ids, (images, masks) = raw
        if self.cfg.method.label_noise > 0:
            masks = self._noisy(ids, masks)
        pair = random_pair(images, masks, self.cfg.augment, self.draw("view", t, ids))
        assert pair.masks is not None
        return DenseBatch(ids, pair.images.to(self._dtype), device_labels(pair.masks.to(self.device)))

    def _noisy(self, ids: Tensor, masks: Any) -> list[Tensor]:
        """Masks with some labels exchanged: the same ones whenever an image is met."""
        found = []
        for id_, mask in zip(ids, masks, strict=True):
            numbers = self.draw("label noise", 0, id_[None])
            chosen = numbers.uniform(tuple(mask.shape))[0] < self.cfg.method.label_noise
            other = numbers.integers(0, len(self.classes), tuple(mask.shape))[0].to(mask.dtype)
            found.append(torch.where(chosen.to(mask.device) & (mask != IGNORE), other.to(mask.device), mask))
        return found

    def student(self, images: Tensor) -> DenseOutput:
        """A pass of the trained network."""
        return self.network(images)

    def student_head(self, features: Tensor) -> Tensor:
        """The trained network's classifier alone."""
        return plain_segmenter(self.network).head(features)

    def teacher_output(self, images: Tensor) -> DenseOutput:
        """A pass of the running average, without gradient, in the run's precision."""
        assert self.average is not None
        with torch.no_grad(), self.autocast():
            return self.average(images)

    def reference_output(self, images: Tensor) -> DenseOutput:
        """A pass of the network as it was when training began; a method that adapts keeps one."""
        raise InputError("method.terms: a term that asks a frozen network needs method.name=adapt.")

    def initial_map(self, images: Tensor) -> Tensor:
        """The last map of the encoder as the run found it; a method that adapts keeps one."""
        raise InputError("method.terms: a term that asks a frozen encoder needs method.name=adapt.")

    def recoloured(self, images: Tensor, settings: ColourSettings, draw: Draw) -> Tensor:
        """Normalised images with their colours changed at random."""
        channels = images.shape[1]
        mean, std = (
            torch.tensor(statistics).to(images).view(-1, 1, 1)
            for statistics in (self.look.mean, self.look.std)
        )
        check_colours(channels, settings)
        changed = colours((images.detach() * std + mean).clamp(0, 1).float(), settings, draw)
        return ((changed.to(images) - mean) / std).to(images)

    def own_network(self, name: str) -> nn.Module:
        """A trained network of a term."""
        return getattr(self, name)

    def network_of(self, term: str, key: str) -> nn.Module | None:
        """A trained network of another term; None where the recipe has no such term."""
        for one, entry in self.terms():
            if entry.name == term:
                return getattr(self, one.names[key])
        return None

    def enlarge(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Scores brought to another size, bilinear."""
        return upsample(logits, size, self.cfg.model.align_corners)

    def took(self, names: Collection[str]) -> None:
        """The running average starts from the weights that were taken over; terms begin as this recipe has them."""
        for term, _ in self.terms():
            term.taken_over()
        if self.average is not None and any(name.startswith("network.") for name in names):
            self.average.follow(self.network, 0.0)

    def finish(self) -> None:
        """The running average takes the network's place, where it is what is handed out."""
        if self.average is not None and self.cfg.evaluation.network != "student":
            restore(self.network, self.average.network.state_dict())

    def handed_on(self) -> dict[str, Tensor]:
        """The network alone."""
        return {f"network.{name}": value for name, value in state_of(plain_segmenter(self.network)).items()}

    def notes(self) -> list[str]:
        """Classes that no training pixel has, and images that are in two parts."""
        lacking = [n for n, c in zip(self.classes.names, self.class_pixels(self.data), strict=True) if c == 0]
        found = (
            [f"no training pixel of {', '.join(lacking)}: these classes cannot be learned"] if lacking else []
        )
        for part in parts_of(self.data):
            both = int(torch.isin(self.data.splits[part], self.pool).sum())
            if both:
                found.append(f"{both} images of {part} are trained on: scores on {part} are too good")
        return found


def channels_of(data: DenseImages) -> int:
    """Channels of the images."""
    return data.shape[0] if data.shape is not None else len(data.read([0])[0][0])


def channels_read(network: nn.Module) -> int:
    """Channels of the images that a segmentation network reads."""
    first = next(one for one in network.modules() if isinstance(one, nn.Conv2d))
    return first.in_channels * (first.groups if first.groups > 1 else 1)


def check_labels(data: DenseImages, subset: str | None, key: str, *, trains: bool) -> None:
    """Refuse labels that nothing can be learned from, and a subset that their classes do not have.

    Args:
        data: with masks.
        subset: name of the classes that are averaged; None: all.
        key: section of the recipe that names the data.
        trains: whether the labels are trained on.

    Raises:
        InputError: what is wrong.
    """
    counts = data.facts.get("train_class_pixels")
    if trains and counts is not None and not sum(counts):
        raise InputError(
            f"{data.name}: no training pixel has a class; all of them are ignored.",
            f"Look at the masks and {key}.classes with `leanlabel data check`.",
        )
    if subset is not None and subset not in data.classes.subsets:
        raise InputError(
            f"evaluation.subset: classes {data.classes.name} have no subset {subset!r}.",
            f"Known: {', '.join(data.classes.subsets) or 'none'}.",
        )


def check_channels(channels: int, augment: Any) -> None:
    """Refuse colours and statistics that images of so many channels cannot have, before anything is written."""
    plain_image(torch.zeros(channels, 1, 1), augment.mean, augment.std)
    check_colours(channels, augment)


def training_rows(data: DenseImages) -> Tensor:
    """Rows that are trained on: the training part; all but the other parts where there is none by that name."""
    if "train" in data.splits:
        return data.splits["train"]
    kept = torch.ones(len(data), dtype=torch.bool)
    for rows in data.splits.values():
        kept[rows] = False
    return kept.nonzero()[:, 0]


def collate_pairs(samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Any, Any]:
    """Images and masks of a batch, stacked where all are of one size."""
    images, masks = zip(*samples, strict=True)
    if len({tuple(one.shape) for one in images}) == 1:
        return torch.stack(images), torch.stack(masks)
    return list(images), list(masks)
