"""TensorBoard beside the scalars: mask previews, figures, both losses in one chart, HPARAMS.

Nothing of it is done when the run does not log to TensorBoard, and only rank 0 does it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from vocseg.callbacks.base import class_names_of, datamodule_of, is_fast_dev_run, labelled_images
from vocseg.data.datasets import SegmentationDataset
from vocseg.data.transforms import to_pixels
from vocseg.plots import as_array, confusion_figure, iou_figure, preview

CHARTS = {"loss": ["train/loss", "val/loss"], "mIoU": ["val/miou", "test/miou"]}
METRICS = ("val/miou", "test/miou")
FIRST_SETTINGS = ("optimizer/lr", "loss", "decoder", "backbone", "backbone/name")
PICTURES = 50
"""How many pictures of a kind a run draws: more than a page can usefully show would only grow the event file."""


class DrawingCallback(L.Callback):
    """Draws in a thread, while the training goes on; the pictures are complete when the fit, or the test, ends."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._drawing: list[Future[None]] = []

    def draw(self, writer: SummaryWriter, step: int, pictures: Callable[[], dict[str, np.ndarray]]) -> None:
        """Writes pictures, RGB uint8 [H, W, 3] by name, that the thread makes, those of earlier steps first."""

        def write() -> None:
            for name, picture in pictures().items():
                writer.add_image(name, picture, step, dataformats="HWC")

        self._thread = self._thread or ThreadPoolExecutor(1, type(self).__name__)
        self._drawing.append(self._thread.submit(write))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Waits for the pictures. One that cannot be drawn is a warning: the training is worth more than a picture."""
        if self._thread is not None:
            self._thread.shutdown()
        for error in [error for future in self._drawing if (error := future.exception()) is not None]:
            rank_zero_warn(f"{type(self).__name__} could not draw: {type(error).__name__}: {error}")
        self._thread, self._drawing = None, []

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Waits as well: the writer is closed next."""
        self.teardown(trainer, pl_module, "exception")


class Charts(L.Callback):
    """Puts training and validation loss in one chart (Custom Scalars) and the run's settings into HPARAMS.

    TensorBoard gives a chart one colour per run; the losses of a run differ by the marks on their lines.

    Both metrics of HPARAMS are declared when the fit starts and no value is written for them: TensorBoard shows the
    last ones logged, those of a later ``test`` in the same folder included.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the layout and the settings."""
        writer = writer_of(trainer)
        if writer is None:
            return
        writer.add_custom_scalars({"vocseg": {title: ["Multiline", tags] for title, tags in CHARTS.items()}})
        summaries = hparams(settings_of(trainer, pl_module), dict.fromkeys(METRICS, 0.0))
        _show_first(summaries[0], FIRST_SETTINGS)
        for summary in summaries:
            if writer.file_writer is not None:  # open, between two closings of the writer
                writer.file_writer.add_summary(summary)


class MaskPreviews(DrawingCallback):
    """Draws the same few validation images after each validation: image, truth, prediction, errors.

    Each image is a picture of its own, ``val/preview_1`` and so on.

    From a :class:`vocseg.data.datasets.SegmentationDataset` those that together show the most classes; from other data
    the first of the split.

    Args:
        images: how many; 0 for none.
        every_n_epochs: only after every n-th epoch, and after ``validate``; 0 for never; None: about 50 times a run.
    """

    def __init__(self, images: int = 4, every_n_epochs: int | None = None) -> None:
        super().__init__()
        self.images, self.every_n_epochs = images, every_n_epochs
        self._wanted: list[int] | None = None
        self._drawn: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the images of a batch that are to be drawn."""
        if not self._due(trainer):
            return
        if self._wanted is None:
            self._wanted = self._choose(trainer)
        for index, position, prediction in labelled_images(outputs, self._wanted):
            image, truth = _image_and_truth(trainer, batch, position, index)
            self._drawn[index] = (image, truth, prediction)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws them."""
        if not self._drawn:
            return
        kept, names = [self._drawn[index] for index in sorted(self._drawn)], class_names_of(pl_module)
        self._drawn = {}
        writer = writer_of(trainer)
        if writer is not None:
            self.draw(
                writer,
                steps_of(pl_module),
                lambda: {f"val/preview_{number}": preview(*each, names) for number, each in enumerate(kept, start=1)},
            )

    def _due(self, trainer: L.Trainer) -> bool:
        return self.images > 0 and draws_now(trainer, self.every_n_epochs)

    def _choose(self, trainer: L.Trainer) -> list[int]:
        dataset = _dataset(trainer)
        if dataset is None:
            return list(range(self.images))
        counts = dataset.pixel_counts
        return covering(counts[:, :-1] / counts.sum(1, keepdims=True), self.images)


class ScoreFigures(DrawingCallback):
    """Draws the confusion matrix and each class's IoU after validation and test.

    Args:
        every_n_epochs: only after every n-th epoch, and after ``validate`` and ``test``; 0 for never; None: about 50
            times a run.
    """

    def __init__(self, every_n_epochs: int | None = None) -> None:
        super().__init__()
        self.every_n_epochs = every_n_epochs

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws those of ``val``."""
        self._draw(trainer, pl_module, "val")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws those of ``test``."""
        self._draw(trainer, pl_module, "test")

    def _draw(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        writer, result = writer_of(trainer), getattr(pl_module, "results", {}).get(stage)
        if writer is None or result is None or not draws_now(trainer, self.every_n_epochs):
            return
        # worker processes may be forked while the thread draws: no import may be under way then
        import matplotlib.backends.backend_agg  # noqa: F401

        names, miou = class_names_of(pl_module), f"mIoU {result.miou:.4f}"

        def pictures() -> dict[str, np.ndarray]:
            return {
                f"{stage}/confusion": as_array(confusion_figure(result.matrices.total(), names), dpi=80),
                f"{stage}/iou": as_array(iou_figure({stage: result.iou}, names, miou), dpi=80),
            }

        self.draw(writer, steps_of(pl_module), pictures)


def draws_now(trainer: L.Trainer, every_n_epochs: int | None) -> bool:
    """Whether this validation, or test, draws pictures.

    Args:
        trainer: the trainer.
        every_n_epochs: 0: never; None: about 50 times a run, which bounds the size of the event file.
    """
    if every_n_epochs == 0 or trainer.sanity_checking or writer_of(trainer) is None:
        return False
    if trainer.state.fn != "fit":
        return True
    if every_n_epochs is None:
        between = trainer.check_val_every_n_epoch or 1
        every_n_epochs = between * max(math.ceil((trainer.max_epochs or 0) / between / PICTURES), 1)
    return (trainer.current_epoch + 1) % every_n_epochs == 0


def writer_of(trainer: L.Trainer) -> SummaryWriter | None:
    """The TensorBoard writer of rank 0, if the run logs to TensorBoard."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    return loggers[0].experiment if loggers and trainer.is_global_zero and not is_fast_dev_run(trainer) else None


def steps_of(pl_module: L.LightningModule) -> int:
    """The step under which Lightning logs what follows the training steps so far."""
    return max(int(getattr(pl_module, "trained_steps", pl_module.global_step)) - 1, 0)


def covering(shares: np.ndarray, count: int) -> list[int]:
    """Chooses images that together show many classes, each image the one that adds most.

    Args:
        shares: [N, C], the share of each image's pixels that belongs to each class; class 0 does not count.
        count: how many to choose.

    Returns:
        At most ``count`` indices among the N, ascending.
    """
    worth = np.sqrt(shares[:, 1:])  # a second class is worth more than more of the first
    best = np.zeros(worth.shape[1])
    chosen: list[int] = []
    while len(chosen) < min(count, len(shares)):
        gains = np.maximum(worth, best).sum(1) - best.sum()
        gains[chosen] = -1
        chosen.append(int(gains.argmax()))
        best = np.maximum(best, worth[chosen[-1]])
    return sorted(chosen)


def settings_of(trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
    """The settings that distinguish runs, as one flat mapping of numbers and text."""
    data = dict(getattr(datamodule_of(trainer), "hparams", None) or {})
    chosen: dict[str, Any] = {}
    for role in ("backbone", "decoder", "loss", "optimizer", "schedule"):
        described = pl_module.hparams.get(role) or {}
        if not isinstance(described, Mapping):  # of somebody's own LightningModule
            chosen[role] = described
            continue
        if "class_path" in described:
            chosen[role] = described["class_path"].rpartition(".")[2]
            described = described.get("init_args") or {}
        chosen |= {f"{role}/{name}": value for name, value in described.items()}
    chosen |= {name: pl_module.hparams.get(name) for name in ("backbone_lr",)}
    names = ("batch_size", "image_size", "train_transforms", "void_trains_as", "train_split", "seed")
    chosen |= {f"data/{name}": data[name] for name in names if name in data}
    chosen |= {"max_epochs": trainer.max_epochs, "precision": str(trainer.precision)}
    chosen.setdefault("loss", type(getattr(pl_module, "loss", None)).__name__)  # the default
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in chosen.items()
    }


def _show_first(declaration: Any, names: Sequence[str]) -> None:
    """Makes HPARAMS begin with these columns: it sorts by whether a setting differs between runs, then by name.

    The declaration says whether; TensorBoard does not compare runs that have one. It shows five columns at first.
    """
    plugin = declaration.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin.content)
    for info in content.experiment.hparam_infos:
        info.differs = info.name in names
    plugin.content = content.SerializeToString()


def _dataset(trainer: L.Trainer) -> SegmentationDataset | None:
    dataset = getattr(trainer.val_dataloaders, "dataset", None)
    return dataset if isinstance(dataset, SegmentationDataset) else None


def _image_and_truth(trainer: L.Trainer, batch: Any, position: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """As they are on disk; of other data the network's input with its normalisation undone."""
    dataset = _dataset(trainer)
    if dataset is not None:
        return dataset.stored(index)
    images, masks = (batch["image"], batch["mask"]) if isinstance(batch, dict) else batch
    return to_pixels(images[position]), masks[position].cpu().numpy().astype(np.uint8)
