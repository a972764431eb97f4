"""From a batch to label maps: the same steps in validation, test, prediction and ``segment``."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vocseg.network import resize

LOGITS_AT_ONCE = 64_000_000
"""Resized logits that :func:`label_map` holds at a time: 256 MB of float32."""


def batch_logits(
    network: Callable[[Tensor], Tensor], image: Tensor, input_sizes: Sequence[Any] | Tensor | None = None
) -> Iterator[tuple[list[int], Tensor]]:
    """Computes a batch's logits, images of one size together and without the padding that made them one batch.

    An image's logits must not depend on what else is in its batch.

    Args:
        network: images [b, 3, h, w] -> logits [b, C, h, w].
        image: float [B, 3, H, W].
        input_sizes: [B, 2] height and width of each image without padding; None: there is no padding.

    Yields:
        Indices in the batch, and the logits of these images [b, C, h, w].
    """
    indices_by_size: dict[tuple[int, int], list[int]] = {}
    for index in range(len(image)):
        height, width = image.shape[-2:] if input_sizes is None else input_sizes[index]
        indices_by_size.setdefault((int(height), int(width)), []).append(index)
    for (height, width), indices in indices_by_size.items():
        yield indices, network(image[indices, :, :height, :width])


def label_map(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes one image's logits, float [C, h, w], to ``size`` and takes the argmax: int64 [H, W]."""
    height, width = (int(side) for side in size)
    # of a large image some classes at a time: all 21 at 6000x4000 would take 2 GB
    at_once = max(LOGITS_AT_ONCE // (height * width), 1)
    best = labels = None
    for first in range(0, len(logits), at_once):
        # over a leading axis that is contiguous, max is several times faster than argmax
        values, indices = resize(logits[None, first : first + at_once].contiguous(), (height, width))[0].max(0)
        if best is None or labels is None:
            best, labels = values, indices
        else:
            labels = torch.where(values > best, indices + first, labels)
            best = torch.maximum(best, values)
    if labels is None:
        raise ValueError("Logits of no class have no label.")
    return labels


def probability_map(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes one image's logits, float [C, h, w], to ``size`` and takes the softmax: float32 [C, H, W]."""
    return resize(logits[None].contiguous(), [int(side) for side in size])[0].softmax(0)


def preprocess(pixels: Any, data_settings: Mapping[str, Any], num_classes: int) -> Tensor:
    """Prepares one image as a data module prepares its evaluation images.

    Args:
        pixels: RGB uint8 [H, W, 3].
        data_settings: the data module's hyperparameters; without ``eval_transforms`` the image keeps its size.
        num_classes: C.

    Returns:
        float32 [1, 3, h, w], normalised.
    """
    # imported here: a network in use elsewhere needs no albumentations
    from vocseg.data.transforms import EVAL_PIPELINES, Pipeline, make_transforms

    transforms: list[Any] = []
    if {"eval_transforms", "image_size"} <= set(data_settings):
        height, width = data_settings["image_size"]
        transforms = make_transforms(
            data_settings["eval_transforms"], EVAL_PIPELINES, (height, width), "eval_transforms"
        )
    return Pipeline(transforms, num_classes)(pixels)["image"][None]
