"""``torch.compile`` of what a training step computes."""

import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

import lightning as L
import torch

from vocseg.errors import VocsegError


class CompiledTraining(L.Callback):
    """Compiles the forward and backward pass of training: network, loss, and the auxiliary decoder if there is one.

    Validation, test and prediction run the same modules uncompiled, so images of many sizes cost no compilation. The
    modules stay as they are, and so do the keys of checkpoints. The first training step takes minutes on a CPU. Images
    of a second size are compiled once more, for all further sizes.

    Args:
        backend: of ``torch.compile``: a name, or a function for one of your own.

    Raises:
        VocsegError: when a fit begins, if the task has no ``training_losses`` or nothing can be compiled here.
    """

    def __init__(self, backend: str | Callable[..., Any] = "inductor") -> None:
        self.backend = backend

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Checks that there is something to compile, and a compiler."""
        if not hasattr(pl_module, "training_losses"):
            raise VocsegError(f"--compile needs a SegmentationTask; {type(pl_module).__name__} is none.")
        _check_compiler(self.backend, trainer.strategy.root_device)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Compiles; only now, because a copy or a pickle of a task cannot have compiled code."""
        pl_module.training_losses = torch.compile(pl_module.training_losses, backend=self.backend)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Removes what was compiled."""
        if "training_losses" in vars(pl_module):
            del pl_module.training_losses
            torch.compiler.reset()  # else torch keeps the code, and compiles no more after eight fits in one process

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Removes what was compiled where a fit ends early."""
        self.teardown(trainer, pl_module, "fit")


def _check_compiler(backend: str | Callable[..., Any], device: torch.device) -> None:
    """Compiles a sum.

    Raises:
        VocsegError: that fails.
    """
    leave_out = "or leave out --compile."
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if backend == "inductor" and device.type == "cpu" and shutil.which(compiler) is None:
        raise VocsegError(
            f"--compile needs a C++ compiler, but there is no {compiler}: install one (on Debian: apt install g++), "
            f"name yours in the environment variable CXX, {leave_out}"
        )
    try:
        torch.compile(_sum, backend=backend)(torch.ones(4, device=device))
    except Exception as error:  # each backend raises its own
        reason = " ".join(str(error).partition("\n\n")[0].split()) or type(error).__name__
        raise VocsegError(
            f"--compile: torch cannot compile for {device.type} here ({reason}). Install what is missing (CPU: g++ and "
            f"Python's headers; CUDA: also triton), {leave_out}"
        ) from error


def _sum(values: torch.Tensor) -> torch.Tensor:
    return (values + 1).sum()
