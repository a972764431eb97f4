"""The tables of a sweep: mean and deviation over seeds, the best setting, differences from it; all from the records."""

import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from vocseg.confusion import ConfusionMatrices, scores_of
from vocseg.errors import VocsegError
from vocseg.intervals import bootstrap_interval
from vocseg.records import read_record
from vocseg.run_folder import Run
from vocseg.sweep.plan import Plan, Setting

SCORES = ("miou", "pixel_accuracy", "mean_accuracy")
BELOW = (
    "Mean ± sample standard deviation over the seeds. The best setting has the highest mean mIoU on val. Differences "
    "are from it, between runs of the same seeds; their 95 % interval is over the choice of images (paired bootstrap)."
)


@dataclass
class Difference:
    """The mIoU of a setting minus that of the best one.

    Attributes:
        mean: over the seeds that both have.
        low: end of the 95 % interval over the choice of images.
        high: its other end.
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f})".replace("-", "\N{MINUS SIGN}")


@dataclass
class Line:
    """What came out of one setting.

    Attributes:
        setting: what was trained.
        runs: the records by seed.
        errors: why runs failed, by seed.
        differences: from the best setting, by split; None where there is nothing to compare.
    """

    setting: Setting
    runs: dict[int, Run]
    errors: dict[int, str]
    differences: dict[str, Difference | None] = field(default_factory=dict)

    def values(self, split: str, score: str = "miou") -> list[float]:
        """A score of each run."""
        values = (run.scores[split].summary[score] for run in self.runs.values())
        return [float("nan") if value is None else float(value) for value in values]

    def mean(self, split: str, score: str = "miou") -> float:
        """The mean over the seeds, NaN without runs."""
        values = self.values(split, score)
        return statistics.fmean(values) if values else float("nan")

    def deviation(self, split: str, score: str = "miou") -> float:
        """The sample standard deviation over the seeds, NaN for fewer than two."""
        values = self.values(split, score)
        return statistics.stdev(values) if len(values) > 1 else float("nan")

    def text(self, split: str) -> str:
        """``0.470 ± 0.012``."""
        mean, deviation = self.mean(split), self.deviation(split)
        if mean != mean:
            return "-"
        return f"{mean:.3f}" if deviation != deviation else f"{mean:.3f} ± {deviation:.3f}"


@dataclass
class Summary:
    """The results of a sweep.

    Attributes:
        plan: the sweep.
        lines: the best setting first, by mean mIoU on val; those without any result last.
        floor: mIoU of labelling every pixel as background, by split.
    """

    plan: Plan
    lines: list[Line]
    floor: dict[str, float]

    @property
    def best(self) -> Line | None:
        """The best setting; None without results."""
        return self.lines[0] if self.lines and self.lines[0].runs else None

    @property
    def errors(self) -> dict[str, str]:
        """Why runs failed, by their names."""
        return {
            self.plan.run_name(line.setting, seed): error for line in self.lines for seed, error in line.errors.items()
        }


def summarise(plan: Plan, errors: Mapping[str, str]) -> Summary:
    """Reads the records of a sweep.

    Args:
        plan: the sweep.
        errors: why runs failed, by their names.
    """
    lines = []
    for setting in plan.settings:
        line = Line(setting, {}, {})
        for seed in plan.seeds:
            name = plan.run_name(setting, seed)
            try:
                line.runs[seed] = read_record(plan.record(setting, seed), plan.splits)
            except VocsegError:
                line.errors[seed] = errors.get(name, "not run yet")
        lines.append(line)
    lines.sort(key=lambda line: -np.nan_to_num(line.mean("val"), nan=-1))  # stable: else in the plan's order
    best, floor = lines[0], {}
    for split in plan.splits if best.runs else ():
        first = next(iter(best.runs.values()))
        floor[split] = scores_of(matrices_of(first, split).all_background().total())["miou"]
        for line in lines[1:]:
            line.differences[split] = difference(line, best, split)
    return Summary(plan, lines, floor)


def difference(line: Line, other: Line, split: str) -> Difference | None:
    """The mIoU of a setting minus another's, over the seeds that both have; None where they cannot be compared."""
    seeds = [seed for seed in line.runs if seed in other.runs]
    ours, theirs = ([matrices_of(each.runs[seed], split) for seed in seeds] for each in (line, other))
    if not seeds or not all(same_images(a, b) for a, b in zip(ours, theirs, strict=True)):
        return None
    means = [statistics.fmean(scores_of(each.total())["miou"] for each in of) for of in (ours, theirs)]
    return Difference(means[0] - means[1], *bootstrap_interval(ours, minus=theirs))


def same_images(matrices: ConfusionMatrices, others: ConfusionMatrices) -> bool:
    """Whether two networks were scored on the same images, as far as the number of pixels of each class tells."""
    if (len(matrices), matrices.num_classes) != (len(others), others.num_classes):
        return False
    ours, theirs = (each.all_background().to_arrays() for each in (matrices, others))
    return all(np.array_equal(ours[name], theirs[name]) for name in ours)


def matrices_of(run: Run, split: str) -> ConfusionMatrices:
    """The confusion matrices of a record that has them."""
    matrices = run.scores[split].matrices
    assert matrices is not None, "read_record() checks that they are there"
    return matrices


def table_rows(summary: Summary, compared: Sequence[str] = ()) -> list[list[str]]:
    """The table as cells, a heading first: the settings, then the all-background row.

    Args:
        summary: of the sweep.
        compared: the splits whose differences are shown; default: all.
    """
    plan = summary.plan
    compared = compared or plan.splits
    several = len(plan.settings) > 1
    head = ["setting", "runs", *(f"{split} mIoU" for split in plan.splits)]
    head += [f"{split}, minus best (95 %)" for split in compared] if several else []
    rows = [[*head, "minutes"]]
    for line in summary.lines:
        runs = f"{len(line.runs)}" if not line.errors else f"{len(line.runs)} of {len(plan.seeds)}"
        row = [line.setting.name, runs, *(line.text(split) for split in plan.splits)]
        if several and line is summary.best:
            row += ["best"] + [""] * (len(compared) - 1)
        elif several:
            row += [str(line.differences.get(split) or "-") for split in compared]
        minutes = [run.facts["minutes"] for run in line.runs.values()]
        rows.append([*row, f"{statistics.fmean(minutes):.1f}" if minutes else "-"])
    if summary.floor:
        floor = [f"{summary.floor[split]:.3f}" for split in plan.splits]
        rows.append(["all background", "", *floor, *[""] * (len(rows[0]) - 2 - len(floor))])
    return rows


def settings_rows(summary: Summary) -> list[list[Any]]:
    """The table as numbers for CSV, a line per setting."""
    splits = summary.plan.splits
    figures = [(split, score) for split in splits for score in SCORES]
    head = ["setting", "best", "runs", "failed"]
    head += [f"{split}_{score}_{kind}" for split, score in figures for kind in ("mean", "std")]
    head += [f"{split}_difference{end}" for split in splits for end in ("", "_low", "_high")]
    rows: list[list[Any]] = [head]
    for line in summary.lines:
        row: list[Any] = [line.setting.name, int(line is summary.best), len(line.runs), len(line.errors)]
        for split, score in figures:
            row += [_digits(line.mean(split, score)), _digits(line.deviation(split, score))]
        for split in splits:
            found = line.differences.get(split)
            row += [_digits(value) for value in (found.mean, found.low, found.high)] if found else [""] * 3
        rows.append(row)
    return rows


def runs_rows(summary: Summary) -> list[list[Any]]:
    """A line per run for CSV: its scores, or why it failed."""
    splits = summary.plan.splits
    figures = [(split, score) for split in splits for score in SCORES]
    rows: list[list[Any]] = [
        ["setting", "seed", *(f"{split}_{score}" for split, score in figures), *_FACTS, "options", "error"]
    ]
    for line in summary.lines:
        options = shlex.join(line.setting.words())
        for seed in summary.plan.seeds:
            run = line.runs.get(seed)
            if run is None:
                rows.append([line.setting.name, seed, *[""] * (len(figures) + len(_FACTS)), options, line.errors[seed]])
                continue
            scores = [_digits(run.scores[split].summary[score]) for split, score in figures]
            rows.append([line.setting.name, seed, *scores, *(run.facts.get(fact, "") for fact in _FACTS), options, ""])
    return rows


_FACTS = ("epochs", "best_epoch", "minutes", "commit", "device", "precision")


def terminal_table(summary: Summary, colours: bool = False) -> Table:
    """The table for the terminal."""
    rows = table_rows(summary, compared=["val"])
    table = Table(
        title=f"Sweep {summary.plan.name}: {summary.plan.size}",
        title_justify="left",
        box=box.HEAVY_HEAD if colours else box.ASCII,
        caption=BELOW,
        caption_justify="left",
    )
    for number, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for line, row in zip([*summary.lines, None], rows[1:], strict=False):
        table.add_row(*row, style="bold" if line is not None and line is summary.best else "")
    return table


def errors_rows(summary: Summary) -> list[list[str]]:
    """The runs without a result and why, a heading first."""
    return [["run", "error"], *([name, " ".join(error.split())] for name, error in summary.errors.items())]


def hardware(summary: Summary) -> list[str]:
    """What the runs ran on, each combination once."""
    runs: Sequence[Run] = [run for line in summary.lines for run in line.runs.values()]
    found: dict[str, None] = {}
    for run in runs:
        facts = run.facts
        versions = ", ".join(f"{name} {version}" for name, version in facts.get("versions", {}).items())
        found[f"{facts.get('device')}, {facts.get('precision')}; commit {facts.get('commit')}; {versions}"] = None
    return list(found)


def _digits(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.6f}"
