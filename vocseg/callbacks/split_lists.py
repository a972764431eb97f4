"""The lists of the images that a run trains and validates on."""

import lightning as L

from vocseg.callbacks.base import datamodule_of, run_folder_of
from vocseg.saving import write_text


class SplitLists(L.Callback):
    """Writes ``train.txt`` and ``val.txt`` into the run's folder: one name per line, as in VOC's lists.

    With ``val_share`` or ``train_images`` no other file says which images were chosen. Data without named samples has
    no such lists.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the lists when a fit begins; a resumed one has the same."""
        folder = run_folder_of(trainer)
        if folder is None or not trainer.is_global_zero:
            return
        for role, dataset in getattr(datamodule_of(trainer), "datasets", {}).items():
            names = [getattr(sample, "name", "") or sample.image.stem for sample in getattr(dataset, "samples", [])]
            path = folder.split_list(role)
            # a file that is there is the run's own, or not vocseg's
            if role in ("train", "val") and names and not path.exists():
                write_text(path, "".join(f"{name}\n" for name in names))
