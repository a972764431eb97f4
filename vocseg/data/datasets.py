"""Datasets, samplers and loaders: from files to samples to batches."""

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2  # albumentations' own dependency
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, get_worker_info

from vocseg.data.copy_paste import paste_objects
from vocseg.data.files import CheckedSample, Sample, read_sample
from vocseg.data.images import ImageReader
from vocseg.data.labels import VOID
from vocseg.data.masks import MaskReader
from vocseg.data.transforms import Pipeline, normalise_batch
from vocseg.errors import VocsegError


class SegmentationDataset(Dataset):
    """The samples of a split, addressed by ``(epoch, index)``; random transforms depend on both.

    An item is ``{"image": uint8 [3, h, w], "mask": uint8 [h, w], "index": int}``. ``normalise_batch`` makes the input
    and the target of a network from it, or from a batch of items. With ``evaluates`` an item also has
    ``original_mask`` (uint8 [H, W], labels in the file's size) and ``input_size`` (h, w). The index None, with which
    samplers pad, gives an empty item, which ``collate`` leaves out. An index without an epoch, from a loader of the
    user's own, makes new random draws whenever it comes again.

    Args:
        samples: the image and mask files.
        pipeline: transforms every sample.
        evaluates: add ``original_mask`` and ``input_size``.
        arrays: the decoded samples if they are kept in memory, else empty.
        masks: reads the masks; None: their values are the labels.
        images: reads the images; None: ``ImageReader()``.
        copy_paste: the probability with which the objects of another sample are pasted onto an item.
        checked: what was found when the samples were checked; None: they were not. Only the numbers of pixels are kept.

    Raises:
        VocsegError: (when indexed) a file cannot be read or the transforms fail on it.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        pipeline: Pipeline,
        evaluates: bool,
        arrays: Sequence[tuple[np.ndarray, np.ndarray]] = (),
        masks: MaskReader | None = None,
        images: ImageReader | None = None,
        copy_paste: float = 0.0,
        checked: Sequence[CheckedSample] | None = None,
    ) -> None:
        self.samples, self.pipeline, self.evaluates, self.arrays = samples, pipeline, evaluates, arrays
        self.copy_paste = copy_paste
        self._times_read: dict[int, int] = {}
        self.masks = masks or MaskReader([f"class {label}" for label in range(pipeline.num_classes)])
        self.images = images or ImageReader()
        if checked is not None:
            self.pixel_counts = self._count(found.counts for found in checked)

    @cached_property
    def pixel_counts(self) -> np.ndarray:
        """The pixels of each stored mask by class, at last those of void: int32 [N, C + 1].

        They are known from the check of the samples. Without one the masks are read.
        """
        masks = (mask for _, mask in self.arrays) if self.arrays else (self.masks.read(s.mask) for s in self.samples)
        return self._count(np.bincount(mask.ravel(), minlength=256) for mask in masks)

    def _count(self, counts: Iterable[np.ndarray]) -> np.ndarray:
        columns = [*range(self.pipeline.num_classes), VOID]
        table = np.empty((len(self), len(columns)), np.int32)
        for row, of_label in zip(table, counts, strict=True):
            row[:] = of_label[columns]
        return table

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int | None]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (self._next_epoch(int(key)), int(key))
        if index is None:
            return {}
        image, mask = self.stored(index)
        item: dict[str, Any] = {"index": index}
        with _name_file_in_errors(self.samples[index].image, image):
            item.update(self.pipeline.transform(image, mask, epoch, index))
        if self.copy_paste:
            item.update(self._paste(item, epoch, index))
        if self.evaluates:
            item.update(original_mask=torch.from_numpy(mask), input_size=tuple(item["image"].shape[-2:]))
        return item

    def _paste(self, item: dict[str, Any], epoch: int, index: int) -> dict[str, Tensor]:
        """Pastes objects of another sample onto an item, or of none. The draws depend on (seed, epoch, index) too."""
        rng = np.random.default_rng([self.pipeline.seed, epoch, index, 1])
        if rng.random() >= self.copy_paste or len(self) == 1:
            return {}
        other = (index + int(rng.integers(1, len(self)))) % len(self)
        image, mask = self.stored(other)
        with _name_file_in_errors(self.samples[other].image, image):
            source = self.pipeline.transform(image, mask, epoch, index, stream=2)
        if source["image"].dtype != item["image"].dtype:  # of a transform that changes the type of some images
            return paste_objects(normalise_batch(item), normalise_batch(source), rng)
        return paste_objects(item, source, rng)

    def _next_epoch(self, index: int) -> int:
        """A number that differs each time that an index is read, and follows from torch's seed and the loader."""
        times = self._times_read.get(index, 0)
        self._times_read[index] = times + 1
        worker = get_worker_info()  # a worker process forgets the count, but gets another seed in each epoch
        return times if worker is None else times + worker.seed - worker.id

    def stored(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The image, RGB uint8 [H, W, 3], and the labels, uint8 [H, W], of a sample before the transforms."""
        if self.arrays:
            return self.arrays[index]
        return read_sample(self.samples[index], self.masks, self.images)


class PredictionDataset(Dataset):
    """Images without masks.

    An item is ``{"image": uint8 [3, h, w], "path": str, "original_size": (H, W), "input_size": (h, w)}``. An image
    that cannot be read or transformed gives ``{"unreadable": message}`` instead, so that prediction continues with the
    others. The index None, with which samplers pad, gives an empty item.

    Args:
        paths: the image files.
        pipeline: transforms every image.
        images: reads the images; None: ``ImageReader()``.
    """

    def __init__(self, paths: Sequence[Path], pipeline: Pipeline, images: ImageReader | None = None) -> None:
        self.paths, self.pipeline, self.images = paths, pipeline, images or ImageReader()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: int | tuple[int, int | None]) -> dict[str, Any]:
        index = key if isinstance(key, int) else key[1]
        if index is None:
            return {}
        path = self.paths[index]
        try:
            image = self.images.read(path)
            with _name_file_in_errors(path, image):
                item: dict[str, Any] = dict(self.pipeline.transform(image, index=index))
        except VocsegError as error:
            return {"unreadable": str(error)}
        item.update(path=str(path), original_size=image.shape[:2], input_size=tuple(item["image"].shape[-2:]))
        return item


class EpochSampler(DistributedSampler):
    """Yields the ``(epoch, index)`` keys of one process.

    Lightning calls ``set_epoch`` before each epoch. Where nobody does, each pass over the training samples is an epoch.

    The base class is ``DistributedSampler`` because Lightning replaces any other sampler with one that repeats samples.
    All processes yield equally many keys. In evaluation no sample is repeated: shorter processes are padded with
    ``(epoch, None)``. In training every step needs one batch from each process, so the remainder that the processes do
    not divide is dropped.

    Args:
        dataset: a dataset with a length.
        seed: with the epoch it determines the shuffled order.
        shuffle: shuffle every epoch and drop the remainder; False: the indices in order, padded.
        rank: this process, counted from 0.
        world_size: the number of processes. Their n-th batches together are the n-th batch of a single process with
            ``world_size`` times the batch size.
    """

    def __init__(self, dataset: Dataset, seed: int, shuffle: bool, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(dataset, num_replicas=world_size, rank=rank, shuffle=shuffle, seed=seed)
        self.start = 0
        self._epoch_used = False
        self._dataset_size = len(dataset)  # type: ignore[arg-type]  # torch's Dataset declares no __len__

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next pass."""
        super().set_epoch(epoch)
        self._epoch_used = False

    def __len__(self) -> int:
        keys = self._dataset_size / self.num_replicas
        return max(math.floor(keys), 1) if self.shuffle else math.ceil(keys)

    def __iter__(self) -> Iterator[tuple[int, int | None]]:
        if self._epoch_used and self.shuffle:
            self.epoch += 1
        self._epoch_used = True
        order = np.arange(self._dataset_size)
        if self.shuffle:
            np.random.default_rng([self.seed, self.epoch]).shuffle(order)
        indices: list[int | None] = [int(index) for index in order]
        if self.shuffle and len(indices) < self.num_replicas:
            indices = [indices[rank % len(indices)] for rank in range(self.num_replicas)]
        own = indices[self.rank :: self.num_replicas][: len(self)]
        own += [None] * (len(self) - len(own))
        start, self.start = self.start, 0
        return iter([(self.epoch, index) for index in own[start:]])


class ResumableLoader(DataLoader):
    """A loader over an ``EpochSampler`` that can resume inside an epoch."""

    _yielded = 0
    _resumed: Mapping[str, int] = {}

    def state_dict(self) -> dict[str, int]:
        """Returns the current epoch, how many of its batches were yielded, and what a batch is."""
        epoch = getattr(self.sampler, "epoch", 0)
        return {"epoch": epoch, "batches": self._yielded, "of": len(self), **self._batch()}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Makes the next iteration skip the batches already yielded, if it is an iteration of the same epoch.

        Raises:
            VocsegError: the epoch is not complete, and its other batches would be of another size.
        """
        before = {name: state_dict.get(name, value) for name, value in self._batch().items()}
        if before != self._batch() and 0 < state_dict["batches"] < state_dict.get("of", 0):
            sizes = [
                f"{each['batch_size']} images in {each['processes']} processes" for each in (before, self._batch())
            ]
            raise VocsegError(
                f"The checkpoint was saved inside an epoch, with batches of {sizes[0]}; now they have {sizes[1]}."
                " Resume with the same until the epoch ends, or start from the best checkpoint."
            )
        self._resumed = dict(state_dict)

    def _batch(self) -> dict[str, int]:
        return {"batch_size": self.batch_size or 1, "processes": getattr(self.sampler, "num_replicas", 1)}

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator, to count the batches
        self._yielded = 0
        resumed, self._resumed = self._resumed, {}
        # A generator runs this when the first batch is requested: by then Lightning has set the epoch, and has replaced
        # the sampler if overfit_batches is set.
        if resumed and isinstance(self.sampler, EpochSampler) and resumed["epoch"] == self.sampler.epoch:
            self._yielded = resumed["batches"]
            self.sampler.start = resumed["batches"] * (self.batch_size or 1)
        for batch in super().__iter__():
            self._yielded += 1
            yield batch


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Builds a batch. Images of different sizes are padded on the right and at the bottom, their masks with void.

    Empty items are left out. The messages of unreadable items are listed under ``unreadable``. A batch without any
    image has ``image`` [0, 3, 1, 1] and ``mask`` [0, 1, 1]. Images of uint8 are in torch's channels-last memory format.
    """
    unreadable = [item["unreadable"] for item in items if "unreadable" in item]
    items = [item for item in items if "image" in item]
    if not items:
        empty = torch.empty(0, 3, 1, 1, dtype=torch.uint8)
        return {"image": empty, "mask": empty[:, 0], "path": [], "unreadable": unreadable}
    if len({item["image"].dtype for item in items}) > 1:  # of a transform that changes the type of some images
        items = [normalise_batch(item) for item in items]
    # stacked as they lie in memory, the channels last
    images = _stack([item["image"].permute(1, 2, 0) for item in items], 0)
    batch: dict[str, Any] = {"image": images.permute(0, 3, 1, 2)}
    if "mask" in items[0]:
        batch["mask"] = _stack([item["mask"] for item in items], VOID)
    for key in ("index", "input_size", "original_size"):
        if key in items[0]:
            batch[key] = torch.tensor([item[key] for item in items])
    for key in ("original_mask", "path"):
        if key in items[0]:
            batch[key] = [item[key] for item in items]
    if "path" in batch:
        batch["unreadable"] = unreadable
    return batch


def prepare_worker(_worker: int) -> None:
    """Sets up a loader's worker process; a ``worker_init_fn``.

    OpenCV uses one thread, as the workers already run in parallel. Ctrl-C and SIGTERM, which terminals and schedulers
    send to every process of a run, are left to the main process. Only a SIGTERM that the main process sends ends the
    worker: Python sends it on exit to workers that are still waiting.
    """
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None and hasattr(signal, "sigwaitinfo"):  # macOS has no sigwaitinfo
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_sigterm_from, args=[parent.pid], daemon=True).start()


@contextmanager
def _name_file_in_errors(path: Path, image: np.ndarray) -> Iterator[None]:
    """Turns an exception of the transforms into a VocsegError that names the image file."""
    try:
        yield
    except Exception as error:  # OpenCV and albumentations raise many kinds
        height, width = image.shape[:2]
        reason = " ".join(str(error).split())
        raise VocsegError(f"The transforms cannot handle {path} ({width}x{height}): {reason}") from error


def _exit_on_sigterm_from(pid: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != pid:
        pass
    os._exit(0)


def _stack(tensors: Sequence[Tensor], fill: int) -> Tensor:
    """Stacks tensors [h_i, w_i, ...]; where one is smaller than the largest it is padded with ``fill``."""
    height, width = (max(tensor.shape[side] for tensor in tensors) for side in (0, 1))
    if all(tensor.shape[:2] == (height, width) for tensor in tensors):
        return torch.stack(list(tensors))
    stacked = tensors[0].new_full((len(tensors), height, width, *tensors[0].shape[2:]), fill)
    for target, tensor in zip(stacked, tensors, strict=True):
        target[: tensor.shape[0], : tensor.shape[1]] = tensor
    return stacked
