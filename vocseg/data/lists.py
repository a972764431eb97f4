"""Where samples are: folders, VOC trees, text lists, splits, and the images to predict."""

import glob
import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from vocseg.data.files import Sample
from vocseg.data.images import IMAGE_SUFFIXES
from vocseg.data.messages import say
from vocseg.data.text import read_lines
from vocseg.errors import VocsegError, nearest

IMAGES = "JPEGImages"
MASKS = "SegmentationClass"
LABELME_MASKS = "SegmentationClassPNG"
"""The masks that ``labelme2voc`` writes where ``SegmentationClass`` holds NumPy arrays."""

_SUFFIX = "|".join(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
_PAIR = re.compile(rf"(\S.*?\.(?:{_SUFFIX}))[\s,;]+(\S.*\.(?:{_SUFFIX}))", re.IGNORECASE)

Index = dict[str, list[Path]]
"""Image files by their path relative to a folder, without the ending, with ``/``, in Unicode form NFC."""


def expand(path: str | Path) -> Path:
    """Replaces ``~`` and ``$NAME`` in a path."""
    return Path(os.path.expandvars(path)).expanduser()


# --- folders


def find_files(folder: Path, recursive: bool = True) -> list[Path]:
    """Lists the files below a folder, sorted. Hidden files and folders, and macOS's ``__MACOSX``, are left out."""
    files: list[Path] = []
    visited: set[str] = set()
    for base, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(base) in visited:  # a symlink to a folder above
            folders.clear()
            continue
        visited.add(os.path.realpath(base))
        folders[:] = [name for name in folders if recursive and not name.startswith(".") and name != "__MACOSX"]
        files += [Path(base, name) for name in names if not name.startswith(".")]
    return sorted(files)


def subfolders(folder: Path) -> list[Path]:
    """Lists the folders in a folder, sorted, without hidden ones; none if it cannot be read."""
    try:
        return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    except OSError:
        return []


def levels_below(root: Path) -> list[list[Path]]:
    """Lists the folders in ``root``, and the folders in these. VOC trees are not searched: they have large folders."""

    def search(folder: Path) -> list[Path]:
        return [] if (folder / IMAGES).is_dir() else subfolders(folder)

    first = search(root)
    return [first, [child for folder in first for child in search(folder)]]


def is_image(path: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> bool:
    """Tells whether a file's ending is that of an image, in any case."""
    return path.suffix.lower() in suffixes


def key_of(path: Path) -> str:
    """Returns a relative path without its ending, in Unicode form NFC: macOS may name files in another form."""
    return unicodedata.normalize("NFC", path.with_suffix("").as_posix())


def index_images(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> Index:
    """Lists the images below a folder by their relative path without the ending."""
    index: Index = {}
    for file in find_files(folder):
        if is_image(file, suffixes):
            index.setdefault(key_of(file.relative_to(folder)), []).append(file)
    return index


def pair_samples(images: Index, masks: Index, where: str) -> list[Sample]:
    """Pairs images and masks that have the same key.

    Args:
        images: the image files.
        masks: the mask files.
        where: names both in error messages.

    Raises:
        VocsegError: an image has no mask, a mask has no image, there are several files of one key, or no pair at all.
    """
    if not images:
        raise VocsegError(f"{where}: no image found (looked for {', '.join(IMAGE_SUFFIXES)}).")
    problems = [
        f"{len(keys)} {kind} ({_first(index[key][0].name for key in sorted(keys))})"
        for kind, index, keys in (
            ("images without a mask", images, images.keys() - masks.keys()),
            ("masks without an image", masks, masks.keys() - images.keys()),
        )
        if keys
    ]
    if problems:
        raise VocsegError(
            f"{where}: {' and '.join(problems)}. An image and its mask need the same name, apart from the ending and a "
            "word such as _mask. Rename these files, or move them out of the folder."
        )
    return [Sample(_only(images[key]), _only(masks[key]), key) for key in sorted(images)]


# --- VOC trees and their lists


def candidate_trees(root: Path, year: str) -> list[Path]:
    """Lists the folders in which ``find_tree`` looks first, in order."""
    return [root / "VOCdevkit" / f"VOC{year}", root / f"VOC{year}", root]


def find_tree(root: Path, year: str, mask_folders: Sequence[str] = ()) -> Path | None:
    """Finds a VOC tree below ``root``, or ``root`` itself.

    A tree has ``ImageSets/Segmentation``, or ``JPEGImages`` and a folder of masks. If none of ``candidate_trees`` is
    one, the folders one and two levels below ``root`` are searched for one with images and masks.

    Args:
        root: the folder to search.
        year: 2007 or 2012. Folders below ``root`` that are named after another year are ignored.
        mask_folders: further names of folders of masks.

    Raises:
        VocsegError: several folders of the same level are VOC trees.
    """
    folders = (*mask_folders, MASKS, LABELME_MASKS)
    for candidate in candidate_trees(root, year):
        if (candidate / "ImageSets" / "Segmentation").is_dir() or _has_samples(candidate, folders):
            return candidate
    for level in levels_below(root):
        found = {
            candidate.resolve(): candidate
            for folder in level
            for candidate in candidate_trees(folder, year)
            if _has_samples(candidate, folders) and _year_of(candidate, root) in (year, None)
        }
        if len(found) > 1:
            raise VocsegError(
                f"Several folders below {root} have images and masks. Name one with --data.root: "
                + ", ".join(map(str, sorted(found.values())))
            )
        if found:
            return next(iter(found.values()))
    return None


def find_years(root: Path) -> list[str]:
    """Returns the years of the VOC trees at most two levels below ``root``, sorted."""
    folders = [root, *(folder for level in levels_below(root) for folder in level)]
    trees = [folder for folder in folders if _has_samples(folder, (MASKS,))]
    return sorted({year for year in (_year_of(tree, root.parent) for tree in trees) if year})


def list_splits(tree: Path) -> list[str]:
    """Returns the names of a tree's lists, sorted."""
    folder = tree / "ImageSets" / "Segmentation"
    return sorted(file.stem for file in folder.glob("*.txt") if not file.name.startswith("."))


def read_split(tree: Path, split: str, mask_folders: Sequence[str] = (MASKS,)) -> list[Sample]:
    """Reads an image-set list.

    An entry is the name of an image, with or without an ending, which may have folders (``one/0004``); or the paths of
    an image and of its mask relative to the tree, also with a leading slash
    (``/JPEGImages/0004.jpg /SegmentationClassAug/0004.png``).

    Args:
        tree: a folder with ``ImageSets/Segmentation`` and ``JPEGImages``.
        split: the name of the list, for example ``train``.
        mask_folders: the folders of masks in the tree. The first that has an image's mask counts.

    Returns:
        The samples in the order of the list. The files exist, and have not been read; see ``check_samples``.

    Raises:
        VocsegError: the list does not exist, cannot be decoded, is empty, or names files outside the tree or files that
            do not exist.
    """
    path = tree / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not path.is_file():
        known = list_splits(tree)
        raise VocsegError(
            f"There is no split {split!r} in {path.parent}: it has {', '.join(known) or 'no lists'}."
            + nearest(split, known)
        )
    lines = read_lines(path)
    if not lines:
        raise VocsegError(f"The split {split!r} is empty: {path} lists no image.")
    index = cache(lambda folder: index_images(tree / folder))
    samples: list[Sample] = []
    missing: list[str] = []
    for number, line in lines:
        where = f"{path}, line {number}"
        pair = _PAIR.fullmatch(line)
        if pair:
            image_folder, image_name = _locate(tree, _inside(pair[1].lstrip("/"), where), IMAGES)
            mask_places = [_locate(tree, _inside(pair[2].lstrip("/"), where), mask_folders[0])]
        else:
            name = line.removeprefix(f"/{IMAGES}/").removeprefix(f"{IMAGES}/")
            image_folder, image_name = IMAGES, _inside(name, where)
            mask_places = [(folder, image_name) for folder in mask_folders]
        image = _find(index(image_folder), image_name, same_ending=True)
        masks = [_find(index(folder), name, same_ending=pair is not None) for folder, name in mask_places]
        mask = next((mask for mask in masks if mask is not None), None)
        if image is not None and mask is not None:
            samples.append(Sample(image, mask, key_of(image.relative_to(tree / image_folder))))
        elif image is None:
            file = tree / image_folder / _with_ending(image_name, ".jpg")
            missing.append(f"The image {file} does not exist ({where}).")
        else:
            files = [str(tree / folder / _with_ending(name, ".png", replace=not pair)) for folder, name in mask_places]
            missing.append(f"The mask {' or '.join(files)} does not exist ({where}).")
            others = sorted(folder.name for folder in tree.glob(f"{MASKS}*") if folder.name not in mask_folders)
            others = [folder for folder in others if _find(index(folder), image_name, same_ending=False)]
            missing[-1] += f" {others[0]} has it: --data.mask_folder {others[0]}" if others else ""
    if missing:
        more = f"\n... and {len(missing) - 5} more broken files" if len(missing) > 5 else ""
        raise VocsegError("\n".join(missing[:5]) + more)
    return _with_unique_names(samples)


# --- splits without lists, and parts of lists


def shuffled(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Returns the samples in a random order that depends on their names and the seed alone.

    Each name has its own random number, so the order of the others stays when samples are added or removed.
    """
    return sorted(samples, key=lambda sample: hashlib.sha256(f"{seed}/{sample.name}".encode()).digest())


def hold_out(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Splits samples at random into those for training and a share for validation, both in the given order.

    Raises:
        VocsegError: one of the two has no sample.
    """
    count = round(share * len(samples))
    if not 0 < count < len(samples):
        raise VocsegError(
            f"--data.val_share {share} of {len(samples)} images leaves {count} for validation and "
            f"{len(samples) - count} for training. Each needs at least one."
        )
    held_out = {sample.name for sample in shuffled(samples, seed)[:count]}
    parts: tuple[list[Sample], list[Sample]] = ([], [])
    for sample in samples:
        parts[sample.name in held_out].append(sample)
    return parts


def first_images(samples: Sequence[Sample], count: int | None, seed: int) -> list[Sample]:
    """Chooses ``count`` samples at random, in the given order. 20 samples are among 50 of the same seed.

    Raises:
        VocsegError: there are fewer samples.
    """
    if count is None:
        return list(samples)
    if not 1 <= count <= len(samples):
        raise VocsegError(f"--data.train_images is {count}, but the training list has {len(samples)} images.")
    chosen = {sample.name for sample in shuffled(samples, seed)[:count]}
    return [sample for sample in samples if sample.name in chosen]


def check_share(share: float | None) -> float | None:
    """Returns a setting ``val_share``; raises VocsegError unless it is None or lies between 0 and 1."""
    if share is not None and not 0 < share < 1:
        raise VocsegError(f"--data.val_share must lie between 0 and 1 (0.2: a fifth of the images), got {share}.")
    return share


# --- images to predict


def find_images(given: str | Path | Sequence[str | Path] | None, recursive: bool = False) -> list[Path]:
    """Finds the images to predict.

    Args:
        given: an image, a folder, a glob pattern, a text file that lists images, one per line, or several of these. The
            lines of a text file are relative to its folder, or else to the current folder.
        recursive: also search the folders below a folder.

    Returns:
        The images in the given order, those of a folder or a glob pattern sorted, each once. Other files are left out,
        and counted in one line of the log.

    Raises:
        VocsegError: nothing is given, something does not exist, or no image is found.
    """
    if not given:
        raise VocsegError("Prediction needs images: --data.predict_path with an image, a folder or a glob.")
    found: dict[Path, None] = {}
    skipped: dict[Path, None] = {}
    entries = [expand(entry) for entry in ([given] if isinstance(given, str | Path) else given)]
    for path in entries:
        if path.suffix.lower() == ".txt" and path.is_file():
            files = _listed_images(path)
        elif path.is_file():
            found[path] = None  # with any ending: reading it tells what it is
            continue
        elif path.is_dir():
            files = find_files(path, recursive)
        else:
            files = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]
            if not files:
                raise VocsegError(f"Nothing to predict: {path} does not exist.")
        for file in files:
            (found if is_image(file) else skipped)[file] = None
    note = ""
    if skipped:
        counts = Counter(file.suffix.lower() or "no ending" for file in skipped)
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common())
        names = _first([file.name for file in skipped])
        note = f"Skipped {len(skipped)} files that are not images which vocseg reads: {kinds} ({names}). "
    if not found:
        deeper = not recursive and any(is_image(file) for entry in entries for file in find_files(entry))
        raise VocsegError(
            f"Nothing to predict: {', '.join(map(str, entries))} holds no image (looked for "
            f"{', '.join(IMAGE_SUFFIXES)}). {note}"
            + ("The folders below it do: --data.recursive true" if deeper else "")
        )
    if note:
        say(note.strip())
    return list(found)


def _listed_images(path: Path) -> list[Path]:
    """Reads a text file of image paths."""
    files, missing = [], []
    for number, line in read_lines(path):
        name = expand(line)
        places = [path.parent / name, name]
        file = next((place for place in places if place.is_file()), None)
        if file is None:
            missing.append(f"{path}, line {number}: {line!r} does not exist.")
        else:
            files.append(file)
    if missing:
        more = f"\n... and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise VocsegError("\n".join(missing[:5]) + more + "\nThe lines must be paths of images.")
    return files


# --- details


def _find(index: Index, name: str, same_ending: bool) -> Path | None:
    """Finds the file that a list calls ``name``, with or without an ending; prefers one of the same ending."""
    name = unicodedata.normalize("NFC", name)
    if name in index:
        return _only(index[name])
    path = Path(name)
    files = index.get(path.with_suffix("").as_posix(), []) if is_image(path) else []
    same = [file for file in files if same_ending and file.suffix.lower() == path.suffix.lower()]
    return _only(same or files) if files else None


def _only(files: Sequence[Path]) -> Path:
    if len(files) > 1:
        names = " and ".join(file.name for file in files)
        raise VocsegError(f"{files[0].parent} has {names}, which have the same name without endings. Move one away.")
    return files[0]


def _inside(name: str, where: str) -> str:
    """Checks that a relative path stays inside the tree, and returns it with slashes as in Unix."""
    name = name.replace("\\", "/")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise VocsegError(f"{where}, names {name!r}, which lies outside the tree. vocseg does not read it.")
    return name


def _locate(tree: Path, name: str, default: str) -> tuple[str, str]:
    """Splits a path relative to the tree into a folder of the tree, or else the default one, and the rest."""
    folder, _, rest = name.partition("/")
    return (folder, rest) if rest and (tree / folder).is_dir() else (default, name)


def _with_ending(name: str, ending: str, replace: bool = False) -> str:
    if is_image(Path(name)):
        return Path(name).with_suffix(ending).as_posix() if replace else name
    return name + ending


def _with_unique_names(samples: Sequence[Sample]) -> list[Sample]:
    """Gives the endings back to the names of different images with the same name."""
    images: dict[str, set[Path]] = {}
    for sample in samples:
        images.setdefault(sample.name, set()).add(sample.image)
    return [
        sample
        if len(images[sample.name]) == 1
        else Sample(sample.image, sample.mask, sample.name + sample.image.suffix)
        for sample in samples
    ]


def _first(names: Iterable[str]) -> str:
    """The first five names, and the number of the others."""
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _year_of(tree: Path, root: Path) -> str | None:
    """The last year in the names of the folders below ``root``, for example 2012 for ``VOC2012_train_val``."""
    years = re.findall(r"VOC(20\d\d)", tree.relative_to(root).as_posix())
    return years[-1] if years else None


def _has_samples(folder: Path, mask_folders: Iterable[str]) -> bool:
    return (folder / IMAGES).is_dir() and any((folder / masks).is_dir() for masks in mask_folders)
