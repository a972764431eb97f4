"""Writing files: atomically, and only over files that the same command wrote before."""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from vocseg.data.labels import VOC_PALETTE
from vocseg.errors import VocsegError

Write = Callable[[BinaryIO], Any]
"""Writes a file's content into the open file."""
Save = Callable[[Path, Write], None]
"""Creates or replaces the file of a path."""


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


def write_text(path: Path, text: str, save: Save = write_atomically) -> None:
    """Writes UTF-8 text atomically.

    Args:
        path: of the file.
        text: its content.
        save: writes the file: :func:`write_atomically`, or :meth:`OwnedFolder.write`.
    """
    save(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: Mapping[str, Any], save: Save = write_atomically) -> None:
    """Writes JSON atomically; ``save`` as in :func:`write_text`."""
    write_text(path, json.dumps(content, indent=2) + "\n", save)


def write_mask(path: Path, labels: np.ndarray, save: Save = write_atomically) -> None:
    """Writes labels uint8 [H, W] as a PNG with VOC's palette, atomically; its values are the labels.

    ``save`` is as in :func:`write_text`.
    """
    save(path, lambda file: encode_mask(labels, file))


def encode_mask(labels: np.ndarray, file: BinaryIO) -> None:
    """Writes labels uint8 [H, W] to an open file, as :func:`write_mask` does."""
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(VOC_PALETTE.ravel().tolist())
    image.save(file, format="PNG")


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
        self._checked: set[str] = set()  # names: of many files, paths would take three times the memory
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
        self._checked.update(map(self._name, paths))

    def write(self, path: Path, write: Write) -> None:
        """Writes a file atomically.

        Raises:
            VocsegError: see :meth:`check`.
        """
        name = self._name(path)
        if name not in self._checked:
            self.check([path])
        content = io.BytesIO()
        write(content)
        digest = hashlib.sha256(content.getbuffer()).hexdigest()
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
    numbers: dict[str, Iterator[int]] = {}  # kept for each name: many folders may have a file of the same name
    for name, path in dict.fromkeys(entries):
        numbered = (f"{name}_{number}" for number in numbers.setdefault(name, count(2)))
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
