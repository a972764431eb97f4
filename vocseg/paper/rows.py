"""Rows of the paper's tables: declared in experiments/paper, run one after the other, each to a record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from vocseg.confusion import ConfusionMatrices
from vocseg.errors import VocsegError, nearest
from vocseg.experiments import experiments_folder
from vocseg.lightning_cli import VocsegCLI
from vocseg.paper.protocol import PaperProtocol
from vocseg.paper.records import read_record
from vocseg.run_folder import RunFolder
from vocseg.saving import sample_names
from vocseg.sweep.plan import Setting, read_plan
from vocseg.sweep.runner import Job, execute, run_jobs

PROTOCOL = f"--trainer.callbacks+={PaperProtocol.__module__}.{PaperProtocol.__qualname__}"
"""The option that adds the paper's protocol; it comes last, because ``--trainer.callbacks`` replaces earlier ones."""


@dataclass
class Row:
    """One row of a table.

    Attributes:
        setting: its name, config and options.
        table: number of the paper's table (7: ours).
        seed: of all random draws.
        paper: the paper's accuracy and IoU on val, accuracy and IoU on test; None where unreadable; empty if the paper
            has no such row.
        choice: what was chosen where the paper is unreadable, or why the row exists where it is not the paper's.
        figure: number of the paper's loss curves of this system, where its table does not have one number.
        needs: what it requires beyond VOC2007 and a CPU; such a row runs only when it is named.
        same_as: the row whose settings it has, if it is that row with another seed.
    """

    setting: Setting
    table: int
    seed: int
    paper: list[float | None] = field(default_factory=list)
    choice: str = ""
    figure: int | None = None
    needs: str = ""
    same_as: str = ""

    @property
    def name(self) -> str:
        """Of the row, its run and its record."""
        return self.setting.name

    @property
    def options(self) -> dict[str, str]:
        """The options that it sets, by name."""
        return dict(self.setting.options)

    def fit_options(self) -> list[str]:
        """The words after ``vocseg fit`` that run this row."""
        return [*self.setting.words(), "--name", self.name, "--seed_everything", str(self.seed)]


@dataclass
class Declared:
    """The declared rows.

    Attributes:
        rows: by name, in the tables' order.
        tables: ``title`` and, where all its rows share one, ``figure`` of each table by its number.
        shown: indices in the test list whose masks are kept.
        claims: a claim of the paper -> pairs of rows that test it.
    """

    rows: dict[str, Row]
    tables: dict[int, dict[str, Any]]
    shown: list[int]
    claims: dict[str, list[list[str]]]


def declared() -> Declared:
    """Reads the declared rows: what the paper says, and the settings."""
    folder = experiments_folder() / "paper"
    content = yaml.safe_load((folder / "facts.yaml").read_text(encoding="utf-8"))
    plans = [read_plan(str(folder / file)) for file in ("rows.yaml", "rows_more.yaml")]
    settings = {setting.name: setting for plan in plans for setting in plan.settings}
    rows = {}
    for name, facts in content["rows"].items():
        setting = replace(settings[facts.get("same_as", name)], name=name)
        rows[name] = Row(setting, **{"seed": plans[0].seeds[0], **facts})
    return Declared(rows, content["tables"], content["shown"], content["claims"])


def run_rows(names: Sequence[str], options: Sequence[str], results: Path) -> list[str]:
    """Trains, validates and tests rows one after the other.

    A row with a record is not run again; an interrupted one resumes from its last checkpoint; a failing one does not
    stop the others.

    Args:
        names: of rows; empty: every row that needs nothing special.
        options: of ``vocseg fit``, for all rows; they override the rows' own.
        results: folder of the records, one folder per row.

    Returns:
        The names of the rows that failed.

    Raises:
        VocsegError: there is no such row.
    """
    known = declared()
    for name in names:
        if name not in known.rows:
            raise VocsegError(f"There is no row {name!r}.{nearest(name, known.rows)} Rows: {', '.join(known.rows)}.")
    chosen = [known.rows[name] for name in names] or [row for row in known.rows.values() if not row.needs]
    jobs = [
        Job(
            row.name,
            str(results / row.name),
            [*row.fit_options(), *options, PROTOCOL],
            [*_for_scoring(options), PROTOCOL],
            facts={"row": row.name, "experiment": row.setting.configs[0]},
        )
        for row in chosen
    ]
    start = partial(execute, extras=partial(_extras, known.shown))
    return [*run_jobs(jobs, start, read_record)]


def _extras(
    shown: Sequence[int], run_folder: RunFolder, scored: Mapping[str, VocsegCLI]
) -> tuple[dict[str, ConfusionMatrices], list[Path]]:
    """The matrices under the paper's protocol, and the predicted masks to keep."""
    resized = {split: _protocol(cli).matrices[split] for split, cli in scored.items()}
    return resized, _masks(run_folder, scored["test"], shown)


def _protocol(scored: VocsegCLI) -> PaperProtocol:
    callbacks = scored.config_init[scored.subcommand]["trainer"]["callbacks"]
    return next(callback for callback in callbacks if isinstance(callback, PaperProtocol))


def _masks(run_folder: RunFolder, tested: VocsegCLI, shown: Sequence[int]) -> list[Path]:
    """The files of the predicted test masks to keep."""
    samples = tested.datamodule.datasets["test"].samples
    indices = sorted({index % len(samples) for index in shown})  # another tree may be smaller
    names = sample_names(samples)
    return [run_folder.test_masks / f"{names[index]}.png" for index in indices]


def _for_scoring(options: Sequence[str]) -> list[str]:
    """The options that say where and how to run; all others are in the checkpoint."""
    kept, keep = [], False
    for word in options:
        if word.startswith("--"):
            keep = word.startswith(("--trainer.", "--data."))
        if keep:
            kept.append(word)
    return kept
