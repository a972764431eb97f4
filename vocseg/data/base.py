"""SegmentationDataModule: samples on disk -> batches. Its children only say where the samples are."""

from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from vocseg.cores import default_workers
from vocseg.data.check_cache import check_samples_once
from vocseg.data.checks import check_labels
from vocseg.data.classes import check_class_names
from vocseg.data.datasets import (
    EpochSampler,
    PredictionDataset,
    ResumableLoader,
    SegmentationDataset,
    collate,
    prepare_worker,
)
from vocseg.data.files import CheckedSample, Sample
from vocseg.data.images import ImageReader
from vocseg.data.labels import VOID
from vocseg.data.lists import find_images, first_images
from vocseg.data.masks import MaskReader
from vocseg.data.transforms import (
    EVAL_PIPELINES,
    TRAIN_PIPELINES,
    Pipeline,
    check_only_resizes,
    make_transforms,
    normalise_batch,
    to_pixels,
    transform_to_config,
)
from vocseg.errors import VocsegError, check_choice

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# not list[Any]: jsonargparse would build any class that an untrusted config or checkpoint names
Transforms = str | list[str | dict]
Loader = TypeVar("Loader", bound=DataLoader)


class SegmentationDataModule(L.LightningDataModule):
    """Batches, loaders, random draws and checks of any segmentation data on disk.

    A child implements :meth:`samples`, and passes the settings below on to this constructor.

    The loaders give images and masks as uint8, and :meth:`on_after_batch_transfer`, which Lightning calls, normalises a
    batch on its device. A loop of your own calls it too: ``batch = datamodule.on_after_batch_transfer(batch, 0)``.

    The batches are then dictionaries:

    - Training: ``image`` float32 [B, 3, h, w], ``mask`` int64 [B, h, w] with 255 = void, and ``index`` int64 [B], the
      indices of the samples in the split's list.
    - Evaluation: also ``original_mask``, a list of uint8 [H_i, W_i] in the files' sizes, and ``input_size`` int64
      [B, 2], height and width before padding. Images of different sizes are padded on the right and at the bottom.
    - Prediction: ``image``, ``input_size``, ``original_size`` int64 [B, 2], ``path`` (list of str), and ``unreadable``,
      a list of messages about images that cannot be read.

    Several processes divide every split among them without repeating a sample, so an evaluation batch of one process
    may have no image.

    Attributes:
        mask_reader: how mask files become labels.
        image_reader: how image files become RGB.

    Args:
        class_names: one name per label.
        image_size: height and width of the network's input in pixels, or one number for both.
        batch_size: images per batch and process.
        num_workers: worker processes that load data; None: a quarter of the CPU cores, with a GPU all, at most 8; see
            :func:`vocseg.cores.default_workers`.
        train_transforms: the name of a pipeline (resize, flip, flip_both, affine, crop, paper, jitter,
            jitter_strong; see ``TRAIN_PIPELINES``) or a list of albumentations transforms.
        eval_transforms: the name of a pipeline (resize, keep_ratio) or a list of albumentations transforms that only
            resize and change colours.
        void_trains_as: in training, void pixels are ``ignored`` or have the label 0 (``background``). Pixels that a
            transform adds are always ignored. Scores ignore void in either case.
        in_memory: keep the decoded images in memory (0.7 MB per VOC image).
        seed: the seed of all random draws of the data. Transforms depend on (seed, epoch, index), the order of the
            training samples depends on (seed, epoch).
        train_images: train with only so many images of the training list, chosen at random from their names and
            ``split_seed``. The 20 images of ``train_images=20`` are among the 50 of ``train_images=50``.
        split_seed: the seed of the images that ``train_images`` and ``val_share`` choose. It is not ``seed``, so that
            runs of different seeds train and validate on the same images.
        predict_path: for prediction: an image, a folder of images, a glob pattern, a text file with one path per line,
            or a list of these.
        recursive: predict also the images in the folders below a folder.
        labels: what the values of mask files mean where they are not labels, for example ``{255: defect}`` for masks of
            0 and 255, or ``{1: cat, 2: dog}`` for masks that count from 1: a class name, a label, or ``void``. Other
            values keep their meaning: a label, and 255 is void. Palette masks are then read by index.
        colours: red, green and blue (0 to 255) of the classes in masks with colours, for example
            ``{defect: [255, 0, 0]}``; ``void`` may have a colour too. None: VOC's palette.
        ignore_classes: names of classes whose pixels become void. They stay in ``class_names``.
        bit_depth: the bits that deep images really use, for example 12 where 16-bit files hold 0 to 4095. None: all
            bits; floats must lie in 0 to 1.
        exif_rotation: rotate images as their EXIF orientation says. Give false if the masks were drawn on the pixels as
            stored. Only different sizes reveal a wrong setting: a square image, or one that EXIF rotates by 180 degrees
            or flips, fits its mask either way.
        copy_paste: the probability with which objects of another training image are pasted onto a training image: all
            pixels of half of its classes (see :func:`vocseg.data.copy_paste.paste_objects`). The label 0 counts as
            background. A band of 3 pixels around them is void and ignored, also if ``void_trains_as`` is
            ``background``. ``train_transforms`` must give every image the same size, as all named pipelines do.

    Raises:
        VocsegError: a setting or a file is not usable; the message says how to mend it.
    """

    has_default_classes = False
    """Whether the class names are a default that neither the user nor a file of the data gave."""

    def __init__(
        self,
        class_names: Sequence[str],
        image_size: int | tuple[int, int] = 224,
        batch_size: int = 16,
        num_workers: int | None = None,
        train_transforms: Transforms = "resize",
        eval_transforms: Transforms = "resize",
        void_trains_as: Literal["ignored", "background"] = "ignored",
        in_memory: bool = False,
        seed: int = 0,
        train_images: int | None = None,
        split_seed: int = 0,
        predict_path: str | list[str] | None = None,
        recursive: bool = False,
        labels: dict[int, str | int] | None = None,
        colours: dict[str, list[int]] | None = None,
        ignore_classes: list[str] | None = None,
        bit_depth: int | None = None,
        exif_rotation: bool = True,
        copy_paste: float = 0.0,
    ) -> None:
        super().__init__()
        self.class_names = check_class_names(class_names)
        self.mask_reader = MaskReader.from_settings(
            self.class_names, labels, colours, ignore_classes or (), exif_rotation
        )
        self.image_reader = ImageReader(bit_depth, exif_rotation)
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.image_size = (height, width)
        if min(self.image_size) < 1 or batch_size < 1:
            raise VocsegError(f"image_size and batch_size must be at least 1, got {image_size} and {batch_size}.")
        self.batch_size = batch_size
        self.num_workers = default_workers() if num_workers is None else num_workers
        self._chooses_workers = num_workers is None
        self.train_transforms = make_transforms(train_transforms, TRAIN_PIPELINES, self.image_size, "train_transforms")
        self.eval_transforms = make_transforms(eval_transforms, EVAL_PIPELINES, self.image_size, "eval_transforms")
        check_choice("void_trains_as", void_trains_as, ("ignored", "background"))
        self.void_trains_as = void_trains_as
        if not 0 <= copy_paste <= 1:
            raise VocsegError(f"copy_paste is a probability and must be in 0 to 1, got {copy_paste}.")
        self.copy_paste = copy_paste
        self.in_memory, self.seed = in_memory, seed
        self.train_images, self.split_seed = train_images, split_seed
        self.predict_path, self.recursive = predict_path, recursive
        self.save_hyperparameters(
            {
                "class_names": self.class_names,
                "image_size": list(self.image_size),
                "batch_size": batch_size,
                "num_workers": num_workers,
                "train_transforms": _transforms_to_setting(train_transforms, self.train_transforms),
                "eval_transforms": _transforms_to_setting(eval_transforms, self.eval_transforms),
                "void_trains_as": void_trains_as,
                "in_memory": in_memory,
                "seed": seed,
                "train_images": train_images,
                "split_seed": split_seed,
                "labels": None if labels is None else dict(labels),
                "colours": None if colours is None else {name: list(colour) for name, colour in colours.items()},
                "ignore_classes": ignore_classes,
                "bit_depth": bit_depth,
                "exif_rotation": exif_rotation,
                "copy_paste": copy_paste,
            }
        )
        self.datasets: dict[str, SegmentationDataset | PredictionDataset] = {}
        self._train_loader: ResumableLoader | None = None
        self._position: dict[str, int] = {}

    def samples(self, role: str) -> list[Sample]:
        """The samples of a role (train, val, test), in the order of their list.

        Raises:
            VocsegError: there are none; the message says where they were looked for.
        """
        raise TypeError(f"{type(self).__name__} must implement samples(role) -> list of Sample")

    def used_samples(self, role: str) -> list[Sample]:
        """The samples of a role that are used: all, or for training the number that ``train_images`` says."""
        samples = self.samples(role)
        return first_images(samples, self.train_images if role == "train" else None, self.split_seed)

    def setup(self, stage: str) -> None:
        """Finds the samples that ``stage`` needs. One process per machine checks every file.

        A file is checked once, and again when it has changed; see :mod:`vocseg.data.check_cache`. With ``in_memory``
        all are read in any case.
        """
        if self._chooses_workers and self.trainer is not None:
            self.num_workers = default_workers(self.trainer.num_devices)
        if stage == "predict":
            self.datasets["predict"] = PredictionDataset(
                find_images(self.predict_path, self.recursive), self._pipeline("eval"), self.image_reader
            )
            return
        roles = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}[stage]
        check_only_resizes(self.eval_transforms)
        datasets: dict[str, SegmentationDataset] = {}
        checked: dict[str, list[CheckedSample]] = {}
        for role in roles:
            if role in self.datasets:
                continue
            samples = self.used_samples(role)
            arrays: list[tuple[np.ndarray, np.ndarray]] = []
            if self.in_memory or self.trainer is None or self.trainer.local_rank == 0:
                checked[role] = check_samples_once(samples, self.mask_reader, self.image_reader, keep=self.in_memory)
                arrays = [sample.arrays for sample in checked[role] if sample.arrays is not None]
            pipeline = self._pipeline("train" if role == "train" else "eval")
            datasets[role] = SegmentationDataset(
                samples,
                pipeline,
                role != "train",
                arrays,
                self.mask_reader,
                self.image_reader,
                self.copy_paste if role == "train" else 0.0,
                checked.get(role),
            )
        for note in check_labels(checked, self.mask_reader, default_classes=self.has_default_classes):
            rank_zero_info(f"Note: {note}")
        self.datasets.update(datasets)  # only now: data that the checks refuse is refused again

    @property
    def is_predicting(self) -> bool:
        """Whether only images without masks are needed."""
        return self.predict_path is not None and self.trainer is not None and self.trainer.predicting

    @cached_property
    def class_counts(self) -> Tensor:
        """The number of pixels of each class in the stored training masks, int64 [C], as the check of setup found it.

        Void pixels count as background if ``void_trains_as`` is ``background``, else not at all.
        """
        dataset = self.datasets["train"]
        assert isinstance(dataset, SegmentationDataset)
        counts = dataset.pixel_counts.sum(0, dtype=np.int64)
        classes = counts[:-1]
        if self.void_trains_as == "background":
            classes[0] += counts[-1]
        return torch.from_numpy(classes)

    def train_dataloader(self) -> DataLoader:
        """Returns the shuffled training batches; an incomplete last batch is dropped unless it is the only one."""
        self._train_loader = self._build_loader("train", ResumableLoader)
        self._train_loader.load_state_dict(self._position)
        return self._train_loader

    def val_dataloader(self) -> DataLoader:
        """Returns the validation batches in the order of the list."""
        return self._build_loader("val", DataLoader)

    def test_dataloader(self) -> DataLoader:
        """Returns the test batches in the order of the list."""
        return self._build_loader("test", DataLoader)

    def predict_dataloader(self) -> DataLoader:
        """Returns the prediction batches in the order of the sorted paths."""
        return self._build_loader("predict", DataLoader)

    def show(self, split: str = "train", count: int = 8, seed: int = 0, path: str | Path | None = None) -> "Figure":
        """Draws images as the network gets them, after all transforms, with their masks; needs no trainer.

        The training images are those with which a training in one process begins its epoch ``seed``, as they are drawn
        for it. They are read here, without worker processes.

        Args:
            split: train, val or test.
            count: how many images.
            seed: another number gives other images and draws.
            path: also write a PNG file.

        Returns:
            The figure. The last line of a notebook cell shows it.

        Raises:
            VocsegError: another split, a split without images, a count below 1, or the file cannot be written.
        """
        from vocseg.plots import samples_figure, save_png

        check_choice("split", split, ("train", "val", "test"))
        if count < 1 or seed < 0:
            raise VocsegError(f"count must be at least 1 and seed at least 0; got {count} and {seed}.")
        if split not in self.datasets:
            self.prepare_data()
            self.setup({"train": "fit", "val": "validate", "test": "test"}[split])
        dataset = self.datasets[split]
        assert isinstance(dataset, SegmentationDataset)
        if not len(dataset):
            raise VocsegError(f"The split {split} has no images.")
        sampler = EpochSampler(dataset, self.seed, shuffle=True)
        sampler.set_epoch(seed)
        items = [dataset[key] for key in islice(sampler, count)]
        images = [(to_pixels(item["image"]), item["mask"].numpy().astype(np.uint8)) for item in items]
        names = [dataset.samples[item["index"]].image.stem for item in items]
        figure = samples_figure(images, names, self.class_names)
        if path is not None:
            try:
                save_png(figure, Path(path).expanduser())
            except OSError as error:
                raise VocsegError(f"{path} cannot be written: {error.strerror or error}.") from error
        return figure

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Normalises the images of a batch, and makes its masks int64; both are uint8 in the loaders.

        Batches of other types, from a loader of a child's own, are returned as they are.
        """
        is_ours = isinstance(batch, dict) and isinstance(batch.get("image"), Tensor)
        return normalise_batch(batch) if is_ours else batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leaves indices and sizes on the CPU: to read each from a device, the CPU would wait for it."""
        if not isinstance(batch, dict):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        kept = {name: batch[name] for name in ("index", "input_size", "original_size") if name in batch}
        moved = {name: value for name, value in batch.items() if name not in kept}
        return {**super().transfer_batch_to_device(moved, device, dataloader_idx), **kept}

    def state_dict(self) -> dict[str, int]:
        """Returns the training loader's position, with which a checkpoint can resume inside an epoch."""
        return self._train_loader.state_dict() if self._train_loader is not None else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Makes the next training loader start at the saved position.

        Lightning restores loaders itself, but not if a schedule requested the number of batches before.
        """
        self._position = dict(state_dict)

    def _build_loader(self, role: str, loader_class: type[Loader]) -> Loader:
        trains = role == "train"
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        sampler = EpochSampler(self.datasets[role], self.seed, trains, rank, world_size)
        return loader_class(
            self.datasets[role],
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=trains and len(sampler) >= self.batch_size,
            # by default the loader draws its workers' seeds from torch's global generator, which would change its state
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


def _transforms_to_setting(transforms: Transforms, built: list[Any]) -> str | list[dict[str, Any]]:
    """Converts transforms to what a checkpoint holds: the name of a pipeline, or a list of configurations."""
    return transforms if isinstance(transforms, str) else [transform_to_config(transform) for transform in built]
