"""Published layouts of Mix Transformer weights: every name, the split of keys and values, the computation itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanlabel.engine.method import Method
from leanlabel.engine.transfer import read_weights, start_from
from leanlabel.errors import InputError
from leanlabel.models import hub, mit_keys, public_keys
from leanlabel.models.segformer import VARIANTS, mix_transformer

pytest.importorskip("transformers")

SMALL = ((4, 8, 20, 16), (1, 2, 1, 2))
HEADS, REDUCTIONS, KERNELS, STRIDES = (1, 2, 5, 8), (8, 4, 2, 1), (7, 3, 3, 3), (4, 2, 2, 2)


def small(seed: int = 0) -> hub.HubBackbone:
    torch.manual_seed(seed)
    return hub.mix_transformer(*SMALL)


def shapes(widths: tuple[int, ...], depths: tuple[int, ...], channels: int = 3) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the SegFormer authors' files, classifier included."""
    found: dict[str, tuple[int, ...]] = {}

    def both(name: str, outputs: int, *inputs: int) -> None:
        found[f"{name}.weight"] = (outputs, *inputs)
        found[f"{name}.bias"] = (outputs,)

    for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        below = widths[i - 1] if i else channels
        both(f"patch_embed{i + 1}.proj", width, below, KERNELS[i], KERNELS[i])
        both(f"patch_embed{i + 1}.norm", width)
        for j in range(depth):
            block = f"block{i + 1}.{j}"
            both(f"{block}.norm1", width)
            both(f"{block}.attn.q", width, width)
            both(f"{block}.attn.kv", 2 * width, width)
            both(f"{block}.attn.proj", width, width)
            if REDUCTIONS[i] > 1:
                both(f"{block}.attn.sr", width, width, REDUCTIONS[i], REDUCTIONS[i])
                both(f"{block}.attn.norm", width)
            both(f"{block}.norm2", width)
            both(f"{block}.mlp.fc1", 4 * width, width)
            both(f"{block}.mlp.dwconv.dwconv", 4 * width, 1, 3, 3)
            both(f"{block}.mlp.fc2", width, 4 * width)
        both(f"norm{i + 1}", width)
    both("head", 1000, widths[-1])
    return found


def drawn(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) * (0.3 if len(shape) > 1 else 0.1)
        for name, shape in shapes(*SMALL).items()
    }


def maps(state: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """A Mix Transformer from the names of its authors, one head at a time."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].mT + state[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]

    def conv(name: str, x: Tensor, **options: Any) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **options)

    def picture(tokens: Tensor, size: torch.Size) -> Tensor:
        return tokens.mT.unflatten(2, tuple(size))

    found = []
    for i, depth in enumerate(SMALL[1]):
        x = conv(f"patch_embed{i + 1}.proj", x, stride=STRIDES[i], padding=KERNELS[i] // 2)
        size = x.shape[2:]
        tokens = norm(f"patch_embed{i + 1}.norm", x.flatten(2).mT)
        for j in range(depth):
            at = f"block{i + 1}.{j}"
            y = norm(f"{at}.norm1", tokens)
            source = y
            if REDUCTIONS[i] > 1:
                fewer = conv(f"{at}.attn.sr", picture(y, size), stride=REDUCTIONS[i])
                source = norm(f"{at}.attn.norm", fewer.flatten(2).mT)
            query, both = linear(f"{at}.attn.q", y), linear(f"{at}.attn.kv", source)
            width, each = SMALL[0][i], SMALL[0][i] // HEADS[i]
            answers = []
            for head in range(HEADS[i]):
                own = slice(head * each, (head + 1) * each)
                key, value = both[..., :width][..., own], both[..., width:][..., own]
                scores = query[..., own] @ key.mT / each**0.5
                answers.append(scores.softmax(-1) @ value)
            tokens = tokens + linear(f"{at}.attn.proj", torch.cat(answers, -1))
            y = linear(f"{at}.mlp.fc1", norm(f"{at}.norm2", tokens))
            mixed = conv(f"{at}.mlp.dwconv.dwconv", picture(y, size), padding=1, groups=y.shape[-1])
            tokens = tokens + linear(f"{at}.mlp.fc2", F.gelu(mixed.flatten(2).mT))
        x = picture(norm(f"norm{i + 1}", tokens), size)
        found.append(x)
    return found


class Toy(Method):
    """An encoder to be started from a file; its head is no part."""

    parts = {"backbone": ("encoder",)}  # noqa: RUF012

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__(None)
        self.encoder = encoder
        self.head = nn.Linear(2, 2)


ROWS = [
    (
        "patch_embed2.proj.weight",
        "encoder.patch_embeddings.1.proj.weight",
        "stages.1.patch_embeddings.proj.weight",
    ),
    ("norm4.bias", "encoder.layer_norm.3.bias", "stages.3.layer_norm.bias"),
    (
        "block3.11.attn.sr.weight",
        "encoder.block.2.11.attention.self.sr.weight",
        "stages.2.blocks.11.attention.sequence_reduction.sequence_reduction.weight",
    ),
    (
        "block1.0.attn.norm.bias",
        "encoder.block.0.0.attention.self.layer_norm.bias",
        "stages.0.blocks.0.attention.sequence_reduction.layer_norm.bias",
    ),
    (
        "block4.2.mlp.dwconv.dwconv.weight",
        "encoder.block.3.2.mlp.dwconv.dwconv.weight",
        "stages.3.blocks.2.mlp.dwconv.dwconv.weight",
    ),
]


@pytest.mark.parametrize(("first", "second", "third"), ROWS)
def test_values(first: str, second: str, third: str) -> None:
    tensor = torch.zeros(1)
    for given, name in (("mit", first), ("transformers-4", second), ("transformers-5", third)):
        for wanted, other in (("transformers-4", second), ("transformers-5", third)):
            found, left = mit_keys.to_layout({name: tensor, "head.weight": tensor}, given, wanted)
            assert found == {other: tensor}
            assert left == ("head.weight",)


def test_values_split() -> None:
    """Keys are the first half of the joint rows, values the second."""
    tensors = {"block1.0.attn.kv.weight": torch.arange(8.0).view(4, 2)}
    found, _ = mit_keys.to_layout(tensors, "mit", "transformers-5")
    assert found["stages.0.blocks.0.attention.k_proj.weight"].tolist() == [[0, 1], [2, 3]]
    assert found["stages.0.blocks.0.attention.v_proj.weight"].tolist() == [[4, 5], [6, 7]]


@pytest.mark.parametrize("name", ["mit-b5"])
def test_values_names(name: str) -> None:
    """Every tensor of the published sizes finds its place and has its shape; nothing is missing."""
    with torch.device("meta"):
        net = mix_transformer(name)
        tensors = {key: torch.zeros(shape) for key, shape in shapes(*VARIANTS[name][:2]).items()}
        renamed = public_keys.to_own(tensors, net.state_dict())
    report = public_keys.fit(renamed, net.state_dict())
    assert (renamed.layout, renamed.prefix) == ("mit", "")
    assert (report.missing, report.shape) == ((), ())
    assert report.dropped == ("head.weight", "head.bias")
    assert set(report.taken) == set(net.state_dict())


def test_reference() -> None:
    """The authors' names give the maps that their network computes."""
    state, net = drawn(), small().double().eval()
    report = public_keys.fill(net, state)
    assert (report.missing, report.shape) == ((), ())
    x = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)).double()
    for one, expected in zip(net.maps(x), maps(state, x), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.model.backbone."])
@pytest.mark.parametrize("layout", ["mit", "transformers-4", "transformers-5"])
def test_reference_file(prefix: str, layout: Any, tmp_path: Path) -> None:
    """`--from FILE --part backbone` reads all three layouts, whatever stands before the names, heads left out."""
    state = {name: value.float() for name, value in drawn().items()}
    expected, net = small(), small(seed=1)
    public_keys.fill(expected, state)
    if layout != "mit":
        state, _ = mit_keys.to_layout(state, "mit", layout)
    content = {f"{prefix}{name}": value for name, value in state.items()} | {"decode_head.w": torch.zeros(2)}
    content |= {f"ema_{name}": value + 1 for name, value in content.items()}
    torch.save({"state_dict": content}, tmp_path / "weights.pth")
    toy = Toy(net)
    before = toy.head.weight.clone()
    report = start_from(toy, read_weights(tmp_path / "weights.pth"), "backbone")
    assert (len(report.taken), report.missing, report.shape) == (len(expected.state_dict()), (), ())
    assert "decode_head.w" in report.left
    for name, value in expected.state_dict().items():
        assert torch.equal(net.state_dict()[name], value)
    assert torch.equal(toy.head.weight, before)


def test_degenerate() -> None:
    """A network of the other transformers version: its names are found, and told apart."""
    for layout in ("transformers-4", "transformers-5"):
        names = [f"net.{name}" for name in mit_keys.MARKERS[layout]]
        assert mit_keys.own_layout(names) == layout
        found = public_keys.to_own(drawn(), names)
        assert f"net.{mit_keys.MARKERS[layout][1]}" in found.tensors
    assert mit_keys.own_layout(["conv1.weight"]) is None
    assert mit_keys.to_layout({"queue": torch.zeros(1)}, "mit", "transformers-5") == ({}, ("queue",))


def test_errors(tmp_path: Path) -> None:
    """Other networks, other sizes, broken tensors: named, and nothing is changed."""
    odd = drawn() | {"block1.0.attn.kv.bias": torch.zeros(3)}
    cases = [
        (
            {"conv1.weight": torch.zeros(2, 2)},
            "no published layout of a Mix Transformer is recognised: conv1",
        ),
        (odd, r"block1\.0\.attn\.kv\.bias holds keys and values .* got 3"),
        (odd | {"block1.0.attn.kv.bias": torch.tensor(1.0)}, r"kv\.bias holds keys and values .* got 1"),
    ]
    for content, message in cases:
        net = small()
        before = {name: value.clone() for name, value in net.state_dict().items()}
        with pytest.raises(InputError, match=message):
            public_keys.fill(net, content)
        torch.save(content, tmp_path / "weights.pth")
        with pytest.raises(InputError, match=message) as caught:
            start_from(Toy(net), read_weights(tmp_path / "weights.pth"), "backbone")
        assert "weights.pth" in str(caught.value)
        assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    with pytest.raises(InputError, match="tensors do not fit the backbone"):
        public_keys.fill(small(), {name: torch.zeros(2, 1) for name in shapes(*SMALL)})
