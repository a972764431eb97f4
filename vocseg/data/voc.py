"""PASCAL VOC, and folders in its layout, as a data module."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vocseg.data.base import SegmentationDataModule
from vocseg.data.files import Sample
from vocseg.data.labels import VOC_CLASSES
from vocseg.data.lists import candidate_trees, find_tree, read_split
from vocseg.errors import VocsegError


class VOCDataModule(SegmentationDataModule):
    """VOC2007, VOC2012, or a folder with the same layout.

    Args:
        root: the folder that holds ``VOCdevkit/VOC<year>`` or ``VOC<year>``, or a tree itself (``JPEGImages``,
            ``SegmentationClass``, ``ImageSets/Segmentation``).
        year: 2007 or 2012.
        download: download the official archive with torchvision if the tree does not exist.
        class_names: one name per label, for your own data; None: VOC's 21 classes.
        train_split: the name of the list for training.
        val_split: the name of the list for validation.
        test_split: the name of the list for testing. The test masks of VOC2012 were never published.
        **settings: as :class:`vocseg.data.base.SegmentationDataModule`.

    Raises:
        VocsegError: a setting, the tree or a file is not usable; the message says how to mend it.
    """

    def __init__(
        self,
        root: str,
        year: Literal["2007", "2012"] = "2007",
        download: bool = False,
        class_names: list[str] | None = None,
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "test",
        **settings: Any,
    ) -> None:
        super().__init__(class_names or VOC_CLASSES, **settings)
        self.root = Path(root).expanduser()
        self.year, self.download = year, download
        self.splits = {"train": train_split, "val": val_split, "test": test_split}
        self.save_hyperparameters(
            {
                # absolute, because a checkpoint may be used from another folder
                "root": str(self.root.resolve()),
                "year": year,
                "train_split": train_split,
                "val_split": val_split,
                "test_split": test_split,
            }
        )

    def prepare_data(self) -> None:
        """Downloads the tree if the settings ask for it and it does not exist. Prediction needs no tree."""
        if self.download and not self.is_predicting:
            self._download()

    def samples(self, role: str) -> list[Sample]:
        """The samples of a role's list."""
        return read_split(self.tree([role]), self.splits[role])

    def tree(self, roles: Sequence[str] = ("train", "val", "test")) -> Path:
        """Finds the folder with ``JPEGImages``, ``SegmentationClass`` and ``ImageSets``.

        Args:
            roles: what the tree is needed for (train, val, test); the test masks of VOC2012 do not exist.

        Raises:
            VocsegError: the tree does not exist or is incomplete; the message lists the folders searched and says how
                to get the tree.
        """
        root = self.root
        tree = find_tree(root, self.year)
        if tree is None:
            searched = "\n".join(f"  {candidate}" for candidate in candidate_trees(root, self.year))
            raise VocsegError(
                f"There is no VOC{self.year} tree (ImageSets/Segmentation, JPEGImages, SegmentationClass) in any of\n"
                f"{searched}\n"
                "Name its folder with --data.root, or download it with --data.download true. To try vocseg without "
                "VOC: vocseg fit --config quickstart"
            )
        missing = [name for name in ("JPEGImages", "SegmentationClass") if not (tree / name).is_dir()]
        if missing:
            raise VocsegError(
                f"The VOC tree {tree} is incomplete: it has no folder {' and no '.join(missing)}. Unpack the archive "
                "again, or download it with --data.download true and another --data.root."
            )
        if self.year == "2012" and "test" in roles and self.splits["test"] == "test":
            raise VocsegError("VOC2012's test masks were never published. Test on another split: --data.test_split val")
        return tree

    def _download(self) -> None:
        from torchvision.datasets import VOCSegmentation

        for split in sorted(set(self.splits.values())):
            tree = find_tree(self.root, self.year)
            if tree is not None and (tree / "ImageSets" / "Segmentation" / f"{split}.txt").is_file():
                continue
            if self.year == "2012" and split == "test":
                continue
            try:
                VOCSegmentation(str(self.root), year=self.year, image_set=split, download=True)
            except (OSError, RuntimeError, ValueError) as error:
                raise VocsegError(
                    f"Downloading VOC{self.year} ({split}) into {self.root} failed: {error}. Check the network and the "
                    "free disk space, or download the archive by hand and unpack it there."
                ) from error
