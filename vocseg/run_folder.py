"""The folder of a run: the names of its files, reading them, and writing them atomically.

``lightning_logs/<name>/version_N`` holds what a run leaves on disk. The committed records in ``experiments/results``
are run folders as well, reduced to their small files.
"""

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import yaml
from PIL import Image

from vocseg.data.labels import VOC_PALETTE
from vocseg.errors import VocsegError, nearest
from vocseg.metrics import ConfusionMatrices, Result

LOGS = "lightning_logs"
SPLITS = ("val", "test")
Line = dict[str, float]
"""The scalars of one epoch, by name."""
Write = Callable[[BinaryIO], Any]
"""Writes a file's content into the open file."""
Save = Callable[[Path, Write], None]
"""Creates or replaces the file of a path."""


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
    def report(self) -> Path:
        """The folder that ``report`` writes."""
        return self.path / "report"

    def scores(self, split: str) -> Path:
        """The scores of a split, as JSON."""
        return self.path / f"{split}.json"

    def matrices(self, split: str) -> Path:
        """The confusion matrix of each image of a split (:class:`vocseg.metrics.ConfusionMatrices`)."""
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
    return {
        "images": len(result.matrices),
        "loss": _number(result.loss),
        "miou": _number(result.miou),
        "pixel_accuracy": _number(result.pixel_accuracy),
        "mean_accuracy": _number(result.mean_accuracy),
        "iou": {name: _number(iou) for name, iou in zip(class_names, result.iou, strict=True)},
        "all_background": {name: _number(value) for name, value in result.all_background().items()},
    }


def write_atomically(path: Path, write: Write, *, durable: bool = False) -> None:
    """Writes a file beside ``path`` and moves it into place when it is complete.

    Neither a kill nor a full disk leaves an incomplete file under the name, and the previous file stays until then.

    Args:
        path: of the file; its folder is created.
        write: writes the content into the open file.
        durable: wait until the disk has it, so that the same holds for a power cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # a name may have 255 bytes on most file systems
    part = path.with_name(os.fsdecode(os.fsencode(path.name)[:250] + b".part"))
    try:
        with part.open("wb") as file:
            write(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


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


def write_json(path: Path, content: Mapping[str, Any], save: Save = write_atomically) -> None:
    """Writes JSON atomically; ``save`` as in :func:`write_text`."""
    write_text(path, json.dumps(content, indent=2) + "\n", save)


def write_text(path: Path, text: str, save: Save = write_atomically) -> None:
    """Writes UTF-8 text atomically.

    Args:
        path: of the file.
        text: its content.
        save: writes the file: :func:`write_atomically`, or :meth:`OwnedFolder.write`.
    """
    save(path, lambda file: file.write(text.encode()))


def write_matrices(path: Path, matrices: ConfusionMatrices, save: Save = write_atomically) -> None:
    """Writes a ``.npz`` file atomically; ``save`` as in :func:`write_text`."""
    save(path, lambda file: np.savez_compressed(file, allow_pickle=False, **matrices.to_arrays()))


def write_mask(path: Path, labels: np.ndarray, save: Save = write_atomically) -> None:
    """Writes labels uint8 [H, W] as a PNG with VOC's palette, atomically; its values are the labels.

    ``save`` is as in :func:`write_text`.
    """
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(VOC_PALETTE.ravel().tolist())
    save(path, lambda file: image.save(file, format="PNG"))


def write_lines(path: Path, lines: Sequence[Line]) -> None:
    """Writes the scalars of each epoch as CSV, atomically."""
    text = io.StringIO()
    first = ("epoch", "step", "seconds")
    names = sorted({name for line in lines for name in line} - set(first))
    writer = csv.DictWriter(text, [*first, *names], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text(path, text.getvalue())


def read_lines(path: Path) -> list[Line]:
    """Reads what :func:`write_lines` wrote; an empty cell is a scalar that the epoch does not have."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: float(value) for name, value in line.items() if value} for line in csv.DictReader(file)]


class OwnedFolder:
    """A folder in which a command replaces only the files that it wrote itself.

    A hidden file, ``.vocseg_<command>_<rank>.jsonl``, lists the name and the SHA-256 of every file that the command
    writes below the folder. A file is the command's own while it has a content that is listed for its name. Any other
    file, such as one that a user wrote or corrected, is never replaced.

    Args:
        path: of the folder.
        command: that writes the files, for example ``predict``.
        advice: a sentence for the user whose file is in the way.
        rank: of this process: each process lists its own files.
    """

    def __init__(self, path: Path, command: str, advice: str, rank: int = 0) -> None:
        self.path, self.command, self.advice = path, command, advice
        self._list = path / f".vocseg_{command}_{rank}.jsonl"
        self._checked: set[Path] = set()
        self._written: dict[str, set[str]] = {}
        for file in sorted(path.glob(f".vocseg_{command}_*.jsonl")):
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    name, digest = json.loads(line)
                    self._written.setdefault(name, set()).add(digest)
                except (ValueError, TypeError):  # an empty line, or an incomplete one after a kill
                    continue

    def check(self, paths: Iterable[Path], inputs: Iterable[Path] = ()) -> None:
        """Checks that files can be written; to be called before the first one is.

        Args:
            paths: of the files, below the folder.
            inputs: files that the command reads, which it must not replace even if it wrote them.

        Raises:
            VocsegError: a file is in the way; the message names the first, and counts the others.
        """
        paths, read = list(paths), {path.resolve() for path in inputs}
        conflicts = [conflict for path in paths if (conflict := self._conflict(path, read))]
        if conflicts:
            more = f" (and {len(conflicts) - 1} more)" if len(conflicts) > 1 else ""
            raise VocsegError(f"{conflicts[0]}{more}. {self.advice}")
        self._checked.update(paths)

    def write(self, path: Path, write: Write) -> None:
        """Writes a file atomically.

        Raises:
            VocsegError: see :meth:`check`.
        """
        if path not in self._checked:
            self.check([path])
        content = io.BytesIO()
        write(content)
        name, digest = self._name(path), hashlib.sha256(content.getbuffer()).hexdigest()
        if digest not in self._written.get(name, ()):  # listed first: after a kill the file is known in any case
            self.path.mkdir(parents=True, exist_ok=True)
            with self._list.open("a", encoding="utf-8") as file:
                file.write(f"\n{json.dumps([name, digest])}")
            self._written.setdefault(name, set()).add(digest)
        write_atomically(path, lambda file: file.write(content.getbuffer()))

    def delete_own(self, folder: Path) -> None:
        """Deletes the command's own files below ``folder``."""
        for path in [self.path / name for name in self._written]:
            if folder in path.parents and self._is_own(path):
                path.unlink()

    def _conflict(self, path: Path, inputs: set[Path]) -> str | None:
        if path.resolve() in inputs:
            return f"{path} is an input, and the output would replace it"
        parent = next(folder for folder in path.parents if os.path.lexists(folder))
        if not parent.is_dir():
            return f"{path} cannot be written: {parent} is no folder"
        if not os.access(parent, os.W_OK):
            return f"{path} cannot be written: no permission"
        if not os.path.lexists(path) or self._is_own(path):
            return None
        if path.is_file() and self._name(path) in self._written:
            return f"{path} was changed after vocseg {self.command} wrote it, and is not replaced"
        return f"{path} exists without a record that vocseg {self.command} wrote it, and is not replaced"

    def _is_own(self, path: Path) -> bool:
        digests = self._written.get(self._name(path))
        if not digests or path.is_symlink() or not path.is_file():
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() in digests

    def _name(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()


def unique_names(entries: Iterable[tuple[str, Path]]) -> dict[Path, str]:
    """Path -> name of what is written about it, from pairs of the wanted name and the path.

    It is ``photo`` for ``photo.jpg``; ``photo.webp``, then ``photo_2``, when another file has that name.
    """
    taken: dict[str, Path] = {}
    for name, path in dict.fromkeys(entries):
        numbered = (f"{name}_{number}" for number in count(2))
        taken[next(other for other in chain([name, name + path.suffix], numbered) if other not in taken)] = path
    return {path: name for name, path in taken.items()}


def sample_names(samples: Iterable[Any]) -> list[str]:
    """The name of what is written about each sample: its entry in the list, for example ``one/0004``.

    Args:
        samples: objects with ``image`` and ``name``, as :class:`vocseg.data.files.Sample`. Without a name it is the
            image's.
    """
    entries = []
    for sample in samples:
        image = Path(sample.image)
        name = Path(getattr(sample, "name", "") or image.stem)
        entries.append((image.stem if name.is_absolute() or ".." in name.parts else name.as_posix(), image))
    names = unique_names(entries)
    return [names[image] for _, image in entries]


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder to fill, which then takes the place of ``folder``; the previous one stays until then.

    After an error the previous folder is unchanged. After a kill between the two moves the next call restores it.
    """
    part, old = (folder.with_name(f".{folder.name}.{word}") for word in ("part", "old"))
    _restore(folder, old)
    for leftover in (part, old):
        shutil.rmtree(leftover, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if folder.exists():
            os.replace(folder, old)
        os.replace(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        _restore(folder, old)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _restore(folder: Path, old: Path) -> None:
    if old.exists() and not folder.exists():
        os.replace(old, folder)


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
