"""PASCAL VOC as a LightningDataModule: files on disk -> batches."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vocseg.data.datasets import (
    EpochSampler,
    PredictionDataset,
    ResumableLoader,
    SegmentationDataset,
    collate,
    prepare_worker,
)
from vocseg.data.files import candidate_trees, check_samples, count_pixels, find_images, find_tree, read_split
from vocseg.data.labels import VOC_CLASSES, VOID
from vocseg.data.synthetic import SYNTHETIC_CLASSES, synthetic_root, write_tree
from vocseg.data.transforms import (
    EVAL_PIPELINES,
    TRAIN_PIPELINES,
    Pipeline,
    check_only_resizes,
    make_transforms,
    transform_to_config,
)
from vocseg.errors import VocsegError

SYNTHETIC = "synthetic"
# not list[Any]: there jsonargparse would make any class that a config, or a stranger's checkpoint, names
Transforms = str | list[str | dict]


class VOCDataModule(L.LightningDataModule):
    """VOC2007, VOC2012, a folder laid out like them, or drawn scenes to try vocseg without either.

    Training batches are ``{"image": float32 [B, 3, h, w], "mask": int64 [B, h, w], "index": int64 [B]}``, 255 = void,
    ``index`` = places in the split's list. Evaluation batches also have ``original_mask`` (list of uint8 [H_i, W_i],
    untouched) and ``input_size`` (int64 [B, 2]; images of unlike sizes are padded on the right and at the bottom).
    Prediction batches have ``image``, ``input_size``, ``original_size`` and ``path``.

    With several processes each gets its share of every split, no sample twice. Of a batch that shares do not fill, one
    process may get no image.

    Args:
        root: folder that holds ``VOCdevkit/VOC<year>``, or ``VOC<year>``, or is itself such a tree (``JPEGImages``,
            ``SegmentationClass``, ``ImageSets/Segmentation``); or ``synthetic``: scenes drawn into the user's cache.
        year: 2007 or 2012.
        download: fetch the official archive with torchvision if the tree is not there.
        class_names: one name per label, for a tree of your own; VOC's 21 (or the drawn scenes' own) if None.
        train_split: the list that trains.
        val_split: the list that validates.
        test_split: the list that tests. The masks of VOC2012's test photographs were never published.
        image_size: height and width of network inputs in pixels, or one number for both.
        batch_size: images per batch and process.
        num_workers: processes that load data; None: one per core, at most 8.
        train_transforms: the name of a pipeline (resize, flip, crop) or a list of albumentations transforms.
        eval_transforms: the name of a pipeline (resize, keep_ratio) or a list of albumentations transforms that only
            resize and change colours.
        void_trains_as: void pixels are ``ignored`` in training, or train as class 0 (``background``; the paper's course
            did so). Pixels that a transform invents are always ignored; scores ignore void in either case.
        in_memory: keep decoded images in memory (0.7 MB for one of VOC's).
        seed: of every random draw of the data; draws follow from (seed, epoch, sample), the order from (seed, epoch).
        predict_path: an image, a folder of images, or a glob, for prediction.

    Raises:
        VocsegError: settings, trees or files that cannot serve, with what to do about it.
    """

    def __init__(
        self,
        root: str = SYNTHETIC,
        year: Literal["2007", "2012"] = "2007",
        download: bool = False,
        class_names: list[str] | None = None,
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "test",
        image_size: int | tuple[int, int] = 224,
        batch_size: int = 16,
        num_workers: int | None = None,
        train_transforms: Transforms = "resize",
        eval_transforms: Transforms = "resize",
        void_trains_as: Literal["ignored", "background"] = "ignored",
        in_memory: bool = False,
        seed: int = 0,
        predict_path: str | None = None,
    ) -> None:
        super().__init__()
        self.synthetic = str(root) == SYNTHETIC
        self.root = Path(root).expanduser()
        self.year, self.download = year, download
        default_names = SYNTHETIC_CLASSES if self.synthetic else VOC_CLASSES
        self.class_names = list(class_names or default_names)
        if not 2 <= len(self.class_names) <= VOID - 1:
            raise VocsegError(f"class_names must name 2 to {VOID - 1} classes, got {len(self.class_names)}.")
        self.splits = {"train": train_split, "val": val_split, "test": test_split}
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if min(self.image_size) < 1 or batch_size < 1:
            raise VocsegError(f"image_size and batch_size must be at least 1, got {image_size} and {batch_size}.")
        self.batch_size = batch_size
        self.num_workers = min(8, os.cpu_count() or 1) if num_workers is None else num_workers
        self.train_transforms = make_transforms(train_transforms, TRAIN_PIPELINES, self.image_size, "train_transforms")
        self.eval_transforms = make_transforms(eval_transforms, EVAL_PIPELINES, self.image_size, "eval_transforms")
        self.void_trains_as = void_trains_as
        self.in_memory, self.seed = in_memory, seed
        self.predict_path = predict_path
        self.save_hyperparameters(
            {
                # absolute: a checkpoint may be used from another folder
                "root": SYNTHETIC if self.synthetic else str(self.root.resolve()),
                "year": year,
                "class_names": self.class_names,
                "train_split": train_split,
                "val_split": val_split,
                "test_split": test_split,
                "image_size": list(self.image_size),
                "batch_size": batch_size,
                "num_workers": num_workers,
                "train_transforms": _described(train_transforms, self.train_transforms),
                "eval_transforms": _described(eval_transforms, self.eval_transforms),
                "void_trains_as": void_trains_as,
                "in_memory": in_memory,
                "seed": seed,
            }
        )
        self.datasets: dict[str, Dataset] = {}
        self._train_loader: ResumableLoader | None = None
        self._position: dict[str, int] = {}

    def prepare_data(self) -> None:
        """Draws or downloads the tree if it is wanted and not there. Prediction needs no tree."""
        if self.predict_path is not None and self.trainer is not None and self.trainer.predicting:
            return
        if self.synthetic:
            write_tree(synthetic_root())
        elif self.download:
            self._download()

    def setup(self, stage: str) -> None:
        """Reads the lists that ``stage`` needs and checks every file they name, once per machine."""
        if stage == "predict":
            self.datasets["predict"] = PredictionDataset(find_images(self.predict_path), self._pipeline("eval"))
            return
        roles = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}[stage]
        tree = self.tree(roles)
        check_only_resizes(self.eval_transforms)
        for role in roles:
            if role in self.datasets:
                continue
            samples = read_split(tree, self.splits[role])
            arrays = []
            if self.in_memory or self.trainer is None or self.trainer.local_rank == 0:
                arrays = check_samples(samples, len(self.class_names), keep=self.in_memory)
            pipeline = self._pipeline("train" if role == "train" else "eval")
            self.datasets[role] = SegmentationDataset(samples, pipeline, evaluates=role != "train", arrays=arrays)

    def tree(self, roles: Sequence[str] = ("train", "val", "test")) -> Path:
        """The folder with ``JPEGImages``, ``SegmentationClass`` and ``ImageSets``.

        Args:
            roles: what is wanted of it (train, val, test); used to say early that a split cannot exist.

        Raises:
            VocsegError: it is not there or lacks a part; the message tells where it was looked for and how to get it.
        """
        root = synthetic_root() if self.synthetic else self.root
        tree = find_tree(root, self.year)
        if tree is None:
            looked = "\n".join(f"  {candidate}" for candidate in candidate_trees(root, self.year))
            raise VocsegError(
                f"There is no VOC{self.year} tree (ImageSets/Segmentation, JPEGImages, SegmentationClass) in any of\n"
                f"{looked}\n"
                "Say where it is with --data.root, or fetch it with --data.download true. To try vocseg without VOC: "
                "vocseg fit --config quickstart"
            )
        missing = [name for name in ("JPEGImages", "SegmentationClass") if not (tree / name).is_dir()]
        if missing:
            raise VocsegError(
                f"The VOC tree {tree} is incomplete: it has no folder {' and no '.join(missing)}. Unpack the archive "
                "again, or fetch it with --data.download true and another --data.root."
            )
        if self.year == "2012" and "test" in roles and self.splits["test"] == "test" and not self.synthetic:
            raise VocsegError("VOC2012's test masks were never published. Test on another split: --data.test_split val")
        return tree

    @cached_property
    def class_counts(self) -> Tensor:
        """Pixels of each class in the training split's masks as they are on disk, int64 [C]; counted once.

        Void counts where ``void_trains_as`` says so.
        """
        dataset = self.datasets["train"]
        counts = count_pixels(dataset.samples, [mask for _, mask in dataset.arrays])
        classes = counts[: len(self.class_names)]
        if self.void_trains_as == "background":
            classes[0] += counts[VOID]
        return torch.from_numpy(classes)

    def train_dataloader(self) -> DataLoader:
        """Shuffled; a last batch smaller than the others is dropped, unless it is the only one."""
        self._train_loader = self._loader("train")
        self._train_loader.load_state_dict(self._position)
        return self._train_loader

    def val_dataloader(self) -> DataLoader:
        """In the list's order."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader:
        """In the list's order."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader:
        """In the files' order."""
        return self._loader("predict")

    def state_dict(self) -> dict[str, int]:
        """How far the training split has been taken, for a checkpoint inside an epoch."""
        return self._train_loader.state_dict() if self._train_loader is not None else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Goes on from there.

        Lightning restores loaders itself, but not when a schedule has asked for their length before.
        """
        self._position = dict(state_dict)

    def _loader(self, role: str) -> DataLoader:
        trains = role == "train"
        processes = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        sampler = EpochSampler(self.datasets[role], self.seed, trains, *processes)
        return (ResumableLoader if trains else DataLoader)(
            self.datasets[role],
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=trains and len(sampler) >= self.batch_size,
            # else a loader would take its workers' seeds from torch's own generator, of which nothing depends on it
            generator=torch.Generator(),
            num_workers=self.num_workers,
            collate_fn=collate,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=prepare_worker,
            pin_memory=torch.cuda.is_available(),
        )

    def _pipeline(self, kind: Literal["train", "eval"]) -> Pipeline:
        if kind == "eval":
            return Pipeline(self.eval_transforms, len(self.class_names), self.seed)
        void_label = VOID if self.void_trains_as == "ignored" else 0
        return Pipeline(self.train_transforms, len(self.class_names), self.seed, void_label)

    def _download(self) -> None:
        from torchvision.datasets import VOCSegmentation

        for split in sorted(set(self.splits.values())):
            tree = find_tree(self.root, self.year)
            if tree is not None and (tree / "ImageSets" / "Segmentation" / f"{split}.txt").is_file():
                continue
            if self.year == "2012" and split == "test":
                continue
            try:
                VOCSegmentation(str(self.root), year=self.year, image_set=split, download=True)
            except (OSError, RuntimeError, ValueError) as error:
                raise VocsegError(
                    f"Downloading VOC{self.year} ({split}) into {self.root} failed: {error}. Check the network and the "
                    "free space, or fetch the archive by hand and unpack it there."
                ) from error


def _described(wanted: Transforms, made: list[Any]) -> str | list[dict[str, Any]]:
    return wanted if isinstance(wanted, str) else [transform_to_config(transform) for transform in made]
