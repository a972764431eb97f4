"""The folder of a run: the names of its files, reading them and writing them.

``lightning_logs/<name>/version_N`` holds what a run leaves on disk. The committed records in ``experiments/results``
are run folders as well, reduced to their small files.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vocseg.confusion import ConfusionMatrices
from vocseg.errors import VocsegError, nearest
from vocseg.metrics import Result
from vocseg.saving import Save, write_atomically, write_json, write_text

LOGS = "lightning_logs"
SPLITS = ("val", "test")
Line = dict[str, float]
"""The scalars of one epoch, by name."""
_FIRST = ("epoch", "step", "seconds")


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run's files.

    Attributes:
        path: of the folder.
    """

    path: Path

    @property
    def name(self) -> str:
        """``<name>/version_N``, or the folder's own name where it is no version."""
        path = self.path.absolute()
        return f"{path.parent.name}/{path.name}" if path.name.startswith("version_") else path.name

    @property
    def config(self) -> Path:
        """All settings of the fit."""
        return self.path / "config.yaml"

    @property
    def configs(self) -> list[Path]:
        """:attr:`config` and, in their order, those of resumptions that changed a setting (``config_1.yaml``, ...)."""
        later = sorted(self.path.glob("config_*.yaml"), key=lambda path: (len(path.name), path.name))
        return [self.config, *later] if self.config.is_file() else later

    @property
    def metrics(self) -> Path:
        """The scalars of each epoch, as CSV."""
        return self.path / "metrics.csv"

    @property
    def facts(self) -> Path:
        """How a committed record was made: commit, seed, device and so on, as JSON."""
        return self.path / "record.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of ``best.ckpt`` and ``last.ckpt``."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """The checkpoint of the last epoch."""
        return self.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch."""
        return self.checkpoints / "best.ckpt"

    @property
    def test_masks(self) -> Path:
        """The folder of the predicted test masks."""
        return self.path / "test_masks"

    @property
    def predictions(self) -> Path:
        """The folder that ``predict`` writes."""
        return self.path / "predictions"

    @property
    def submission(self) -> Path:
        """The folder that ``submit`` writes."""
        return self.path / "submission"

    def exported(self, suffix: str) -> Path:
        """The file that ``export`` writes, with an ending such as ``.onnx``."""
        return self.path / f"exported{suffix}"

    @property
    def report(self) -> Path:
        """The folder that ``report`` writes."""
        return self.path / "report"

    def scores(self, split: str) -> Path:
        """The scores of a split, as JSON."""
        return self.path / f"{split}.json"

    def image_scores(self, split: str) -> Path:
        """The scores of each image of a split, as CSV (:func:`write_image_scores`)."""
        return self.path / f"{split}_images.csv"

    def split_list(self, split: str) -> Path:
        """The names of the images that the run trained (``train``) or validated (``val``) on."""
        return self.path / f"{split}.txt"

    def matrices(self, split: str) -> Path:
        """The confusion matrix of each image of a split (:class:`vocseg.confusion.ConfusionMatrices`)."""
        return self.path / f"{split}.npz"

    def resized_matrices(self, split: str) -> Path:
        """The same under the paper's protocol (see ``vocseg.paper``), in committed records only."""
        return self.path / f"{split}_paper_inferred.npz"

    @classmethod
    def of_checkpoint(cls, checkpoint: str | Path) -> "RunFolder | None":
        """The run that a checkpoint belongs to, if it lies in the ``checkpoints`` folder of one."""
        folder = Path(checkpoint).absolute().parent
        return cls(folder.parent) if folder.name == "checkpoints" else None

    @classmethod
    def find(cls, given: str, logs: Path = Path(LOGS)) -> "RunFolder":
        """A run by its folder, the folder of its versions (the newest counts), or its name in ``logs``.

        Raises:
            VocsegError: there is no such run, with the nearest name.
        """
        for folder in (Path(given), logs / given):
            if any((folder / name).is_file() for name in ("config.yaml", "metrics.csv")):
                return cls(folder)
            files = [*folder.glob("version_*/config.yaml"), *folder.glob("version_*/metrics.csv")]
            numbers = [file.parent.name.removeprefix("version_") for file in files]
            newest = max((int(number) for number in numbers if number.isdecimal()), default=None)
            if newest is not None:
                return cls(folder / f"version_{newest}")
        names = [path.name for path in logs.glob("*") if path.is_dir()]
        raise VocsegError(f"There is no run {given}: no folder with config.yaml or metrics.csv.{nearest(given, names)}")


@dataclass
class SplitScores:
    """What a run's folder says of one split.

    Attributes:
        summary: the figures of ``<split>.json``: ``miou``, ``iou`` by class name, ``images`` and so on.
        matrices: of each image; None in records older than these files.
        resized: the same under the paper's protocol, if it was kept.
    """

    summary: dict[str, Any]
    matrices: ConfusionMatrices | None = None
    resized: ConfusionMatrices | None = None


@dataclass
class Run:
    """What a run left on disk.

    Attributes:
        folder: where it was read.
        configs: all settings, and those of each resumption that changed some; empty where they are gone.
        lines: the scalars of each epoch; empty where none was finished.
        facts: of a committed record; else empty.
        scores: by split, those that were scored and kept.
    """

    folder: RunFolder
    configs: list[dict[str, Any]] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, SplitScores] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """See :attr:`RunFolder.name`."""
        return self.folder.name

    @property
    def class_names(self) -> list[str]:
        """The classes that it was scored on."""
        return next((list(split.summary["iou"]) for split in self.scores.values()), [])

    @property
    def best_epoch(self) -> int | None:
        """The epoch with the highest ``val/miou``, counted from 0."""
        scored = [line for line in self.lines if "val/miou" in line]
        return int(max(scored, key=lambda line: line["val/miou"])["epoch"]) if scored else None


def read_run(folder: RunFolder) -> Run:
    """Reads the files that there are.

    Raises:
        VocsegError: the folder is not there, or a file is broken.
    """
    if not folder.path.is_dir():
        raise VocsegError(f"There is no run {folder.path}.")
    run = Run(folder)
    try:
        run.configs = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in folder.configs]
        if folder.metrics.is_file():
            run.lines = read_lines(folder.metrics)
            if not all("epoch" in line for line in run.lines):
                raise ValueError(f"{folder.metrics.name} has a line without an epoch")
        if folder.facts.is_file():
            run.facts = json.loads(folder.facts.read_text(encoding="utf-8"))
        for split in SPLITS:
            if folder.scores(split).is_file():
                run.scores[split] = _read_scores(folder, split)
    except Exception as error:  # numpy, zipfile, json and yaml raise half a dozen kinds
        raise VocsegError(f"The run {folder.path} cannot be read: {' '.join(str(error).split())}") from error
    return run


def result_summary(result: Result, class_names: Sequence[str]) -> dict[str, Any]:
    """A result as plain numbers, None where one is undefined."""
    more: dict[str, Any] = {}
    if result.boundary is not None:
        iou = zip(class_names, map(_number, result.boundary.iou), strict=True)
        more["boundary"] = {"miou": _number(result.boundary.miou), "iou": dict(iou)}
    if result.calibration is not None:
        curve = result.calibration
        more["calibration"] = {
            "ece": _number(curve.ece),
            "confidence": [*map(_number, curve.confidence.tolist())],
            "accuracy": [*map(_number, curve.accuracy.tolist())],
            "pixels": curve.pixels.tolist(),
        }
    return {
        "images": len(result.matrices),
        "loss": _number(result.loss),
        "miou": _number(result.miou),
        "pixel_accuracy": _number(result.pixel_accuracy),
        "mean_accuracy": _number(result.mean_accuracy),
        "iou": {name: _number(iou) for name, iou in zip(class_names, result.iou, strict=True)},
        "all_background": {name: _number(value) for name, value in result.all_background().items()},
        **more,
    }


def write_result(
    folder: RunFolder,
    split: str,
    result: Result,
    class_names: Sequence[str],
    more: Mapping[str, Any] | None = None,
    save: Save = write_atomically,
) -> None:
    """Writes ``<split>.json`` and ``<split>.npz``.

    Args:
        folder: of the run.
        split: ``val`` or ``test``.
        result: its scores.
        class_names: one name per class.
        more: further entries of the JSON file.
        save: as in :func:`write_text`.
    """
    write_matrices(folder.matrices(split), result.matrices, save)
    write_json(folder.scores(split), {**result_summary(result, class_names), **(more or {})}, save)


def write_matrices(path: Path, matrices: ConfusionMatrices, save: Save = write_atomically) -> None:
    """Writes a ``.npz`` file atomically; ``save`` as in :func:`write_text`."""
    save(path, lambda file: np.savez_compressed(file, allow_pickle=False, **matrices.to_arrays()))


def write_image_scores(
    path: Path,
    matrices: ConfusionMatrices,
    class_names: Sequence[str],
    images: Sequence[str],
    save: Save = write_atomically,
    boundary_miou: np.ndarray | None = None,
) -> None:
    """Writes the scores of each image as CSV, in the order of the split's list.

    The columns are ``path``; ``rank`` by mIoU, the best is 1; ``miou`` and ``pixel_accuracy``, empty for an image that
    is all void; ``boundary_miou`` where it is known; ``iou/<class>``, empty for a class that occurs neither in the
    image's prediction nor in its target.

    Args:
        path: of the file.
        matrices: of the images.
        class_names: one name per class.
        images: their paths; fewer where they are not known.
        save: as in :func:`write_text`.
        boundary_miou: of each image, float64 [N].
    """
    miou = matrices.miou_per_image()
    rank = np.empty(len(matrices), dtype=int)
    rank[np.argsort(-np.nan_to_num(miou, nan=-1), kind="stable")] = np.arange(1, len(matrices) + 1)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = {"miou": miou, "pixel_accuracy": matrices.pixel_accuracy_per_image()}
    columns |= {} if boundary_miou is None else {"boundary_miou": boundary_miou}
    writer.writerow(["path", "rank", *columns, *(f"iou/{name}" for name in class_names)])
    for index, values in enumerate(np.column_stack([*columns.values(), matrices.iou_per_image()])):
        cells = ["" if value != value else f"{value:.6g}" for value in values.tolist()]
        writer.writerow([images[index] if index < len(images) else "", rank[index], *cells])
    write_text(path, text.getvalue(), save)


def write_lines(path: Path, lines: Sequence[Line]) -> None:
    """Writes the scalars of each epoch as CSV, atomically."""
    names = sorted({name for line in lines for name in line} - set(_FIRST))
    columns = [*_FIRST, *names]
    write_text(path, _csv([dict(zip(columns, columns, strict=True)), *lines], columns))


def append_line(path: Path, line: Line) -> None:
    """Adds the scalars of another epoch to the file of :func:`write_lines`.

    Only a scalar without a column makes it write the whole file again.
    """
    with path.open(encoding="utf-8", newline="") as file:
        columns = next(csv.reader(file), [])
    if set(line) <= set(columns):
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write(_csv([line], columns))
    else:
        write_lines(path, [*read_lines(path), line])


def read_lines(path: Path) -> list[Line]:
    """Reads what :func:`write_lines` and :func:`append_line` wrote.

    An empty cell is a scalar that the epoch does not have. A last line without its end is left out: its run was killed
    while it wrote.

    Raises:
        ValueError: a cell is no number.
    """
    text = path.read_text(encoding="utf-8")
    whole = io.StringIO(text[: text.rfind("\n") + 1], newline="")
    return [{name: _scalar(name, value) for name, value in line.items() if value} for line in csv.DictReader(whole)]


def _scalar(name: str, value: str) -> float:
    # whole numbers stay so when the line is written again
    return int(float(value)) if name in ("epoch", "step") else float(value)


def _csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _read_scores(folder: RunFolder, split: str) -> SplitScores:
    summary = json.loads(folder.scores(split).read_text(encoding="utf-8"))
    if not isinstance(summary, dict) or not isinstance(summary.get("iou"), dict):
        raise ValueError(f"{folder.scores(split).name} has no IoU by class")
    matrices = [_read_matrices(path(split)) for path in (folder.matrices, folder.resized_matrices)]
    if any(some is not None and some.num_classes != len(summary["iou"]) for some in matrices):
        raise ValueError(f"{folder.scores(split).name} and {folder.matrices(split).name} have different classes")
    return SplitScores(summary, *matrices)


def _read_matrices(path: Path) -> ConfusionMatrices | None:
    if not path.is_file():
        return None
    with np.load(path) as file:
        if "matrices" in file.files:  # vocseg 0.1.0 wrote dense arrays
            return ConfusionMatrices.from_dense(file["matrices"])
        return ConfusionMatrices.from_arrays(file)


def _number(value: float) -> float | None:
    return None if value != value else value
