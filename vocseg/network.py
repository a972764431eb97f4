"""A backbone and a decoder as one plain ``nn.Module``: images in, logits of the same size out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SegmentationNetwork(nn.Module):
    """Computes the logits of images of any size; needs no Lightning.

    Args:
        backbone: a module with ``channels``, ``strides`` and ``forward(image) -> list of features``, shallow to deep.
        decoder: a module with ``forward(features) -> logits`` at any resolution.
        channels_last: keep images and weights in torch's channels-last memory format, which is faster on CPUs and on
            GPUs with tensor cores and changes no result beyond rounding.
    """

    def __init__(self, backbone: nn.Module, decoder: nn.Module, channels_last: bool = True) -> None:
        super().__init__()
        self.backbone, self.decoder = backbone, decoder
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        strides: Any = backbone.strides  # a plain attribute, which nn.Module does not declare
        self.stride = max(int(stride) for stride in strides)
        self.to(memory_format=self.memory_format)

    def forward(self, image: Tensor) -> Tensor:
        """Computes the logits.

        An image that the backbone's stride does not divide is padded on the right and at the bottom, and its logits are
        cropped back: logit (i, j) describes pixel (i, j). A backbone without trainable parameters runs without
        gradients.

        Args:
            image: float [B, 3, H, W], normalised.

        Returns:
            float32 [B, C, H, W].
        """
        height, width = image.shape[-2:]
        padded = F.pad(image, (0, -width % self.stride, 0, -height % self.stride))
        padded = padded.contiguous(memory_format=self.memory_format)
        trains = any(parameter.requires_grad for parameter in self.backbone.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains):
            features = self.backbone(padded)
        return resize(self.decoder(features).float(), padded.shape[-2:])[..., :height, :width]


def resize(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes logits, float [B, C, h, w], bilinearly (``align_corners=False``); returns its argument at equal size."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)
