"""Files -> samples -> batches."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from vocseg.data.files import Sample, read_image, read_sample
from vocseg.data.labels import VOID
from vocseg.data.transforms import Pipeline
from vocseg.errors import VocsegError


class SegmentationDataset(Dataset):
    """Samples of a split, indexed by ``(epoch, place in the list)``: the random draws follow from both.

    Args:
        samples: the files.
        pipeline: applied to each.
        evaluates: add ``index``, ``original_mask`` and ``input_size``.
        arrays: the decoded files, when they are kept in memory; else empty.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        pipeline: Pipeline,
        evaluates: bool,
        arrays: Sequence[tuple[np.ndarray, np.ndarray]] = (),
    ) -> None:
        self.samples, self.pipeline, self.evaluates, self.arrays = samples, pipeline, evaluates, arrays

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = (0, key) if isinstance(key, int) else key
        if self.arrays:
            image, mask = self.arrays[index]
        else:
            image, mask = read_sample(self.samples[index], self.pipeline.num_classes)
        item = self.pipeline(image, mask, epoch=epoch, index=index)
        if self.evaluates:
            item.update(index=index, original_mask=torch.from_numpy(mask), input_size=tuple(item["image"].shape[-2:]))
        return item


class PredictionDataset(Dataset):
    """Photographs without masks. One that cannot be read becomes an item with nothing but ``unreadable``.

    Args:
        paths: the files.
        pipeline: applied to each.
    """

    def __init__(self, paths: Sequence[Path], pipeline: Pipeline) -> None:
        self.paths, self.pipeline = paths, pipeline

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            image = read_image(self.paths[index])
        except VocsegError as error:
            return {"unreadable": str(error)}  # the others shall have their masks
        item = self.pipeline(image, index=index)
        item.update(
            path=str(self.paths[index]), original_size=image.shape[:2], input_size=tuple(item["image"].shape[-2:])
        )
        return item


class EpochSampler(Sampler):
    """Yields ``(epoch, index)``; Lightning calls :meth:`set_epoch` before each epoch.

    Args:
        length: number of samples.
        seed: the order of an epoch follows from (seed, epoch).
        shuffle: False: 0, 1, 2, ...
    """

    def __init__(self, length: int, seed: int, shuffle: bool) -> None:
        self.length, self.seed, self.shuffle, self.epoch = length, seed, shuffle, 0

    def set_epoch(self, epoch: int) -> None:
        """Epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.arange(self.length)
        if self.shuffle:
            np.random.default_rng([self.seed, self.epoch]).shuffle(order)
        return ((self.epoch, int(index)) for index in order)


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Makes a batch; images and masks of unlike sizes are padded on the right and at the bottom (masks with void).

    Items that could not be read leave their message under ``unreadable`` and are not among the images.
    """
    unreadable = [item["unreadable"] for item in items if "unreadable" in item]
    items = [item for item in items if "unreadable" not in item]
    if not items:
        return {"image": torch.empty(0, 3, 1, 1), "path": [], "unreadable": unreadable}
    height = max(item["image"].shape[-2] for item in items)
    width = max(item["image"].shape[-1] for item in items)
    batch: dict[str, Any] = {"image": torch.stack([_pad(item["image"], height, width, 0.0) for item in items])}
    if "mask" in items[0]:
        batch["mask"] = torch.stack([_pad(item["mask"], height, width, VOID) for item in items])
    for key in ("index", "input_size", "original_size"):
        if key in items[0]:
            batch[key] = torch.tensor([item[key] for item in items])
    for key in ("original_mask", "path"):
        if key in items[0]:
            batch[key] = [item[key] for item in items]
    if "path" in batch:
        batch["unreadable"] = unreadable
    return batch


def _pad(tensor: Tensor, height: int, width: int, value: float) -> Tensor:
    return torch.nn.functional.pad(tensor, (0, width - tensor.shape[-1], 0, height - tensor.shape[-2]), value=value)
