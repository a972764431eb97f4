"""The features of a frozen backbone, computed once per image and kept in memory."""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from vocseg.errors import VocsegError

GIGABYTE = 10**9
TOLERANCE = 0.01
"""Relative difference between features computed twice; rounding in 16 bits stays below it."""


class FeatureCache:
    """Keeps the features of each image, under a hash (SHA-256) of its pixels.

    In a backbone that does not change, the same pixels have the same features, so it does not matter where an image
    comes from: each of the variants that random transforms make has its own features. They are kept as they were
    computed, in the memory of the CPU. The first batch that is all kept is computed again and compared.

    Once the memory is full, the features of further images are computed each time.

    Args:
        gigabytes: the most memory to use (10^9 bytes), of each process.

    Attributes:
        requests: images so far.
        hits: how many of them were kept already.

    Raises:
        VocsegError: ``gigabytes`` is not positive.
    """

    def __init__(self, gigabytes: float) -> None:
        if not gigabytes > 0:
            raise VocsegError(f"cache_features is a number of gigabytes, above 0; got {gigabytes}.")
        self.bytes_left = gigabytes * GIGABYTE
        self.requests = self.hits = 0
        self._kept: dict[Any, list[Tensor]] = {}
        self._compared = False
        self._get = torch.compiler.disable(self._features)  # a compiled step calls it as it is

    def __len__(self) -> int:
        """The images whose features are kept."""
        return len(self._kept)

    def __call__(self, backbone: nn.Module, image: Tensor) -> list[Tensor]:
        """The features of a batch of images, as ``backbone(image)``; without gradients.

        Args:
            backbone: always the same, with the same weights.
            image: float [B, 3, H, W], as the backbone takes it.

        Raises:
            VocsegError: the backbone gives other features for the same images.
        """
        return self._get(backbone, image)

    @torch.no_grad()
    def _features(self, backbone: nn.Module, image: Tensor) -> list[Tensor]:
        keys = _keys(image)
        missing = [place for place, key in enumerate(keys) if key not in self._kept]
        self.requests += len(keys)
        self.hits += len(keys) - len(missing)
        if len(missing) == len(keys):
            computed = backbone(image)
            self._keep(keys, computed)
            return computed
        batch = [self._kept.get(key) for key in keys]
        if missing:
            computed = backbone(image[missing])
            self._keep([keys[place] for place in missing], computed)
            for row, place in enumerate(missing):
                batch[place] = [feature[row : row + 1] for feature in computed]
        features = [
            torch.cat([part.to(image.device, non_blocking=True) for part in parts])
            for parts in zip(*(found for found in batch if found is not None), strict=True)
        ]
        if not missing and not self._compared:
            self._compare(features, backbone(image))
        return features

    def _keep(self, keys: list[Any], features: list[Tensor]) -> None:
        """Copies the features of images as far as there is memory."""
        size = sum(feature[0].nbytes for feature in features)
        for row, key in enumerate(keys):
            if key not in self._kept and size <= self.bytes_left:
                self._kept[key] = [feature[row : row + 1].to("cpu", copy=True) for feature in features]
                self.bytes_left -= size

    def _compare(self, kept: list[Tensor], fresh: list[Tensor]) -> None:
        self._compared = True
        for level, (before, now) in enumerate(zip(kept, fresh, strict=True)):
            if not (before - now).float().norm() <= TOLERANCE * now.float().norm():
                raise VocsegError(
                    f"cache_features: the backbone gives other features for the same images (feature {level}), so they "
                    "cannot be kept: leave the option out."
                )


def _keys(image: Tensor) -> list[Any]:
    """What names each image of a batch: its size and the hash of its pixels."""
    pixels = image.detach().permute(0, 2, 3, 1).contiguous().cpu().view(torch.uint8).numpy()
    return [(*image.shape[-2:], hashlib.sha256(one).digest()) for one in pixels]
