"""``vocseg report``: one HTML page, and its figures, of what runs left on disk. Nothing is trained."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vocseg import pages
from vocseg.data.files import ImageReader, Sample, read_mask, read_sample
from vocseg.data.masks import MaskReader
from vocseg.errors import VocsegError
from vocseg.inference import describe_inference
from vocseg.metrics import ConfusionMatrices, bootstrap_interval, iou_of, scores_of
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
from vocseg.run_folder import Run, RunFolder, read_run
from vocseg.saving import OwnedFolder, write_text

SHOWN = 4
"""Number of best and of worst test images that are shown."""
Pictures = dict[str, np.ndarray]
"""The figures of a report, RGB uint8 [H, W, 3], by file name."""


def write_report(names: Sequence[str], folder: Path | None = None) -> tuple[Path, list[str]]:
    """Writes ``report.html`` and its figures.

    Args:
        names: run folders, or names of experiments in ``lightning_logs`` (the newest version of each).
        folder: folder to write; ``report`` in the first run's folder if None.

    Returns:
        The page, and what could not be reported, one line each.

    Raises:
        VocsegError: none of the names is a run, or ``folder`` has files of these names that no report wrote.
    """
    runs, problems = [], []
    for name in names:
        try:
            runs.append(read_run(RunFolder.find(name)))
        except VocsegError as error:
            problems.append(str(error))
    if not runs:
        raise VocsegError("\n".join(problems) or "A report needs a run: vocseg report lightning_logs/<name>/version_0")
    folder = (folder or runs[0].folder.report).expanduser()
    pictures: Pictures = {}
    body = [_problem(problem) for problem in problems]
    if len(runs) > 1:
        body += _comparison(runs, pictures)
    for number, run in enumerate(runs, start=1):
        body += [f"<h2>{pages.text(run.name)}</h2>"]
        body += [pages.table(_SUMMARY, [_summary(run)])] if len(runs) == 1 else []
        body += _run(run, pictures, f"run_{number}" if len(runs) > 1 else "run", problems)
    page = folder / "report.html"
    owned = OwnedFolder(folder, "report", "Name another folder: --to")
    owned.check([page, *(folder / name for name in pictures)])
    for name, picture in pictures.items():
        owned.write(folder / name, partial(save_png, picture))
    write_text(page, pages.page(", ".join(run.name for run in runs), body), owned.write)
    return page, problems


def _comparison(runs: Sequence[Run], pictures: Pictures) -> list[str]:
    body = ["<h2>Comparison</h2>", pages.table(_SUMMARY, [_summary(run) for run in runs])]
    shared = Counter(run.name for run in runs)  # two folders of records may have records of one name
    labels = {id(run): run.name if shared[run.name] == 1 else str(run.folder.path) for run in runs}
    curves = {labels[id(run)]: (run.lines, "val/miou") for run in runs if run.lines}
    if curves:
        body.append(_figure(curves_figure(curves, "val/miou", "Validation mIoU"), pictures, "compare_miou.png"))
    tested = [run for run in runs if "test" in run.scores]
    classes = {tuple(run.class_names) for run in tested}
    if len(classes) == 1 and len(tested) > 1:
        iou = {labels[id(run)]: _iou(run) for run in tested}
        body.append(_figure(iou_figure(iou, tested[0].class_names, "Test IoU"), pictures, "compare_iou.png"))
    elif len(classes) > 1:
        body.append(_problem("The runs have different classes: their IoUs cannot be compared."))
    return body


_SUMMARY = (
    *("run", "epochs", "best epoch", "val mIoU", "test mIoU", "95 % interval", "test accuracy"),
    *("test mean class accuracy", "all background, mIoU"),
)


def _summary(run: Run) -> list[Any]:
    best = next((line["val/miou"] for line in run.lines if line["epoch"] == run.best_epoch), None)
    row = [run.name, len(run.lines), "-" if run.best_epoch is None else run.best_epoch, _number(best)]
    if "test" not in run.scores:
        return [*row, "not tested", "", "", "", ""]
    test = run.scores["test"]
    interval = ""
    if test.matrices is not None:
        low, high = bootstrap_interval(test.matrices)
        interval = f"{low:.4f} to {high:.4f}"
    scores = [_number(test.summary.get(name)) for name in ("pixel_accuracy", "mean_accuracy")]
    floor = test.summary.get("all_background", {}).get("miou")
    inference = _inference(run)
    miou = _number(test.summary.get("miou")) + (f" ({inference})" if inference else "")
    return [*row, miou, interval, *scores, _number(floor)]


def _run(run: Run, pictures: Pictures, prefix: str, problems: list[str]) -> list[str]:
    body = []
    if run.lines:
        body.append(_figure(losses_figure(run.lines, "Loss", run.best_epoch), pictures, f"{prefix}_loss.png"))
        curve = curves_figure({"validation": (run.lines, "val/miou")}, "mIoU", "Mean IoU", run.best_epoch)
        body.append(_figure(curve, pictures, f"{prefix}_miou.png"))
    else:
        problems.append(f"{run.name} has no metrics.csv with an epoch in it: no curves.")
        body.append(_problem(problems[-1]))
    if "test" in run.scores:
        body += _test(run, pictures, prefix, problems)
    else:
        body.append(f"<p>Not tested: <code>{pages.text(f'vocseg test --ckpt_path {run.folder.best}')}</code></p>")
    for number, config in enumerate(run.configs):
        title = f"Settings of resumption {number}" if number else "Settings"
        body.append(f"<h3>{title}</h3><pre>{pages.text(yaml.safe_dump(config, sort_keys=False))}</pre>")
    return body


def _test(run: Run, pictures: Pictures, prefix: str, problems: list[str]) -> list[str]:
    """The test scores by class, the confusion matrix, and the best and worst images."""
    names, test = run.class_names, run.scores["test"]
    floor: dict[str, Any] = {}
    floor_iou: list[float | None] = [None] * len(names)
    if test.matrices is not None:
        background = test.matrices.all_background().total()
        floor, floor_iou = {**scores_of(background)}, [*iou_of(background)]
    rows = [(name, _number(a), _number(b)) for name, a, b in zip(names, _iou(run), floor_iou, strict=True)]
    scores = {"mIoU": "miou", "pixel accuracy": "pixel_accuracy", "mean class accuracy": "mean_accuracy"}
    rows += [(title, _number(test.summary.get(name)), _number(floor.get(name))) for title, name in scores.items()]
    inference = pages.text(_inference(run))
    heading = f"<h3>Test scores by class{f' ({inference})' if inference else ''}</h3>"
    body = [heading, pages.table(("class", "IoU", f"all {names[0]}"), rows)]
    if test.matrices is not None:
        figure = confusion_figure(test.matrices.total(), names)
        body.append(_figure(figure, pictures, f"{prefix}_confusion.png"))
        body += _examples(run, test.matrices, pictures, prefix, problems)
    return body


def _examples(run: Run, matrices: ConfusionMatrices, pictures: Pictures, prefix: str, problems: list[str]) -> list[str]:
    """The best and worst test images by their own mIoU, with truth and prediction."""
    samples = run.scores["test"].summary.get("samples")
    if not samples:  # a committed record does not name the files of the machine that it was made on
        return []
    masks, images = _readers(run)
    miou = matrices.miou_per_image()
    # an image that is all void comes last
    order = sorted(range(len(matrices)), key=lambda index: -1.0 if miou[index] != miou[index] else miou[index])[::-1]
    body = []
    for title, indices in (("Best", order[:SHOWN]), ("Worst", order[SHOWN:][-SHOWN:])):
        rows, labels, captions = [], [], []
        for index in indices:
            try:
                sample = samples[index]
                name = sample.get("name") or Path(sample["image"]).stem  # runs of vocseg 0.1.0 have no name
                image, truth = read_sample(Sample(Path(sample["image"]), Path(sample["mask"])), masks, images)
                path = run.folder.test_masks / f"{name}.png"
                prediction = read_mask(path)
                if prediction.shape != truth.shape:
                    raise VocsegError(f"{path} has not the size of {sample['mask']}: it is of another image")
            except (VocsegError, IndexError, KeyError) as error:
                problems.append(f"{run.name}: a test image cannot be shown: {error}")
                continue
            rows.append((image, coloured(truth), coloured(prediction), errors(prediction, truth)))
            labels += [truth, prediction]
            captions.append(f"{name} {_number(miou[index])}")
        if rows:
            headings = ("image", "truth", "prediction", "errors (blue: missed)")
            drawn = panels(rows, headings, legend_of(labels, run.class_names), width=220)
            pictures[f"{prefix}_{title.lower()}.png"] = drawn
            body += [f"<h3>{title} test images</h3>", pages.picture(drawn, f"mIoU: {', '.join(captions)}")]
    return body


def _readers(run: Run) -> tuple[MaskReader, ImageReader]:
    """Readers with the settings of the data that the run was tested on."""
    data = run.scores["test"].summary.get("data")
    names = ("labels", "colours", "ignore_classes", "exif_rotation")
    if not isinstance(data, dict) or not {*names, "bit_depth"} <= data.keys():  # vocseg 0.1.0, or a user's data module
        return MaskReader(run.class_names), ImageReader()
    masks = MaskReader.from_settings(run.class_names, **{name: data[name] for name in names})
    return masks, ImageReader(data["bit_depth"], data["exif_rotation"])


def _inference(run: Run) -> str:
    """How the network was applied in the test; empty where it was once to each whole image."""
    return describe_inference(run.scores["test"].summary.get("inference") or {})


def _iou(run: Run) -> list[float]:
    """Test IoU of each class, NaN where it is undefined."""
    iou = run.scores["test"].summary["iou"]
    return [float("nan") if iou[name] is None else iou[name] for name in run.class_names]


def _figure(figure: Any, pictures: Pictures, name: str) -> str:
    pictures[name] = as_array(figure, dpi=95)
    return pages.picture(pictures[name])


def _problem(text: str) -> str:
    return f'<p class="problem">{pages.text(text)}</p>'


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.4f}"
