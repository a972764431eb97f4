"""The decoder of SegFormer."""

import torch
from torch import Tensor, nn

from vocseg.decoders.base import Decoder, deep_enough
from vocseg.layers import conv_norm_act, kaiming_, resize_like


class SegFormerHead(Decoder):
    """The all-MLP decoder of SegFormer (Xie et al. 2021, Eq. 4).

    A linear layer brings each feature to the same number of channels; all are upsampled to the size of the shallowest
    one, concatenated deep to shallow and fused by a second linear layer, with batch norm and ReLU as in the authors'
    code. A linear layer over channels is a 1x1 convolution. Kaiming-normal initialisation.

    Args:
        channels: channels of the backbone's features.
        strides: strides of the backbone's features; any, also equal ones.
        num_classes: channels of the logits.
        width: channels inside the decoder; in the paper 256 for MiT-B0 and B1 and 768 for the others.
        dropout: probability with which a channel is dropped before the last convolution during training.
        min_stride: shallower features are ignored.

    Raises:
        VocsegError: no feature has a stride of ``min_stride`` or more.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_classes: int,
        width: int = 256,
        dropout: float = 0.1,
        min_stride: int = 4,
    ) -> None:
        super().__init__()
        self.used = deep_enough(strides, min_stride)
        self.project = nn.ModuleList(nn.Conv2d(channels[place], width, 1) for place in self.used)
        self.fuse = conv_norm_act(width * len(self.used), width, 1)
        self.head = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(width, num_classes, 1))
        kaiming_(self)

    def forward(self, features: list[Tensor]) -> Tensor:
        """See ``Decoder.forward``. The logits have the size of the shallowest feature that is used."""
        used = [features[place] for place in self.used]
        maps = [resize_like(project(x), used[0]) for x, project in zip(used, self.project, strict=True)]
        return self.head(self.fuse(torch.cat(maps[::-1], dim=1)))
