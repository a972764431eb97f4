"""Folders of images and masks with the same names, as a data module."""

import re
from collections.abc import Container
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from vocseg.data.base import SegmentationDataModule
from vocseg.data.classes import ClassNames, names_and_settings, read_classes
from vocseg.data.files import Sample
from vocseg.data.images import IMAGE_SUFFIXES
from vocseg.data.lists import (
    Index,
    check_share,
    expand,
    find_files,
    hold_out,
    index_images,
    is_image,
    key_of,
    levels_below,
    pair_samples,
    subfolders,
)
from vocseg.errors import VocsegError

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages")
MASK_FOLDERS = (
    *("masks", "mask", "labels", "label", "annotations", "annotation", "annot", "gt", "segmentation"),
    *("segmentationclass", "segmentationclasspng"),
)
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
MASK_SUFFIXES = (*IMAGE_SUFFIXES, ".gif")

# where the images and the masks of a split are, without - and _ in the names; the same folder: x.jpg beside x_mask.png
_SPLIT_PLACES = (
    ("{images}/{split}", "{masks}/{split}"),
    ("{split}/{images}", "{split}/{masks}"),
    ("{split}{images}", "{split}{masks}"),
    ("{split}", "{split}{masks}"),
    ("{split}", "{split}"),
)
_PLACES = (("{images}", "{masks}"), ("", ""))

_MASK_WORD = r"masks?|labels?|seg|segmentation|gt|annot|annotation"
_MASK_NAME = (
    re.compile(rf"[_-](?:{_MASK_WORD}|l)$", re.IGNORECASE),
    re.compile(rf"^(?:{_MASK_WORD})[_-]", re.IGNORECASE),
)
_IMAGE_NAME = (
    re.compile(r"[_-](?:images?|img|sat)$", re.IGNORECASE),
    re.compile(r"^(?:images?|img)[_-]", re.IGNORECASE),
)
"""Words at the end or at the start of a file's name that say that it is a mask, or an image."""


@dataclass(frozen=True)
class Place:
    """The folder of some images, and of their masks; both may be the same."""

    images: Path
    masks: Path

    def __str__(self) -> str:
        return str(self.images) if self.images == self.masks else f"{self.images} and {self.masks}"


@dataclass(frozen=True)
class Layout:
    """Where the images of a data set are: by role (train, val, test), and those of no role."""

    base: Path
    roles: dict[str, Place]
    undivided: Place | None


class FolderDataModule(SegmentationDataModule):
    """Folders of images and masks; an image and its mask have the same name, apart from the ending.

    The layouts are, with ``valid`` or ``validation`` for ``val`` as well, in any case:

    - ``images/{train,val,test}`` and ``masks/{train,val,test}``
    - ``{train,val,test}/images`` and ``{train,val,test}/masks``
    - ``train`` and ``train_masks``, ``val`` and ``val_masks``, ...
    - ``{train,valid,test}/x.jpg`` and ``x_mask.png`` beside it, as Roboflow exports them
    - ``images`` and ``masks``, which ``val_share`` splits

    Folders of images may also be named ``image``, ``imgs``, ``img`` or ``JPEGImages``, those of masks ``mask``,
    ``labels``, ``annotations``, ``annot`` or ``gt``. Sub-folders must be the same on both sides.

    Args:
        root: the folder, or one at most two levels above it.
        class_names: one name per label. None: those of a file of ``vocseg.data.classes.CLASS_FILES`` in the folder, for
            example ``classes.txt`` (one name per line) or Roboflow's ``_classes.csv``.
        val_share: the share of the images that are held out for validation, for example 0.2, where they have no folder
            of their own. The images are chosen at random from their names and ``split_seed``. Without a folder for
            testing, the validation images are also the test images.
        image_folder: the name of the folders of images, if it is another.
        mask_folder: the name of the folders of masks, if it is another.
        **settings: as :class:`vocseg.data.base.SegmentationDataModule`.

    Raises:
        VocsegError: a setting, the folder or a file is not usable; the message says how to mend it.
    """

    def __init__(
        self,
        root: str,
        class_names: ClassNames = None,
        val_share: float | None = None,
        image_folder: str | None = None,
        mask_folder: str | None = None,
        **settings: Any,
    ) -> None:
        self.root = expand(root)
        self.val_share = check_share(val_share)
        self.image_folders = [_plain(image_folder)] if image_folder else IMAGE_FOLDERS
        self.mask_folders = [_plain(mask_folder)] if mask_folder else MASK_FOLDERS
        self._layout = self._find_layout() if self.root.is_dir() else None
        names, found = names_and_settings(self._class_folders(class_names is None), class_names, settings)
        if names is None:
            if not self.root.is_dir():
                raise VocsegError(
                    f"The folder {self.root} does not exist. Name the folder of the data with --data.root"
                )
            raise VocsegError(
                f"{self.root} has no file of class names. Name the classes, one per label: --data.class_names "
                f'"[background, ...]", or write them into {self.root / "classes.txt"}, one per line.'
            )
        settings.update(found)
        super().__init__(names, **settings)
        self.save_hyperparameters(
            {
                "root": str(self.root.resolve()),
                "val_share": val_share,
                "image_folder": image_folder,
                "mask_folder": mask_folder,
            }
        )

    def samples(self, role: str) -> list[Sample]:
        """The samples of a role's folders, or of its share of the images; sorted by name."""
        layout = self.layout
        if "val" in layout.roles and self.val_share is not None:
            raise VocsegError(
                f"{layout.roles['val']} has the validation images, so --data.val_share has nothing to split: leave it "
                "out."
            )
        if role == "test" and "test" not in layout.roles:
            rank_zero_info("There is no folder of test images: the validation images are also the test images.")
            role = "val"
        if role in layout.roles and (role != "train" or self.val_share is None):
            return self._pairs(layout.roles[role])
        undivided = layout.roles.get("train") or layout.undivided
        if undivided is None or self.val_share is None:
            there = [f"{role}: {place}" for role, place in layout.roles.items()] or [str(layout.undivided)]
            hint = "Hold out a part of the images for validation with --data.val_share 0.2" if undivided else ""
            raise VocsegError(
                f"{layout.base} has no folders of {role} images, for example images/{role} and masks/{role}. Found: "
                f"{', '.join(there)}. {hint}"
            )
        train, val = hold_out(self._pairs(undivided), self.val_share, self.split_seed)
        return train if role == "train" else val

    @property
    def layout(self) -> Layout:
        """Where the images and masks are.

        Raises:
            VocsegError: they are not found.
        """
        if self._layout is not None:
            return self._layout
        if not self.root.is_dir():
            raise VocsegError(f"The folder {self.root} does not exist. Name the folder of the data with --data.root")
        known = ", ".join(sorted(child.name for child in self.root.iterdir())[:10]) or "nothing"
        raise VocsegError(
            f"No folders of images and masks in {self.root} or at most two levels below. It holds {known}. Looked for "
            "images/train and masks/train, train/images and train/masks, train and train_masks, images and masks, "
            "x.jpg beside x_mask.png, and the same with other usual names. Name the folders with --data.image_folder "
            "and --data.mask_folder; for a VOC tree: --data VOCDataModule"
        )

    def _find_layout(self) -> Layout | None:
        for level in ([self.root], *levels_below(self.root)):
            layouts = [layout for layout in map(self._layout_of, level) if layout.roles or layout.undivided]
            if len(layouts) > 1:
                folders = ", ".join(str(layout.base) for layout in layouts)
                raise VocsegError(f"Several folders have images and masks. Name one with --data.root: {folders}")
            if layouts:
                return layouts[0]
        return None

    def _layout_of(self, base: Path) -> Layout:
        folders = _folders_by_name(base)
        roles = {role: self._place(folders, _SPLIT_PLACES, names) for role, names in SPLITS.items()}
        found = {role: place for role, place in roles.items() if place is not None}
        # the masks of the splits are also below a folder masks
        undivided = None if found.keys() & {"train", "val"} else self._place(folders, _PLACES, ("",))
        return Layout(base, found, undivided)

    def _place(
        self, folders: dict[str, list[Path]], places: tuple[tuple[str, str], ...], splits: tuple[str, ...]
    ) -> Place | None:
        """The folders of the first kind of place that exists and has masks in it."""
        for images, masks in places:
            found = {
                Place(image_folder, mask_folder)
                for split, image_name, mask_name in product(splits, self.image_folders, self.mask_folders)
                for image_folder in folders.get(images.format(split=split, images=image_name), ())
                for mask_folder in folders.get(masks.format(split=split, masks=mask_name), ())
                if (image_folder == mask_folder) == (images == masks)
            }
            found = {place for place in found if _has_masks(place)}
            if len(found) > 1:
                raise VocsegError(
                    f"There are several folders of masks or images: {'; '.join(sorted(map(str, found)))}. Choose with "
                    "--data.image_folder and --data.mask_folder"
                )
            if found:
                return found.pop()
        return None

    def _class_folders(self, check: bool) -> list[Path]:
        """The folders in which a file of class names may be; checks that those of all splits agree."""
        layout = self._layout
        if layout is None:
            return [self.root]
        places = [place for place in (*layout.roles.values(), layout.undivided) if place is not None]
        near = [folder for place in places for folder in _near(place)]
        tables = {folder / "_classes.csv" for folder in near if (folder / "_classes.csv").is_file()}
        if not check:
            return [layout.base, self.root, *near]
        lists = {table: read_classes(table).names for table in sorted(tables)}
        if len({tuple(names) for names in lists.values()}) > 1:
            listed = "; ".join(f"{table}: {', '.join(names)}" for table, names in lists.items())
            raise VocsegError(f"The splits have different classes, in {listed}. Export all of them together.")
        return [layout.base, self.root, *near]

    def _pairs(self, place: Place) -> list[Sample]:
        if place.images == place.masks:
            images, masks = _divide(index_images(place.images, MASK_SUFFIXES))
        else:
            images, masks = index_images(place.images), index_images(place.masks, MASK_SUFFIXES)
            masks = _renamed(masks, _MASK_NAME, images)
        images = _renamed(images, _IMAGE_NAME, masks)
        if place == self.layout.undivided:  # a folder for testing may be below it
            others = [other for other in self.layout.roles.values() if other.images != place.images]
            inside = [folder for other in others for folder in (other.images, other.masks)]
            images, masks = (
                {key: files for key, files in index.items() if not any(map(files[0].is_relative_to, inside))}
                for index in (images, masks)
            )
        pairs = pair_samples(images, masks, str(place))
        return [replace(sample, name=key_of(sample.image.relative_to(place.images))) for sample in pairs]


def _near(place: Place) -> tuple[Path, ...]:
    return (place.masks, place.images, place.masks.parent, place.images.parent)


def _folders_by_name(base: Path) -> dict[str, list[Path]]:
    """``base`` and the folders one and two levels below, by their relative path in a plain form."""
    folders: dict[str, list[Path]] = {"": [base]}
    level = [base]
    for _ in range(2):
        level = [child for folder in level for child in subfolders(folder)]
        for folder in level:
            folders.setdefault(_plain(folder.relative_to(base).as_posix()), []).append(folder)
    return folders


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name.lower()).strip("/")


def _has_masks(place: Place) -> bool:
    if place.images != place.masks:
        return any(is_image(file, MASK_SUFFIXES) for file in find_files(place.masks))
    beside = {file.stem: [file] for file in find_files(place.masks, recursive=False) if is_image(file, MASK_SUFFIXES)}
    return bool(_divide(beside)[1])


def _without(words: tuple[re.Pattern[str], ...], key: str) -> str:
    """A key without a word that tells images and masks apart: ``one/x`` for ``one/x_mask``."""
    path = PurePosixPath(key)
    names = [word.sub("", path.name) for word in words]
    return path.with_name(next((name for name in names if name not in ("", path.name)), path.name)).as_posix()


def _divide(index: Index) -> tuple[Index, Index]:
    """Divides the files of one folder into images and masks, which have a word such as ``_mask`` in their names."""
    image_keys = {key: _without(_MASK_NAME, key) for key in index}
    with_mask = {image for key, image in image_keys.items() if image != key}
    mask_keys = {key for key, image in image_keys.items() if image != key and key not in with_mask}
    images = {key: [file for file in files if is_image(file)] for key, files in index.items() if key not in mask_keys}
    masks = _renamed({key: index[key] for key in mask_keys}, _MASK_NAME)
    return {key: files for key, files in images.items() if files}, masks


def _renamed(index: Index, words: tuple[re.Pattern[str], ...], keep: Container[str] = ()) -> Index:
    """The index without the words in its keys, except in keys to keep."""
    renamed: Index = {}
    for key, files in index.items():
        renamed.setdefault(key if key in keep else _without(words, key), []).extend(files)
    return renamed
