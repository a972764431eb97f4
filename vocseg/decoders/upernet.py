"""The decoder of UPerNet."""

import torch
from torch import Tensor, nn

from vocseg.decoders.base import Decoder, check_pyramid
from vocseg.layers import conv_norm_act, kaiming_
from vocseg.network import resize


class UPerNet(Decoder):
    """Pyramid pooling on the deepest feature, a feature pyramid above it, and all its levels fused.

    Xiao et al. 2018, "Unified Perceptual Parsing for Scene Understanding", figure 4, without the heads for other tasks.
    The deepest feature and its averages over grids of ``bins`` are concatenated and convolved (Zhao et al. 2017, figure
    3). Each shallower feature is projected by a 1x1 convolution, and the upsampled level below is added to it. All
    levels are upsampled to the shallowest one, concatenated and convolved. The logits have its resolution.

    Args:
        channels: channels of the backbone's features.
        strides: strides of the backbone's features.
        num_classes: channels of the logits.
        width: channels of each level. The paper has 512.
        bins: sides of the grids over which the deepest feature is averaged.
        min_stride: features of smaller strides are not used; 8 takes a quarter of the time of 4.
        fuse_kernel: kernel size of the convolution that fuses the levels; the paper has 3.
        dropout: probability with which a channel is dropped before the last convolution during training.

    Raises:
        VocsegError: fewer than two features of different strides are left.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_classes: int,
        width: int = 256,
        bins: tuple[int, ...] = (1, 2, 3, 6),
        min_stride: int = 1,
        fuse_kernel: int = 3,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.first = sum(stride < min_stride for stride in strides)
        *skips, deepest = channels[self.first :] or [0]
        check_pyramid(strides[self.first :], "UPerNet")
        # no batch norm after pooling: a grid of one cell has one value per image, too few for a batch of one image
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), nn.Conv2d(deepest, width // 2, 1), nn.ReLU(inplace=True))
            for size in bins
        )
        self.bottom = conv_norm_act(deepest + len(bins) * (width // 2), width, 3)
        self.project = nn.ModuleList(conv_norm_act(skip, width, 1) for skip in skips)
        self.smooth = nn.ModuleList(conv_norm_act(width, width, 3) for _ in skips)
        self.fuse = conv_norm_act(width * (len(skips) + 1), width, fuse_kernel)
        self.head = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(width, num_classes, 1))
        kaiming_(self)

    def forward(self, features: list[Tensor]) -> Tensor:
        """See ``Decoder.forward``. The logits have the size of the shallowest feature that is used."""
        *skips, deepest = features[self.first :]
        pooled = [resize(pool(deepest), deepest.shape[-2:]) for pool in self.pools]
        level = self.bottom(torch.cat([deepest, *pooled], dim=1))
        levels = [level]
        for skip, project, smooth in zip(reversed(skips), reversed(self.project), reversed(self.smooth), strict=True):
            level = project(skip) + resize(level, skip.shape[-2:])
            levels.append(smooth(level))
        size = level.shape[-2:]
        return self.head(self.fuse(torch.cat([resize(each, size) for each in levels], dim=1)))
