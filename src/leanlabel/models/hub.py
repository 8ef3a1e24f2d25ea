"""Image backbones of the transformers library: newly built, or read from a folder on this machine.

Nothing is downloaded, no code from a folder runs, and weights are read from safetensors files only.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from leanlabel.errors import InputError
from leanlabel.models.image import Backbone, check_images

PROBE = 64
"""Side of the image that measures a model which has no size of its own."""


class HubBackbone(Backbone):
    """Give an image model of transformers the interface of a :class:`Backbone`.

    Features are what the model pools itself, or the class token of a transformer after its last normalisation,
    or the mean of the tokens where it has none. A pooler with weights behind the class token is left out. Position
    codes are interpolated for images of another size than the model's.

    Args:
        net: model that reads ``pixel_values``.
        channels: channels that its images must have; None: any.

    Raises:
        InputError: the model does not read images alone, or reads those of other channels.
    """

    def __init__(self, net: nn.Module, channels: int | None = None) -> None:
        super().__init__()
        config: Any = net.config
        name = type(net).__name__
        if getattr(net, "main_input_name", "pixel_values") != "pixel_values":
            raise InputError(f"{name} is not a model of images alone.", "Give the image part of the model.")
        own = getattr(config, "num_channels", channels)
        if channels is not None and own != channels:
            raise InputError(f"{name} reads images of {own} channels, the data have {channels}.")
        self.net = net
        self.patch = _side(getattr(config, "patch_size", None)) or 1
        self.interpolates = "interpolate_pos_encoding" in inspect.signature(net.forward).parameters
        side = _side(getattr(config, "image_size", None)) or PROBE
        first = next(net.parameters())
        was = net.training
        net.eval()
        with torch.no_grad():
            probe = torch.zeros(1, own or 3, side, side, dtype=first.dtype, device=first.device)
            last = self._map(self._run(probe).last_hidden_state, probe)
        net.train(was)
        self.width = last.shape[1]
        self.min_size = max(1, side // last.shape[2])
        self._leave_out_unused()

    def maps(self, x: Tensor) -> list[Tensor]:
        """Maps (B, C_k, h_k, w_k), one per resolution, finest first; a plain transformer has one."""
        out = self._run(x, output_hidden_states=True)
        hidden = getattr(out, "reshaped_hidden_states", None) or out.hidden_states
        found = [one for one in hidden if one.ndim == 4]
        if not found:
            return [self._map(out.last_hidden_state, x)]
        stages = itertools.groupby(found, key=lambda one: one.shape[2:])
        return [list(same)[-1] for _, same in stages]

    def forward(self, x: Tensor, *, pooled: bool = True) -> Tensor:
        """Features (B, width) of images (B, C, H, W); without ``pooled`` the last map (B, width, h, w), of which the
        features need not be the mean."""
        if not pooled:
            return self.maps(x)[-1]
        out = self._run(x)
        last = out.last_hidden_state
        if last.ndim == 3:
            return last[:, 0] if self._prefix(last, x) else last.mean(1)
        pooler = getattr(out, "pooler_output", None)
        return last.mean((2, 3)) if pooler is None else pooler.flatten(1)

    def _run(self, x: Tensor, **options: bool) -> Any:
        if hasattr(self, "min_size"):
            check_images(x, self.min_size, "Give larger images, or a smaller patch.")
        if self.interpolates:
            options["interpolate_pos_encoding"] = True
        return self.net(pixel_values=x, **options)

    def _map(self, last: Tensor, x: Tensor) -> Tensor:
        """A model's last state as a map: (B, C, h, w) as it is; of tokens (B, L, C) those of the patches."""
        if last.ndim == 4:
            return last
        height, width = self._grid(last, x)
        return last[:, self._prefix(last, x) :].mT.unflatten(2, (height, width)).contiguous()

    def _prefix(self, tokens: Tensor, x: Tensor) -> int:
        """How many tokens before those of the patches: class, distillation and register tokens."""
        height, width = self._grid(tokens, x)
        return tokens.shape[1] - height * width

    def _grid(self, tokens: Tensor, x: Tensor) -> tuple[int, int]:
        """The finest grid of patches that the tokens suffice for; a stage halves it."""
        side = self.patch
        while (x.shape[2] // side) * (x.shape[3] // side) > tokens.shape[1]:
            side *= 2
        return x.shape[2] // side, x.shape[3] // side

    def _leave_out_unused(self) -> None:
        """Drop or freeze what gets no gradient here, which data-parallel training would wait for."""
        pooler = getattr(self.net, "pooler", None)
        if isinstance(pooler, nn.Module) and any(True for _ in pooler.parameters()):
            setattr(self.net, "pooler", None)  # noqa: B010  the models allow it, the type of modules does not
        for name, parameter in self.net.named_parameters():
            if name.endswith("mask_token"):
                parameter.requires_grad_(False)


def convnext_tiny(*, patch: int = 4, channels: int = 3) -> HubBackbone:
    """ConvNeXt-T, newly initialised [Liu et al. 2022].

    Args:
        patch: side and stride of the first convolution; 4 as published, 1 or 2 for images of 32 or 64 pixels.
        channels: channels of the images.
    """
    _needed()
    from transformers import ConvNextConfig, ConvNextModel

    config = ConvNextConfig(
        num_channels=channels, patch_size=patch, depths=[3, 3, 9, 3], hidden_sizes=[96, 192, 384, 768]
    )
    return HubBackbone(ConvNextModel(config), channels)


def vit_small(image_size: int = 224, *, patch: int = 16, channels: int = 3) -> HubBackbone:
    """ViT-S, newly initialised: 12 layers of width 384 with 6 heads [Touvron et al. 2021, table 1].

    Args:
        image_size: side of the images that it has position codes for, in pixels, a multiple of ``patch``.
        patch: side of the patches, in pixels.
        channels: channels of the images.

    Raises:
        InputError: the side is no multiple of the patch.
    """
    _needed()
    from transformers import ViTConfig, ViTModel

    _check_tiles(image_size, patch)
    config = ViTConfig(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        intermediate_size=1536,
        image_size=image_size,
        patch_size=patch,
        num_channels=channels,
    )
    return HubBackbone(ViTModel(config, add_pooling_layer=False), channels)


def mix_transformer(
    widths: Sequence[int], depths: Sequence[int], *, channels: int = 3, drop_path: float = 0.1
) -> HubBackbone:
    """Encoder of SegFormer, newly initialised [Xie et al. 2021].

    Args:
        widths: channels of the four stages.
        depths: layers of the four stages.
        channels: channels of the images.
        drop_path: share of samples that skip the last layer in training; it grows linearly from 0.
    """
    _needed()
    from transformers import SegformerConfig, SegformerModel

    config = SegformerConfig(
        num_channels=channels,
        hidden_sizes=list(widths),
        depths=list(depths),
        num_attention_heads=[1, 2, 5, 8],
        drop_path_rate=drop_path,
    )
    return HubBackbone(SegformerModel(config), channels)


def dinov2(
    size: Literal["small", "base", "large"] = "small", image_size: int = 518, *, channels: int = 3
) -> HubBackbone:
    """Vision transformer as in DINOv2, newly initialised: patches of 14 pixels [Oquab et al. 2023, table 17].

    Args:
        size: width 384, 768 or 1024; 12, 12 or 24 layers; 6, 12 or 16 heads.
        image_size: side of the images that it has position codes for, in pixels, a multiple of 14; 518 is that of
            the published weights.
        channels: channels of the images.

    Raises:
        InputError: the side is no multiple of the patch.
    """
    _needed()
    from transformers import Dinov2Config, Dinov2Model

    _check_tiles(image_size, 14)
    width, layers, heads = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}[size]
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=image_size,
        patch_size=14,
        num_channels=channels,
    )
    return HubBackbone(Dinov2Model(config), channels)


def from_folder(folder: str, channels: int | None = None) -> HubBackbone:
    """Read an image model of transformers from a folder: config.json and weights as safetensors.

    Args:
        folder: what ``save_pretrained`` wrote.
        channels: channels that the images have; None: not checked.

    Raises:
        InputError: no such folder, no config.json, pickled weights only, a model that needs code of its own, that
            does not read images, or whose weights are incomplete.
    """
    path = Path(folder)
    if not path.is_dir():
        raise InputError(
            f"{folder}: no such folder.",
            "Give the folder of a model of the transformers library; nothing is downloaded.",
        )
    if not (path / "config.json").is_file():
        raise InputError(f"{folder}: has no config.json.", "Give what save_pretrained of transformers wrote.")
    if not list(path.glob("*.safetensors")):
        pickled = sorted(
            file.name for kind in ("bin", "pt", "pth", "ckpt") for file in path.glob(f"*.{kind}")
        )
        what = (
            f"has weights as a pickle only ({pickled[0]}), which may run code"
            if pickled
            else "has no weights"
        )
        raise InputError(
            f"{folder}: {what}.",
            "Save the model with save_pretrained(..., safe_serialization=True) where you trust it.",
        )
    _needed()
    from transformers import AutoModel

    try:
        with _quiet():
            net, found = AutoModel.from_pretrained(
                str(path),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{folder}: transformers cannot read the model ({reason}).",
            "Its architecture must be one that the installed version knows; code in the folder is not run.",
        ) from error
    absent = [str(name) for name in found["missing_keys"] if "pooler" not in str(name)]
    absent += [str(name[0] if isinstance(name, tuple) else name) for name in found["mismatched_keys"]]
    if absent:
        raise InputError(
            f"{folder}: {len(absent)} tensors of {type(net).__name__} are missing or of another shape, among them "
            f"{min(absent)}.",
            "Give the folder of a complete model.",
        )
    return HubBackbone(net.float().train(), channels)


def _check_tiles(image_size: int, patch: int) -> None:
    if image_size % patch:
        raise InputError(
            f"patches of {patch} pixels do not tile images of {image_size}.",
            f"Give a patch that divides {image_size}.",
        )


def _side(value: Any) -> int | None:
    """One number from a setting that may be a pair."""
    return value[0] if isinstance(value, list | tuple) else value


def _needed() -> None:
    """Refuse with a hint where transformers is not installed."""
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise InputError(
            "this backbone needs the transformers library, which is not installed.",
            "Install it with pip install 'leanlabel[vision]', or take a resnet.",
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from writing to the terminal; its missing weights are errors here."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
