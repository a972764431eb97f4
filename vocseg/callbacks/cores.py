"""The CPU cores of a run."""

import lightning as L
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from vocseg.callbacks.base import datamodule_of
from vocseg.cores import limit_threads


class DivideCores(L.Callback):
    """Leaves cores to the loader workers, and says in one line at the start of a fit what is used.

    See :func:`vocseg.cores.limit_threads`.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Lowers the number of compute threads if need be."""
        workers = getattr(datamodule_of(trainer), "num_workers", 0)  # a user's own data module need not have it
        on_cpu = isinstance(trainer.accelerator, CPUAccelerator)
        used = limit_threads(workers if isinstance(workers, int) else 0, trainer.num_devices, on_cpu)
        if stage == "fit":
            rank_zero_info(used)
