"""SBD, the Semantic Boundaries Dataset: masks for most images of VOC2012 that have none there.

With them VOC2012's training list grows from 1,464 to 10,582 images, which the field calls ``trainaug``: all images that
have a mask in VOC's own list ``train`` or in SBD, without those of VOC's list ``val``.

Source: Hariharan et al., Semantic Contours from Inverse Detectors, ICCV 2011.
"""

from functools import partial
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from PIL import Image

from vocseg.data.labels import VOC_PALETTE
from vocseg.data.text import read_lines
from vocseg.errors import VocsegError
from vocseg.saving import OwnedFolder

TRAINAUG = "trainaug"
AUGMENTED_MASKS = "SegmentationClassAug"


def add_sbd(tree: Path, folder: Path) -> None:
    """Adds SBD's masks to a tree of VOC2012, as ``SegmentationClassAug`` and the list ``trainaug``, if it has no list.

    Masks of images that VOC has a mask of, or whose image the tree lacks, are left out. SBD marks no void pixels.

    Args:
        tree: the tree of VOC2012.
        folder: where SBD is, or is downloaded to.

    Raises:
        VocsegError: SciPy is not installed, or the download failed.
    """
    lists = tree / "ImageSets" / "Segmentation"
    if (lists / f"{TRAINAUG}.txt").is_file():
        return
    from torchvision.datasets import SBDataset

    train, val = ([name for _, name in read_lines(lists / f"{split}.txt")] for split in ("train", "val"))
    own = {*train, *val}
    masks = tree / AUGMENTED_MASKS
    masks.mkdir(exist_ok=True)
    owned = OwnedFolder(masks, "sbd", f"Move {masks} away, or train with --data.train_split and a list of its masks.")
    rank_zero_info(f"Adding SBD's masks to {masks}: this takes some minutes, once.")
    added: list[str] = []
    for split in ("train", "val"):
        try:
            missing = not (folder / f"{split}.txt").is_file()
            data = SBDataset(str(folder), split, mode="segmentation", download=missing)
        except (OSError, RuntimeError, ValueError) as error:
            raise VocsegError(
                f"Adding SBD from {folder} failed: {error}. Without SBD: --data.train_split train"
            ) from error
        for index, path in enumerate(map(Path, data.images)):
            if path.stem in own or not (tree / "JPEGImages" / path.name).is_file():
                continue
            added.append(path.stem)
            mask: Image.Image = data[index][1]
            mask.putpalette(VOC_PALETTE.tobytes())
            owned.write(masks / f"{path.stem}.png", partial(mask.save, format="PNG"))
    lines = "".join(f"{name}\n" for name in sorted({*train, *added}))
    unfinished = lists / f".{TRAINAUG}.txt"
    unfinished.write_text(lines, encoding="utf-8")
    unfinished.replace(lists / f"{TRAINAUG}.txt")  # last: the list says that all masks are there
