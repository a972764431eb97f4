"""Rows of the paper's tables: declared in experiments/paper/rows.yaml, run one after the other, each to a record."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

import vocseg
from vocseg.errors import VocsegError, nearest
from vocseg.experiments import experiments_folder, resolve_config
from vocseg.lightning_cli import VocsegCLI
from vocseg.metrics import ConfusionMatrices
from vocseg.paper.protocol import PaperProtocol
from vocseg.paper.records import read_record
from vocseg.run_folder import RunFolder
from vocseg.saving import sample_names
from vocseg.sweep.runner import Job, execute, run_jobs

PROTOCOL = f"--trainer.callbacks+={PaperProtocol.__module__}.{PaperProtocol.__qualname__}"
"""The option that adds the paper's protocol; it comes last, because ``--trainer.callbacks`` replaces earlier ones."""


@dataclass
class Row:
    """One row of a table.

    Attributes:
        name: of the row, its run and its record.
        table: number of the paper's table (7: ours).
        experiment: the packaged experiment that it varies.
        activation: of every block that has a choice.
        lr: learning rate.
        weight_decay: Adam's L2 coefficient.
        epochs: number of epochs to train.
        seed: of all random draws.
        paper: the paper's accuracy and IoU on val, accuracy and IoU on test; None where unreadable; empty if the paper
            has no such row.
        choice: what was chosen where the paper is unreadable, or why the row exists where it is not the paper's.
        options: further options of ``vocseg fit``.
        figure: number of the paper's loss curves of this system, where its table does not have one number.
        needs: what it requires beyond VOC2007 and a CPU; such a row runs only when it is named.
    """

    name: str
    table: int
    experiment: str
    activation: str
    lr: float
    weight_decay: float
    epochs: int
    seed: int
    paper: list[float | None] = field(default_factory=list)
    choice: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    figure: int | None = None
    needs: str = ""

    def fit_options(self) -> list[str]:
        """The words after ``vocseg fit`` that run this row."""
        settings = {**self.options, "model.decoder.activation": self.activation}
        if self._backbone_has_activation():
            settings["model.backbone.activation"] = self.activation
        settings |= {
            "model.optimizer.lr": self.lr,
            "model.optimizer.weight_decay": self.weight_decay,
            "seed_everything": self.seed,
            "trainer.max_epochs": self.epochs,
        }
        flags = [word for name, value in settings.items() for word in (f"--{name}", _word(value))]
        return ["--config", self.experiment, "--name", self.name, *flags]

    def _backbone_has_activation(self) -> bool:
        config = yaml.safe_load(Path(resolve_config(self.experiment)).read_text(encoding="utf-8"))
        backbone = self.options.get("model.backbone", config["model"]["backbone"])
        name = backbone if isinstance(backbone, str) else backbone["class_path"]
        return "activation" in inspect.signature(getattr(vocseg, name).__init__).parameters


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


def declared(path: Path | None = None) -> Declared:
    """Reads the declared rows from ``path``, by default experiments/paper/rows.yaml."""
    content = yaml.safe_load((path or experiments_folder() / "paper" / "rows.yaml").read_text(encoding="utf-8"))
    common = {"epochs": content["epochs"], "seed": content["seed"]}
    rows = {name: Row(name=name, **{**common, **settings}) for name, settings in content["rows"].items()}
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
            facts={"row": row.name, "experiment": row.experiment},
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


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
