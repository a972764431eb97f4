"""The decoder of the Dense Prediction Transformer."""

from torch import Tensor, nn

from vocseg.decoders.base import Decoder
from vocseg.errors import VocsegError
from vocseg.layers import conv_norm_act, kaiming_, resize_like


class DPT(Decoder):
    """The convolutional decoder of DPT (Ranftl et al. 2021, Fig. 1) for four features of a plain vision transformer.

    Reassemble: a 1x1 convolution, and a transposed or strided one, bring the features to 4, 2, 1 and 1/2 times the
    patch grid's size (strides 4, 8, 16, 32 for patches of 16 pixels); a 3x3 convolution follows. Fusion, from the
    deepest: a residual unit, addition of the deeper map, a second unit, a 1x1 convolution, upsampling. The units have
    batch norm. The paper's last doubling and readout tokens are left out. Kaiming-normal initialisation.

    Args:
        channels: channels of the backbone's features.
        strides: strides of the backbone's features: four times the same.
        num_classes: channels of the logits.
        width: channels of the fused maps.
        widths: channels in the reassembly of each feature; by default the paper's for ViT-Base.
        dropout: probability with which a channel is dropped before the last convolution during training.

    Raises:
        VocsegError: the features are not four of one stride, or ``widths`` are not four.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_classes: int,
        width: int = 256,
        widths: tuple[int, ...] = (96, 192, 384, 768),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if len(strides) != 4 or len(set(strides)) > 1:
            got = ", ".join(map(str, strides))
            raise VocsegError(
                f"DPT needs four features of one stride, as of a vision transformer; got {got}. LinearHead and "
                "SegFormerHead take any features."
            )
        if len(widths) != 4:
            raise VocsegError(f"DPT needs four widths, one per feature; got {len(widths)}.")
        four_times = nn.ConvTranspose2d(widths[0], widths[0], 4, stride=4)
        twice = nn.ConvTranspose2d(widths[1], widths[1], 2, stride=2)
        half = nn.Conv2d(widths[3], widths[3], 3, stride=2, padding=1)
        self.reassemble = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, inside, 1), layer, nn.Conv2d(inside, width, 3, padding=1, bias=False))
            for before, inside, layer in zip(channels, widths, (four_times, twice, nn.Identity(), half), strict=True)
        )
        self.residual = nn.ModuleList(_ResidualUnit(width) for _ in range(3))  # the deepest map has no sum
        self.fuse = nn.ModuleList(nn.Sequential(_ResidualUnit(width), nn.Conv2d(width, width, 1)) for _ in range(4))
        self.mix = conv_norm_act(width, width, 3)
        self.head = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(width, num_classes, 1))
        kaiming_(self)

    def forward(self, features: list[Tensor]) -> Tensor:
        """See ``Decoder.forward``. The logits have four times the size of the features."""
        maps = [reassemble(x) for x, reassemble in zip(features, self.reassemble, strict=True)]
        x = self.fuse[3](maps[3])
        for level in (2, 1, 0):
            x = self.fuse[level](self.residual[level](maps[level]) + resize_like(x, maps[level]))
        return self.head(self.mix(x))


class _ResidualUnit(nn.Module):
    """Twice ReLU -> 3x3 convolution -> batch norm, and a shortcut (Fig. 1, right)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # the first ReLU is not in place: the shortcut needs its input
        self.layers = nn.Sequential(nn.ReLU(), conv_norm_act(width, width, 3), *conv_norm_act(width, width, 3)[:2])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)
