"""The page of ``vocseg report``: scores, curves and images of what runs left on disk."""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vocseg import charts, pages
from vocseg.charts import number
from vocseg.confusion import ConfusionMatrices
from vocseg.errors import VocsegError
from vocseg.inference import describe_inference
from vocseg.intervals import bootstrap_interval, class_intervals
from vocseg.plots import row_fractions
from vocseg.report import images
from vocseg.run_folder import Run, RunFolder, read_run
from vocseg.saving import OwnedFolder, write_text

CONFUSIONS = 10
"""Number of confusions that are listed."""

_STYLE = """
body { max-width: 80rem; margin: 1.5rem auto; } h1 { margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin-top: 2.5rem; } h3 { font-size: 1.05rem; margin: 1.6rem 0 .3rem; }
.hero { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 9.5rem), 1fr)); gap: 1rem;
  margin: 1.2rem 0; }
.tile { border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem; }
.tile.main { grid-column: span 2; background: var(--soft); }
.tile b { display: block; font-size: 1.5rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tile.main b { font-size: 2.4rem; line-height: 1.15; }
.tile .track { display: block; margin-top: .6rem; background: var(--page); }
.tile .about, .tile .name { color: var(--muted); font-size: .85rem; }
.facts-list { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: .5rem 1.5rem;
  margin: 1rem 0; font-size: .9rem; }
.facts-list div { border-top: 1px solid var(--line); padding-top: .3rem; overflow-wrap: anywhere; }
.facts-list dt { color: var(--muted); font-size: .8rem; } .facts-list dd { margin: 0; }
.wide { overflow-x: auto; } .wide td { white-space: nowrap; }
.wide table { width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
.pair { display: grid; grid-template-columns: minmax(0, 2.2fr) minmax(min(100%, 19rem), 1fr); gap: 1rem 2.5rem; }
summary { cursor: pointer; margin: .5rem 0; } .pair table { width: 100%; font-size: .87rem; }
.pair td:nth-child(2), .pair th:nth-child(2) { text-align: left; }
@media (max-width: 60rem) { .pair { grid-template-columns: minmax(0, 1fr); } }
@media (max-width: 40rem) { body { padding: 0 .75rem; margin: 1rem auto; } .tile.main { grid-column: 1 / -1; }
  .hero, .facts-list { grid-template-columns: 1fr 1fr; gap: .6rem; } }
"""


def write_report(names: Sequence[str], folder: Path | None = None) -> tuple[Path, list[str]]:
    """Writes ``report.html``.

    Args:
        names: run folders, or names of experiments in ``lightning_logs`` (the newest version of each).
        folder: folder to write; ``report`` in the first run's folder if None.

    Returns:
        The page, and what could not be reported, one line each.

    Raises:
        VocsegError: none of the names is a run, or ``folder`` has a ``report.html`` that no report wrote.
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
    page = folder / "report.html"
    owned = OwnedFolder(folder, "report", "Name another folder: --to")
    owned.check([page])
    body = [_problem(problem) for problem in problems]
    if len(runs) == 1:
        title = runs[0].name
        body += _run(runs[0], folder, problems)
    else:
        title = f"Comparison of {len(runs)} runs"
        body += _comparison(runs)
        for run in runs:
            body += [f"<h2>{pages.text(run.name)}</h2>", *_below(_run(run, folder, problems))]
    body.append(f"<script>{charts.SCRIPT}{images.SCRIPT}</script>")
    owned.delete_own(folder)  # also the figures that earlier versions wrote beside the page
    write_text(page, pages.page(title, body, charts.STYLE + images.STYLE + _STYLE), owned.write)
    return page, problems


def _below(body: Iterable[str]) -> list[str]:
    """The sections of one of several runs, with headings one level lower."""
    return [part.replace("<h3>", "<h4>").replace("</h3>", "</h4>").replace("h2>", "h3>") for part in body]


def _run(run: Run, folder: Path, problems: list[str]) -> list[str]:
    """All about one run."""
    test = run.scores.get("test")
    body = [_tiles(run), _facts(run)]
    if test is None:
        body.append(f"<p>Not tested: <code>{pages.text(f'vocseg test --ckpt_path {run.folder.path}')}</code></p>")
    else:
        body += ["<h2>Classes</h2>", *_classes(run, test.matrices)]
        body += _more_scores(run)
        if test.matrices is not None:
            body += ["<h2>Confusion matrix</h2>", *_confusion(test.matrices.total(), run.class_names)]
    if run.lines:
        body += ["<h2>Curves</h2>", _curves(run)]
    else:
        problems.append(f"{run.name} has no metrics.csv with an epoch in it: no curves.")
        body.append(_problem(problems[-1]))
    if test is not None and test.matrices is not None:
        scores = images.ImageScores.of(test.matrices)
        shown = images.examples(run, scores, problems)
        body += ["<h2>Test images</h2>", *shown, "<h3>All</h3>", *images.image_table(run, scores, folder)]
    for index, config in enumerate(run.configs):
        title = f"Settings of resumption {index}" if index else "All settings"
        settings = pages.text(yaml.safe_dump(config, sort_keys=False))
        body.append(f"<details><summary>{title}</summary><pre>{settings}</pre></details>")
    return body


def _tiles(run: Run) -> str:
    """The scores that count, the test mIoU with its interval first."""
    tiles = []
    test = run.scores.get("test")
    best = next((line["val/miou"] for line in run.lines if line["epoch"] == run.best_epoch), None)
    if test is not None:
        about, bar = "95 % interval not known: no confusion matrices", ""
        if test.matrices is not None:
            interval = bootstrap_interval(test.matrices)
            about = "95 % interval {} to {}".format(*map(number, interval))
            bar = charts.track(float(test.summary.get("miou") or 0), interval)
        inference = _inference(run)
        name = f"Test mIoU{f' ({inference})' if inference else ''}"
        tiles.append(_tile(name, _of(test.summary, "miou"), about, True, bar))
        tiles.append(_tile("Pixel accuracy", _of(test.summary, "pixel_accuracy"), "of all valid pixels"))
        tiles.append(_tile("Class accuracy", _of(test.summary, "mean_accuracy"), "mean over the classes"))
    epoch = "not validated" if best is None else f"best, of epoch {run.best_epoch}"
    tiles.append(_tile("Validation mIoU", number(best), epoch, main=test is None))
    if test is not None:
        images = test.summary.get("images")
        tiles.append(_tile("Test images", "-" if images is None else f"{images:,}", f"{len(run.class_names)} classes"))
        floor = test.summary.get("all_background", {})
        about = f"mIoU; accuracy {_of(floor, 'pixel_accuracy')}"
        tiles.append(_tile(f"All {run.class_names[0]}", _of(floor, "miou"), about))
    return f'<div class="hero">{"".join(tiles)}</div>'


def _tile(name: str, value: str, about: str, main: bool = False, bar: str = "") -> str:
    return (
        f'<div class="tile{" main" if main else ""}"><span class="name">{pages.text(name)}</span>'
        f'<b>{pages.text(value)}</b><span class="about">{pages.text(about)}</span>{bar}</div>'
    )


def _facts(run: Run) -> str:
    """How the run was made."""
    config = run.configs[-1] if run.configs and isinstance(run.configs[-1], dict) else {}
    model, data = (_init_args(config.get(part)) for part in ("model", "data"))
    optimizer = model.get("optimizer")
    rates = [f"lr {_init_args(optimizer).get('lr', '?')}"] if optimizer else []
    if model.get("backbone_lr") is not None:
        rates.append(f"backbone {model['backbone_lr']}")
    split = [str(data[name]) for name in ("year", "train_split") if data.get(name)]
    facts = {
        "Experiment": run.facts.get("experiment") or config.get("name"),
        "Seed": run.facts.get("seed", config.get("seed_everything")),
        "Epochs": f"{len(run.lines)}, best by validation mIoU: {run.best_epoch}" if run.lines else None,
        "Backbone": _class_name(model.get("backbone")),
        "Decoder": _class_name(model.get("decoder")),
        "Loss": _class_name(model.get("loss")) or ("CrossEntropy" if model else None),
        "Optimizer": f"{_class_name(optimizer)}, {', '.join(rates)}" if optimizer else None,
        "Schedule": _init_args(model.get("schedule")).get("kind") or _class_name(model.get("schedule")),
        "Training data": " ".join([_class_name(config.get("data")) or "", *split]).strip(),
        "Batch size": data.get("batch_size"),
        "Image size": data.get("image_size"),
        "Augmentation": data.get("train_transforms") if isinstance(data.get("train_transforms"), str) else None,
        "Training time": _duration(sum(line.get("seconds", 0) for line in run.lines)),
        "Device": run.facts.get("device"),
        "Commit": run.facts.get("commit"),
        "Tested": _when(run),
        "Checkpoint": run.scores["test"].summary.get("checkpoint") if "test" in run.scores else None,
        "Folder": run.folder.path,
    }
    entries = "".join(
        f"<div><dt>{name}</dt><dd>{pages.text(value)}</dd></div>"
        for name, value in facts.items()
        if value not in (None, "")
    )
    return f'<dl class="facts-list">{entries}</dl>'


def _classes(run: Run, matrices: ConfusionMatrices | None) -> list[str]:
    """IoU of each class, the highest first."""
    intervals, images = None, None
    if matrices is not None:
        intervals = class_intervals(matrices)
        rows = matrices.all_background().cells // matrices.num_classes  # one cell per image and true class
        images = np.bincount(rows, minlength=len(run.class_names) + 1)
    entries = []
    for label, (name, iou) in enumerate(zip(run.class_names, _iou(run), strict=True)):
        interval = None if intervals is None else (float(intervals[label, 0]), float(intervals[label, 1]))
        more = "" if images is None else f"in {images[label]} images"
        entries.append(charts.Bar(name, iou, interval, more))
    entries.sort(key=lambda bar: -1.0 if bar.value != bar.value else bar.value, reverse=True)
    note = "IoU of each class on the test images, the highest first."
    if intervals is not None:
        note += " The line is the 95 % interval over the choice of images (bootstrap, 2,000 resamples)."
    return [f'<p class="note">{note}</p>', charts.bars(entries)]


def _more_scores(run: Run) -> list[str]:
    """Boundary IoU and calibration, where the test computed them (``--scores``)."""
    summary, body = run.scores["test"].summary, []
    if "boundary" in summary:
        boundary = summary["boundary"]["iou"]
        entries = [
            charts.Bar(name, _nan(boundary[name]), None, f"IoU {number(iou)}")
            for name, iou in zip(run.class_names, _iou(run), strict=True)
        ]
        entries.sort(key=lambda bar: -1.0 if bar.value != bar.value else bar.value, reverse=True)
        note = (
            f"Boundary mIoU {_of(summary['boundary'], 'miou')}: as the mIoU, but of the pixels near the outlines "
            "alone, within 2 % of the image's diagonal."
        )
        body += ["<h2>Boundaries</h2>", f'<p class="note">{note}</p>', charts.bars(entries)]
    if "calibration" in summary:
        curve = summary["calibration"]
        confidence, accuracy = ([_nan(value) for value in curve[name]] for name in ("confidence", "accuracy"))
        total = sum(curve["pixels"])
        rows = [
            (number(mean), f"{share:.1%}", f"{pixels / total:.2%}")
            for mean, share, pixels in zip(confidence, accuracy, curve["pixels"], strict=True)
            if pixels
        ]
        note = (
            f"Expected calibration error {number(curve['ece'])}. The network is too sure of itself where a bar ends "
            "below its line (its mean confidence), and too unsure where it ends above."
        )
        body += ["<h2>Calibration</h2>", f'<p class="note">{note}</p>']
        if rows:
            chart = charts.reliability(confidence, accuracy, curve["pixels"])
            table = pages.table(("mean confidence", "right", "share of the pixels"), rows)
            body.append(f'<div class="charts">{chart}<div class="wide">{table}</div></div>')
    return body


def _confusion(matrix: np.ndarray, names: Sequence[str]) -> list[str]:
    fractions = row_fractions(matrix)
    occurs = matrix[: len(names)].sum(1) > 0
    errors = np.where(occurs, 1 - fractions.diagonal(), -1)
    orders = {"as the labels": [*range(len(names))], "most errors first": np.argsort(-errors, kind="stable").tolist()}
    off = fractions - np.diag(fractions.diagonal())
    largest = np.argsort(-off, axis=None, kind="stable")[:CONFUSIONS]
    rows = [
        (names[true], names[predicted], f"{off[true, predicted]:.1%}", f"{matrix[true, predicted]:,}")
        for true, predicted in zip(*np.unravel_index(largest, off.shape), strict=True)
        if off[true, predicted] > 0
    ]
    note = "Each row is a true class and says where its pixels went: right in blue, wrong in orange"
    return [
        f'<p class="note">{note}{", numbers in percent" if len(names) <= charts.NUMBERED else ""}.</p>',
        f'<div class="{"pair" if len(names) <= charts.NUMBERED else ""}">{charts.confusion(matrix, names, orders)}',
        "<div><h3>Largest confusions</h3>",
        pages.table(("true", "predicted", "share", "pixels"), rows),
        "</div></div>",
    ]


def _curves(run: Run) -> str:
    mark = None if run.best_epoch is None else (float(run.best_epoch), "best")
    rates = [name for name in run.lines[-1] if name.startswith("lr-")]
    drawn = [
        charts.curves("Loss", {"training": _points(run, "train/loss"), "validation": _points(run, "val/loss")}, mark),
        charts.curves(
            "Validation scores",
            {
                "mIoU": _points(run, "val/miou"),
                "mean class accuracy": _points(run, "val/mean_accuracy"),
                "pixel accuracy": _points(run, "val/pixel_accuracy"),
            },
            mark,
        ),
        charts.curves("Learning rate", {name.removeprefix("lr-"): _points(run, name) for name in rates[:6]}),
    ]
    return f'<div class="charts">{"".join(drawn)}</div>'


def _comparison(runs: Sequence[Run]) -> list[str]:
    shared = Counter(run.name for run in runs)  # two folders of records may have records of one name
    labels = [run.name if shared[run.name] == 1 else str(run.folder.path) for run in runs]
    named = list(zip(labels, runs, strict=True))
    tested = [(label, run) for label, run in named if "test" in run.scores]
    first = tested[0] if tested else None
    rows = [_summary(label, run, first) for label, run in named]
    compared = first is not None and any(row[-1] for row in rows)
    columns = len(_SUMMARY) if compared else -1
    body = [f'<div class="wide">{pages.table(_SUMMARY[:columns], [row[:columns] for row in rows])}</div>']
    if first is not None and compared:
        body.append(
            f'<p class="note">The difference is to {pages.text(first[0])}, on the same resamples of the test images '
            "(paired bootstrap, 95 % interval). An interval without 0 is a difference beyond the choice of images.</p>"
        )
    scalars = {"Validation mIoU": "val/miou", "Validation loss": "val/loss", "Training loss": "train/loss"}
    curves = [
        charts.curves(title, {label: _points(run, scalar) for label, run in named}) for title, scalar in scalars.items()
    ]
    body.append(f'<div class="charts">{"".join(curves)}</div>')
    if len({tuple(run.class_names) for _, run in tested}) > 1:
        body.append(_problem("The runs have different classes: their IoUs cannot be compared."))
    elif len(tested) > 1:
        iou = [_iou(run) for _, run in tested]
        table = [(name, *map(number, values)) for name, *values in zip(tested[0][1].class_names, *iou, strict=True)]
        head = ("class", *(label for label, _ in tested))
        body += ["<h2>IoU by class</h2>", f'<div class="wide">{pages.table(head, table)}</div>']
    return body


_SUMMARY = (
    *("run", "epochs", "best epoch", "val mIoU", "test mIoU", "95 % interval", "pixel accuracy"),
    *("class accuracy", "all background", "difference of mIoU"),
)


def _summary(label: str, run: Run, first: tuple[str, Run] | None) -> list[Any]:
    best = next((line["val/miou"] for line in run.lines if line["epoch"] == run.best_epoch), None)
    row = [label, len(run.lines), "-" if run.best_epoch is None else run.best_epoch, number(best)]
    if "test" not in run.scores:
        return [*row, "not tested", "", "", "", "", ""]
    test = run.scores["test"]
    inference = _inference(run)
    miou = _of(test.summary, "miou") + (f" ({inference})" if inference else "")
    interval = "-" if test.matrices is None else "{} to {}".format(*map(number, bootstrap_interval(test.matrices)))
    scores = [_of(test.summary, name) for name in ("pixel_accuracy", "mean_accuracy")]
    floor = _of(test.summary.get("all_background", {}), "miou")
    difference = _difference(run, first[1]) if first is not None and first[1] is not run else ""
    return [*row, miou, interval, *scores, floor, difference]


def _difference(run: Run, other: Run) -> str:
    """Difference of two test mIoUs with its interval; empty where the runs were not tested on the same images."""
    ours, theirs = run.scores["test"], other.scores["test"]
    if ours.matrices is None or theirs.matrices is None or run.class_names != other.class_names:
        return ""
    truths = [matrices.all_background().to_arrays() for matrices in (ours.matrices, theirs.matrices)]
    if not all(np.array_equal(values, truths[1][name]) for name, values in truths[0].items()):
        return ""
    low, high = bootstrap_interval(ours.matrices, minus=theirs.matrices)
    return f"{ours.summary['miou'] - theirs.summary['miou']:+.3f} ({low:+.3f} to {high:+.3f})"


def _init_args(described: Any) -> dict[str, Any]:
    """The arguments of a component in a config; vocseg 0.1.0 wrote them without ``class_path`` and ``init_args``."""
    if not isinstance(described, dict):
        return {}
    return (described.get("init_args") or {}) if "class_path" in described else described


def _class_name(described: Any) -> str | None:
    """Class of a component in a config, with its ``name`` where it has one: ``Timm (tf_efficientnet_lite2)``."""
    path = described.get("class_path") if isinstance(described, dict) else described
    if not isinstance(path, str):
        return None
    name = _init_args(described).get("name")
    return path.rpartition(".")[2] + (f" ({name})" if name else "")


def _inference(run: Run) -> str:
    """How the network was applied in the test; empty where it was once to each whole image."""
    return describe_inference(run.scores["test"].summary.get("inference") or {})


def _iou(run: Run) -> list[float]:
    """Test IoU of each class, NaN where it is undefined."""
    iou = run.scores["test"].summary["iou"]
    return [_nan(iou[name]) for name in run.class_names]


def _nan(value: float | None) -> float:
    """A number of a JSON file, where NaN is null."""
    return float("nan") if value is None else value


def _points(run: Run, name: str) -> charts.Points:
    return [(line["epoch"], line[name]) for line in run.lines if name in line]


def _of(summary: dict[str, Any], name: str) -> str:
    return number(summary.get(name))


def _duration(seconds: float) -> str | None:
    minutes = round(seconds / 60)
    if not seconds:
        return None
    return (
        f"{minutes // 60} h {minutes % 60} min"
        if minutes >= 60
        else f"{minutes} min"
        if minutes
        else f"{seconds:.0f} s"
    )


def _when(run: Run) -> str | None:
    """The local time of the test: as its scores say, else when their file was written."""
    if "test" not in run.scores:
        return None
    date = run.scores["test"].summary.get("date")
    if date is not None:
        return f"{datetime.fromisoformat(date).astimezone():%Y-%m-%d %H:%M}"
    if run.facts:  # a checkout says nothing of when a committed record was made
        return None
    return f"{datetime.fromtimestamp(run.folder.scores('test').stat().st_mtime):%Y-%m-%d %H:%M}"


def _problem(text: str) -> str:
    return f'<p class="problem">{pages.text(text)}</p>'
