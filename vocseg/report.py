"""What runs left on disk -> one HTML page and its figures. Nothing is trained."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from vocseg import pages
from vocseg.callbacks.metrics_csv import read_lines
from vocseg.checkpoints import saved_configs
from vocseg.data.files import read_image, read_mask
from vocseg.errors import VocsegError, nearest
from vocseg.metrics import all_background, bootstrap_interval, iou_of, scores_of
from vocseg.plots import (
    as_array,
    coloured,
    confusion_figure,
    curves_figure,
    errors,
    iou_figure,
    legend_of,
    losses_figure,
    panels,
    save_png,
)

SHOWN = 4
"""Best and worst test images of a run, each."""


@dataclass
class Run:
    """What a run left on disk.

    Attributes:
        folder: ``lightning_logs/<name>/version_N``.
        configs: all settings, and those of each resumption that changed some; none where they are gone.
        lines: scalars of each epoch; none where it never finished one.
        test: figures of ``test.json``; None where it was never tested.
        matrices: int64 [N, C+1, C] of the test images.
    """

    folder: Path
    configs: list[dict[str, Any]]
    lines: list[dict[str, float]]
    test: dict[str, Any] | None
    matrices: Tensor | None

    @property
    def name(self) -> str:
        """``<name>/version_N``."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def class_names(self) -> list[str]:
        """The classes that it was tested on."""
        return list(self.test["iou"]) if self.test else []


def write_report(given: Sequence[str], folder: Path | None = None) -> tuple[Path, list[str]]:
    """Writes ``report.html`` and its figures.

    Args:
        given: run folders, or names of experiments in ``lightning_logs`` (the newest version of each).
        folder: where to; ``report`` in the first run's folder if None.

    Returns:
        The page, and what could not be reported, a line each.

    Raises:
        VocsegError: none of them is a run.
    """
    runs, problems = [], []
    for each in given:
        try:
            runs.append(read_run(find_run(each)))
        except VocsegError as error:
            problems.append(str(error))
    if not runs:
        raise VocsegError("\n".join(problems) or "A report needs a run: vocseg report lightning_logs/<name>/version_0")
    folder = folder or runs[0].folder / "report"
    folder.mkdir(parents=True, exist_ok=True)
    body = [f'<p class="problem">{pages.text(problem)}</p>' for problem in problems]
    if len(runs) > 1:
        body += _comparison(runs, folder)
    for number, run in enumerate(runs, start=1):
        body += [f"<h2>{pages.text(run.name)}</h2>"]
        body += [pages.table(_SUMMARY, [_summary(run)])] if len(runs) == 1 else []
        body += _run(run, folder, f"run_{number}" if len(runs) > 1 else "run", problems)
    page = folder / "report.html"
    page.write_text(pages.page(", ".join(run.name for run in runs), body), encoding="utf-8")
    return page, problems


def find_run(given: str, logs: Path = Path("lightning_logs")) -> Path:
    """The run's folder: itself, the folder around it (its newest version), or the name of an experiment in ``logs``.

    Raises:
        VocsegError: there is no such run, with the nearest name.
    """
    for folder in (Path(given), logs / given):
        if (folder / "config.yaml").is_file() or (folder / "metrics.csv").is_file():
            return folder
        versions = [path.parent for path in folder.glob("version_*/config.yaml")]
        if versions:
            return max(versions, key=lambda path: int(path.name.removeprefix("version_")))
    names = [path.name for path in logs.glob("*") if path.is_dir()]
    raise VocsegError(f"There is no run {given}: no folder with config.yaml and metrics.csv.{nearest(given, names)}")


def read_run(folder: Path) -> Run:
    """Reads what is there of a run.

    Raises:
        VocsegError: a file of it is broken.
    """
    configs, lines, test, matrices = [], [], None, None
    try:
        configs = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in saved_configs(folder)]
        if (folder / "metrics.csv").is_file():
            lines = read_lines(folder / "metrics.csv")
        if (folder / "test.json").is_file() and (folder / "test.npz").is_file():
            test = json.loads((folder / "test.json").read_text(encoding="utf-8"))
            with np.load(folder / "test.npz") as file:
                matrices = torch.from_numpy(file["matrices"])
    except Exception as error:  # numpy, zipfile, json and yaml raise half a dozen kinds
        raise VocsegError(f"The run {folder} cannot be read: {' '.join(str(error).split())}") from error
    return Run(folder, configs, lines, test, matrices)


def _comparison(runs: Sequence[Run], folder: Path) -> list[str]:
    body = ["<h2>Comparison</h2>", pages.table(_SUMMARY, [_summary(run) for run in runs])]
    curves = {run.name: (run.lines, "val/miou") for run in runs if run.lines}
    if curves:
        body.append(_figure(curves_figure(curves, "val/miou", "Validation mIoU"), folder / "compare_miou.png"))
    tested = [run for run in runs if run.test]
    classes = {tuple(run.class_names) for run in tested}
    if len(classes) == 1 and len(tested) > 1:
        iou = {run.name: iou_of(run.matrices.sum(0)) for run in tested}
        body.append(_figure(iou_figure(iou, tested[0].class_names, "Test IoU"), folder / "compare_iou.png"))
    elif len(classes) > 1:
        body.append('<p class="problem">The runs have different classes: their IoUs do not compare.</p>')
    return body


_SUMMARY = ("run", "epochs", "best epoch", "val mIoU", "test mIoU", "95 % interval", "test accuracy", "background")


def _summary(run: Run) -> list[str]:
    scored = [line for line in run.lines if "val/miou" in line]
    best = max(scored, key=lambda line: line["val/miou"]) if scored else {}
    row = [run.name, len(run.lines), int(best["epoch"]) if best else "-", _number(best.get("val/miou"))]
    if run.test is None:
        return [*row, "not tested", "", "", ""]
    scores, floor = scores_of(run.matrices.sum(0)), scores_of(all_background(run.matrices).sum(0))
    low, high = bootstrap_interval(run.matrices)
    interval = f"{low:.4f} to {high:.4f}"
    return [*row, _number(scores["miou"]), interval, _number(scores["pixel_accuracy"]), _number(floor["miou"])]


def _run(run: Run, folder: Path, prefix: str, problems: list[str]) -> list[str]:
    body = []
    if run.lines:
        scored = [line for line in run.lines if "val/miou" in line]
        best = int(max(scored, key=lambda line: line["val/miou"])["epoch"]) if scored else None
        body.append(_figure(losses_figure(run.lines, "Loss", best), folder / f"{prefix}_loss.png"))
        curve = curves_figure({"validation": (run.lines, "val/miou")}, "mIoU", "Mean IoU", best)
        body.append(_figure(curve, folder / f"{prefix}_miou.png"))
    else:
        problems.append(f"{run.name} has no metrics.csv with an epoch in it: no curves.")
        body.append(f'<p class="problem">{pages.text(problems[-1])}</p>')
    if run.test is None:
        command = f"vocseg test --ckpt_path {run.folder}/checkpoints/best.ckpt"
        body.append(f"<p>Never tested: <code>{pages.text(command)}</code></p>")
    else:
        names, summed = run.class_names, run.matrices.sum(0)
        floor = iou_of(all_background(run.matrices).sum(0))
        rows = [(name, _number(a), _number(b)) for name, a, b in zip(names, iou_of(summed), floor, strict=True)]
        scores, floors = scores_of(summed), scores_of(all_background(run.matrices).sum(0))
        rows += [
            ("mIoU", _number(scores["miou"]), _number(floors["miou"])),
            ("pixel accuracy", _number(scores["pixel_accuracy"]), _number(floors["pixel_accuracy"])),
        ]
        body += ["<h3>Test, class by class</h3>", pages.table(("class", "IoU", f"all {names[0]}"), rows)]
        body.append(_figure(confusion_figure(summed.numpy(), names), folder / f"{prefix}_confusion.png"))
        body += _examples(run, folder, prefix, problems)
    for place, config in enumerate(run.configs):
        title = f"Settings of resumption {place}" if place else "Settings"
        body.append(f"<h3>{title}</h3><pre>{pages.text(yaml.safe_dump(config, sort_keys=False))}</pre>")
    return body


def _examples(run: Run, folder: Path, prefix: str, problems: list[str]) -> list[str]:
    """The best and worst test images by their own mIoU, with truth and prediction."""
    order = sorted(range(len(run.matrices)), key=lambda place: _miou_or_worst(run.matrices[place]), reverse=True)
    body = []
    for title, places in (("Best", order[:SHOWN]), ("Worst", order[SHOWN:][-SHOWN:])):
        rows, labels, captions = [], [], []
        for place in places:
            try:
                sample = {name: Path(path) for name, path in run.test["samples"][place].items()}
                prediction = read_mask(run.folder / "test_masks" / f"{sample['image'].stem}.png")
                photograph, truth = read_image(sample["image"]), read_mask(sample["mask"])
            except (VocsegError, IndexError, KeyError) as error:
                problems.append(f"{run.name}: a test image cannot be shown: {error}")
                continue
            rows.append((photograph, coloured(truth), coloured(prediction), errors(prediction, truth)))
            labels += [truth, prediction]
            captions.append(f"{sample['image'].stem} {_number(_miou_or_worst(run.matrices[place]))}")
        if rows:
            headings = ("photograph", "truth", "prediction", "errors (blue: missed)")
            drawn = panels(rows, headings, legend_of(labels, run.class_names), width=220)
            save_png(drawn, folder / f"{prefix}_{title.lower()}.png")
            body += [f"<h3>{title} test images</h3>", pages.picture(drawn, f"mIoU: {', '.join(captions)}")]
    return body


def _miou_or_worst(matrix: Tensor) -> float:
    """An image's own mIoU; one that is all void comes last."""
    miou = scores_of(matrix)["miou"]
    return miou if miou == miou else -1.0


def _figure(figure: Any, path: Path) -> str:
    pixels = as_array(figure, dpi=95)
    save_png(pixels, path)
    return pages.picture(pixels)


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.4f}"
