"""The paper's rows: declared in experiments/paper/rows.yaml, run one after the other, each leaving a small record."""

import inspect
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

import vocseg
from vocseg.callbacks.metrics_csv import read_lines
from vocseg.checkpoints import LOGS
from vocseg.data.datasets import collate
from vocseg.errors import VocsegError, nearest
from vocseg.experiments import experiments_folder, resolve_config
from vocseg.lightning_cli import VocsegCLI, run
from vocseg.paper.records import provenance, read_record, write_record


@dataclass
class Row:
    """One row of a table.

    Attributes:
        name: of the row, its run and its record.
        table: number of the paper's table (7: ours).
        experiment: the packaged experiment that it varies.
        activation: of every block that has a choice.
        lr: learning rate.
        weight_decay: Adam's L2.
        epochs: how long it trains.
        seed: of every random draw.
        paper: the paper's accuracy and IoU on val, accuracy and IoU on test; None where unreadable; empty: no such row.
        choice: what was chosen where the paper cannot be read, or where the row is ours.
        options: further options of ``vocseg fit``.
        figure: number of the paper's loss curves of this system, where its table does not tell.
        needs: what it wants beyond VOC2007 and a CPU; such a row runs only when it is named.
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
        """The words after ``vocseg fit`` that make this row."""
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
        shown: places in the test list whose masks are kept.
        claims: what the paper says -> pairs of rows that bear on it.
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

    A row that has its record is not run again; one that was interrupted goes on from its last checkpoint; one that
    fails does not stop the others.

    Args:
        names: of rows; none: every row that needs nothing special.
        options: of ``vocseg fit``, for all rows; they win over the rows' own.
        results: where the records go, a folder for each row.

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
    failed = []
    for number, row in enumerate(chosen, start=1):
        folder = results / row.name
        print(f"\n[{number} of {len(chosen)}] {row.name}", flush=True)
        if _finished(folder):
            print(f"{folder} has its record: not run again (delete it to do so).")
            continue
        try:
            _run_row(row, list(options), folder, known.shown)
            print(f"Recorded in {folder}")
        except VocsegError as error:
            failed.append(row.name)
            print(f"{row.name} failed: {error}")
        except Exception:  # whatever goes wrong in one row, the others shall run
            failed.append(row.name)
            traceback.print_exc()
    return failed


def _finished(folder: Path) -> bool:
    if not folder.exists():
        return False
    try:
        read_record(folder)
    except VocsegError as error:
        print(f"{error} Run anew.")
        return False
    return True


def _run_row(row: Row, options: list[str], folder: Path, shown: Sequence[int]) -> None:
    logs = Path(_value(options, "--trainer.default_root_dir") or ".") / LOGS / row.name
    interrupted = sorted(logs.glob("*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    resume = ["--ckpt_path", str(interrupted[-1])] if interrupted else []
    if resume:
        print(f"Going on from {interrupted[-1]}")
    fit = run(["fit", *row.fit_options(), *options, *resume])
    run_folder = Path(fit.trainer.loggers[0].log_dir)
    best = ["--ckpt_path", str(run_folder / "checkpoints" / "best.ckpt"), *_for_scoring(options)]
    validated = run(["validate", *best])
    tested = run(["test", *best])
    lines = read_lines(run_folder / "metrics.csv")
    scored = [line for line in lines if "val/miou" in line]
    facts = {
        "row": row.name,
        "experiment": row.experiment,
        "seed": fit.config["fit"]["seed_everything"],
        "epochs": len(lines),
        "best_epoch": int(max(scored, key=lambda line: line["val/miou"])["epoch"]),
        "minutes": round(sum(line["seconds"] for line in lines) / 60, 1),
        **provenance(fit.trainer),
    }
    results = {"val": validated.model.results["val"], "test": tested.model.results["test"]}
    write_record(folder, run_folder, results, facts, fit.model.class_names, _masks(tested, shown))


def _masks(tested: VocsegCLI, shown: Sequence[int]) -> dict[str, Any]:
    """The predicted label maps of some test images, uint8 [H, W], by photograph's name."""
    dataset = tested.datamodule.datasets["test"]
    places = sorted({place % len(dataset) for place in shown})  # a tree of one's own may be smaller
    batch = collate([dataset[place] for place in places])
    batch = {**batch, "original_size": [mask.shape for mask in batch["original_mask"]]}
    batch["image"] = batch["image"].to(tested.model.device)
    with torch.no_grad():
        maps = tested.model.eval().predict_step(batch, 0)
    return {dataset.samples[place].image.stem: labels.cpu().numpy() for place, labels in zip(places, maps, strict=True)}


def _for_scoring(options: Sequence[str]) -> list[str]:
    """Those options that say where and how to run; the rest is in the checkpoint."""
    kept, keep = [], False
    for word in options:
        if word.startswith("--"):
            keep = word.startswith(("--trainer.", "--data."))
        if keep:
            kept.append(word)
    return kept


def _value(options: Sequence[str], name: str) -> str | None:
    return next((options[place + 1] for place, word in enumerate(options[:-1]) if word == name), None)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
