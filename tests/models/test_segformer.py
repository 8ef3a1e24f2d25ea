"""SegFormer and DINOv2: published sizes, the decoder against that of transformers, images of any size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from leanlabel.errors import InputError
from leanlabel.models import hub
from leanlabel.models.decoders import Level
from leanlabel.models.segformer import VARIANTS, MlpDecoder, mix_transformer
from leanlabel.models.segmenters import Segmenter, SegmenterSettings, build_segmenter

pytest.importorskip("transformers")


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def small(seed: int = 0, channels: int = 3) -> Segmenter:
    """A narrow SegFormer."""
    torch.manual_seed(seed)
    encoder = hub.mix_transformer((8, 16, 40, 64), (1, 1, 1, 1), channels=channels)
    levels = [Level(width, 4 * 2**i) for i, width in enumerate((8, 16, 40, 64))]
    return Segmenter(encoder, MlpDecoder(levels, 5, 12))


def plain(kind: str, folder: Path) -> Segmenter:
    """A linear head on a narrow DINOv2 or ConvNeXt out of a folder."""
    from transformers import ConvNextConfig, ConvNextModel, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    if kind == "dinov2":
        config = Dinov2Config(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=28)
        Dinov2Model(config).save_pretrained(folder)
    else:
        ConvNextModel(ConvNextConfig(depths=[1, 1], hidden_sizes=[8, 16], num_stages=2)).save_pretrained(
            folder
        )
    settings = SegmenterSettings(name="linear", encoder="folder", folder=str(folder))
    return build_segmenter(settings, 4)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_values() -> None:
    """Published sizes: 3.7, 13.7, 27.5, 47.3, 64.1, 84.7 million with 150 classes; DINOv2 22.1 and 86.6."""
    sizes = []
    with torch.device("meta"):
        for name, (widths, _, width) in VARIANTS.items():
            levels = [Level(channels, 4 * 2**i) for i, channels in enumerate(widths)]
            sizes.append(count(mix_transformer(name)) + count(MlpDecoder(levels, 150, width)))
        assert [count(hub.dinov2("small")), count(hub.dinov2("base"))] == [22_056_576, 86_580_480]
    assert sizes == [3_752_694, 13_715_798, 27_461_974, 47_337_814, 64_108_374, 84_708_694]


def test_reference() -> None:
    """Values and parameters of the decoder are those of transformers' own."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    config = SegformerConfig(
        hidden_sizes=[8, 16, 40, 64], depths=[1, 1, 1, 1], decoder_hidden_size=12, num_labels=5
    )
    theirs = SegformerForSemanticSegmentation(config).eval()
    net = small().eval()
    net.encoder.net.load_state_dict(theirs.segformer.state_dict())
    given, own = theirs.decode_head.state_dict(), net.decoder
    with torch.no_grad():
        for i, projection in enumerate(own.projections):
            projection.weight.copy_(given[f"linear_projections.{i}.proj.weight"][:, :, None, None])
            projection.bias.copy_(given[f"linear_projections.{i}.proj.bias"])
        # They put the coarsest map first.
        parts = given["linear_fuse.weight"].split(12, 1)
        own.mix.weight.copy_(torch.cat(parts[::-1], 1))
        own.norm.load_state_dict(theirs.decode_head.batch_norm.state_dict())
        own.classifier.load_state_dict(theirs.decode_head.classifier.state_dict())
        x = images(2, 3, 45, 66)
        torch.testing.assert_close(net(x).logits, theirs(x).logits, rtol=1e-4, atol=1e-5)
    assert count(net) == count(theirs)


def test_values_stages() -> None:
    net = mix_transformer("mit-b0").eval()
    with torch.no_grad():
        sizes = [tuple(m.shape[1:]) for m in net.maps(images(1, 3, 45, 66))]
    assert sizes == [(32, 12, 17), (64, 6, 9), (160, 3, 5), (256, 2, 3)]
    assert (net.width, net.min_size) == (256, 32)


def test_values_patches(tmp_path: Path) -> None:
    """Images that patches do not tile are resized: the border is read, the map has one more position."""
    net = plain("dinov2", tmp_path).eval()
    with torch.no_grad():
        assert net(images(1, 3, 28, 42)).logits.shape == (1, 4, 2, 3)
        x = images(1, 3, 29, 42)
        before = net(x).logits
        assert before.shape == (1, 4, 3, 3)
        x[:, :, 28] = 0
        assert not torch.equal(net(x).logits, before)
    assert (net.stride, net.min_size, net.width) == (14, 14, 8)


@pytest.mark.parametrize(
    ("kind", "left"),
    [
        ("segformer", []),
        ("dinov2", ["encoder.net.embeddings.mask_token"]),
        ("convnext", ["encoder.net.layernorm.weight", "encoder.net.layernorm.bias"]),
    ],
)
def test_gradient(kind: str, left: list[str], tmp_path: Path) -> None:
    """Every parameter that learns gets a gradient; what no logit reads does not learn."""
    net = small() if kind == "segformer" else plain(kind, tmp_path)
    net(images(1, 3, 40, 33)).logits.square().sum().backward()
    learning = {name: p for name, p in net.named_parameters() if p.requires_grad}
    assert [name for name, p in learning.items() if p.grad is None] == []
    assert [name for name, _ in net.named_parameters() if name not in learning] == left


def test_dtypes() -> None:
    found = small().to(torch.bfloat16)(images(2, 3, 33, 40).to(torch.bfloat16))
    assert found.logits.dtype == torch.bfloat16
    assert bool(found.logits.isfinite().all())


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"one of mit-b0, .*, got mit-b9"):
        mix_transformer("mit-b9")
    with pytest.raises(InputError, match="31x64 pixels are too small"):
        small()(images(2, 3, 31, 64))
    with pytest.raises(InputError, match="patches of 14 pixels do not tile images of 30"):
        hub.dinov2("small", 30)


def test_state(tmp_path: Path) -> None:
    """The encoder of a folder keeps its weights, also out of a complete network; channels are free when new."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    config = SegformerConfig(hidden_sizes=[8, 16, 40, 64], depths=[1, 1, 1, 1], decoder_hidden_size=12)
    theirs = SegformerForSemanticSegmentation(config)
    theirs.save_pretrained(tmp_path)
    settings = SegmenterSettings(name="segformer", encoder="folder", folder=str(tmp_path), width=8)
    first, second = build_segmenter(settings, 3).eval(), build_segmenter(settings, 3).eval()
    expected = theirs.segformer.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in first.encoder.net.state_dict().items())
    second.load_state_dict(first.state_dict())
    x = images(1, 3, 37, 32)
    assert torch.equal(second(x).logits, first(x).logits)
    assert small(channels=5).eval()(images(1, 5, 32, 32)).logits.shape == (1, 5, 8, 8)
