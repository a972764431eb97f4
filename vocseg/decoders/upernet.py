"""The decoder of UPerNet."""

import torch
from torch import Tensor, nn

from vocseg.decoders.base import Decoder, check_pyramid, deep_enough
from vocseg.decoders.pspnet import concat_pooled, pooling_branches
from vocseg.errors import VocsegError
from vocseg.layers import conv_norm_act, kaiming_, resize_like


class UPerNet(Decoder):
    """Pyramid pooling and a feature pyramid, fused at one resolution (Xiao et al. 2018, Fig. 4).

    The deepest feature is pooled to several grids, concatenated with the results, and passed through a 3x3 convolution
    (the pyramid pooling module of PSPNet, Zhao et al. 2017). From there downwards, the map is upsampled and added to a
    1x1 projection of the next shallower feature, and a 3x3 convolution smooths each sum. All maps are resized to the
    shallowest one, concatenated and fused. Kaiming-normal initialisation. As to pooled maps, see ``PSPNet``; here they
    have half of ``width`` channels.

    Args:
        channels: channels of the backbone's features.
        strides: strides of the backbone's features.
        num_classes: channels of the logits.
        width: channels inside the decoder; the paper has 512.
        bins: heights and widths of the pooled grids.
        dropout: probability with which a channel is dropped before the last convolution during training.
        min_stride: shallower features are ignored; 8 makes the decoder several times faster than 4.
        fuse_kernel: kernel size of the convolution that fuses all maps; an odd number.

    Raises:
        VocsegError: fewer than two different strides are left, ``fuse_kernel`` is not odd, or a bin is not positive.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_classes: int,
        width: int = 256,
        bins: tuple[int, ...] = (1, 2, 3, 6),
        dropout: float = 0.1,
        min_stride: int = 4,
        fuse_kernel: int = 3,
    ) -> None:
        super().__init__()
        if fuse_kernel < 1 or fuse_kernel % 2 == 0:
            raise VocsegError(f"fuse_kernel must be odd, for example 1 or 3; got {fuse_kernel}.")
        check_pyramid(strides, min_stride, "UPerNet")
        self.used = deep_enough(strides, min_stride)
        *skips, deepest = (channels[place] for place in self.used)
        self.pools = pooling_branches(deepest, width // 2, bins)
        self.bottom = conv_norm_act(deepest + len(bins) * (width // 2), width, 3)
        self.lateral = nn.ModuleList(conv_norm_act(skip, width, 1) for skip in skips)
        self.smooth = nn.ModuleList(conv_norm_act(width, width, 3) for _ in skips)
        self.fuse = conv_norm_act(width * len(self.used), width, fuse_kernel)
        self.head = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(width, num_classes, 1))
        kaiming_(self)

    def forward(self, features: list[Tensor]) -> Tensor:
        """See ``Decoder.forward``. The logits have the size of the shallowest feature that is used."""
        *skips, deepest = (features[place] for place in self.used)
        x = self.bottom(concat_pooled(deepest, self.pools))
        maps = [x]  # deep to shallow
        for skip, lateral, smooth in reversed(list(zip(skips, self.lateral, self.smooth, strict=True))):
            x = lateral(skip) + resize_like(x, skip)
            maps.append(smooth(x))
        return self.head(self.fuse(torch.cat([resize_like(level, maps[-1]) for level in maps], dim=1)))
