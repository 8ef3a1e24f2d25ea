"""SegFormer: Mix Transformer encoders of the transformers library, and the all-MLP decoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import conv2d

from leanlabel.models import hub
from leanlabel.models.decoders import Decoder, Level, classifier, upsample
from leanlabel.models.image import NormLayer, initialise, norm_or_identity

NARROW, WIDE = (32, 64, 160, 256), (64, 128, 320, 512)
VARIANTS: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    "mit-b0": (NARROW, (2, 2, 2, 2), 256),
    "mit-b1": (WIDE, (2, 2, 2, 2), 256),
    "mit-b2": (WIDE, (3, 4, 6, 3), 768),
    "mit-b3": (WIDE, (3, 4, 18, 3), 768),
    "mit-b4": (WIDE, (3, 8, 27, 3), 768),
    "mit-b5": (WIDE, (3, 6, 40, 3), 768),
}
"""Name -> channels and layers of the four stages, and channels of the decoder [Xie et al. 2021, table 6]."""


def mix_transformer(name: str, channels: int = 3, drop_path: float = 0.1) -> hub.HubBackbone:
    """Build a Mix Transformer of a published size, newly initialised [Xie et al. 2021].

    Maps of strides 4, 8, 16 and 32; no position codes, hence images of any size.

    Args:
        name: "mit-b0" to "mit-b5".
        channels: channels of the images.
        drop_path: share of samples that skip the last layer in training; it grows linearly from 0.

    Raises:
        InputError: the transformers library is missing.
        ValueError: another name.
    """
    if name not in VARIANTS:
        raise ValueError(f"a Mix Transformer is one of {', '.join(VARIANTS)}, got {name}")
    widths, depths, _ = VARIANTS[name]
    return hub.mix_transformer(widths, depths, channels=channels, drop_path=drop_path)


class MlpDecoder(Decoder):
    """Bring all maps to one width and size, mix their channels [Xie et al. 2021, equation 4].

    f = relu(norm(W [up(P_1 m_1), ..., up(P_n m_n)]))

    W is applied to each map before it is enlarged: both are linear and interpolation weights sum to 1, so the
    values are the same, and the concatenated map is never built.

    Args:
        levels: the encoder's maps, finest first.
        classes: number of classes K.
        width: channels of the features; 256 with MiT-B0 and B1, else 768.
        norm: makes the normalisation of a number of channels; None leaves it out.
        dropout: share of the features left out in training before the classifier, 0..1.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        classes: int,
        width: int = 256,
        norm: NormLayer | None = nn.BatchNorm2d,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.width, self.stride = width, levels[0].stride
        self.projections = nn.ModuleList(nn.Conv2d(level.width, width, 1) for level in levels)
        self.mix = nn.Conv2d(len(levels) * width, width, 1, bias=norm is None)
        self.norm = norm_or_identity(norm, width)
        self.relu = nn.ReLU(inplace=True)
        initialise(self)
        self.dropout = nn.Dropout(dropout)
        self.classifier = classifier(width, classes)

    def fuse(self, maps: Sequence[Tensor]) -> Tensor:
        parts = self.mix.weight.split(self.width, 1)
        total = None
        for one, projection, part in zip(maps, self.projections, parts, strict=True):
            mixed = upsample(conv2d(projection(one), part), maps[0].shape[2:])
            total = mixed if total is None else total + mixed
        assert total is not None
        if self.mix.bias is not None:
            total = total + self.mix.bias[:, None, None]
        return self.relu(self.norm(total))

    def classify(self, features: Tensor) -> Tensor:
        return self.classifier(self.dropout(features))
