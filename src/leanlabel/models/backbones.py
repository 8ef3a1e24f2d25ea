"""Image backbones by name: settings, and the network that they describe.

Every backbone has ``width``, gives pooled features (B, width) for images (B, C, H, W), and its ``maps`` gives
the maps of its stages (B, C_k, h_k, w_k), finest first.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from leanlabel.config import Settings
from leanlabel.models import tiny_fcn
from leanlabel.models.image import Backbone, NormLayer
from leanlabel.models.mobilenet import MobileNetV2
from leanlabel.models.norm import SplitBatchNorm, SyncBatchNorm, split, synchronised
from leanlabel.models.resnet import resnet
from leanlabel.models.small_cnn import SmallCNN

NormKind = Literal["batch", "sync", "split", "group", "none"]
FOREIGN = ("convnext-tiny", "vit-small", "folder")
"""Backbones of the transformers library, which bring their own normalisation."""


class BackboneSettings(Settings):
    """The image network whose features are trained and kept."""

    name: Literal[
        "small-cnn",
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "mobilenet-v2",
        "small-fcn",
        "tiny-fcn",
        "convnext-tiny",
        "vit-small",
        "folder",
    ] = "resnet50"
    """Architecture; folder reads a model of the transformers library from the path in folder. small-fcn and tiny-fcn
    are the encoders of the segmentation networks of these names, to be handed to them."""
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """First layers of a resnet or mobilenet-v2: imagenet shrinks images by four before the first stage; cifar does
    not and suits images of 32 to 64 pixels."""
    widths: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(32, 64, 128), min_length=1)
    """Channels of the stages of small-cnn."""
    first_stride: Literal[1, 2] = 2
    """Stride of the first stage of small-cnn; 1 costs about four times as much."""
    norm: NormKind = "batch"
    """Normalisation after convolutions. batch: over the samples of one rank; sync: over those of all ranks; split:
    over norm_groups parts of a rank's batch, which stand for ranks; group: within one sample; none: left out.
    Projectors and predictors keep a batch norm of their own where their
    method has one (synchronised with sync)."""
    norm_groups: int = Field(default=8, ge=1)
    """Parts of the batch for norm split; for norm group, groups of channels (at most, where they do not divide)."""
    zero_init: bool = False
    """Let every block of a resnet start as the identity."""
    output_stride: Literal[2, 4, 8, 16, 32] | None = None
    """Pixels per position of the last map of a resnet or mobilenet-v2, kept small by dilation: 32, 16, 8, or 8, 4, 2
    with stem cifar; null for the largest."""
    image_size: int = Field(default=224, ge=1)
    """Side of the images that vit-small has position codes for, in pixels; for other sizes they are interpolated."""
    patch: int | None = Field(default=None, ge=1)
    """Side of the patches of vit-small and of convnext-tiny, in pixels; null for the published 16 and 4."""
    folder: str | None = None
    """Folder with config.json and model.safetensors of the transformers library."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.name == "folder") != (self.folder is not None):
            raise ValueError("a folder exactly where name is folder")
        if self.name in FOREIGN and self.norm in ("group", "none"):
            raise ValueError(f"norm batch, sync or split for {self.name}, which brings its own normalisation")
        return self


def build_backbone(settings: BackboneSettings, channels: int = 3) -> Backbone:
    """Build a backbone, newly initialised from torch's global generator; one of a folder keeps its weights.

    Args:
        settings: which one.
        channels: channels of the images.

    Raises:
        InputError: the transformers library is missing, or the folder does not hold a model that it reads.
        ValueError: an output stride that the stem does not allow.

    Example:
        >>> build_backbone(BackboneSettings(name="small-cnn", norm="group")).width
        128
    """
    norm = norm_layer(settings.norm, settings.norm_groups)
    if settings.name == "small-cnn":
        return SmallCNN(settings.widths, settings.first_stride, norm, channels)
    if settings.name == "mobilenet-v2":
        return MobileNetV2(
            stem=settings.stem, output_stride=settings.output_stride, norm=norm, channels=channels
        )
    if settings.name in tiny_fcn.SHAPES:
        return tiny_fcn.encoder(settings.name, norm, channels)
    if settings.name.startswith("resnet"):
        return resnet(
            int(settings.name.removeprefix("resnet")),
            stem=settings.stem,
            output_stride=settings.output_stride,
            norm=norm,
            zero_init=settings.zero_init,
            channels=channels,
        )
    net = _foreign(settings, channels)
    if settings.norm == "sync":
        synchronised(net)
    elif settings.norm == "split":
        split(net, settings.norm_groups)
    return net


def norm_layer(kind: NormKind, groups: int = 8) -> NormLayer | None:
    """What makes the normalisation of a number of channels; None for kind "none".

    Args:
        kind: see :attr:`BackboneSettings.norm`.
        groups: parts of the batch for "split"; for "group" the largest number of groups of channels, of which
            the largest that divides the channels is taken.
    """
    if kind == "group":
        return partial(_group_norm, groups)
    if kind == "split":
        return partial(SplitBatchNorm, groups=groups)
    return {"batch": nn.BatchNorm2d, "sync": SyncBatchNorm, "none": None}[kind]


def has_batch_statistics(module: nn.Module) -> bool:
    """Whether a sample's output in training depends on the other samples: any batch norm, split ones included."""
    return any(isinstance(part, _BatchNorm) for part in module.modules())


def _group_norm(most: int, channels: int) -> nn.GroupNorm:
    groups = next(groups for groups in range(min(most, channels), 0, -1) if channels % groups == 0)
    return nn.GroupNorm(groups, channels)


def _foreign(settings: BackboneSettings, channels: int) -> Backbone:
    from leanlabel.models import hub

    if settings.name == "folder":
        return hub.from_folder(str(settings.folder), channels)
    if settings.name == "convnext-tiny":
        return hub.convnext_tiny(patch=settings.patch or 4, channels=channels)
    return hub.vit_small(settings.image_size, patch=settings.patch or 16, channels=channels)
