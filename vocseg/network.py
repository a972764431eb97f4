"""A backbone and a decoder as one plain ``nn.Module``: images in, logits of the same size out."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vocseg.errors import VocsegError


class SegmentationNetwork(nn.Module):
    """Computes the logits of images of any size; needs no Lightning.

    ``torch.export.export`` with dynamic sizes (``Dim.DYNAMIC``; without ``channels_last`` also ``Dim`` with a range)
    gives a program for all images that are larger than the backbone's largest stride in both directions. Smaller ones
    have a deepest feature of one pixel, which torch treats as a special case. ``torch.jit.trace`` gives a program for
    images of the traced size.

    Args:
        backbone: a module with ``channels``, ``strides`` and ``forward(image) -> list of features``, shallow to deep.
        decoder: a module with ``forward(features) -> logits`` at any resolution.
        channels_last: keep images and weights in torch's channels-last memory format, which is faster on CPUs and on
            GPUs with tensor cores and changes no result beyond rounding.

    Attributes:
        feature_cache: ``(backbone, padded image) -> features`` in place of a backbone that does not train; see
            :class:`vocseg.feature_cache.FeatureCache`.
    """

    def __init__(self, backbone: nn.Module, decoder: nn.Module, channels_last: bool = True) -> None:
        super().__init__()
        self.backbone, self.decoder, self.channels_last = backbone, decoder, channels_last
        strides: Any = backbone.strides  # a plain attribute, which nn.Module does not declare
        self.stride = max(int(stride) for stride in strides)
        self.feature_cache: Callable[[nn.Module, Tensor], list[Tensor]] | None = None
        self.to(memory_format=self._memory_format)

    def forward(self, image: Tensor) -> Tensor:
        """Computes the logits.

        An image that the backbone's stride does not divide is padded on the right and at the bottom, and its logits are
        cropped back: logit (i, j) describes pixel (i, j). A backbone without trainable parameters runs without
        gradients.

        Args:
            image: float [B, 3, H, W], normalised.

        Returns:
            float32 [B, C, H, W].

        Raises:
            VocsegError: the image is uint8, as a loader of vocseg gives it.
        """
        return self.decode(self.features(image), image.shape[-2:])

    def features(self, image: Tensor) -> list[Tensor]:
        """The backbone's features, shallow to deep, of the padded image: float [B, channels[i], h_i, w_i] each."""
        if image.dtype == torch.uint8:
            raise VocsegError(
                "The images are uint8, as vocseg's loaders give them, and a network needs them normalised: give the "
                "trainer the data module instead of its loaders; in a loop of your own call batch = "
                "datamodule.on_after_batch_transfer(batch, 0), or vocseg.data.transforms.normalise(image)."
            )
        # other than float32 with bf16-true and the like: images are normalised after Lightning has converted the batch
        image = image.to(next((weight.dtype for weight in self.backbone.parameters()), image.dtype))
        padded = _pad(image, self._padded(image.shape[-2:])).contiguous(memory_format=self._memory_format)
        trains = torch.compiler.is_exporting() or any(
            parameter.requires_grad for parameter in self.backbone.parameters()
        )
        if self.feature_cache is not None and not trains:
            return self.feature_cache(self.backbone, padded)
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains):
            return self.backbone(padded)

    def decode(self, features: list[Tensor], size: Sequence[int], decoder: nn.Module | None = None) -> Tensor:
        """The logits of an image of a size, float32 [B, C, *size].

        Args:
            features: of the image, from :meth:`features`.
            size: height and width of the image.
            decoder: another one than the network's.
        """
        logits = (self.decoder if decoder is None else decoder)(features)
        return _crop(resize(logits.float(), self._padded(size)), size)

    def _padded(self, size: Sequence[int]) -> list[int]:
        # of positive numbers: torch's ONNX exporter rounds the quotient of a negative one towards 0
        return [(side + self.stride - 1) // self.stride * self.stride for side in size]

    @property
    def _memory_format(self) -> torch.memory_format:
        # not an attribute: torch.save cannot pickle it
        return torch.channels_last if self.channels_last else torch.contiguous_format


def resize(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes logits, float [B, C, h, w], bilinearly (``align_corners=False``); returns its argument at equal size."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def _pad(image: Tensor, size: Sequence[int]) -> Tensor:
    """Pads with zeros on the right and at the bottom."""
    height, width = image.shape[-2:]
    if torch.compiler.is_exporting():
        # F.pad and slices compare sizes: the exported program would serve only images that are padded like the traced
        # one. Here the rows and columns to be added are read from one row and one column of zeros.
        rows, columns = (
            torch.arange(after, device=image.device).clamp(max=before)
            for before, after in zip((height, width), size, strict=True)
        )
        return F.pad(image, (0, 1, 0, 1)).index_select(-2, rows).index_select(-1, columns)
    return F.pad(image, (0, size[1] - width, 0, size[0] - height))


def _crop(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Removes what :func:`_pad` added."""
    height, width = size
    if torch.compiler.is_exporting():
        rows, columns = (torch.arange(side, device=logits.device) for side in size)
        return logits.index_select(-2, rows).index_select(-1, columns)
    return logits[..., :height, :width]
