"""Files -> samples -> batches."""

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2  # albumentations' own dependency
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from vocseg.data.files import Sample, read_image, read_sample
from vocseg.data.labels import VOID
from vocseg.data.transforms import Pipeline
from vocseg.errors import VocsegError


class SegmentationDataset(Dataset):
    """Samples of a split, indexed by ``(epoch, place in the list)``: the random draws follow from both.

    The place None, with which samplers fill up a process's share, gives an item that no batch will hold.

    Args:
        samples: the files.
        pipeline: applied to each.
        evaluates: add ``original_mask`` and ``input_size``.
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

    def __getitem__(self, key: int | tuple[int, int | None]) -> dict[str, Any]:
        epoch, index = (0, key) if isinstance(key, int) else key
        if index is None:
            return {}
        if self.arrays:
            image, mask = self.arrays[index]
        else:
            image, mask = read_sample(self.samples[index], self.pipeline.num_classes)
        with _naming(self.samples[index].image, image):
            item = {**self.pipeline(image, mask, epoch=epoch, index=index), "index": index}
        if self.evaluates:
            item.update(original_mask=torch.from_numpy(mask), input_size=tuple(item["image"].shape[-2:]))
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

    def __getitem__(self, key: int | tuple[int, int | None]) -> dict[str, Any]:
        index = key if isinstance(key, int) else key[1]
        if index is None:
            return {}
        try:
            image = read_image(self.paths[index])
            with _naming(self.paths[index], image):
                item = self.pipeline(image, index=index)
        except VocsegError as error:
            return {"unreadable": str(error)}  # the others shall have their masks
        item.update(
            path=str(self.paths[index]), original_size=image.shape[:2], input_size=tuple(item["image"].shape[-2:])
        )
        return item


class EpochSampler(DistributedSampler):
    """Yields ``(epoch, index)``, the share of one process; Lightning calls :meth:`set_epoch` before each epoch.

    It is a ``DistributedSampler`` so that Lightning does not put its own in its place, which counts some samples twice.
    Here all processes get equally many as well, but the last are ``(epoch, None)``, which no batch will hold. In
    training, where a step of one process needs one of each other, the few that are left over sit out instead.

    Args:
        dataset: what is sampled.
        seed: the order of an epoch follows from (seed, epoch).
        shuffle: draw a new order for each epoch and drop what does not divide; False: 0, 1, 2, ...
        rank: which process this is.
        world: how many there are. Their n-th batches make up the n-th batch of a single process.
    """

    def __init__(self, dataset: Dataset, seed: int, shuffle: bool, rank: int = 0, world: int = 1) -> None:
        super().__init__(dataset, num_replicas=world, rank=rank, shuffle=shuffle, seed=seed)
        self.start = 0

    def __len__(self) -> int:
        share = len(self.dataset) / self.num_replicas
        return max(math.floor(share), 1) if self.shuffle else math.ceil(share)

    def __iter__(self) -> Iterator[tuple[int, int | None]]:
        order = np.arange(len(self.dataset))
        if self.shuffle:
            np.random.default_rng([self.seed, self.epoch]).shuffle(order)
        places: list[int | None] = [int(index) for index in order]
        if self.shuffle and len(places) < self.num_replicas:
            places = [places[place % len(places)] for place in range(self.num_replicas)]
        share = places[self.rank :: self.num_replicas][: len(self)]
        share += [None] * (len(self) - len(share))
        start, self.start = self.start, 0
        return iter([(self.epoch, place) for place in share[start:]])


class ResumableLoader(DataLoader):
    """A loader over an :class:`EpochSampler` that can go on inside an epoch."""

    _yielded = 0
    _resumed: Mapping[str, int] = {}

    def state_dict(self) -> dict[str, int]:
        """How many batches of which epoch have been taken."""
        return {"epoch": getattr(self.sampler, "epoch", 0), "batches": self._yielded}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Leaves those batches out, if the next epoch to be drawn is that epoch."""
        self._resumed = dict(state_dict)

    def __iter__(self) -> Iterator[Any]:
        self._yielded = 0
        resumed, self._resumed = self._resumed, {}
        # this part of a generator runs when its first batch is asked for: by then Lightning has set the epoch
        # (and with overfit_batches it has put a sampler without epochs in the place of ours)
        if resumed and resumed["epoch"] == getattr(self.sampler, "epoch", None):
            self._yielded = resumed["batches"]
            self.sampler.start = resumed["batches"] * self.batch_size
        for batch in super().__iter__():
            self._yielded += 1
            yield batch


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Makes a batch; images and masks of unlike sizes are padded on the right and at the bottom (masks with void).

    Items that could not be read leave their message under ``unreadable`` and are not among the images, which may then
    be none.
    """
    unreadable = [item["unreadable"] for item in items if "unreadable" in item]
    items = [item for item in items if "image" in item]
    if not items:
        nothing = {"image": torch.empty(0, 3, 1, 1), "mask": torch.empty(0, 1, 1, dtype=torch.int64)}
        return {**nothing, "path": [], "unreadable": unreadable}
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


def prepare_worker(_worker: int) -> None:
    """For ``worker_init_fn``: one thread, for the workers are the parallelism, and no ear for strangers' signals.

    Terminals and schedulers send Ctrl-C and SIGTERM to all processes of a run; it is for the main one to end it well.
    A SIGTERM of the main process itself, which is sent to workers still waiting when Python exits, ends the worker.
    """
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with, args=[multiprocessing.parent_process().pid], daemon=True).start()


@contextmanager
def _naming(path: Path, image: np.ndarray) -> Iterator[None]:
    """Says of which photograph the transforms made nothing."""
    try:
        yield
    except Exception as error:  # OpenCV's and albumentations' own, of many kinds
        height, width = image.shape[:2]
        reason = " ".join(str(error).split())
        raise VocsegError(f"The transforms cannot handle {path} ({width}x{height}): {reason}") from error


def _end_with(main: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main:
        pass
    os._exit(0)


def _pad(tensor: Tensor, height: int, width: int, value: float) -> Tensor:
    return torch.nn.functional.pad(tensor, (0, width - tensor.shape[-1], 0, height - tensor.shape[-2]), value=value)
