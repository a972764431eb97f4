"""A decoder of your own: a module that is built from ``(channels, strides, num_classes)``.

    vocseg fit --config mobilenet --data.root /path/to/voc --model.decoder my_decoder.SumDecoder

A class that derives from :class:`vocseg.Decoder` is recorded in checkpoints with its arguments.
"""

from torch import nn
from torch.nn import functional as F

from vocseg import Decoder


class SumDecoder(Decoder):
    """Projects every feature to ``width`` channels, resizes all to the finest one, and adds them up.

    Args:
        channels: of each feature.
        strides: of each feature; not used.
        num_classes: C.
        width: channels of the sum.
    """

    def __init__(self, channels: list[int], strides: list[int], num_classes: int, width: int = 32) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)
        self.head = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, num_classes, 1))

    def forward(self, features):
        """Features, shallow to deep -> logits [B, C, h, w] at the finest feature's size."""
        size = features[0].shape[-2:]
        projected = [project(feature) for project, feature in zip(self.projections, features, strict=True)]
        return self.head(sum(F.interpolate(each, size=size, mode="bilinear") for each in projected))
