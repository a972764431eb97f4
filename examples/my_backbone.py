"""A backbone of your own: any module with ``channels``, ``strides`` and a ``forward`` that returns features.

    vocseg fit --config quickstart --model.backbone my_backbone.MyBackbone --model.decoder SkipDecoder

in this folder, or with this folder on PYTHONPATH.
"""

from torch import nn


class MyBackbone(nn.Module):
    """Two features, shallow to deep: at half and at a quarter of the input's size."""

    channels, strides = [16, 32], [2, 4]

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU())

    def forward(self, image):
        """Image [B, 3, H, W] -> features [B, 16, H/2, W/2] and [B, 32, H/4, W/4]; H and W are multiples of 4."""
        half = self.first(image)
        return [half, self.second(half)]
