"""The decoder of PSPNet, and the pooling that UPerNet and DeepLabV3+ share with it."""

import torch
from torch import Tensor, nn

from vocseg.decoders.base import Decoder
from vocseg.errors import VocsegError
from vocseg.layers import conv_norm_act, kaiming_, resize_like


class PSPNet(Decoder):
    """The pyramid pooling module (Zhao et al. 2017, Fig. 3) on the deepest feature; no other feature is used.

    The feature is pooled to several grids, and a 1x1 convolution reduces the channels of each to C / number of grids.
    The results, upsampled, and the feature are concatenated; a 3x3 convolution follows. Pooled maps have no batch norm,
    unlike the authors' code: one value per image and channel is too few for a batch of one image. The logits have the
    resolution of the feature, so the paper's backbone has an output stride of 8. Kaiming-normal initialisation.

    On CUDA the gradient of the pooling has no deterministic kernel: ``--trainer.deterministic warn`` rather than true.

    Args:
        channels: channels of the backbone's features.
        strides: strides of the backbone's features.
        num_classes: channels of the logits.
        width: channels of the last but one convolution.
        bins: heights and widths of the pooled grids.
        dropout: probability with which a channel is dropped before the last convolution during training.

    Raises:
        VocsegError: a bin is not positive.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_classes: int,
        width: int = 512,
        bins: tuple[int, ...] = (1, 2, 3, 6),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        pooled = max(channels[-1] // max(len(bins), 1), 1)
        self.pools = pooling_branches(channels[-1], pooled, bins)
        self.mix = conv_norm_act(channels[-1] + len(bins) * pooled, width, 3)
        self.head = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(width, num_classes, 1))
        kaiming_(self)

    def forward(self, features: list[Tensor]) -> Tensor:
        """See ``Decoder.forward``. The logits have the size of the deepest feature."""
        return self.head(self.mix(concat_pooled(features[-1], self.pools)))


def pooling_branches(in_channels: int, out_channels: int, bins: tuple[int, ...]) -> nn.ModuleList:
    """Builds average pooling -> 1x1 convolution -> ReLU for each grid size in ``bins``."""
    if any(grid < 1 for grid in bins):
        raise VocsegError(f"bins must be positive grid sizes, for example 1, 2, 3, 6; got {', '.join(map(str, bins))}.")
    return nn.ModuleList(
        nn.Sequential(nn.AdaptiveAvgPool2d(grid), nn.Conv2d(in_channels, out_channels, 1), nn.ReLU(inplace=True))
        for grid in bins
    )


def concat_pooled(x: Tensor, branches: nn.ModuleList) -> Tensor:
    """Concatenates ``x`` [B, C, h, w] with the output of each branch, resized to h x w."""
    return torch.cat([x, *(resize_like(branch(x), x) for branch in branches)], dim=1)
