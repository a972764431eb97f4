"""The table of scores at the end of a fit, a validation and a test, beside the all-background scores."""

import math
from datetime import UTC, datetime
from typing import Any

import lightning as L
from rich import box
from rich.console import Console
from rich.table import Table

from vocseg.callbacks.base import (
    check_in_all_processes,
    class_names_of,
    datamodule_of,
    owned_test_files,
    run_folder_of,
    test_samples_of,
)
from vocseg.components import plain_settings
from vocseg.metrics import Result
from vocseg.run_folder import write_image_scores, write_result
from vocseg.saving import sample_names


class ResultTable(L.Callback):
    """Prints the table of the best validation when training ends, and of each ``validate`` and ``test``.

    ``test`` also writes its scores to ``test.json`` in the run's folder, those of each image to ``test_images.csv``,
    and each image's confusion matrix to ``test.npz``. The scores are the task's ``results``.

    Args:
        monitor: the validation score that the best epoch is chosen by; by mIoU for any other name.
        mode: ``max`` or ``min``.
    """

    def __init__(self, monitor: str = "val/miou", mode: str = "max") -> None:
        self.monitor = monitor if monitor.startswith("val/") else "val/miou"
        self.sign = -1 if mode == "min" and self.monitor == monitor else 1
        self._best: dict[str, float] = {}
        self._best_result: Result | None = None

    def state_dict(self) -> dict[str, Any]:
        """The best epoch and its score."""
        return self._best

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it: the best epoch of a resumed run may lie before the interruption."""
        self._best = dict(state_dict)
        if "miou" in self._best:  # vocseg 0.1.0 knew no other score
            self._best["score"] = self._best.pop("miou")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keeps the best epoch's scores while fitting; prints them after ``validate``."""
        result = getattr(pl_module, "results", {}).get("val")
        if trainer.sanity_checking or result is None:
            return
        if trainer.state.fn == "validate":
            _print(trainer, pl_module, result, "Validation")
            return
        score = _score(result, self.monitor.removeprefix("val/"), class_names_of(pl_module))
        if not self._best or self.sign * score > self.sign * self._best["score"]:
            self._best = {"epoch": trainer.current_epoch, "score": score}
            self._best_result = result

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prints the best epoch's validation scores."""
        if not self._best or not trainer.is_global_zero:
            return
        if self._best_result is not None:
            _print(
                trainer,
                pl_module,
                self._best_result,
                f"Validation, best epoch by {self.monitor} ({self._best['epoch'] + 1:.0f})",
            )
        else:
            best = f"Best epoch {self._best['epoch'] + 1:.0f}, {self.monitor} {self._best['score']:.4f}"
            print(f"{best}: before the interruption.")

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuses to replace scores that ``vocseg test`` did not write."""
        folder, owned = run_folder_of(trainer), owned_test_files(trainer)
        if folder is not None and owned is not None:
            check_in_all_processes(
                owned, [path("test") for path in (folder.scores, folder.matrices, folder.image_scores)]
            )

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prints the test scores and writes them to the run's folder."""
        result = getattr(pl_module, "results", {}).get("test")
        if result is None:
            return
        _print(trainer, pl_module, result, "Test")
        folder, owned = run_folder_of(trainer), owned_test_files(trainer)
        if folder is not None and owned is not None and trainer.is_global_zero:
            samples = test_samples_of(trainer)
            more = {
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "inference": getattr(getattr(pl_module, "inference", None), "settings", None),
                "checkpoint": str(trainer.ckpt_path or ""),
                "data": plain_settings(getattr(datamodule_of(trainer), "hparams", None) or {}),
                "samples": [
                    {"image": str(sample.image), "mask": str(sample.mask), "name": name}
                    for sample, name in zip(samples, sample_names(samples), strict=True)
                ],
            }
            names = class_names_of(pl_module)
            write_result(folder, "test", result, names, more, owned.write)
            images = [str(sample.image) for sample in samples]
            boundary = None if result.boundary is None else result.boundary.miou_per_image()
            write_image_scores(folder.image_scores("test"), result.matrices, names, images, owned.write, boundary)


def result_table(result: Result, class_names: list[str], title: str, colours: bool = False) -> Table:
    """A result as a table for the terminal.

    Args:
        result: the scores.
        class_names: one name per class.
        title: above the table.
        colours: scores no better than all-background are red, others green, and lines are drawn in Unicode.
    """
    floor = result.all_background()
    table = Table(
        title=f"{title}: {len(result.matrices)} image{'s' if len(result.matrices) != 1 else ''}",
        title_justify="left",
        box=box.HEAVY_HEAD if colours else box.ASCII,
    )
    table.add_column("class")
    table.add_column("IoU", justify="right")
    edges = result.boundary
    if edges is not None:
        table.add_column("boundary IoU", justify="right")
    table.add_column(f"all {class_names[0]}", justify="right")
    occurs = result.matrices.total()[:-1].sum(1) > 0
    for label, (name, iou) in enumerate(zip(class_names, result.iou, strict=True)):
        edge = [] if edges is None else [_text(edges.iou[label])]
        # IoU of class 0 when every pixel is labelled 0: TP / (TP + FP), the share of its pixels
        least = floor["pixel_accuracy"] if label == 0 else 0.0 if occurs[label] else math.nan
        table.add_row(name, _judged(iou, least, colours), *edge, _text(least))
    table.add_section()
    rows = {"mIoU": "miou", "pixel accuracy": "pixel_accuracy", "mean class accuracy": "mean_accuracy"}
    for title, name in rows.items():
        score = _judged(getattr(result, name), floor[name], colours)
        edge = [] if edges is None else [_text(edges.miou) if name == "miou" else ""]
        table.add_row(title, score, *edge, _text(floor[name]), style="bold" if name == "miou" else "")
    table.add_row("loss", _text(result.loss))
    if result.calibration is not None:
        table.add_row("calibration error (ECE)", _text(result.calibration.ece))
    return table


def _print(trainer: L.Trainer, pl_module: L.LightningModule, result: Result, title: str) -> None:
    if trainer.is_global_zero:
        inference = str(getattr(pl_module, "inference", ""))
        title = f"{title} ({inference})" if inference else title
        console = Console()
        console.print(result_table(result, class_names_of(pl_module), title, colours=console.is_terminal))


def _score(result: Result, name: str, class_names: list[str]) -> float:
    """A score by the name under which the task logs it; mIoU for a name that is not the task's."""
    scores = {f"iou/{each}": iou for each, iou in zip(class_names, result.iou, strict=True)}
    return scores.get(name, getattr(result, name, result.miou))


def _judged(value: float, least: float, colours: bool) -> str:
    """The score, red where it is no better than all-background, else green."""
    if not colours or math.isnan(value) or math.isnan(least):
        return _text(value)
    return f"[{'green' if value > least else 'red'}]{_text(value)}[/]"


def _text(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
