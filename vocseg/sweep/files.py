"""The files of a sweep: tables as Markdown, CSV and LaTeX, and one HTML page."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vocseg import pages
from vocseg.plots import as_array, curves_figure, iou_figure, ranges_figure
from vocseg.saving import OwnedFolder, write_text
from vocseg.sweep.summary import (
    BELOW,
    Line,
    Summary,
    errors_rows,
    hardware,
    runs_rows,
    settings_rows,
    table_rows,
)
from vocseg.text_tables import csv_table, latex_table, latex_text, markdown_table


def write_files(summary: Summary, command: str) -> Path:
    """Writes ``index.html``, ``table.md``, ``table.tex``, ``settings.csv`` and ``runs.csv`` to the sweep's folder.

    Args:
        summary: of the sweep.
        command: that ran it.

    Returns:
        The page.

    Raises:
        VocsegError: a file of one of these names is not of the sweep.
    """
    folder = summary.plan.folder
    files = {
        "table.md": markdown(summary, command),
        "table.tex": latex(summary, command),
        "settings.csv": csv_table(settings_rows(summary)),
        "runs.csv": csv_table(runs_rows(summary)),
        "index.html": html(summary, command),
    }
    owned = OwnedFolder(folder, "sweep", "Name another folder: --to")
    owned.check(folder / name for name in files)
    for name, text in files.items():
        write_text(folder / name, text, owned.write)
    return folder / "index.html"


def markdown(summary: Summary, command: str) -> str:
    """The page's main parts in Markdown."""
    parts = [f"# Sweep {summary.plan.name}", f"`{command}`", markdown_table(table_rows(summary)), BELOW]
    if summary.errors:
        parts += ["Runs without a result:", markdown_table(errors_rows(summary))]
    parts += [f"Run on: {device}" for device in hardware(summary)]
    return "\n\n".join(parts) + "\n"


def latex(summary: Summary, command: str) -> str:
    """The table in LaTeX, with the best setting in bold."""
    table = latex_table(table_rows(summary), bold=[1] if summary.best else [])
    comment = f"% {' '.join(command.split())}\n% Needs \\usepackage{{booktabs}}.\n"
    return f"{comment}{table}% {latex_text(BELOW)}\n"


def html(summary: Summary, command: str) -> str:
    """One page without other files."""
    plan, rows = summary.plan, table_rows(summary)
    body = [f"<p>{pages.text(_sentence(summary))}</p>", *_ranges(summary)]
    body += [_wide(pages.table(rows[0], rows[1:])), f"<p>{pages.text(BELOW)}</p>"]
    if summary.errors:
        errors = errors_rows(summary)
        body += ['<h2 class="problem">Runs without a result</h2>', _wide(pages.table(errors[0], errors[1:]))]
    with_runs = [line for line in summary.lines if line.runs]
    if with_runs:
        body += _curves(with_runs)
        split = plan.splits[-1]
        body += [f"<h2>IoU of each class on {split}, mean over the seeds</h2>", *_classes(with_runs, split)]
    body += ["<h2>How it was run</h2>", f"<pre>{pages.text(command)}</pre>"]
    body += [f"<p>{'<br>'.join(pages.text(device) for device in hardware(summary))}</p>"]
    commands = [f"{line.setting.name}: vocseg fit {shlex.join(line.setting.words())}" for line in summary.lines]
    body += [f"<p>Each setting, without seed and name:</p><pre>{pages.text(chr(10).join(commands))}</pre>"]
    runs = runs_rows(summary)
    shown = [index for index, name in enumerate(runs[0]) if name not in ("options", "error", "commit", "device")]
    heads = [runs[0][i].replace("miou", "mIoU").replace("_", " ") for i in shown]
    body += [_wide(pages.table(heads, [[_short(row[i]) for i in shown] for row in runs[1:]]))]
    return pages.page(f"Sweep {plan.name}", body)


def _sentence(summary: Summary) -> str:
    best, plan = summary.best, summary.plan
    done = sum(len(line.runs) for line in summary.lines)
    count = f"{done} of {len(plan.settings) * len(plan.seeds)} runs are finished"
    if best is None:
        return f"{count}: there is no result yet."
    scores = ", ".join(f"{best.text(split)} on {split}" for split in plan.splits)
    text = f"{count}. The best setting, chosen on val, is {best.setting.name}: mIoU {scores}"
    others = [line.differences.get("val") for line in summary.lines[1:] if line.runs]
    unclear = sum(1 for other in others if other is None or other.high >= 0)
    if unclear:
        text += f"; {unclear} of {len(others)} others may be as good: their interval on val includes 0"
    return f"{text}."


def _ranges(summary: Summary) -> list[str]:
    lines = [line for line in summary.lines if line.runs]
    figures = []
    splits = summary.plan.splits if lines else []
    largest = max((max(line.values(split)) for line in lines for split in splits), default=1)
    for split in splits:  # with one axis for all, so that they can be compared
        values = {line.setting.name: line.values(split) for line in lines}
        pixels = as_array(ranges_figure(values, "mIoU", split, summary.floor.get(split), 1.05 * largest or 1))
        figures.append(pages.picture(pixels, f"mIoU on {split}: a dot for each run; dotted: all background"))
    return figures


def _curves(lines: Sequence[Line]) -> list[str]:
    """The curves of a run of each setting; nothing if all were validated once."""
    first = {line.setting.name: next(iter(line.runs.values())) for line in lines}
    if max(sum("val/miou" in epoch for epoch in run.lines) for run in first.values()) < 2:
        return []
    figure = curves_figure({name: (run.lines, "val/miou") for name, run in first.items()}, "val/miou", "")
    picture = pages.picture(as_array(figure), "Validation mIoU by epoch, first finished seed of each")
    return ["<h2>Training</h2>", picture]


def _classes(lines: Sequence[Line], split: str) -> list[str]:
    names = {tuple(run.class_names) for line in lines for run in line.runs.values()}
    if len(names) > 1:
        return ['<p class="problem">The runs have different classes: their IoUs cannot be compared.</p>']
    class_names = list(names.pop())
    iou = {line.setting.name: _class_means(line, split, class_names) for line in lines}
    picture = [pages.picture(as_array(iou_figure(iou, class_names, split)), f"IoU on {split}")] if len(iou) <= 6 else []
    rows = [
        [name, *("-" if iou[key][index] != iou[key][index] else f"{iou[key][index]:.3f}" for key in iou)]
        for index, name in enumerate(class_names)
    ]
    table = _wide(pages.table(["class", *iou], rows))
    return [*picture, f"<details open><summary>Figures</summary>{table}</details>"]


def _class_means(line: Line, split: str, class_names: Sequence[str]) -> list[float]:
    values = [[run.scores[split].summary["iou"][name] for name in class_names] for run in line.runs.values()]
    columns = np.array(values, dtype=float).T  # None becomes NaN
    return [
        float(np.mean(column[~np.isnan(column)])) if (column == column).any() else float("nan") for column in columns
    ]


def _short(cell: Any) -> str:
    """A score with four digits; ``runs.csv`` has them all."""
    text = str(cell)
    return f"{float(text):.4f}" if re.fullmatch(r"0\.\d{5,}", text) else text


def _wide(table: str) -> str:
    """A table that scrolls sideways where it is wider than the screen."""
    return f'<div style="overflow-x: auto; white-space: nowrap">{table}</div>'
