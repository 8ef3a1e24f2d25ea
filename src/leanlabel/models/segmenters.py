"""Segmentation networks by name: settings, and the network that they describe.

A :class:`Segmenter` is an encoder, whose tensors have the names of this library's backbones, and a decoder. Weights
of a pre-training run or of a published residual network, MobileNet-V2 or Mix Transformer go into the encoder: by
``leanlabel.models.public_keys.fill(segmenter.encoder, tensors)``, or with ``--from RUN --part backbone``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from leanlabel.config import Settings
from leanlabel.errors import InputError
from leanlabel.models import hub, segformer, tiny_fcn
from leanlabel.models.backbones import (
    BackboneSettings,
    NormKind,
    build_backbone,
    has_batch_statistics,
    norm_layer,
)
from leanlabel.models.daformer import DILATIONS, DAFormerDecoder
from leanlabel.models.decoders import ConvDecoder, Decoder, Level, LinearDecoder, upsample
from leanlabel.models.deeplab import DeepLabV2Decoder, DeepLabV3PlusDecoder
from leanlabel.models.encoder_decoder import DenseOutput, Segmenter, encoder_parameters, head_parameters
from leanlabel.models.frozen_norm import freeze_norm
from leanlabel.models.image import Backbone, NormLayer
from leanlabel.models.map_probe import map_levels
from leanlabel.models.mobilenet import MobileNetV2
from leanlabel.models.multi_resolution import MultiResolution, whole_ratio
from leanlabel.models.unet import UNetDecoder, UNetEncoder

__all__ = [
    "DenseOutput",
    "Segmenter",
    "SegmenterSettings",
    "build_segmenter",
    "encoder_name",
    "encoder_parameters",
    "head_parameters",
    "upsample",
]

WHOLE = ("unet", "small-fcn", "tiny-fcn")
"""Networks with an encoder of their own."""
DILATED = ("resnet18", "resnet34", "resnet50", "resnet101", "mobilenet-v2")
"""Encoders whose last map can be kept large by dilation."""
FOREIGN = ("convnext-tiny", "vit-small", "dinov2-small", "dinov2-base", *segformer.VARIANTS, "folder")
"""Encoders of the transformers library, which bring their own normalisation."""
ENCODERS = {"linear": "dinov2-small", "segformer": "mit-b0", "daformer": "mit-b5"}
"""Network -> its encoder where none is given; resnet101 for the others."""

Width = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


class SegmenterSettings(Settings):
    """The network that is trained."""

    name: Literal[
        "deeplab-v2", "deeplab-v3+", "fcn", "linear", "segformer", "daformer", "unet", "small-fcn", "tiny-fcn"
    ] = "deeplab-v2"
    """What turns an encoder's maps into classes. deeplab-v2: a sum of dilated convolutions; deeplab-v3+: dilated
    pooling and a finer map; fcn: one convolution 3x3; linear: each position by itself; segformer: all maps brought
    to one size; daformer: these filtered by dilated convolutions. Complete networks of their own: unet, and
    small-fcn and tiny-fcn for a few processor cores."""
    encoder: (
        Literal[
            "small-cnn",
            "resnet18",
            "resnet34",
            "resnet50",
            "resnet101",
            "mobilenet-v2",
            "convnext-tiny",
            "vit-small",
            "dinov2-small",
            "dinov2-base",
            "mit-b0",
            "mit-b1",
            "mit-b2",
            "mit-b3",
            "mit-b4",
            "mit-b5",
            "folder",
        ]
        | None
    ) = None
    """Network whose maps are read; folder reads a model of the transformers library from the path in folder. null:
    resnet101 for deeplab and fcn, mit-b0 for segformer, mit-b5 for daformer, dinov2-small for linear; the others
    bring their own."""
    folder: str | None = None
    """Folder with config.json and model.safetensors of the transformers library."""
    train_encoder: bool = True
    """Whether the encoder learns; false keeps it as it is, running estimates included."""
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """First layers of a resnet or mobilenet-v2; cifar does not shrink images before the first stage."""
    widths: tuple[Width, ...] = Field(default=(32, 64, 128), min_length=1)
    """Channels of the stages of small-cnn."""
    first_stride: Literal[1, 2] = 2
    """Stride of the first stage of small-cnn."""
    output_stride: Literal[2, 4, 8, 16, 32] | None = None
    """Pixels per position of the last map of a resnet or mobilenet-v2, kept small by dilation. null: 16 for
    deeplab-v3+, else 8; a quarter of that with stem cifar."""
    norm: Literal["batch", "sync", "split", "group", "none", "frozen"] = "batch"
    """Normalisation after convolutions. batch: over the samples of one rank; sync: over those of all ranks; split:
    over norm_groups parts of a rank's batch; group: within one sample; none: left out; frozen: batch norms that keep
    the values they are loaded with, as DeepLab is tuned. Layer norms of transformers stay as they are."""
    norm_groups: int = Field(default=8, ge=1)
    """Parts of the batch for norm split; for norm group, groups of channels (at most, where they do not divide)."""
    frozen_eps: bool = True
    """Keep eps under the root of a frozen norm; false leaves it out, as DeepLab's published code does."""
    zero_init: bool = False
    """Let every block of a resnet start as the identity."""
    width: int | None = Field(default=None, ge=1)
    """Channels of the features. null: 256 for deeplab-v3+ and daformer, 256 or 768 (mit-b2 and larger) for
    segformer, a quarter of the encoder's for fcn, 48 for tiny-fcn, 64 for small-fcn. For unet, channels of its
    finest level; null: 64. Without effect for deeplab-v2 and linear, whose features are the encoder's."""
    levels: int = Field(default=4, ge=1, le=8)
    """Poolings of unet."""
    dilations: tuple[Width, ...] | None = Field(default=None, min_length=1)
    """Dilations of deeplab and daformer. null: 6, 12, 18, 24 for deeplab-v2; 1, 6, 12, 18 for daformer, where 1 is a
    convolution 1x1; for deeplab-v3+ 6, 12, 18, and twice as much where the output stride is a quarter of the
    encoder's largest. Smaller ones suit small images: a dilation beyond the
    last map's size reads nothing."""
    fine_width: int = Field(default=48, ge=1)
    """Channels that deeplab-v3+ reduces its finer map to."""
    depthwise: bool = True
    """Filter channels apart in the convolutions 3x3 of deeplab-v3+ and the dilated ones of daformer, as published."""
    dropout: Share | None = None
    """Share left out before the classifier in training. null: 0.1 for deeplab-v3+, fcn, segformer and daformer, else
    0; deeplab-v2 has none."""
    drop_path: Share = 0.1
    """Share of samples that skip the last layer of a mit encoder in training, growing linearly from 0."""
    image_size: int | None = Field(default=None, ge=1)
    """Side of the images that vit-small and dinov2 have position codes for, in pixels; null for the published 224
    and 518. For other sizes they are interpolated."""
    align_corners: bool = False
    """How logits are enlarged to the size of the image: corner positions onto corner pixels (true, DeepLab's
    published code), or edges onto edges."""
    multi_resolution: bool = False
    """Read images twice, as a whole at a smaller scale and a part at full scale, weighed by a learned attention per
    class. In training the part is one crop at a place drawn anew for every batch, else windows that cover the image."""
    context_scale: float = Field(default=0.5, gt=0, lt=1)
    """With multi_resolution: scale of the images that are read as a whole, 1 divided by a whole number."""
    detail_crop: tuple[Width, Width] | None = None
    """With multi_resolution: height and width in pixels of what is read at full scale, multiples of the network's
    stride divided by context_scale. null: half of the sides of the image."""
    attention_width: int = Field(default=256, ge=1)
    """With multi_resolution: channels in front of the attention."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.name in WHOLE and self.encoder is not None:
            raise ValueError(f"no encoder for {self.name}, which brings its own")
        if (self.encoder == "folder") != (self.folder is not None):
            raise ValueError("a folder exactly where encoder is folder")
        if self.output_stride is not None and (self.name in WHOLE or encoder_name(self) not in DILATED):
            raise ValueError("output_stride for a resnet or mobilenet-v2 only")
        if self.dilations is not None and self.name not in ("deeplab-v2", "deeplab-v3+", "daformer"):
            raise ValueError("dilations for deeplab-v2, deeplab-v3+ and daformer only")
        if self.detail_crop is not None and not self.multi_resolution:
            raise ValueError("detail_crop with multi_resolution only")
        whole_ratio(self.context_scale)
        return self


def build_segmenter(settings: SegmenterSettings, classes: int, channels: int = 3) -> Segmenter:
    """Build a segmentation network, newly initialised from torch's global generator; a folder keeps its weights.

    Args:
        settings: which one.
        classes: number of classes K, >= 1.
        channels: channels of the images.

    Raises:
        InputError: the transformers library is missing, the folder does not hold a model that it reads, or encoder
            and decoder do not go together.
        ValueError: an output stride that the stem does not allow, a crop that does not suit the strides, or no class.

    Example:
        >>> import torch
        >>> net = build_segmenter(SegmenterSettings(name="tiny-fcn"), classes=11)
        >>> found = net(torch.zeros(2, 3, 45, 60))
        >>> tuple(found.logits.shape), tuple(found.features.shape), net.stride
        ((2, 11, 12, 15), (2, 48, 12, 15), 4)
    """
    if classes < 1:
        raise ValueError(f"a segmentation network needs at least one class, got {classes}")
    kind: NormKind = "batch" if settings.norm == "frozen" else settings.norm
    norm = norm_layer(kind, settings.norm_groups)
    encoder = _encoder(settings, kind, norm, channels)
    levels = map_levels(encoder, channels)
    decoder = _decoder(settings, norm, levels, classes)
    more: dict[str, Any] = {"train_encoder": settings.train_encoder, "align_corners": settings.align_corners}
    if settings.multi_resolution:
        dropout = 0.1 if settings.dropout is None else settings.dropout
        attention = segformer.MlpDecoder(levels, classes, settings.attention_width, norm, dropout)
        scale, crop = settings.context_scale, settings.detail_crop
        network = MultiResolution(encoder, decoder, attention, context_scale=scale, detail_crop=crop, **more)
    else:
        network = Segmenter(encoder, decoder, **more)
    if settings.norm == "frozen":
        freeze_norm(network, eps=settings.frozen_eps)
    return network


def encoder_name(settings: SegmenterSettings) -> str:
    """The encoder that settings mean: the one they name, or that of the network itself."""
    if settings.name in WHOLE:
        return settings.name
    return settings.encoder or ENCODERS.get(settings.name, "resnet101")


def _encoder(settings: SegmenterSettings, kind: NormKind, norm: NormLayer | None, channels: int) -> Backbone:
    name = encoder_name(settings)
    if name == "unet":
        return UNetEncoder(settings.width or 64, settings.levels, norm, channels)
    if name in tiny_fcn.SHAPES:
        return tiny_fcn.encoder(name, norm, channels)
    if name in FOREIGN:
        return _foreign(settings, name, kind, channels)
    if name == "mobilenet-v2":
        return MobileNetV2(
            stem=settings.stem,
            output_stride=_output_stride(settings),
            top=False,
            norm=norm,
            channels=channels,
        )
    chosen = {
        "name": name,
        "stem": settings.stem,
        "widths": settings.widths,
        "first_stride": settings.first_stride,
        "norm": kind,
        "norm_groups": settings.norm_groups,
        "zero_init": settings.zero_init,
        "output_stride": _output_stride(settings),
    }
    return build_backbone(BackboneSettings.model_validate(chosen), channels)


def _foreign(settings: SegmenterSettings, name: str, kind: NormKind, channels: int) -> Backbone:
    if name.startswith("mit-"):
        return segformer.mix_transformer(name, channels, settings.drop_path)
    if name.startswith("dinov2-"):
        size = "base" if name == "dinov2-base" else "small"
        return hub.dinov2(size, settings.image_size or 518, channels=channels)
    replaced = kind in ("sync", "split")
    chosen: dict[str, Any] = {
        "name": name,
        "folder": settings.folder,
        "norm": kind if replaced else "batch",
        "norm_groups": settings.norm_groups,
        "image_size": settings.image_size or 224,
    }
    net = build_backbone(BackboneSettings.model_validate(chosen), channels)
    if kind in ("group", "none") and has_batch_statistics(net):
        raise InputError(
            f"model.norm: {kind}; the model in {settings.folder} has batch norms of its own.",
            "Set model.norm to batch, sync, split or frozen.",
        )
    return net


def _decoder(
    settings: SegmenterSettings, norm: NormLayer | None, levels: list[Level], classes: int
) -> Decoder:
    name, width = settings.name, settings.width
    dropout = 0.0 if settings.dropout is None else settings.dropout
    usual = 0.1 if settings.dropout is None else settings.dropout
    if name == "deeplab-v2":
        return DeepLabV2Decoder(levels, classes, settings.dilations or (6, 12, 18, 24))
    if name == "deeplab-v3+":
        return DeepLabV3PlusDecoder(
            levels,
            classes,
            width=width or 256,
            fine_width=settings.fine_width,
            dilations=settings.dilations or _pooling_dilations(settings),
            norm=norm,
            depthwise=settings.depthwise,
            dropout=usual,
        )
    if name == "fcn":
        return ConvDecoder(levels, classes, width or max(1, levels[-1].width // 4), norm, usual)
    if name == "linear":
        return LinearDecoder(levels, classes, dropout)
    if name == "segformer":
        published = segformer.VARIANTS.get(encoder_name(settings))
        return segformer.MlpDecoder(
            levels, classes, width or (published[2] if published else 256), norm, usual
        )
    if name == "daformer":
        return DAFormerDecoder(
            levels,
            classes,
            width=width or 256,
            dilations=settings.dilations or DILATIONS,
            norm=norm,
            depthwise=settings.depthwise,
            dropout=usual,
        )
    if name == "unet":
        return UNetDecoder(levels, classes, norm, dropout)
    return tiny_fcn.decoder(name, levels, classes, norm, width, dropout)


def _output_stride(settings: SegmenterSettings) -> int | None:
    if encoder_name(settings) not in DILATED or settings.output_stride is not None:
        return settings.output_stride
    usual = 16 if settings.name == "deeplab-v3+" else 8
    return usual // (4 if settings.stem == "cifar" else 1)


def _pooling_dilations(settings: SegmenterSettings) -> tuple[int, ...]:
    largest = 8 if settings.stem == "cifar" else 32
    stride = _output_stride(settings)
    return (12, 24, 36) if stride is not None and largest // stride == 4 else (6, 12, 18)
