"""Published layouts of Mix Transformer weights, and the names that they have here.

Three layouts are in use: that of the SegFormer authors (``block1.0.attn.q.weight``; also in files of DAFormer, HRDA and
MIC), that of transformers 4 (``encoder.block.0.0.attention.self.query.weight``) and that of transformers 5
(``stages.0.blocks.0.attention.q_proj.weight``). A network here has the names of the transformers version that built
it, behind ``net.``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from torch import Tensor

Layout = Literal["mit", "transformers-4", "transformers-5"]
HOME = "net."
"""Before the names of a backbone here."""

# One row per layer: its name in the three layouts. {s} is the stage counted from 0, {n} from 1, {b} the block.
_LAYERS: tuple[tuple[str, str, str], ...] = (
    ("patch_embed{n}.proj", "encoder.patch_embeddings.{s}.proj", "stages.{s}.patch_embeddings.proj"),
    (
        "patch_embed{n}.norm",
        "encoder.patch_embeddings.{s}.layer_norm",
        "stages.{s}.patch_embeddings.layer_norm",
    ),
    ("norm{n}", "encoder.layer_norm.{s}", "stages.{s}.layer_norm"),
    *(
        (
            f"block{{n}}.{{b}}.{first}",
            f"encoder.block.{{s}}.{{b}}.{second}",
            f"stages.{{s}}.blocks.{{b}}.{third}",
        )
        for first, second, third in (
            ("norm1", "layer_norm_1", "layernorm_before"),
            ("attn.q", "attention.self.query", "attention.q_proj"),
            ("attn.k", "attention.self.key", "attention.k_proj"),
            ("attn.v", "attention.self.value", "attention.v_proj"),
            ("attn.proj", "attention.output.dense", "attention.o_proj"),
            ("attn.sr", "attention.self.sr", "attention.sequence_reduction.sequence_reduction"),
            ("attn.norm", "attention.self.layer_norm", "attention.sequence_reduction.layer_norm"),
            ("norm2", "layer_norm_2", "layernorm_after"),
            ("mlp.fc1", "mlp.dense1", "mlp.fc1"),
            ("mlp.dwconv.dwconv", "mlp.dwconv.dwconv", "mlp.dwconv.dwconv"),
            ("mlp.fc2", "mlp.dense2", "mlp.fc2"),
        )
    ),
)
_COLUMNS: tuple[Layout, ...] = ("mit", "transformers-4", "transformers-5")
MARKERS: dict[Layout, tuple[str, str]] = {
    "mit": ("patch_embed1.proj.weight", "block1.0.attn.q.weight"),
    "transformers-4": (
        "encoder.patch_embeddings.0.proj.weight",
        "encoder.block.0.0.attention.self.query.weight",
    ),
    "transformers-5": ("stages.0.patch_embeddings.proj.weight", "stages.0.blocks.0.attention.q_proj.weight"),
}
"""Layout -> two names that only this layout has."""
_JOINT = re.compile(r"(block[1-4]\.\d+\.attn\.)kv\.(weight|bias)")


def own_layout(names: Iterable[str]) -> Layout | None:
    """The layout of a backbone here, ``backbone.state_dict()``; None where it is no Mix Transformer."""
    found = set(names)
    for layout in ("transformers-4", "transformers-5"):
        if all(f"{HOME}{name}" in found for name in MARKERS[layout]):
            return layout
    return None


def to_layout(
    tensors: Mapping[str, Tensor], given: Layout, wanted: Layout
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Rename a Mix Transformer without what stands before its names, and split its joint keys and values.

    Args:
        tensors: name -> tensor; of layout "mit" with ``attn.kv`` (2 C, C), keys in its first half.
        given: their layout.
        wanted: "transformers-4" or "transformers-5".

    Returns:
        The tensors under their new names, and the names that have no place there: heads, and whatever else.

    Raises:
        ValueError: a joint tensor of keys and values with an odd number of rows.

    Example:
        >>> import torch
        >>> found, left = to_layout({"block2.3.attn.kv.bias": torch.arange(4)}, "mit", "transformers-4")
        >>> {name: value.tolist() for name, value in found.items()}
        {'encoder.block.1.3.attention.self.key.bias': [0, 1], 'encoder.block.1.3.attention.self.value.bias': [2, 3]}
    """
    single: dict[str, tuple[str, Tensor]] = {}
    for name, tensor in tensors.items():
        joint = _JOINT.fullmatch(name) if given == "mit" else None
        if joint is None:
            single[name] = (name, tensor)
            continue
        rows = len(tensor) if tensor.ndim else 1
        if rows % 2:
            raise ValueError(f"{name} holds keys and values and must have an even number of rows, got {rows}")
        for part, half in zip("kv", tensor.chunk(2), strict=True):
            single[f"{joint[1]}{part}.{joint[2]}"] = (name, half)
    found: dict[str, Tensor] = {}
    left: dict[str, None] = {}
    for name, (old, tensor) in single.items():
        new = _renamed(name, given, wanted)
        if new is None:
            left[old] = None
        else:
            found[new] = tensor
    return found, tuple(left)


def _renamed(name: str, given: Layout, wanted: Layout) -> str | None:
    """The name of a tensor in another layout; None where it is no part of a Mix Transformer."""
    layer, _, last = name.rpartition(".")
    if last not in ("weight", "bias"):
        return None
    for row, pattern in _PATTERNS[given]:
        match = pattern.fullmatch(layer)
        if match is not None:
            places = match.groupdict()
            stage = int(places["s"]) if "s" in places else int(places["n"]) - 1
            new = row[_COLUMNS.index(wanted)]
            return f"{new.format(s=stage, n=stage + 1, b=places.get('b'))}.{last}"
    return None


def _pattern(template: str) -> re.Pattern[str]:
    """Matches the names of a template, each place in it a group of its name."""
    text = re.escape(template)
    for place, form in (("s", "[0-3]"), ("n", "[1-4]"), ("b", r"\d+")):
        text = text.replace(rf"\{{{place}\}}", f"(?P<{place}>{form})")
    return re.compile(text)


_PATTERNS: dict[Layout, list[tuple[tuple[str, str, str], re.Pattern[str]]]] = {
    layout: [(row, _pattern(row[column])) for row in _LAYERS] for column, layout in enumerate(_COLUMNS)
}
