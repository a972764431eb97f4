"""Says at the end of validation and test what the network scores, class by class, beside the all-background row."""

import json
import math
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from vocseg.metrics import Result


class ResultTable(L.Callback):
    """Prints the table of the best validation when training ends, and of each ``validate`` and ``test``.

    ``test`` also leaves its figures in ``test.json`` in the run's folder, and each image's count matrices in
    ``test.npz``. The figures are the task's ``results``.
    """

    def __init__(self) -> None:
        self._best: dict[str, float] = {}
        self._best_result: Result | None = None

    def state_dict(self) -> dict[str, Any]:
        """Which epoch was best."""
        return self._best

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it up: of a resumed run the best epoch may lie before the interruption."""
        self._best = dict(state_dict)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remembers the best epoch's figures while fitting; prints them after ``validate``."""
        if trainer.sanity_checking:
            return
        result = pl_module.results["val"]
        if trainer.state.fn == "validate":
            _show(trainer, result, pl_module.class_names, "Validation")
        elif not self._best or result.miou > self._best["miou"]:
            self._best = {"epoch": trainer.current_epoch, "miou": result.miou}
            self._best_result = result

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prints the best epoch's validation figures."""
        if not self._best or not trainer.is_global_zero:
            return
        if self._best_result is not None:
            _show(trainer, self._best_result, pl_module.class_names, f"Validation, best epoch ({self._best['epoch']})")
        else:
            print("Best epoch {epoch:.0f}, val/miou {miou:.4f}: before the interruption.".format(**self._best))

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prints the test figures and writes ``test.json``."""
        result = pl_module.results["test"]
        _show(trainer, result, pl_module.class_names, "Test")
        if trainer.is_global_zero and trainer.loggers and not trainer.fast_dev_run:
            folder = Path(trainer.loggers[0].log_dir)
            folder.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(folder / "test.npz", matrices=result.matrices.numpy(), squashed=result.squashed.numpy())
            samples = getattr(trainer.test_dataloaders.dataset, "samples", ())
            record = {
                "checkpoint": str(trainer.ckpt_path or ""),
                "data": dict(getattr(trainer.datamodule, "hparams", {})),
                **result_record(result, pl_module.class_names),
                "samples": [{"image": str(sample.image), "mask": str(sample.mask)} for sample in samples],
            }
            (folder / "test.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def result_record(result: Result, class_names: list[str]) -> dict[str, Any]:
    """A result as plain numbers (None where a figure is undefined)."""
    return {
        "images": len(result.matrices),
        "loss": _number(result.loss),
        "miou": _number(result.miou),
        "pixel_accuracy": _number(result.pixel_accuracy),
        "iou": {name: _number(iou) for name, iou in zip(class_names, result.iou, strict=True)},
        "all_background": {name: _number(value) for name, value in result.all_background().items()},
    }


def result_table(result: Result, class_names: list[str], title: str, colours: bool = False) -> Table:
    """A result as a table for the terminal, or for a file; what falls short of the floor is red, if colours may be."""
    floor = result.all_background()
    look = box.HEAVY_HEAD if colours else box.ASCII
    table = Table(title=f"{title}: {len(result.matrices)} images", title_justify="left", box=look)
    table.add_column("class")
    table.add_column("IoU", justify="right")
    table.add_column(f"all {class_names[0]}", justify="right")
    background_iou = floor["pixel_accuracy"]  # TP / (TP + FP) when everything is called background
    for label, (name, iou) in enumerate(zip(class_names, result.iou, strict=True)):
        occurs = bool(result.matrices[:, label].any())
        least = background_iou if label == 0 else 0.0 if occurs else math.nan
        table.add_row(name, _judged(iou, least, colours), _text(least))
    table.add_section()
    table.add_row("mIoU", _judged(result.miou, floor["miou"], colours), _text(floor["miou"]), style="bold")
    accuracy = _judged(result.pixel_accuracy, floor["pixel_accuracy"], colours)
    table.add_row("pixel accuracy", accuracy, _text(floor["pixel_accuracy"]))
    table.add_row("loss", _text(result.loss), "")
    return table


def _show(trainer: L.Trainer, result: Result, class_names: list[str], title: str) -> None:
    if trainer.is_global_zero:
        console = Console()
        console.print(result_table(result, class_names, title, colours=console.is_terminal))


def _judged(value: float, least: float, colours: bool) -> str:
    """The figure, red where it is no better than background everywhere, else green."""
    if not colours or math.isnan(value) or math.isnan(least):
        return _text(value)
    return f"[{'green' if value > least else 'red'}]{_text(value)}[/]"


def _text(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
