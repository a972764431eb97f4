"""PASCAL VOC, and folders in its layout, as a data module."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from vocseg.data.base import SegmentationDataModule
from vocseg.data.classes import ClassNames, names_and_settings
from vocseg.data.files import Sample
from vocseg.data.labels import VOC_CLASSES
from vocseg.data.lists import (
    IMAGES,
    LABELME_MASKS,
    MASKS,
    candidate_trees,
    check_share,
    expand,
    find_tree,
    find_years,
    hold_out,
    index_images,
    list_splits,
    pair_samples,
    read_split,
)
from vocseg.data.sbd import AUGMENTED_MASKS, TRAINAUG, add_sbd
from vocseg.errors import VocsegError


class VOCDataModule(SegmentationDataModule):
    """VOC2007, VOC2012, or a folder with the same layout, for example an export of CVAT or of ``labelme2voc``.

    The layout is ``JPEGImages``, ``SegmentationClass`` and the lists ``ImageSets/Segmentation/<split>.txt``. An entry
    of a list is the name of an image, which may have folders and an ending, or the paths of an image and of its mask.
    Without lists, or with only one, ``val_share`` splits the images.

    Args:
        root: the folder that holds ``VOCdevkit/VOC<year>`` or ``VOC<year>``, or a tree itself, or a folder at most two
            levels above one of these.
        year: 2007 or 2012.
        download: download the official archive with torchvision if the tree does not exist; for the list ``trainaug``
            of VOC2012 also SBD, whose masks are added to the tree.
        class_names: one name per label, for your own data. None: those of ``labelmap.txt`` (CVAT), which also has the
            colours of the masks, of ``class_names.txt`` (labelme) or of another file of ``CLASS_FILES``, or else
            VOC's 21 classes.
        train_split: the name of the list for training.
        val_split: the name of the list for validation.
        test_split: the name of the list for testing. The test masks of VOC2012 were never published.
        mask_folder: the folder of the masks. None: ``SegmentationClass`` (labelme: ``SegmentationClassPNG``); for
            ``trainaug`` also ``SegmentationClassAug``, for images that VOC itself has no mask of.
        val_share: the share of the images that are held out for validation, for example 0.2, where there is no list of
            them. The images are chosen at random from their names and ``split_seed``. Without a list for testing, they
            are also the test images.
        **settings: as :class:`vocseg.data.base.SegmentationDataModule`.

    Raises:
        VocsegError: a setting, the tree or a file is not usable; the message says how to mend it.
    """

    def __init__(
        self,
        root: str,
        year: Literal["2007", "2012"] = "2007",
        download: bool = False,
        class_names: ClassNames = None,
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "test",
        mask_folder: str | None = None,
        val_share: float | None = None,
        **settings: Any,
    ) -> None:
        self.root = expand(root)
        self.year, self.download = year, download
        self.splits = {"train": train_split, "val": val_split, "test": test_split}
        self.mask_folder, self.val_share = mask_folder, check_share(val_share)
        tree = self._find_tree()
        names, found = names_and_settings([tree, self.root] if tree else [], class_names, settings)
        settings.update(found)
        self.has_default_classes = names is None
        super().__init__(names or VOC_CLASSES, **settings)
        self.save_hyperparameters(
            {
                # absolute, because a checkpoint may be used from another folder
                "root": str(self.root.resolve()),
                "year": year,
                "train_split": train_split,
                "val_split": val_split,
                "test_split": test_split,
                "mask_folder": mask_folder,
                "val_share": val_share,
            }
        )

    def prepare_data(self) -> None:
        """Downloads the tree if the settings ask for it and it does not exist. Prediction needs no tree."""
        if self.download and not self.is_predicting:
            self._download()

    def samples(self, role: str) -> list[Sample]:
        """The samples of a role's list, or of its share of the images."""
        tree, split = self.tree([role]), self.splits[role]
        lists = list_splits(tree)
        if self.val_share is None or (role == "test" and split in lists):
            if split not in lists and len(lists) < 2:
                raise VocsegError(
                    f"There is no split {split!r} in {tree / 'ImageSets' / 'Segmentation'}: it has "
                    f"{', '.join(lists) or 'no lists'}. Hold out a part of the images for validation with "
                    "--data.val_share 0.2"
                )
            return read_split(tree, split, self._mask_folders(tree, split))
        train, val = hold_out(self._undivided(tree, lists), self.val_share, self.split_seed)
        if role == "test":
            rank_zero_info("There is no list of test images: the validation images are also the test images.")
        return train if role == "train" else val

    def tree(self, roles: Sequence[str] = ("train", "val", "test")) -> Path:
        """Finds the folder with ``JPEGImages``, ``SegmentationClass`` and ``ImageSets``.

        Args:
            roles: what the tree is needed for (train, val, test); the test masks of VOC2012 do not exist.

        Raises:
            VocsegError: the tree does not exist or is incomplete; the message lists the folders searched and says how
                to get the tree.
        """
        tree = self._find_tree()
        if tree is None:
            raise VocsegError(self._not_found())
        masks = self._mask_folders(tree, self.splits["train"])[0]
        missing = [name for name in (IMAGES, masks) if not (tree / name).is_dir()]
        if missing:
            hint = " CVAT exports the images only with 'Save images'." if (tree / "labelmap.txt").is_file() else ""
            raise VocsegError(
                f"The VOC tree {tree} is incomplete: it has no folder {' and no '.join(missing)}.{hint} Unpack the "
                "archive again, or download it with --data.download true and another --data.root. Masks in another "
                "folder: --data.mask_folder"
            )
        if (
            self.year == "2012"
            and "test" in roles
            and self.splits["test"] == "test"
            and self.class_names == list(VOC_CLASSES)
        ):
            raise VocsegError("VOC2012's test masks were never published. Test on another split: --data.test_split val")
        return tree

    def _find_tree(self) -> Path | None:
        return find_tree(self.root, self.year, [self.mask_folder] if self.mask_folder else [])

    def _mask_folders(self, tree: Path, split: str) -> list[str]:
        """The folders of masks for a list; the first that has a mask counts."""
        if self.mask_folder:
            return [self.mask_folder]
        if split == TRAINAUG:
            return [MASKS, AUGMENTED_MASKS]
        has_arrays = (tree / LABELME_MASKS).is_dir() and not index_images(tree / MASKS)
        return [LABELME_MASKS if has_arrays else MASKS]

    def _undivided(self, tree: Path, lists: Sequence[str]) -> list[Sample]:
        """The samples that ``val_share`` splits: those of the list for training, of the only list, or all."""
        train, val = self.splits["train"], self.splits["val"]
        if train in lists and val in lists and train != val:
            raise VocsegError(
                f"{tree} has the lists {train} and {val}, so --data.val_share has nothing to split. Leave it out, or "
                "name only a list for training, for example --data.train_split trainval --data.val_split none"
            )
        if not lists:
            folder = self._mask_folders(tree, train)[0]
            return pair_samples(index_images(tree / IMAGES), index_images(tree / folder), f"{tree}, {IMAGES}, {folder}")
        if train not in lists and len(lists) > 1:
            raise VocsegError(
                f"{tree} has the lists {', '.join(lists)}. Name the one that --data.val_share splits: "
                f"--data.train_split {lists[0]}"
            )
        split = train if train in lists else lists[0]
        return read_split(tree, split, self._mask_folders(tree, split))

    def _not_found(self) -> str:
        """Says where a tree was looked for, what is there instead, and how to get one."""
        searched = "\n".join(f"  {candidate}" for candidate in candidate_trees(self.root, self.year))
        years = [year for year in find_years(self.root) if year != self.year]
        hint = ""
        if not self.root.is_dir():
            hint = f"The folder {self.root} does not exist. "
        elif years:
            hint = f"There is a tree of VOC{years[0]}: --data.year {years[0]}. "
        elif any((self.root / name).is_dir() for name in ("images", "train", "masks")):
            hint = "For folders of images and masks: --data FolderDataModule. "
        return (
            f"There is no VOC{self.year} tree (ImageSets/Segmentation, {IMAGES}, {MASKS}) in any of\n{searched}\n"
            f"and no {IMAGES} beside {MASKS} in the folders one or two levels below. {hint}"
            "Name its folder with --data.root, or download it with --data.download true. To try vocseg without "
            "VOC: vocseg fit --config quickstart"
        )

    def _download(self) -> None:
        from torchvision.datasets import VOCSegmentation

        if TRAINAUG in self.splits.values() and self.year != "2012":
            raise VocsegError("The list trainaug belongs to VOC2012: --data.year 2012")
        for split in sorted(set(self.splits.values())):
            tree = find_tree(self.root, self.year)
            if tree is not None and (tree / "ImageSets" / "Segmentation" / f"{split}.txt").is_file():
                continue
            if (self.year == "2012" and split == "test") or split == TRAINAUG:
                continue
            try:
                VOCSegmentation(str(self.root), year=self.year, image_set=split, download=True)
            except (OSError, RuntimeError, ValueError) as error:
                raise VocsegError(
                    f"Downloading VOC{self.year} ({split}) into {self.root} failed: {error}. Check the network and the "
                    "free disk space, or download the archive by hand and unpack it there."
                ) from error
        if TRAINAUG in self.splits.values():
            add_sbd(self.tree(["train"]), self.root / "sbd")
