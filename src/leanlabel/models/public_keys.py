"""Published layouts of residual-network weights and the names used here, in both directions; Detectron2 configs.

The names here are torchvision's, without the classifier. Mix Transformers have layouts of their own, see
:mod:`leanlabel.models.mit_keys`. Everything maps dictionaries of tensors; no file is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from leanlabel.errors import InputError
from leanlabel.models import mit_keys
from leanlabel.models.key_layouts import FIRST_NAMES, first_names, recognised

ResidualLayout = Literal["torchvision", "moco", "mobilenet", "transformers", "detectron2"]
Layout = ResidualLayout | mit_keys.Layout

# Layout -> two names that only this layout has.
MARKERS: dict[ResidualLayout, tuple[str, str]] = {
    "torchvision": ("conv1.weight", "layer1.0.conv1.weight"),
    "mobilenet": ("features.0.0.weight", "features.1.conv.0.0.weight"),
    "transformers": (
        "embedder.embedder.convolution.weight",
        "encoder.stages.0.layers.0.layer.0.convolution.weight",
    ),
    "detectron2": ("stem.conv1.weight", "res2.0.conv1.weight"),
}
KNOWN = "Known are torchvision's names (also of timm and MoCo), transformers' and Detectron2's."
NORM = r"\.(weight|bias|running_mean|running_var|num_batches_tracked)"
WEIGHT = r"\.(weight|bias)"
OWN = re.compile(
    rf"conv1{WEIGHT}|bn1{NORM}"
    rf"|layer[1-4]\.\d+\.(conv[123]{WEIGHT}|bn[123]{NORM}|downsample\.0{WEIGHT}|downsample\.1{NORM})"
)
"""Names of a residual network without its classifier."""
STAGE = re.compile(r"(layer[1-4]|res[2-5])\.\d+\.|encoder\.stages\.\d+\.")
"""Tensors of blocks: one of these that has no place in a plain residual network makes it another network."""


@dataclass(frozen=True)
class Renamed:
    """Published weights under the names used here.

    Attributes:
        layout: how they were named: torchvision (also timm), moco (torchvision's names of the query encoder in a
            training checkpoint), mobilenet (torchvision's), transformers or detectron2; of a Mix Transformer mit (its
            authors'), transformers-4 or transformers-5.
        prefix: what stood before the names.
        tensors: new name -> tensor, the same tensors as before, or halves of them.
        dropped: old names of what is not part of the backbone: heads, queues, other networks.
    """

    layout: Layout
    prefix: str
    tensors: dict[str, Tensor]
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class KeyFit:
    """What becomes of every tensor when published weights go into a backbone.

    Attributes:
        taken: names that fit.
        dropped: names of the source without a place in the backbone: the old names of heads and other networks,
            and new names of stages that the backbone does not have.
        missing: names of the backbone that the source does not have; counters of batches are not asked for.
        shape: names of both with different shapes.
    """

    taken: tuple[str, ...]
    dropped: tuple[str, ...]
    missing: tuple[str, ...]
    shape: tuple[str, ...]

    def lines(self) -> list[str]:
        """One line per kind of outcome, with the first names."""
        told = {
            "taken": self.taken,
            "dropped from the source": self.dropped,
            "missing in the source": self.missing,
            "of another shape": self.shape,
        }
        return [f"{len(names):>5} {what}{first_names(names)}" for what, names in told.items()]


def has_layouts(own: Iterable[str]) -> bool:
    """Whether a backbone with these names is one of the networks whose published layouts are known."""
    found = set(own)
    marks = (*MARKERS["torchvision"], *MARKERS["mobilenet"])
    return any(name in found for name in marks) or mit_keys.own_layout(found) is not None


def to_own(tensors: Mapping[str, Tensor], own: Iterable[str] = ()) -> Renamed:
    """Recognise a published layout and rename its backbone; whatever stands before the names is stripped.

    Several networks in one file are told apart by what stands before their names: the trained one is preferred to
    one that follows it, and the shorter name to the longer.

    Args:
        tensors: name -> tensor, of a whole checkpoint or of a backbone alone.
        own: names of the backbone that they go into, which tell a Mix Transformer from a residual network.

    Raises:
        InputError: no known layout of such a network, or a residual network with parts that a plain one does not have.

    Example:
        >>> weights = {"module.encoder_q.conv1.weight": torch.zeros(1), "module.queue": torch.zeros(2)}
        >>> weights["module.encoder_q.layer1.0.conv1.weight"] = torch.zeros(1)
        >>> found = to_own(weights)
        >>> found.layout, found.prefix, list(found.tensors), found.dropped
        ('moco', 'module.encoder_q.', ['conv1.weight', 'layer1.0.conv1.weight'], ('module.queue',))
    """
    mix = mit_keys.own_layout(own)
    if mix is not None:
        return _mix_transformer(tensors, mix)
    layout, prefix = recognised(tensors, MARKERS, "residual network or MobileNet-V2", KNOWN)
    # A trained detector of the C4 kind keeps the last stage in its head.
    alternative = prefix.replace("backbone.", "roi_heads.", 1) if layout == "detectron2" else prefix
    taken: dict[str, Tensor] = {}
    dropped: list[str] = []
    for name, tensor in tensors.items():
        of_head = alternative != prefix and name.startswith(f"{alternative}res5.")
        home = alternative if of_head else prefix
        inner = name.removeprefix(home) if name.startswith(home) else ""
        new = _own_name(inner, layout)
        if new is not None:
            taken[new] = tensor
        elif STAGE.match(inner):
            raise InputError(
                f"{name} has no place in a plain residual network.",
                "Weights of squeeze-and-excitation, deep-stem and similar variants do not fit.",
            )
        else:
            dropped.append(name)
    shown: ResidualLayout = "moco" if layout == "torchvision" and prefix.endswith("encoder_q.") else layout
    return Renamed(shown, prefix, taken, tuple(dropped))


def fit(renamed: Renamed, own: Mapping[str, Tensor]) -> KeyFit:
    """Compare renamed weights with the tensors of a backbone, ``backbone.state_dict()``."""
    both = [name for name in own if name in renamed.tensors]
    shape = tuple(name for name in both if own[name].shape != renamed.tensors[name].shape)
    left = tuple(name for name in renamed.tensors if name not in own)
    return KeyFit(
        taken=tuple(name for name in both if name not in shape),
        dropped=(*renamed.dropped, *left),
        missing=tuple(
            name for name in own if name not in renamed.tensors and not name.endswith("num_batches_tracked")
        ),
        shape=shape,
    )


def fill(backbone: nn.Module, tensors: Mapping[str, Tensor]) -> KeyFit:
    """Copy published weights into a backbone, all or nothing.

    Args:
        backbone: its tensors are overwritten; untouched if this raises.
        tensors: see :func:`to_own`.

    Raises:
        InputError: see :func:`to_own`; or a tensor of the backbone is missing or of another shape.
    """
    own = backbone.state_dict(keep_vars=True)
    renamed = to_own(tensors, own)
    report = fit(renamed, own)
    wrong = (*report.shape, *report.missing)
    if wrong:
        name, given = wrong[0], renamed.tensors.get(wrong[0])
        found = "missing" if given is None else f"{tuple(given.shape)}"
        raise InputError(
            f"{len(wrong)} tensors do not fit the backbone; {name} must be {tuple(own[name].shape)}, it is {found}.",
            "Choose the backbone and the stem that the weights were trained with.",
        )
    with torch.no_grad():
        for name in report.taken:
            own[name].copy_(renamed.tensors[name])
    return report


def to_detectron2(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a backbone for Detectron2 [official MoCo code, detection].

    Names outside a stage get ``stem.``; layer1..4 become res2..5, bn1..3 conv1..3.norm, downsample.0 and .1
    shortcut and shortcut.norm. Detectron2 reads ``torch.save({"model": ..., "matching_heuristics": True}, "x.pth")``.

    Args:
        tensors: names of :class:`leanlabel.models.resnet.ResNet`.

    Raises:
        ValueError: a name that a residual network does not have.

    Example:
        >>> list(to_detectron2({"bn1.weight": torch.ones(1), "layer4.0.downsample.1.bias": torch.ones(1)}))
        ['stem.conv1.norm.weight', 'res5.0.shortcut.norm.bias']
    """
    return {_detectron2_name(name): tensor for name, tensor in _plain(tensors).items()}


def from_detectron2(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo :func:`to_detectron2`; other networks of the file are left out.

    Raises:
        InputError: not Detectron2's layout.
    """
    return _of_layout(tensors, "detectron2")


def to_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a backbone for ``ResNetModel`` of transformers (with ``downsample_in_bottleneck=False``).

    Args:
        tensors: names of :class:`leanlabel.models.resnet.ResNet` with the "imagenet" stem.

    Raises:
        ValueError: a name that a residual network does not have.

    Example:
        >>> list(to_transformers({"layer1.0.bn2.weight": torch.ones(1)}))
        ['encoder.stages.0.layers.0.layer.1.normalization.weight']
    """
    return {_transformers_name(name): tensor for name, tensor in _plain(tensors).items()}


def from_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo :func:`to_transformers`; the classifier is left out.

    Raises:
        InputError: not the layout of transformers.
    """
    return _of_layout(tensors, "transformers")


def detectron2_config(
    task: Literal["voc", "coco"], *, weights: str = "backbone.pth", schedule: Literal["1x", "2x"] = "1x"
) -> str:
    """Configuration of Detectron2 for detection with a ResNet-50 as MoCo and MoCHi are measured, as YAML.

    C4 detector, all layers trained, synchronised batch norm, one more batch norm after the last stage, stride in
    the 3x3 convolution, batches of 16 images. Detectron2 has no head with that last batch norm: the training
    script must register one under the name in ROI_HEADS.

    Args:
        task: "voc": Faster R-CNN, trained on 2007+2012 trainval for 24,000 iterations, tested on 2007; "coco":
            Mask R-CNN on train2017 and val2017.
        weights: file of the backbone, see :func:`to_detectron2`.
        schedule: of "coco": 90,000 (1x, MoCHi) or 180,000 iterations (2x, MoCo).
    """
    if task not in ("voc", "coco") or schedule not in ("1x", "2x"):
        raise ValueError(f"task is voc or coco and schedule 1x or 2x, got {task!r} and {schedule!r}")
    voc = task == "voc"
    sizes = ", ".join(str(side) for side in range(480 if voc else 640, 801, 32))
    train, test = ("voc_2007_trainval", "voc_2012_trainval"), ("voc_2007_test",)
    steps = (18_000, 22_000, 24_000)
    if not voc:
        train, test = ("coco_2017_train",), ("coco_2017_val",)
        steps = (60_000, 80_000, 90_000) if schedule == "1x" else (120_000, 160_000, 180_000)
    return f"""\
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  WEIGHTS: {weights}
  MASK_ON: {not voc}
  PIXEL_MEAN: [123.675, 116.28, 103.53]
  PIXEL_STD: [58.395, 57.12, 57.375]
  BACKBONE:
    FREEZE_AT: 0
  RESNETS:
    DEPTH: 50
    STRIDE_IN_1X1: False
    NORM: SyncBN
  RPN:
    PRE_NMS_TOPK_TEST: 6000
    POST_NMS_TOPK_TEST: 1000
  ROI_HEADS:
    # Res5ROIHeads with one more batch norm after res5; register it under this name before training.
    NAME: Res5ROIHeadsExtraNorm
    NUM_CLASSES: {20 if voc else 80}
INPUT:
  FORMAT: RGB
  MIN_SIZE_TRAIN: [{sizes}]
  MIN_SIZE_TEST: 800
DATASETS:
  TRAIN: [{", ".join(train)}]
  TEST: [{", ".join(test)}]
SOLVER:
  IMS_PER_BATCH: 16
  BASE_LR: 0.02
  STEPS: [{steps[0]}, {steps[1]}]
  MAX_ITER: {steps[2]}
  WARMUP_ITERS: {100 if voc else 1000}
TEST:
  PRECISE_BN:
    ENABLED: True
VERSION: 2
"""


def _mix_transformer(tensors: Mapping[str, Tensor], wanted: mit_keys.Layout) -> Renamed:
    """A Mix Transformer under the names of a backbone here, whose layout is ``wanted``."""
    known = "Known are the names of SegFormer's authors and those of transformers."
    layout, prefix = recognised(tensors, mit_keys.MARKERS, "Mix Transformer", known)
    inner = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    try:
        found, left = mit_keys.to_layout(inner, layout, wanted)
    except ValueError as error:
        raise InputError(f"{prefix}{error}.") from error
    others = [name for name in tensors if not name.startswith(prefix)]
    named = {f"{mit_keys.HOME}{name}": value for name, value in found.items()}
    return Renamed(layout, prefix, named, (*(f"{prefix}{name}" for name in left), *others))


def _own_name(name: str, layout: ResidualLayout) -> str | None:
    """The name used here of a tensor of a layout; None for what is no part of the backbone."""
    if layout == "mobilenet":
        return name if re.fullmatch(r"features\.\d+\.[\w.]+", name) else None
    if layout == "transformers":
        name = _from_transformers_name(name)
    elif layout == "detectron2":
        name = _from_detectron2_name(name)
    return name if OWN.fullmatch(name) else None


def _detectron2_name(name: str) -> str:
    if not name.startswith("layer"):
        name = f"stem.{name}"
    name = re.sub(r"^layer(\d)", lambda stage: f"res{int(stage[1]) + 1}", name)
    name = re.sub(r"\bbn(\d)\b", r"conv\1.norm", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def _from_detectron2_name(name: str) -> str:
    if not re.match(r"stem\.|res[2-5]\.", name):
        return ""
    name = re.sub(r"^res(\d)", lambda stage: f"layer{int(stage[1]) - 1}", name.removeprefix("stem."))
    name = re.sub(r"\bconv(\d)\.norm\b", r"bn\1", name)
    return re.sub(r"\bshortcut\b", "downsample.0", name.replace("shortcut.norm", "downsample.1"))


def _transformers_name(name: str) -> str:
    kind = "normalization" if re.search(r"\bbn\d|downsample\.1", name) else "convolution"
    last = name.rsplit(".", 1)[1]
    if not name.startswith("layer"):
        return f"embedder.embedder.{kind}.{last}"
    stage, block, part = name.removeprefix("layer").split(".")[:3]
    inner = "shortcut" if part == "downsample" else f"layer.{int(part[-1]) - 1}"
    return f"encoder.stages.{int(stage) - 1}.layers.{block}.{inner}.{kind}.{last}"


def _from_transformers_name(name: str) -> str:
    stem = re.fullmatch(r"embedder\.embedder\.(convolution|normalization)\.(\w+)", name)
    if stem:
        return f"{'conv1' if stem[1] == 'convolution' else 'bn1'}.{stem[2]}"
    form = r"encoder\.stages\.(\d)\.layers\.(\d+)\.(shortcut|layer\.(\d))\.(convolution|normalization)\.(\w+)"
    found = re.fullmatch(form, name)
    if not found:
        return ""
    stage, block, part, number, kind, last = found.groups()
    norm = kind == "normalization"
    if part == "shortcut":
        inner = f"downsample.{int(norm)}"
    else:
        inner = f"{'bn' if norm else 'conv'}{int(number) + 1}"
    return f"layer{int(stage) + 1}.{block}.{inner}.{last}"


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, if all have names of a residual network."""
    foreign = [name for name in tensors if not OWN.fullmatch(name)]
    if foreign:
        raise ValueError(f"not a name of a residual network: {', '.join(foreign[:FIRST_NAMES])}")
    return dict(tensors)


def _of_layout(tensors: Mapping[str, Tensor], layout: ResidualLayout) -> dict[str, Tensor]:
    renamed = to_own(tensors)
    if renamed.layout != layout:
        raise InputError(f"expected weights in the layout of {layout}, found that of {renamed.layout}.")
    return renamed.tensors
