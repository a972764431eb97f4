"""The decoder of DeepLabV3+."""

import torch
from torch import Tensor, nn

from vocseg.decoders.base import Decoder, check_pyramid, deep_enough
from vocseg.decoders.pspnet import pooling_branches
from vocseg.errors import VocsegError
from vocseg.layers import conv_norm_act, kaiming_, resize_like


class DeepLabV3Plus(Decoder):
    """ASPP on the deepest feature, refined with one shallow feature (Chen et al. 2018, Fig. 2).

    Atrous spatial pyramid pooling: a 1x1 convolution, three 3x3 convolutions with different rates, and the image's
    average, concatenated and reduced by a 1x1 convolution. The result is upsampled, concatenated with a 1x1 projection
    of the shallow feature, and passed through two 3x3 convolutions. The image's average has no batch norm (see
    ``PSPNet``). Kaiming-normal initialisation.

    Args:
        channels: channels of the backbone's features.
        strides: strides of the backbone's features; the paper's backbone has an output stride of 16 or 8.
        num_classes: channels of the logits.
        width: channels inside the decoder.
        low_width: channels of the projected shallow feature.
        rates: dilations in ASPP. By default 6, 12, 18 for a stride of 16, and for others those that span as many
            pixels of the image: 12, 24, 36 for 8 and 3, 6, 9 for 32.
        separable: 3x3 convolutions are depthwise, each followed by a 1x1 convolution (Fig. 3).
        dropout: probability with which a channel is dropped before the last convolution during training.
        min_stride: the shallowest feature with at least this stride is the shallow one.

    Raises:
        VocsegError: fewer than two different strides are left, or a rate is not positive.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_classes: int,
        width: int = 256,
        low_width: int = 48,
        rates: tuple[int, ...] | None = None,
        separable: bool = True,
        dropout: float = 0.1,
        min_stride: int = 4,
    ) -> None:
        super().__init__()
        check_pyramid(strides, min_stride, "DeepLabV3Plus")
        self.low = deep_enough(strides, min_stride)[0]
        if rates is None:
            rates = tuple(max(rate * 16 // strides[-1], 1) for rate in (6, 12, 18))
        if any(rate < 1 for rate in rates):
            raise VocsegError(f"rates must be positive, for example 6, 12, 18; got {', '.join(map(str, rates))}.")
        conv = _separable if separable else conv_norm_act
        self.branches = nn.ModuleList(
            [conv_norm_act(channels[-1], width, 1), *(conv(channels[-1], width, 3, rate) for rate in rates)]
        )
        self.average = pooling_branches(channels[-1], width, (1,))
        self.reduce = conv_norm_act(width * (len(rates) + 2), width, 1)
        self.project = conv_norm_act(channels[self.low], low_width, 1)
        self.mix = nn.Sequential(conv(width + low_width, width, 3), conv(width, width, 3))
        self.head = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(width, num_classes, 1))
        kaiming_(self)

    def forward(self, features: list[Tensor]) -> Tensor:
        """See ``Decoder.forward``. The logits have the size of the shallow feature."""
        deepest, low = features[-1], self.project(features[self.low])
        average = resize_like(self.average[0](deepest), deepest)
        x = self.reduce(torch.cat([*(branch(deepest) for branch in self.branches), average], dim=1))
        return self.head(self.mix(torch.cat([resize_like(x, low), low], dim=1)))


def _separable(in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1) -> nn.Sequential:
    depthwise = conv_norm_act(in_channels, in_channels, kernel_size, dilation, groups=in_channels)
    return nn.Sequential(depthwise, conv_norm_act(in_channels, out_channels, 1))
