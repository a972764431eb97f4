"""The linear head of DINOv2."""

import torch
from torch import Tensor, nn

from vocseg.decoders.base import Decoder, deep_enough
from vocseg.layers import kaiming_, resize_like


class LinearHead(Decoder):
    """A linear classifier of each pixel's features, the usual probe of frozen backbones (DINOv2, Oquab et al. 2023).

    All features are upsampled to the size of the shallowest one and concatenated; batch norm and a 1x1 convolution
    follow. Section 7.4 there gives the last layer to "linear" and the last four to "+ms". Kaiming-normal
    initialisation.

    Args:
        channels: channels of the backbone's features.
        strides: strides of the backbone's features; any, also equal ones.
        num_classes: channels of the logits.
        norm: batch norm before the convolution.
        dropout: probability with which a channel is dropped before the convolution during training.
        min_stride: shallower features are ignored.

    Raises:
        VocsegError: no feature has a stride of ``min_stride`` or more.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_classes: int,
        norm: bool = True,
        dropout: float = 0.0,
        min_stride: int = 4,
    ) -> None:
        super().__init__()
        self.used = deep_enough(strides, min_stride)
        total = sum(channels[place] for place in self.used)
        self.norm = nn.BatchNorm2d(total) if norm else nn.Identity()
        self.head = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(total, num_classes, 1))
        kaiming_(self)

    def forward(self, features: list[Tensor]) -> Tensor:
        """See ``Decoder.forward``. The logits have the size of the shallowest feature that is used."""
        used = [features[place] for place in self.used]
        return self.head(self.norm(torch.cat([resize_like(x, used[0]) for x in used], dim=1)))
