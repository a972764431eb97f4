"""Writers of predictions: palette PNG files, overlays, probabilities, and pages that show them all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BasePredictionWriter

from vocseg.callbacks.base import (
    check_in_all_processes,
    class_names_of,
    datamodule_of,
    labelled_images,
    owned_test_files,
    run_folder_of,
    test_samples_of,
    to_arrays,
)
from vocseg.errors import VocsegError
from vocseg.metrics import all_gather_objects
from vocseg.prediction_files import PredictionFiles
from vocseg.run_folder import RunFolder
from vocseg.saving import sample_names, write_mask


class PredictionWriter(BasePredictionWriter):
    """Writes each image's label map as a palette PNG at the image's own size, as VOC's masks are, and pictures of it.

    ``<folder>/<name>.png`` is the mask, ``overlays/<name>.jpg`` the image with the mask's colours over it, and
    ``probabilities/<name>.npz`` the class probabilities. ``index.html`` shows them all, with small images from
    ``thumbnails``; from 500 images on it continues in ``index_2.html``, ... The name is the image's path relative to
    the given folder, without its ending. Only files that an earlier prediction wrote are replaced.

    Predictions are written as they come. ``trainer.predict`` also returns them all, and so keeps them in memory, unless
    it is called with ``return_predictions=False``, as ``vocseg predict`` does.

    Args:
        output_dir: folder to write; ``predictions`` in the run's folder if None.
        overlays: write overlays.
        probabilities: write probabilities, float16 [C, H, W] under ``probabilities``, with ``class_names``.
        contact_sheet: write ``index.html`` and the thumbnails.
    """

    def __init__(
        self,
        output_dir: str | None = None,
        overlays: bool = True,
        probabilities: bool = False,
        contact_sheet: bool = True,
    ) -> None:
        super().__init__(write_interval="batch")
        self.output_dir = output_dir
        self.overlays, self.probabilities, self.contact_sheet = overlays, probabilities, contact_sheet
        self.folder = Path(output_dir or "predictions").expanduser()
        self.written: dict[str, str] = {}
        self.unreadable: list[str] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Chooses the folder and the files' names; asks the task for probabilities where they are wanted.

        Raises:
            VocsegError: a file of another origin has the name of one that would be written.
        """
        if stage != "predict":
            return
        pl_module.predict_probabilities = self.probabilities  # type: ignore[assignment]  # a flag of the task
        if self.output_dir is None:
            self.folder = (run_folder_of(trainer) or RunFolder(Path(trainer.default_root_dir))).predictions
        data = datamodule_of(trainer)
        paths = getattr(getattr(data, "datasets", {}).get("predict"), "paths", None)
        if paths is None:
            raise VocsegError("PredictionWriter needs a data module with images to predict, such as VOCDataModule.")
        self._files = PredictionFiles(
            self.folder,
            paths,
            getattr(data, "predict_path", None),
            overlays=self.overlays,
            probabilities=self.probabilities,
            contact_sheet=self.contact_sheet,
            reader=getattr(data, "image_reader", None),
            rank=getattr(trainer, "global_rank", 0),
        )
        check_in_all_processes(self._files.owned, self._files.paths, paths)

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Writes one batch."""
        self.unreadable += batch["unreadable"]
        # probabilities one image at a time: a second copy of a whole batch may not fit into the device's memory
        probabilities = prediction if self.probabilities else [None] * len(prediction)
        maps = to_arrays([each.argmax(0) for each in prediction] if self.probabilities else prediction)
        for path, labels, scores in zip(batch["path"], maps, probabilities, strict=True):
            array = None if scores is None else scores.cpu().numpy()
            self._files.write(path, labels, class_names_of(pl_module), array)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Collects the other processes' results; rank 0 writes the pages."""
        shares = all_gather_objects((self._files.written, self.unreadable, self._files.shown))
        self.written = {name: path for written, _, _ in shares for name, path in written.items()}
        self.unreadable = sorted(problem for _, problems, _ in shares for problem in problems)
        shown = [one for _, _, some in shares for one in some]
        if self.contact_sheet and shown and trainer.is_global_zero:
            checkpoint = Path(getattr(trainer, "ckpt_path", None) or "")
            name = "/".join(checkpoint.parts[-4:])  # <name>/version_N/checkpoints/best.ckpt
            self._files.write_pages(shown, class_names_of(pl_module), name, self.unreadable)


class TestMasks(L.Callback):
    """Writes the predicted mask of each test image, ``<run folder>/test_masks/<name>.png``.

    The name is the image's entry in the split's list, which may have folders in it. VOC's evaluation server takes these
    files, and a report shows some of them.
    """

    __test__ = False  # pytest: this is not a test

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Deletes the masks of an earlier test, which may have been of another split.

        Raises:
            VocsegError: a file of another origin has the name of one that would be written.
        """
        self._paths: list[Path] = []
        folder, owned = run_folder_of(trainer), owned_test_files(trainer)
        if folder is None or owned is None:
            return
        self._owned = owned
        self._paths = [folder.test_masks / f"{name}.png" for name in sample_names(test_samples_of(trainer))]
        check_in_all_processes(owned, self._paths)
        if trainer.is_global_zero:
            owned.delete_own(folder.test_masks)
        trainer.strategy.barrier("earlier test masks are deleted")

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes one batch's."""
        for index, _, labels in labelled_images(outputs) if self._paths else ():
            write_mask(self._paths[index], labels, self._owned.write)
