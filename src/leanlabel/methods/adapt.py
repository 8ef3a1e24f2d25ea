"""Adaptation of a segmentation network to images of another domain, without labels of that domain.

Training is a list of stages, each from the weights of the one before: those under ``stages`` of the recipe in their
order, then the recipe itself. Before a training whose terms read stored pseudo labels, these are computed by the
network as it is then. Each stage minimises its own list of terms (:mod:`leanlabel.methods.terms`).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from leanlabel.augment.pairs import PairSettings
from leanlabel.banks.prototypes import Prototypes
from leanlabel.banks.teacher import Teacher
from leanlabel.config import RunConfig, validate
from leanlabel.data.class_sampling import ClassSampler
from leanlabel.data.dense import DenseImages
from leanlabel.data.pseudo_labels import PseudoLabels, images_fingerprint
from leanlabel.engine import checkpoint
from leanlabel.engine.pipeline import Stage
from leanlabel.engine.stage_training import WEIGHTS
from leanlabel.errors import InputError
from leanlabel.methods import adapt_handing
from leanlabel.methods.adapt_figures import adaptation_pictures, add_tails, with_domains
from leanlabel.methods.adapt_handing import CARRIED, carried_of, fill, fitting, take_carried, take_first_look
from leanlabel.methods.adapt_iterations import Iterations
from leanlabel.methods.adapt_mixes import mix_figure, zero_figure
from leanlabel.methods.adapt_prototypes import prototype_figure, prototype_numbers
from leanlabel.methods.adapt_reading import check_stage, measurable, notes_of, read_domains
from leanlabel.methods.adapt_separation import separation_numbers
from leanlabel.methods.adapt_settings import AdaptConfig, frozen_of, needs_of
from leanlabel.methods.adapt_stages import LABELS, LOOK, stages_of
from leanlabel.methods.adapt_watch import Watch, renew_statistics
from leanlabel.methods.dense_readouts import labelled_parts, main_part, measure_part, value_of
from leanlabel.methods.dense_step import Step
from leanlabel.methods.domains import (
    Domains,
    usable_rows,
)
from leanlabel.methods.segmentation import (
    Segmentation,
    channels_of,
    channels_read,
    plain_segmenter,
    training_rows,
)
from leanlabel.models.segmenters import build_segmenter
from leanlabel.recipe import Recipe, merge


class Adapt(Iterations):
    """Training on labelled images of a source and unlabelled ones of a target, measured on the target."""

    begun: Tensor

    Config: ClassVar[type[RunConfig]] = AdaptConfig
    baselines: ClassVar[dict[str, dict[str, Any]]] = {
        "source-only": {
            "method": {
                "terms": [{"name": "cross-entropy"}],
                "ema": None,
                "adabn": False,
                "sampling": {"name": "uniform"},
            }
        }
    }
    stage_names: ClassVar[tuple[str, ...] | None] = None
    fixed: ClassVar[tuple[str, ...]] = ("window", "overlap", "scales", "flip", "network", "batch")
    scores: ClassVar[tuple[str, ...]] = ("entropy", "teacher_agreement", "best_target_val")

    def build(self, data: Domains) -> None:
        """Make network, terms, and the frozen networks that these ask."""
        cfg, needs = self.cfg, needs_of(self.cfg)
        self.needs = needs
        source, target = channels_of(data.source), channels_of(data.target)
        if needs.source and needs.target and source != target:
            raise InputError(
                f"method.terms: images of {source} channels in {data.source.name} and of {target} in "
                f"{data.target.name} cannot be trained on together.",
                "Use terms that read the target alone, such as feature-regression.",
            )
        self.check_chain()
        self.pool = training_rows(data.source)
        self.target_rows = usable_rows(data, paired=needs.pairs)
        on_target = needs.target or not (needs.source and cfg.steps and cfg.stages == {} and source != target)
        if needs.source or needs.pairs or not on_target:
            check_statistics(data.source.name, source, cfg.augment, "augment")
        if on_target:
            check_statistics(data.target.name, target, self.look, "target_augment")
        self.make_network(target if on_target else source, self.look if on_target else cfg.augment)
        if needs.source:
            self.check_sizes(data.source, cfg.data.source.batch_size)
        if needs.target:
            self.check_sizes(data.target, cfg.data.target.batch_size, self.look, "target_augment")
        self.make_terms(self.class_pixels(data.source))
        frozen = frozen_of(cfg).union(*(frozen_of(self.stage_config(cfg, name)) for name in cfg.stages))
        self.reference = self.anchor = None
        if "reference" in frozen:
            # As the last stage trained it: a reference may read other channels, and be another network.
            model = self.stage_config(cfg, list(cfg.stages)[-1]).model if cfg.stages else cfg.model
            own = plain_segmenter(self.network)
            if model != cfg.model or source != channels_read(own):
                own = build_segmenter(model, len(self.classes), source)
                if not cfg.stages:
                    fill(own, plain_segmenter(self.network).state_dict())
            self.reference = Teacher(own)
        if "initial" in frozen:
            self.anchor = Teacher(plain_segmenter(self.network).encoder)
        if cfg.evaluation.select == "best_val" and source != channels_read(plain_segmenter(self.network)):
            raise InputError(
                "evaluation.select=best_val: images of the source have other channels than the network reads.",
                "Use evaluation.select=last.",
            )
        if cfg.method.adabn and not any(has_statistics(one) for one in self.network.modules()):
            raise InputError(
                "method.adabn: the network has no batch norm whose statistics could be estimated anew.",
                "Use model.norm=batch.",
            )
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))  # from weights of another run
        self.stored: PseudoLabels | None = None
        self.table: Tensor | None = None
        self.sampler: ClassSampler | None = None
        self.donor_sampler: ClassSampler | None = None
        folder = cfg.method.pseudo_labels.folder
        if needs.stored and folder is not None:
            self.use_labels(Path(folder))
        self.watching = Watch(data, self.pool, self.target_rows)
        self._as_source = False
        self.left: dict[str, Tensor] = {}  # by the last stage
        self.carried_state: dict[str, Tensor] = {}  # by terms of earlier stages
        self._looks: dict[str, Path] = {}  # by stage

    def check_chain(self) -> None:
        """Refuse stages that cannot start from one another's weights, before the first of them has trained."""
        cfg = self.cfg
        chain = [(f"stages.{name}", self.stage_config(cfg, name)) for name in cfg.stages]
        for key, one in chain:
            if cfg.method.fresh and needs_of(one).stored:
                raise InputError(
                    f"{key}: stored pseudo labels need a network that goes through all stages.",
                    "Set method.fresh=false.",
                )
        chain += [] if cfg.method.fresh else [("model", cfg)]
        for (key, before), (_, after) in itertools.pairwise(chain):
            same = before.model == after.model or "folder" in (before.model.encoder, after.model.encoder)
            if not same and shapes_of(before.model) != shapes_of(after.model):
                raise InputError(
                    f"{key}.model: another network than what is trained next, which starts from its weights.",
                    "Set the same model, or method.fresh=true for a network from the seed.",
                )

    # -- reading ---------------------------------------------------------------------------------------------------

    @classmethod
    def read(cls, cfg: Any) -> Domains:
        """Both domains, with everything refused that can be known before training starts."""
        return read_domains(cfg, [(f"stages.{name}: ", cls.stage_config(cfg, name)) for name in cfg.stages])

    @classmethod
    def reading_of(cls, cfg: Any) -> Any:
        """The target's section: that is what the network is for."""
        return cfg.data.target

    @property
    def look(self) -> PairSettings:
        """How target images are normalised; source images while these are measured."""
        return self.cfg.augment if getattr(self, "_as_source", False) else self.cfg.plain_target()

    @classmethod
    def describe(cls, cfg: Any, data: Domains) -> dict[str, Any]:
        """What ``data.json`` says: both domains, and labels of the source alone."""
        own = {key: Segmentation.describe(cfg, images) for key, images in (("source", data.source),)}[
            "source"
        ]
        rows = training_rows(data.target)
        parts = {
            f"target {name}": len(found) for name, found in data.target.splits.items() if name != "train"
        }
        return {
            **own,
            "name": data.name,
            "kind": "segmentation",
            "fingerprint": data.fingerprint,
            "counts": {
                "source images": len(data.source),
                "labelled to train on": own["counts"]["trained on"],
                "target images": len(data.target),
                "unlabelled to train on": len(rows),
                **parts,
            },
            "facts": {
                **own["facts"],
                "target": {
                    "name": data.target.name,
                    "fingerprint": images_fingerprint(data.target),
                    "size": list(data.target.shape) if data.target.shape else "various",
                    "labels": "auto" if cfg.method.target_labels else cfg.data.target.labels,
                },
                "pairs": None if data.partners is None else len(data.partners),
            },
        }

    # -- stages ----------------------------------------------------------------------------------------------------

    @classmethod
    def stage_config(cls, cfg: Any, name: str) -> Any:
        """The configuration of a stage. Its section ``method`` stands alone: nothing of the recipe's goes into it.

        Nor does the recipe's rule of selection: a stage has its own, or hands on its last weights.

        Raises:
            InputError: keys that a stage cannot have of its own, or a mistake in the others.
        """
        own, every = cfg.stages[name], cfg.model_dump(mode="json")
        check_stage(name, own)
        every["evaluation"] |= {"select": "last", "network": "auto"}
        values = merge(every, own)
        method = {"name": cfg.method.name, **own.get("method", {})}
        return validate(Recipe(f"stage {name}", {**values, "method": method, "stages": {}}), type(cfg))

    def stages(self, cfg: Any, data: Domains) -> list[Stage]:
        """Counting of classes, pseudo labels and trainings before the last one."""
        return stages_of(self, cfg, data)

    def use_stage(self, name: str, folder: Path) -> None:
        """Take over counts, pseudo labels, or the weights that a training left."""
        if name.startswith("class-pixels"):
            self.use_table(checkpoint.load_weights(folder / "counts.safetensors")["counts"])
        elif name == LOOK:
            take_first_look(self, folder)
        elif name.startswith(f"{LOOK}-"):
            self._looks[name.removeprefix(f"{LOOK}-")] = folder
        elif (folder / WEIGHTS).exists():
            self.take(checkpoint.load_weights(folder / WEIGHTS))
        else:
            self.use_labels(folder)

    def recall(self, name: str, folder: Path) -> None:
        """Counts of classes, and the pseudo labels of the last training, for pictures."""
        if name.startswith("class-pixels") or (name == LABELS and self.needs.stored):
            self.use_stage(name, folder)

    def use_table(self, counts: Tensor) -> None:
        """Make the sampler of labelled images from pixels of each class in each of them."""
        self.table = counts  # not a buffer: a run finds it in its stage
        settings, size = self.cfg.method.sampling, self.cfg.data.source.batch_size
        if settings.name != "uniform":
            self.sampler = ClassSampler(settings, counts, size, self.cfg.seed)

    def label_images(self, images: Any) -> list[tuple[Tensor, Tensor]]:
        """Classes and confidence of each image, as the network that would be handed out sees them now."""
        if isinstance(images, Tensor):
            found = self.read_batch(images)
            return list(zip(found.classes, found.confidence, strict=True))
        one_by_one = (self.read_batch(image[None]) for image in images)
        return [(found.classes[0], found.confidence[0]) for found in one_by_one]

    def use_labels(self, folder: Path, model: str | None = None) -> None:
        """Read stored pseudo labels.

        Raises:
            InputError: of other classes or images, or by other weights than these; a file is missing.
        """
        target = self.data.target
        self.stored = PseudoLabels.open(
            folder, classes=self.classes, data=images_fingerprint(target), model=model
        )
        self.tell_stored()

    def stage_method(self, cfg: Any, name: str = "") -> Adapt:
        """The method of an earlier stage, with the present weights."""
        return adapt_handing.next_method(self, cfg, self._looks.get(name))

    @property
    def prototypes(self) -> Prototypes | None:
        """Mean features of the classes, of the first term that keeps some."""
        banks = (getattr(term, "bank", None) for term, _ in self.terms())
        return next((bank for bank in banks if isinstance(bank, Prototypes)), None)

    def tell_stored(self) -> None:
        """Tell terms how many pixels of each class the stored pseudo labels have."""
        if self.stored is not None and self.needs.stored:
            kept = torch.tensor(self.stored.manifest["kept"], dtype=torch.int64)
            for term, _ in self.terms():
                term.stored_pixels(kept)

    def take(self, state: Mapping[str, Tensor]) -> None:
        """Start from the weights that an earlier stage handed on."""
        own = {
            name.removeprefix("network."): value
            for name, value in state.items()
            if name.startswith("network.")
        }
        self.carried_state |= {name: one for name, one in state.items() if name.startswith(CARRIED)}
        take_carried(self, self.carried_state)
        if len(self.cfg.stages) > 1:
            self.left = own
        if self.reference is not None:
            fill(self.reference.network, own)
        if self.cfg.method.fresh:
            return
        try:
            fill(plain_segmenter(self.network), own)
        except (KeyError, RuntimeError) as error:
            raise InputError(
                "stages: the last stage trains another network than the recipe.",
                "Set the same model, or method.fresh=true for a network from the seed.",
            ) from error
        self._follow()

    def handed_on(self) -> dict[str, Tensor]:
        """The network; where training begins from the seed, that which it is held against."""
        if self.cfg.method.fresh and self.reference is not None:
            asked, own = self.reference.network.state_dict(), plain_segmenter(self.network).state_dict()
            if all(name in asked and asked[name].shape == value.shape for name, value in own.items()):
                return {f"network.{name}": value for name, value in asked.items()}
            return {}
        return super().handed_on()

    def carried(self) -> dict[str, Tensor]:
        """What terms remember, for the same terms of the next stage."""
        return {**self.carried_state, **carried_of(self)}

    def optional(self) -> tuple[str, ...]:
        """Networks that only training reads."""
        return tuple(f"{full}." for term, _ in self.terms() for full in term.names.values())

    def _follow(self) -> None:
        if self.average is not None:
            self.average.follow(self.network, 0.0)

    def took(self, names: Collection[str]) -> None:
        """The networks that are kept beside it start from the weights that were taken over, too."""
        super().took(names)
        self.tell_stored()
        if any(name.startswith("network.decoder.") for name in names):
            self.begun.fill_(True)
        if any(name.startswith("network.") for name in names):
            if self.reference is not None:
                own = self.reference.network.state_dict()
                taken = plain_segmenter(self.network).state_dict()
                fill(self.reference.network, {**own, **fitting(taken, own)})
            if self.anchor is not None:
                self.anchor.follow(plain_segmenter(self.network).encoder, 0.0)

    def train(self, mode: bool = True) -> Self:
        """Switch to training; frozen networks stay as they are."""
        super().train(mode)
        for frozen in (self.reference, self.anchor):
            if frozen is not None:
                frozen.eval()
        if mode and self.average is not None and self.cfg.method.teacher_norm == "batch":
            for module in self.average.modules():
                if has_statistics(module):
                    module.train()
                    module.momentum = 0.0  # type: ignore[assignment]  # they follow the student's, not these batches
        return self

    # -- iterations ------------------------------------------------------------------------------------------------

    def watch(self, step: Step) -> None:
        """Now and then, report how far the domains are apart and how sure the network is of the target."""
        every = self.cfg.method.watch_every
        if every and self.needs.target and ((step.t + 1) % every == 0 or step.t == self.cfg.steps - 1):
            self.report(**self.watching.measured(self))

    def finish(self) -> None:
        """The average takes the network's place; statistics of batch norms are estimated anew where the recipe asks."""
        if self.cfg.method.adabn:
            renew_statistics(self, self.data.target, self.target_rows)
        super().finish()

    # -- measuring -------------------------------------------------------------------------------------------------

    def validate(self, t: int) -> float:
        """The score that weights are selected by; higher is better."""
        select = self.cfg.evaluation.select
        if select in ("entropy", "teacher_agreement"):
            found = self.watching.label_free(self, agreement=select == "teacher_agreement")
            return -found["entropy"] if select == "entropy" else found["teacher agreement"]
        data = self.data.target if select == "best_target_val" else self.data.source
        with self.reading(data):
            return value_of(measure_part(self, data, "val").scores, self.cfg.evaluation.subset)

    @property
    def selection(self) -> str:
        """How the weights were chosen, for people; val is that of the source."""
        told = super().selection
        told = f"{told} of the source" if self.cfg.evaluation.select == "best_val" else told
        ways = [self.stage_config(self.cfg, name).evaluation.select for name in self.cfg.stages]
        return f"{told}; those of an earlier stage by target labels" if "best_target_val" in ways else told

    @property
    def has_trained(self) -> bool:
        """Whether anything was trained, here or in an earlier stage."""
        return self.cfg.steps > 0 or bool(self.cfg.stages) or self.cfg.method.adabn

    def to_measure(self, data: Domains) -> list[tuple[str, DenseImages, str]]:
        """The target's main part first, its further ones, and the source's."""
        settings = self.cfg.evaluation
        on_target, _ = measurable(data, self.cfg)
        if not on_target:
            return [("miou", data.source, main_part(data.source, "auto"))]
        found = super().to_measure(data.target)
        same = channels_of(data.source) == channels_read(self.deployed)
        if settings.source and same:
            try:
                wanted = found[0][2] if found[0][2] in labelled_parts(data.source) else "auto"
                found.append(("miou:source", data.source, main_part(data.source, wanted)))
            except InputError:  # a source without a part to measure on
                return found
        return found

    @contextmanager
    def _source_look(self) -> Iterator[None]:
        self._as_source = True
        try:
            yield
        finally:
            self._as_source = False

    def reading(self, images: DenseImages) -> AbstractContextManager[Any]:
        """While it lasts, images are normalised as those of the source where these are the source's."""
        return self._source_look() if images is self.data.source else super().reading(images)

    def label_free(self, data: Domains) -> dict[str, float]:
        """Scores on target training images that read no labels."""
        found = super().label_free(data) | self.watching.label_free(self)
        return found | separation_numbers(self, data)

    def evaluate(self, data: Any, *args: Any, **more: Any) -> dict[str, Any]:
        """Measure as any segmentation is; each record says of which domain it is."""
        found = super().evaluate(data, *args, **more)
        if found["protocol"] is None:
            return found
        parts = self.to_measure(data)
        add_tails(self, data, [found["protocol"], *found["further"]])
        if self.cfg.evaluation.prototypes and parts[0][1] is data.target:
            for key, numbers in prototype_numbers(self, data).items():
                if key in found["protocol"]["readouts"]:
                    found["protocol"]["readouts"][key]["others"] |= numbers
        return with_domains(found, data, parts)

    def figures(self, data: Domains) -> dict[str, Any]:
        """Those of any segmentation, and the same target images before and after."""
        found = super().figures(data) | adaptation_pictures(self, data)
        for name, figure in (
            ("mixes", mix_figure),
            ("zero_style", zero_figure),
            ("prototypes", prototype_figure),
        ):
            drawn = figure(self, data)
            if drawn:
                found[name] = drawn
        return found

    def embed(self, data: Any) -> Tensor:
        """Embeddings (N, D) of images, of the target where both domains are given."""
        return super().embed(data.target if isinstance(data, Domains) else data)

    def notes(self) -> list[str]:
        """What the user of this training should know."""
        return notes_of(self)

    @property
    def started_elsewhere(self) -> bool:
        """Whether training starts from weights of another run."""
        return bool(self.begun)


def has_statistics(module: nn.Module) -> bool:
    """Whether a module keeps running statistics of a batch norm."""
    return isinstance(getattr(module, "running_mean", None), Tensor)


def shapes_of(model: Any) -> dict[str, torch.Size]:
    """Names and shapes of a network's tensors."""
    with torch.device("meta"):
        made = build_segmenter(model, 2, 3)
    return {name: value.shape for name, value in made.state_dict().items()}


def check_statistics(name: str, channels: int, look: PairSettings, key: str) -> None:
    """Refuse a mean or a standard deviation for another number of channels, and say where it stands."""
    if {len(look.mean), len(look.std)} - {1, channels}:
        raise InputError(
            f"{key}: images of {name} have {channels} channels, but mean has {len(look.mean)} and std {len(look.std)} "
            f"numbers.",
            f"Set {key}.mean and {key}.std to one number each, or {channels}; a section {key} says all that happens to "
            f"these images, crop and flip, too.",
        )
